//! Models of the Hugging Face hub: its cache on disk, and what to download when the cache lacks something.
//!
//! The layout is that of Python's `huggingface_hub`, so both share one copy:
//!
//! ```text
//! models--organization--name/
//!   refs/main                     the commit that the branch was at
//!   snapshots/COMMIT/config.json  → ../../blobs/ETAG
//!   blobs/ETAG                    whole files only; ETAG.incomplete while it downloads
//!   .no_exist/COMMIT/modules.json known not to exist
//! ```
//!
//! Models that sentence-transformers or transformers downloaded into a folder of their own (`cache_folder`,
//! `SENTENCE_TRANSFORMERS_HOME`, `TRANSFORMERS_CACHE`) are used from there; nothing is written there.
//!
//! A complete snapshot is used with no request. Complete means: every file that [`Selection`] wants is there, and
//! it is settled whether the model has a `modules.json` (a snapshot that transformers made alone lacks it, and would
//! silently lose its pooling).

mod cache;
mod client;
mod digest;
mod download;
mod options;
mod progress;

use std::path::{Path, PathBuf};

use self::cache::{Cached, folder_name, snapshot_of, write_whole};
use self::client::{HubClient, Listing};
use self::download::Blobs;
pub use self::options::ResolveOptions;
use self::progress::OnProgress;
pub use self::progress::Progress;
use super::adapters::config::CONFIG;
use super::head::SPARSE_LINEAR;
use super::manifest::{ADAPTER_WEIGHTS, Missing, ModelFiles, Module, Selection, read_modules};
use crate::{Error, Result};

/// The hub as configured: cache, address, access.
pub(crate) struct Hub {
    cache: PathBuf,
    /// Further folders with models, which are only read.
    others: Vec<PathBuf>,
    client: HubClient,
    offline: bool,
    revision: String,
}

impl Hub {
    pub(crate) fn new(options: &ResolveOptions) -> Result<Self> {
        let cache = options.cache();
        let others = options.read_only_caches(&cache);
        let revision = options.revision()?;
        Ok(Self { cache, others, client: options.client()?, offline: options.offline, revision })
    }

    /// What this machine has of `id`.
    fn cached(&self, id: &str) -> Result<Cached> {
        let mut cached = Cached::of_repository(&self.cache.join(folder_name(id)), &self.revision)?;
        if matches!(cached, Cached::Complete(_)) {
            return Ok(cached);
        }
        for other in &self.others {
            match Cached::elsewhere(other, id, &self.revision) {
                Ok(found @ Cached::Complete(_)) => return Ok(found),
                Ok(found) if matches!(cached, Cached::Nothing) => cached = found,
                Ok(_) => {}
                Err(error) => log::warn!("{id}: its copy in {} is not used: {error}", other.display()),
            }
        }
        Ok(cached)
    }

    fn is_absent(&self, id: &str) -> Error {
        Error::ModelNotFound {
            model: id.into(),
            reason: format!(
                "it is not complete in the cache {}{} and offline (or HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE, \
                 MODEL_MANAGER_OFFLINE) forbids to download it; unset that, or copy the model's folder here and give its \
                 path",
                self.cache.display(),
                self.others.iter().map(|other| format!(", nor in {}", other.display())).collect::<String>()
            ),
        }
    }

    /// The small files of `id`. Without the whole model on this machine, these alone are downloaded, and the bytes that its
    /// weights have on the hub are given too, if it states them.
    pub(crate) fn configuration(
        &self,
        id: &str,
        progress: &mut OnProgress<'_>,
    ) -> Result<(ModelFiles, Option<Option<u64>>)> {
        if let Some(folder) = self.cached(id)?.usable() {
            return Ok((ModelFiles::open(id, &folder)?, None));
        }
        if self.offline {
            return Err(self.is_absent(id));
        }
        let Listing { commit, files } = self.client.listing(id, &self.revision)?;
        let repo = self.cache.join(folder_name(id));
        let locks = self.cache.join(".locks").join(repo.file_name().unwrap_or_default());
        let blobs = Blobs { client: &self.client, repo: &repo, locks: &locks, id, commit: &commit };
        let snapshot = repo.join("snapshots").join(&commit);
        let (modules, selection) = select(&blobs, &snapshot, &files, progress)?;
        for file in selection.files.iter().filter(|file| is_small(file)) {
            blobs.download(file, progress)?;
        }
        let weights = selection.weight_files(&snapshot)?;
        let mut bytes = Some(0);
        for path in weights.paths() {
            let file = path.strip_prefix(&snapshot).unwrap_or(path).to_string_lossy().replace('\\', "/");
            let stated = self.client.head(&blobs.url(&file), id)?.size;
            bytes = bytes.zip(stated).map(|(sum, size)| sum + size);
        }
        let transformer = snapshot.join(&selection.transformer);
        let files =
            ModelFiles { model: id.into(), root: snapshot, transformer, weights, modules, adapter: None };
        Ok((files, Some(bytes)))
    }

    /// The folder that holds the files of `id`; downloads what is missing unless offline.
    pub(crate) fn snapshot(&self, id: &str, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let repo = self.cache.join(folder_name(id));
        let cached = match self.cached(id)? {
            Cached::Complete(folder) => return Ok(folder),
            other => other,
        };
        if self.offline {
            return cached.usable().ok_or_else(|| self.is_absent(id));
        }
        match (self.fetch(id, &repo, progress), cached.usable()) {
            (Err(error @ Error::Download { .. }), Some(snapshot)) => {
                log::warn!("{id}: using the cached copy; {error}");
                Ok(snapshot)
            }
            (result, _) => result,
        }
    }

    /// The folder `inner` of `id`, whose files are those of an adapter; downloads what is missing unless offline.
    pub(crate) fn adapter(&self, id: &str, inner: &Path, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let repo = self.cache.join(folder_name(id));
        let elsewhere = self.others.iter().map(|other| other.join(folder_name(id)));
        let caches = std::iter::once(repo).chain(elsewhere);
        // PEFT caches an adapter without the list of modules that sentence-transformers saved with it.
        let cached = |repo: PathBuf| {
            let snapshot = snapshot_of(&repo, &self.revision)?;
            let absent = repo.join(".no_exist").join(snapshot.file_name()?).join(inner).join(MODULES);
            let folder = adapter_in(&snapshot.join(inner))?;
            let is_known = folder.join(MODULES).is_file() || absent.exists();
            Some((folder, is_known))
        };
        let found = caches.into_iter().find_map(cached);
        match found {
            Some((folder, true)) => return Ok(folder),
            Some((folder, false)) if self.offline => {
                log::warn!(
                    "{id}: whether its adapter has a {MODULES} is not known offline; it is taken for one without"
                );
                return Ok(folder);
            }
            None if self.offline => return Err(self.is_absent(id)),
            _ => {}
        }
        match (self.fetch_adapter(id, inner, progress), found) {
            (Err(error @ Error::Download { .. }), Some((folder, _))) => {
                log::warn!("{id}: using the cached copy; {error}");
                Ok(folder)
            }
            (result, _) => result,
        }
    }

    fn fetch_adapter(&self, id: &str, inner: &Path, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let repo = self.cache.join(folder_name(id));
        // A model of the same repository stays at its commit: the branch moves only with all of its files.
        let known = snapshot_of(&repo, &self.revision);
        let commit = known.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let Listing { commit, files } = self.client.listing(id, commit.unwrap_or(&self.revision))?;
        let locks = self.cache.join(".locks").join(repo.file_name().unwrap_or_default());
        let blobs = Blobs { client: &self.client, repo: &repo, locks: &locks, id, commit: &commit };
        let place = |name: &str| inner.join(name).to_string_lossy().replace('\\', "/");
        let has = |name: &str| files.contains(&place(name));
        let missing = |file: &str, remedy: &str| Error::MissingFile {
            model: id.into(),
            file: place(file),
            folder: self.client.page(id).into(),
            remedy: remedy.into(),
        };
        if !has(CONFIG) {
            return Err(missing(CONFIG, "an adapter of PEFT has one; check the id and the folder after it"));
        }
        let weights = ADAPTER_WEIGHTS.into_iter().find(|name| has(name));
        let weights = weights.ok_or_else(|| missing(ADAPTER_WEIGHTS[0], "an adapter of PEFT has it"))?;
        // What else sentence-transformers saved with it is not read, and has to be known for that.
        let modules = Some(MODULES).filter(|name| has(name));
        for file in [CONFIG, weights].into_iter().chain(modules) {
            blobs.download(&place(file), progress)?;
        }
        if modules.is_none() {
            write_whole(&repo.join(".no_exist").join(&commit).join(inner).join(MODULES), b"")?;
        }
        if known.is_none() && self.revision != commit {
            write_whole(&repo.join("refs").join(&self.revision), commit.as_bytes())?;
        }
        Ok(repo.join("snapshots").join(&commit).join(inner))
    }

    fn fetch(&self, id: &str, repo: &Path, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let Listing { commit, files } = self.client.listing(id, &self.revision)?;
        let locks = self.cache.join(".locks").join(repo.file_name().unwrap_or_default());
        let blobs = Blobs { client: &self.client, repo, locks: &locks, id, commit: &commit };
        let snapshot = repo.join("snapshots").join(&commit);
        // What to fetch depends on modules.json, and the shards on the index: those two come first.
        let (modules, selection) = select(&blobs, &snapshot, &files, progress)?;
        for file in &selection.files {
            blobs.download(file, progress)?;
        }
        for path in selection.weight_files(&snapshot)?.paths() {
            let file = path.strip_prefix(&snapshot).unwrap_or(path).to_string_lossy().replace('\\', "/");
            blobs.download(&file, progress)?;
        }

        // The branch moves to this commit only now that all of it is here: a download cut short leaves the old one.
        if modules.is_empty() {
            write_whole(&repo.join(".no_exist").join(&commit).join("modules.json"), b"")?;
        }
        if self.revision != commit {
            write_whole(&repo.join("refs").join(&self.revision), commit.as_bytes())?;
        }
        Ok(snapshot)
    }
}

/// The list of the modules of sentence-transformers.
const MODULES: &str = "modules.json";

/// `folder`, if it has the files of an adapter.
fn adapter_in(folder: &Path) -> Option<PathBuf> {
    let has = |name: &str| folder.join(name).is_file();
    (has(CONFIG) && ADAPTER_WEIGHTS.into_iter().any(has)).then(|| folder.to_path_buf())
}

/// The modules of a model on the hub, whose list is downloaded if it has one, and which of its `files` it needs.
fn select(
    blobs: &Blobs<'_>,
    snapshot: &Path,
    files: &[String],
    progress: &mut OnProgress<'_>,
) -> Result<(Vec<Module>, Selection)> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let modules = if has("modules.json") {
        blobs.download("modules.json", progress)?;
        read_modules(&snapshot.join("modules.json"))?
    } else {
        Vec::new()
    };
    let listed = |folder: &str| {
        let inner = |file: &String| file.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
        files.iter().filter_map(inner).filter(|name| !name.contains('/')).collect()
    };
    let selection = Selection::new(&modules, &has, &listed)
        .map_err(|missing: Missing| missing.error(blobs.id, Path::new(&blobs.client.page(blobs.id))))?;
    Ok((modules, selection))
}

/// Whether a file says what a model is, in a few kilobytes: neither weights nor a vocabulary. bge-m3's layer of weights by
/// token is as small.
fn is_small(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let is_text = [".json", ".jinja"].iter().any(|end| name.ends_with(end)) || name == SPARSE_LINEAR;
    is_text && !["tokenizer.json", "vocab.json"].contains(&name)
}
