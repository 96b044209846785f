//! Settings that name a folder.

use std::path::PathBuf;

use super::value::{Setting, SettingValue};

/// A path, with `~` at its beginning replaced by the user's home folder, as a shell does.
pub(crate) fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), std::env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

/// The whole path of the folder that `text` names: the same one after a change of the working directory, and in another process.
fn folder(text: &str) -> Result<PathBuf, String> {
    let path = expand_home(text.trim());
    if text.trim().starts_with('~') && path.is_relative() {
        return Err("~ stands for a home folder only alone or before /; write the whole path".into());
    }
    if path.is_absolute() {
        return Ok(path);
    }
    std::path::absolute(&path)
        .map_err(|error| format!("the working directory is not known: {error}; write the whole path"))
}

/// A folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(pub PathBuf);

impl Setting for Folder {
    type Held = Self;

    fn annotation() -> String {
        "str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) if !text.trim().is_empty() => folder(text).map(Self),
            _ => Err("must be a folder".into()),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Text(held.0.display().to_string())
    }
}

/// A folder that may be left out, or be the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderSetting {
    /// None.
    Off,
    /// The usual one.
    Usual,
    /// This one.
    Path(PathBuf),
}

impl Setting for FolderSetting {
    type Held = Self;

    fn annotation() -> String {
        "bool | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Bool(false) => Ok(Self::Off),
            SettingValue::Bool(true) => Ok(Self::Usual),
            SettingValue::Text(text) if !text.trim().is_empty() => folder(text).map(Self::Path),
            _ => Err("must be True, False or a folder".into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::Off);
        }
        match bool::from_text(text) {
            Ok(value) => Self::from_value(&SettingValue::Bool(value)),
            Err(_) => Self::from_value(&SettingValue::Text(text.into())),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        match held {
            Self::Off => SettingValue::Bool(false),
            Self::Usual => SettingValue::Bool(true),
            Self::Path(path) => SettingValue::Text(path.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_may_say_none_and_name_the_home_folder() {
        let home = std::env::home_dir().unwrap();
        let read = |text| FolderSetting::from_text(text).unwrap();
        assert_eq!([read("none"), read("None"), read("off")], [const { FolderSetting::Off }; 3]);
        assert_eq!([read("true"), read("1")], [const { FolderSetting::Usual }; 2]);
        assert_eq!(read("~"), FolderSetting::Path(home.clone()));
        assert_eq!(read("~/of caches"), FolderSetting::Path(home.join("of caches")));
        let here = std::env::current_dir().unwrap();
        assert_eq!(read("a~b"), FolderSetting::Path(here.join("a~b")));
        assert_eq!(Folder::from_text(" models "), Ok(Folder(here.join("models"))));
        assert!(FolderSetting::from_text("~someone").unwrap_err().contains("whole path"));
        assert_eq!(Folder::from_text("~/hub"), Ok(Folder(home.join("hub"))));
        assert!(Folder::from_text("~someone/hub").unwrap_err().contains("whole path"));
        assert!(Folder::from_text(" ").is_err());
    }
}
