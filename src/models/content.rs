//! What a model computes, as a number that is equal on every machine and after every restart.
//!
//! [`ModelFiles::stamp`] names files by their path and time, which is enough within one process. Results that outlive the
//! process are named by what the files contain.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::adapters::config::config_path;
use super::manifest::{ModelAdapter, ModelFiles, Selection, WeightFiles, files_in, metadata};
use super::settings::Overrides;
use crate::compute::WeightFormat;
use crate::{Error, Result};

/// Raised when a change of this crate changes what a model computes.
const RESULTS: u32 = 2;

/// Bytes that are read between two checks.
const PART: usize = 1 << 20;

/// SHA-256 of everything that decides what a model computes: weights, configuration, tokenizer, pooling and Dense files,
/// the format of the weights in memory, and what the user overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ContentId {
    /// From 64 hexadecimal digits, as it is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Reads all files. `between` is called about every megabyte and may stop it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`], and whatever `between` returns.
    pub fn of(
        files: &ModelFiles,
        format: WeightFormat,
        overrides: Overrides,
        between: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let mut all = Sha256::new();
        all.update(format!("{RESULTS} {format:?} {overrides:?}{}", own_adapter(files)));
        for (name, path) in content_files(files) {
            all.update((name.len() as u64).to_le_bytes());
            all.update(&name);
            all.update(checksum(&path, between)?);
        }
        Ok(Self(all.finalize().into()))
    }
}

impl ModelFiles {
    /// Changes whenever a file that decides results is replaced or changed: path, length, times and inode of each. The
    /// time of the latest change of the inode is among them: programs that copy files set the other one as they like. Costs no
    /// reading; a content id that was computed under the same stamp is still right.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`] when a file vanished or is closed to us.
    pub fn stamp(&self, format: WeightFormat, overrides: Overrides) -> Result<String> {
        let mut stamp = format!("{RESULTS} {format:?} {overrides:?}{}", own_adapter(self));
        for (_, path) in content_files(self) {
            let real = fs::canonicalize(&path).map_err(|e| Error::io(&path, "read", &e))?;
            let meta = metadata(&path)?;
            let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            // Writing to a `String` cannot fail.
            let _ = write!(
                stamp,
                "|{}|{}|{}|{}",
                real.display(),
                meta.len(),
                modified.unwrap_or_default().as_nanos(),
                inode(&meta)
            );
        }
        Ok(stamp)
    }
}

impl ModelFiles {
    /// SHA-256 of the adapter's files, or of the name of one that the model's own files have; `None` without an adapter.
    /// Adapters of one name are often different ones.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`].
    pub fn adapter_content(&self) -> Result<Option<String>> {
        let mut all = Sha256::new();
        match &self.adapter {
            None => return Ok(None),
            Some(ModelAdapter::Own(name)) => all.update(name),
            Some(ModelAdapter::Peft { folder, weights, .. }) => {
                for path in weights.paths().iter().chain([&config_path(folder)]) {
                    all.update(checksum(path, &mut || Ok(()))?);
                }
            }
        }
        Ok(Some(ContentId(all.finalize().into()).to_string()))
    }
}

/// Number of the inode, and the time of its latest change.
#[cfg(unix)]
fn inode(meta: &fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt as _;
    format!("{}|{}.{:09}", meta.ino(), meta.ctime(), meta.ctime_nsec())
}

/// On Windows neither is to be had.
#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> String {
    String::new()
}

/// The adapter of the model's own files that is used.
fn own_adapter(files: &ModelFiles) -> String {
    match &files.adapter {
        Some(ModelAdapter::Own(name)) => format!(" {name:?}"),
        Some(ModelAdapter::Peft { .. }) | None => String::new(),
    }
}

/// The files that decide results, by their names within the model.
fn content_files(files: &ModelFiles) -> Vec<(String, PathBuf)> {
    let named = |path: &Path| {
        let name = path.strip_prefix(&files.root).ok().filter(|name| !name.as_os_str().is_empty());
        let name = name.map_or_else(|| path.file_name().unwrap_or_default().into(), Path::to_path_buf);
        (name.to_string_lossy().replace('\\', "/"), path.to_path_buf())
    };
    let mut all: Vec<_> = files.weights.paths().iter().map(|path| named(path)).collect();
    if !matches!(files.weights, WeightFiles::Gguf(_))
        && let Ok(selection) =
            Selection::new(&files.modules, &|name| files.root.join(name).is_file(), &|folder| {
                files_in(&files.root.join(folder))
            })
    {
        all.extend(selection.files.into_iter().map(|name| {
            let path = files.root.join(&name);
            (name, path)
        }));
    }
    if let Some(ModelAdapter::Peft { folder, weights, .. }) = &files.adapter {
        // Next to the files of its base, of which none has such a name.
        let own = weights.paths().iter().cloned().chain([config_path(folder)]);
        all.extend(own.map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (format!("/adapter/{name}"), path)
        }));
    }
    all.sort();
    all.dedup();
    all
}

/// SHA-256 of a file. The hub's cache names large files by it already.
fn checksum(path: &Path, between: &mut dyn FnMut() -> Result<()>) -> Result<[u8; 32]> {
    let failed = |e: &std::io::Error| Error::io(path, "read", e);
    let real = fs::canonicalize(path).map_err(|e| failed(&e))?;
    let blob = real.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    let stated = real.file_name().and_then(|name| ContentId::parse(name.to_str()?));
    if let (true, Some(ContentId(stated))) = (blob, stated) {
        return Ok(stated);
    }
    let mut file = File::open(path).map_err(|e| failed(&e))?;
    let (mut sum, mut part) = (Sha256::new(), vec![0; PART]);
    loop {
        between()?;
        match file.read(&mut part).map_err(|e| failed(&e))? {
            0 => return Ok(sum.finalize().into()),
            count => sum.update(&part[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, content: &str) {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }

    fn model(folder: &Path) -> ModelFiles {
        for (name, content) in [
            ("config.json", "{}"),
            ("tokenizer.json", "{\"a\": 1}"),
            ("model.safetensors", "weights"),
            ("README.md", "words"),
            ("2_Dense/config.json", "{}"),
            ("2_Dense/model.safetensors", "dense"),
        ] {
            write(folder, name, content);
        }
        let modules = r#"[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                          {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
        write(folder, "modules.json", modules);
        ModelFiles::open("m", folder).unwrap()
    }

    fn id(files: &ModelFiles) -> ContentId {
        ContentId::of(files, WeightFormat::F32, Overrides::default(), &mut || Ok(())).unwrap()
    }

    #[test]
    fn a_copy_elsewhere_is_the_same_and_every_file_that_matters_counts() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (files, copy) = (model(one.path()), model(other.path()));
        let first = id(&files);
        assert_eq!(first, id(&copy));
        assert_eq!(ContentId::parse(&first.to_string()), Some(first));
        write(other.path(), "README.md", "other words");
        assert_eq!(first, id(&copy));
        let mut seen = vec![first];
        for name in ["config.json", "tokenizer.json", "model.safetensors", "2_Dense/model.safetensors"] {
            let before = copy.stamp(WeightFormat::F32, Overrides::default()).unwrap();
            write(other.path(), name, "changed!");
            assert_ne!(before, copy.stamp(WeightFormat::F32, Overrides::default()).unwrap(), "{name}");
            let changed = id(&copy);
            assert!(!seen.contains(&changed), "{name}");
            seen.push(changed);
        }
        let longer = Overrides { max_length: Some(7), ..Overrides::default() };
        assert_ne!(first, ContentId::of(&files, WeightFormat::F32, longer, &mut || Ok(())).unwrap());
        assert_ne!(
            first,
            ContentId::of(&files, WeightFormat::Bf16, Overrides::default(), &mut || Ok(())).unwrap()
        );
    }

    #[cfg(unix)]
    #[test]
    fn weights_that_are_written_in_place_with_their_old_time_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let files = model(folder.path());
        let path = folder.path().join("model.safetensors");
        let stamp = || files.stamp(WeightFormat::F32, Overrides::default()).unwrap();
        let (before, meta) = (stamp(), fs::metadata(&path).unwrap());
        assert_eq!(before, stamp());
        let changed = |meta: &fs::Metadata| {
            use std::os::unix::fs::MetadataExt as _;
            (meta.ctime(), meta.ctime_nsec())
        };
        // The clock of some file systems ticks every few milliseconds.
        while changed(&fs::metadata(&path).unwrap()) == changed(&meta) {
            fs::write(&path, "WEIGHTS").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
        }
        let now = fs::metadata(&path).unwrap();
        assert_eq!((now.len(), now.modified().unwrap()), (meta.len(), meta.modified().unwrap()));
        assert_ne!(before, stamp());
    }

    #[test]
    fn an_adapter_is_part_of_what_a_model_is() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bare = model(folder.path());
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            write(other.path(), name, "one");
        }
        let weights = WeightFiles::Safetensors(vec![other.path().join("adapter_model.safetensors")]);
        let adapter = ModelAdapter::Peft { name: "a".into(), folder: other.path().into(), weights };
        let adapted = ModelFiles { adapter: Some(adapter), ..bare.clone() };
        let own = |name: &str| ModelFiles { adapter: Some(ModelAdapter::Own(name.into())), ..bare.clone() };
        let mut seen = vec![id(&bare), id(&adapted), id(&own("query")), id(&own("passage"))];
        let stamp = |files: &ModelFiles| files.stamp(WeightFormat::F32, Overrides::default()).unwrap();
        let stamps = [&bare, &adapted, &own("query"), &own("passage")].map(stamp);
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            write(other.path(), name, "other");
            seen.push(id(&adapted));
        }
        for (index, one) in seen.iter().enumerate() {
            assert!(!seen[..index].contains(one), "{index}");
        }
        assert!((1..4).all(|index| !stamps[..index].contains(&stamps[index])));
    }

    #[cfg(unix)]
    #[test]
    fn a_blob_of_the_hub_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = model(folder.path());
        let blob = folder.path().join("blobs").join("ab".repeat(32));
        write(folder.path(), &format!("blobs/{}", "ab".repeat(32)), "never read");
        let link = folder.path().join("linked.safetensors");
        std::os::unix::fs::symlink(&blob, &link).unwrap();
        files.weights = WeightFiles::Safetensors(vec![link]);
        let first = id(&files);
        fs::write(blob, "other content of the same name").unwrap();
        assert_eq!(first, id(&files));
    }
}
