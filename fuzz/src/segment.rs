//! The files of a cache on disk: a segment as another process left it, and a file to import.

use std::fs;

use model_manager::cache::CachedItem;
use model_manager::cache::tiers::disk::{Disk, DiskSettings};
use model_manager::cache::tiers::{Tier, TierKey, ValueFormat};
use model_manager::output::Item;
use tempfile::TempDir;

const NAMES: [&str; 2] = ["00000000000000000001-1-0.key", "00000000000000000001-1-0.vec"];

fn disk(folder: &TempDir) -> Disk {
    let settings = DiskSettings {
        folder: folder.path().join("segments"),
        max_bytes: 1 << 20,
        format: ValueFormat::Float32,
        time_to_live: None,
    };
    Disk::new(settings)
}

/// Two bytes say where the keys end; the values follow. The same bytes are imported as an export too.
pub(super) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let segments = folder.path().join("segments");
    fs::create_dir(&segments).expect("a folder");
    if let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (keys, values) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        for (name, bytes) in NAMES.iter().zip([keys, values]) {
            fs::write(segments.join(name), bytes).expect("a file");
        }
    }
    let read = disk(&folder);
    let verified = read.verify().expect("a folder");
    assert!(read.read_ahead(16) <= verified.whole, "what is damaged is not read");
    let _ = read.size();
    let exported = folder.path().join("exported");
    fs::write(&exported, data).expect("a file");
    let _ = read.import(&exported);
    // What a segment holds can be written anew, and read again.
    read.put(&rows());
    assert!(read.verify().expect("a folder").whole >= rows().len());
}

fn rows() -> Vec<(TierKey, CachedItem)> {
    (1..4_u8)
        .map(|number| {
            let vector = vec![f32::from(number); usize::from(number)];
            (TierKey([number; 16]), CachedItem::new(Item::Dense(vector.into()), number.into()))
        })
        .collect()
}

/// A segment, and an export.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let written = disk(&folder);
    written.put(&rows());
    let exported = folder.path().join("exported");
    written.export(&exported).expect("an export");
    let mut files: Vec<_> = fs::read_dir(written.folder())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort(); // the keys first
    let [keys, values] = [&files[0], &files[1]].map(|path| fs::read(path).expect("a file"));
    let length = u16::try_from(keys.len()).expect("a small segment");
    vec![[&length.to_le_bytes()[..], &keys, &values].concat(), fs::read(exported).expect("a file")]
}
