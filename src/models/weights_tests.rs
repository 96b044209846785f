//! Tensors of files that are whole, damaged and hostile.

use super::*;
use std::fs;
use tempfile::TempDir;

/// Header text and data → a safetensors file in a folder of its own.
fn file(header: &str, data: &[u8]) -> (TempDir, WeightFiles) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> (TempDir, WeightFiles) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    (folder, WeightFiles::Safetensors(vec![path]))
}

fn reason(files: &WeightFiles) -> String {
    match Weights::open(files).unwrap_err() {
        Error::InvalidFile { path, reason } => {
            assert_eq!(path, files.paths()[0]);
            reason
        }
        other => panic!("{other}"),
    }
}

const THREE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},"c":{"dtype":"F16","shape":[2],"data_offsets":[12,16]},
    "ids":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#;

fn three() -> Vec<u8> {
    let mut data = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    data.extend([0.5, 3.0].iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()));
    data.extend([0.25, -1.0].iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()));
    data.extend(7i64.to_le_bytes());
    data
}

#[test]
fn every_format_reads_as_what_was_written() {
    let (_folder, files) = file(THREE, &three());
    let weights = Weights::open(&files).unwrap();
    assert_eq!(weights.get("a").unwrap().to_f32().unwrap(), [1.5, -2.0]);
    assert_eq!(weights.get_shaped("b", &[1, 2]).unwrap().to_f32().unwrap(), [0.5, 3.0]);
    assert_eq!(weights.get("c").unwrap().to_f32().unwrap(), [0.25, -1.0]);
    assert_eq!(weights.shape("ids"), Some(&[1][..]));
    assert_eq!(weights.names().count(), 4);
    assert_eq!(elements(&files).unwrap(), 6);
}

#[test]
fn what_cannot_be_given_is_named() {
    let (_folder, files) = file(THREE, &three());
    let weights = Weights::open(&files).unwrap();
    let missing = weights.get("embeddings").unwrap_err().to_string();
    assert!(missing.contains("\"embeddings\" is missing among its 4 (a, b, c, …)"), "{missing}");
    let integer = weights.get("ids").unwrap_err().to_string();
    assert!(integer.contains("stored as I64"), "{integer}");
    let shape = weights.get_shaped("a", &[3]).unwrap_err().to_string();
    assert!(shape.contains("has shape [2]") && shape.contains("asks for [3]"), "{shape}");
}

#[test]
fn every_truncation_is_an_error() {
    let (folder, files) = file(THREE, &three());
    let whole = fs::read(&files.paths()[0]).unwrap();
    for length in 0..whole.len() {
        fs::write(folder.path().join("model.safetensors"), &whole[..length]).unwrap();
        assert!(!reason(&files).is_empty(), "{length} of {}", whole.len());
    }
}

#[test]
fn hostile_headers() {
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let data = [0; 8];
    for header in [
        tensor("[2]", "[0,4]"),                                     // fewer bytes than the shape needs
        tensor("[2]", "[4,12]"),                                    // past the end
        tensor("[2]", "[8,0]"),                                     // backwards
        tensor("[4611686018427387904]", "[0,0]"),                   // shape × 4 overflows
        tensor("[4294967296,4294967296]", "[0,8]"),                 // shape overflows
        tensor("[4611686018427387903]", "[0,18446744073709551612]"), // header + data overflows
        tensor("[-1]", "[0,8]"),
        r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
            .into(), // overlap, and a hole
        "[]".into(),
        "{".into(),
        String::new(),
    ] {
        let (_folder, files) = file(&header, &data);
        assert!(reason(&files).contains("download it again"), "{header}");
    }
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001, 9] {
        let (_folder, files) = raw(&[&length.to_le_bytes()[..], b"{}"].concat());
        assert!(reason(&files).contains("download it again"), "{length}");
    }
}

#[test]
fn an_empty_file_and_a_git_lfs_pointer_are_called_that() {
    let (_folder, files) = raw(b"");
    assert!(reason(&files).contains("empty"));
    let (_folder, files) = raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    assert!(reason(&files).contains("git lfs pull"));
}

#[test]
fn a_pickle_that_is_none() {
    for bytes in [&b"PK\x03\x04 not a zip"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"garbage"] {
        let (folder, _) = raw(b"x");
        let path = folder.path().join("pytorch_model.bin");
        fs::write(&path, bytes).unwrap();
        let said = reason(&WeightFiles::Pickle(vec![path]));
        assert!(said.contains("safetensors"), "{said}");
    }
}

#[test]
fn a_vanished_file_is_an_io_error() {
    let files = WeightFiles::Safetensors(vec!["/nowhere/model.safetensors".into()]);
    assert!(matches!(Weights::open(&files), Err(Error::Io { .. })));
}

/// What a damaged copy of `whole` gives: an error that names the file, or tensors.
fn outcome(path: &Path, whole: &[u8], files: &WeightFiles) {
    fs::write(path, whole).unwrap();
    let read = Weights::open(files).and_then(|weights| {
        let names: Vec<_> = weights.names().map(str::to_owned).collect();
        names.iter().try_for_each(|name| weights.get(name)?.to_f32().map(drop))
    });
    match read {
        Ok(()) => {}
        Err(Error::InvalidFile { path: named, .. }) => assert_eq!(named, path),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn damage_is_an_error_that_names_the_file() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    for name in ["bert_bin/pytorch_model.bin", "bert_plain/model.safetensors"] {
        let whole = fs::read(fixtures.join(name)).unwrap();
        let path = folder.path().join(name.rsplit('/').next().unwrap());
        let files = match name.ends_with(".bin") {
            true => WeightFiles::Pickle(vec![path.clone()]),
            false => WeightFiles::Safetensors(vec![path.clone()]),
        };
        let mut seed = 1u64;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        for round in 0..150 {
            let mut damaged = whole.clone();
            // Structure lies at both ends; numbers between.
            let ends = 8000.min(whole.len() / 2);
            let place = |at: usize| if at < ends { at } else { whole.len() - 1 - (at - ends) };
            match round % 3 {
                0 => (0..=next(4)).for_each(|_| damaged[place(next(2 * ends))] = next(256) as u8),
                1 => damaged.truncate(place(next(2 * ends))),
                _ => {
                    let (from, to, n) = (next(whole.len() - 64), next(whole.len() - 64), next(64));
                    damaged.copy_within(from..from + n, to);
                }
            }
            outcome(&path, &damaged, &files);
        }
    }
}

#[test]
fn the_tensors_of_a_text_model_are_found_among_those_of_images() {
    let entry = |name: &str, at: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{}]}}"#, at + 4)
    };
    let names = ["language_model.model.norm.weight", "model.language_model.embed.weight", "lm_head.weight"];
    let images = ["vision_tower.a", "model.vision_tower.b", "multi_modal_projector.c"];
    let header: Vec<_> = names.iter().chain(&images).zip(0..).map(|(name, n)| entry(name, 4 * n)).collect();
    let data: Vec<u8> = (0..6_u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    let (_folder, files) = file(&format!("{{{}}}", header.join(",")), &data);
    let weights = Weights::open(&files).unwrap();
    for (name, value) in [("model.norm.weight", 0.0), ("model.embed.weight", 1.0), ("lm_head.weight", 2.0)] {
        assert!(weights.contains(name), "{name}");
        assert_eq!(weights.vector(name, 1).unwrap().to_f32().unwrap(), [value], "{name}");
    }
    assert!(!weights.contains("model.a"));
    assert_eq!(elements(&files).unwrap(), 3, "those of images are not loaded");
}
