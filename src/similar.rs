//! The name that was meant by a misspelt one.

/// The longest name that is compared: the distance of two texts takes the product of their lengths.
const LONGEST: usize = 64;

/// The one of `known` that `name` most likely stands for: equal but for case and separators, or with few mistakes for its
/// length. `None` when nothing is near.
pub(crate) fn similar<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = plain(name)?;
    let near = |known: &'a str| {
        let distance = strsim::osa_distance(&given, &plain(known)?);
        // One mistake in three letters, two in six, never more than three.
        let allowed = (given.chars().count() / 3).min(3);
        (distance <= allowed).then_some((distance, known))
    };
    known.into_iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// Up to three of `known` that a reader of `name` may look for: those that [`similar`] would take, and those whose name begins
/// with the same letters. The nearest come first.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let Some(given) = plain(name) else { return Vec::new() };
    let stem = |name: &str| -> String { name.chars().take_while(|letter| letter.is_alphabetic()).collect() };
    let own = stem(&given);
    let near = |known: &'a str| {
        let other = plain(known)?;
        let distance = strsim::osa_distance(&given, &other);
        let begins = stem(&other);
        let related = own.chars().count() >= 3 && (begins.starts_with(&own) || own.starts_with(&begins));
        let is_near = distance <= (given.chars().count() / 3).min(3);
        (is_near || related && begins.chars().count() >= 3).then_some((distance, known))
    };
    let mut found: Vec<_> = known.into_iter().filter_map(near).collect();
    found.sort_by_key(|(distance, _)| *distance);
    found.dedup();
    found.into_iter().map(|(_, known)| known).take(3).collect()
}

/// The name without what people vary; `None` for one that is too long to be a mistake.
fn plain(name: &str) -> Option<String> {
    let separates = |letter: &char| matches!(letter, '_' | '-' | ' ' | '.');
    (name.len() <= LONGEST)
        .then(|| name.chars().filter(|letter| !separates(letter)).flat_map(char::to_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: [&str; 4] = ["cache_size", "cache_disk", "max_idle_time", "dtype"];

    #[test]
    fn mistakes_of_typing_are_seen_through() {
        for (given, meant) in [
            ("cache_sise", "cache_size"),
            ("cachesize", "cache_size"),
            ("CACHE-SIZE", "cache_size"),
            ("cahce_size", "cache_size"),
            ("max_idletme", "max_idle_time"),
            ("dtpye", "dtype"),
        ] {
            assert_eq!(similar(given, SETTINGS), Some(meant), "{given}");
        }
    }

    #[test]
    fn other_names_are_no_mistakes() {
        for given in ["", "x", "cache", "size", "flavour", "dt", "İstanbul", &"cache_size".repeat(100_000)] {
            assert_eq!(similar(given, SETTINGS), None, "{given:.20}");
        }
    }

    #[test]
    fn the_nearest_is_chosen() {
        assert_eq!(similar("emb2", ["emb1", "emb12", "emb"]), Some("emb1"));
        assert_eq!(similar("emb2", ["embed"]), None);
    }

    #[test]
    fn names_of_the_same_kind_are_near() {
        let known =
            ["bert", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen2_moe", "qwen3", "t5", "roberta"];
        assert_eq!(nearest("gemma3n", known), ["gemma", "gemma2", "gemma3_text"]);
        assert_eq!(nearest("qwen2_vl", known), ["qwen2", "qwen2_moe", "qwen3"]);
        assert_eq!(nearest("robert", known), ["roberta", "bert"]);
        assert_eq!(nearest("mamba", known), [] as [&str; 0]);
        assert_eq!(nearest("", known), [] as [&str; 0]);
        assert_eq!(nearest(&"qwen".repeat(1000), known), [] as [&str; 0]);
    }
}
