//! Settings of the hub: given by the caller, or by the environment as `huggingface_hub` reads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::client::HubClient;
use crate::config::{Host, expand_home};
use crate::models::source::safe_relative;
use crate::{Error, Result};

/// How to find a model's files.
#[derive(Clone)]
pub struct ResolveOptions {
    /// The embedding process: environment and installed packages.
    pub host: Arc<dyn Host>,
    /// Never open a connection.
    pub offline: bool,
    /// The hub cache; by default the one that the environment names.
    pub cache_dir: Option<PathBuf>,
    /// The hub's address; by default `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// The access token; by default `HF_TOKEN`, else the file that `hf auth login` writes.
    pub token: Option<String>,
    /// Branch, tag or commit; `main` by default.
    pub revision: Option<String>,
    /// What changes the weights: the id or the folder of an adapter, or the name of one that the model's files have.
    pub adapter: Option<String>,
}

impl ResolveOptions {
    /// Everything from the environment of `host`.
    pub fn new(host: Arc<dyn Host>) -> Self {
        let truthy = |name| {
            host.env(name)
                .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
        };
        let offline = truthy("HF_HUB_OFFLINE") || truthy("TRANSFORMERS_OFFLINE");
        Self { host, offline, cache_dir: None, endpoint: None, token: None, revision: None, adapter: None }
    }

    /// The cache: where models are looked for first, and downloaded to.
    pub fn cache(&self) -> PathBuf {
        let host = self.host.as_ref();
        self.cache_dir
            .clone()
            .or_else(|| folder(host, "HF_HUB_CACHE"))
            .or_else(|| folder(host, "HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home(host).join("hub"))
    }

    /// Folders of other programs that may contain models too.
    pub(super) fn read_only_caches(&self, cache: &Path) -> Vec<PathBuf> {
        let named = ["SENTENCE_TRANSFORMERS_HOME", "TRANSFORMERS_CACHE"];
        let named = named.into_iter().filter_map(|name| folder(self.host.as_ref(), name));
        let mut found: Vec<PathBuf> = Vec::new();
        for other in named.chain(self.host.model_folders()) {
            if other != cache && !found.contains(&other) {
                found.push(other);
            }
        }
        found
    }

    /// The branch, tag or commit.
    pub(super) fn revision(&self) -> Result<String> {
        let revision = self.revision.clone().unwrap_or_else(|| "main".into());
        if safe_relative(&revision).is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(Error::Config {
                setting: "revision".into(),
                value: revision,
                reason: "a branch, tag or commit".into(),
            });
        }
        Ok(revision)
    }

    /// A client with the address, the access token and the time-out.
    pub(super) fn client(&self) -> Result<HubClient> {
        let host = self.host.as_ref();
        let timeout = match setting(host, "HF_HUB_DOWNLOAD_TIMEOUT") {
            None => None,
            Some(value) => Some(value.parse().ok().filter(|s| *s > 0).ok_or_else(|| Error::Config {
                setting: "HF_HUB_DOWNLOAD_TIMEOUT".into(),
                value,
                reason: "a number of seconds above 0".into(),
            })?),
        };
        let endpoint = self.endpoint.clone().or_else(|| setting(host, "HF_ENDPOINT"));
        let token = self.token.clone().or_else(|| token(host, &home(host)));
        HubClient::new(endpoint.as_deref(), token.as_deref(), timeout, host)
    }
}

fn home(host: &dyn Host) -> PathBuf {
    folder(host, "HF_HOME")
        .or_else(|| folder(host, "XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| {
            let home = folder(host, "HOME").or_else(std::env::home_dir)?;
            Some(home.join(".cache/huggingface"))
        })
        .unwrap_or_else(|| PathBuf::from(".cache/huggingface"))
}

fn token(host: &dyn Host, home: &Path) -> Option<String> {
    let file = folder(host, "HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    setting(host, "HF_TOKEN")
        .or_else(|| setting(host, "HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| fs::read_to_string(file).ok().map(|token| token.trim().to_string()))
        .filter(|token| !token.is_empty())
}

fn setting(host: &dyn Host, name: &str) -> Option<String> {
    host.env(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

fn folder(host: &dyn Host, name: &str) -> Option<PathBuf> {
    setting(host, name).map(|value| expand_home(&value))
}
