//! What was learned of models when they were loaded: enough to answer cached texts before they are loaded again.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::info::ModelFacts;
use crate::models::ContentId;
use crate::private_files::{create_folder, replace};
use crate::sync::Mutex;

/// Raised when the layout changes. A file of another version is no file.
const VERSION: u32 = 3;

/// A model of known files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KnownModel {
    version: u32,
    /// Of its files: path, length, times and inode of each.
    stamp: String,
    content: String,
    pub(super) facts: ModelFacts,
}

impl KnownModel {
    pub(super) fn new(stamp: String, content: ContentId, facts: ModelFacts) -> Self {
        Self { version: VERSION, stamp, content: content.to_string(), facts }
    }

    pub(super) fn content(&self) -> Option<ContentId> {
        ContentId::parse(&self.content)
    }
}

/// All models whose content was computed: in memory, and in a folder if there is one.
pub(super) struct KnownModels {
    folder: Option<PathBuf>,
    memory: Mutex<HashMap<String, KnownModel>>,
}

impl KnownModels {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, memory: Mutex::default() }
    }

    /// What is known of the model whose files have this stamp. A file that cannot be read is no knowledge.
    pub(super) fn find(&self, stamp: &str) -> Option<KnownModel> {
        if let Some(known) = self.memory.lock().get(stamp) {
            return Some(known.clone());
        }
        let json = fs::read(self.path(stamp)?).ok()?;
        let known: KnownModel = serde_json::from_slice(&json).ok()?;
        let usable = known.version == VERSION && known.stamp == stamp && known.content().is_some();
        if !usable {
            return None;
        }
        self.memory.lock().insert(stamp.to_owned(), known.clone());
        Some(known)
    }

    /// Remembers a model. What cannot be written is known in this process only.
    pub(super) fn remember(&self, known: KnownModel) {
        if let Err(error) = self.write(&known) {
            log::debug!("what is known of {} was not written: {error}", known.facts.model);
        }
        self.memory.lock().insert(known.stamp.clone(), known);
    }

    fn write(&self, known: &KnownModel) -> io::Result<()> {
        let (Some(folder), Some(path)) = (&self.folder, self.path(&known.stamp)) else { return Ok(()) };
        create_folder(folder)?;
        let json = serde_json::to_vec(known)?;
        replace(&path, |file| file.write_all(&json))
    }

    fn path(&self, stamp: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{:x}.json", Sha256::digest(stamp))))
    }
}
