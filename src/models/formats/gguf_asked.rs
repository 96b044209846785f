//! Which metadata of a GGUF file was asked for, and whether its values are of the kind that was wanted.

use std::collections::BTreeMap;

use crate::sync::Mutex;

/// The keys that were asked for. With each, what was wanted, unless its value was understood once.
#[derive(Debug, Default)]
pub(super) struct AskedKeys(Mutex<BTreeMap<String, Option<&'static str>>>);

impl AskedKeys {
    /// Notes that the value of `key` was wanted as a `wanted`. A key may be asked for as several kinds.
    pub(super) fn note(&self, key: &str, wanted: &'static str, understood: bool) {
        let mut asked = self.0.lock();
        match asked.get_mut(key) {
            Some(noted) if understood => *noted = None,
            Some(_) => {}
            None => {
                asked.insert(key.to_owned(), (!understood).then_some(wanted));
            }
        }
    }

    /// The first key, in the order of the alphabet, whose value was never understood, and what was wanted.
    pub(super) fn first_misread(&self) -> Option<(String, &'static str)> {
        self.0.lock().iter().find_map(|(key, wanted)| wanted.map(|wanted| (key.clone(), wanted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_understood_as_one_of_several_kinds_is_read() {
        let asked = AskedKeys::default();
        asked.note("b", "a number", false);
        assert_eq!(asked.first_misread(), Some(("b".into(), "a number")));
        asked.note("b", "a list", true);
        asked.note("b", "a text", false);
        assert_eq!(asked.first_misread(), None);
        asked.note("c", "a text", false);
        asked.note("a", "a number", false);
        assert_eq!(asked.first_misread(), Some(("a".into(), "a number")));
    }
}
