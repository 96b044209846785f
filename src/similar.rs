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
}
