use std::io::Write;
use std::path::PathBuf;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// A checkpoint of this pickle, and of one storage with the numbers 0 to 7.
fn checkpoint(program: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let numbers: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let mut zip = ZipWriter::new(std::fs::File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", program), ("archive/data/0", &numbers)] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    (folder, path)
}

/// Pushes a tensor of two dimensions in storage 0.
fn tensor(class: &str, offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut out = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n".to_vec();
    out.extend(class.as_bytes());
    out.extend(b"\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQK");
    out.push(offset);
    for [a, b] in [shape, strides] {
        out.extend([b'K', a, b'K', b, 0x86]);
    }
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    out
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (name, value) in entries {
        out.extend(b"X");
        out.extend((name.len() as u32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(value);
    }
    out.extend(b"u.");
    out
}

fn read(program: &[u8]) -> Result<Vec<Pickled>> {
    let (_folder, path) = checkpoint(program);
    tensors(&WeightFile::open(&path).unwrap())
}

fn refusal(program: &[u8]) -> String {
    match read(program) {
        Err(Error::InvalidFile { path, reason }) if path.ends_with("pytorch_model.bin") => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_found_whatever_their_strides() {
    let program = dict(&[
        ("a", tensor("FloatStorage", 2, [2, 3], [3, 1])),
        ("b", tensor("FloatStorage", 0, [2, 3], [1, 2])),
        ("c", tensor("BoolStorage", 0, [2, 2], [2, 1])),
        ("n", b"K\x01".to_vec()),
    ]);
    let (_folder, path) = checkpoint(&program);
    let file = WeightFile::open(&path).unwrap();
    let found = tensors(&file).unwrap();
    let [a, b, c] = &found[..] else { panic!("{found:?}") };
    assert_eq!((a.dtype.clone(), a.is_contiguous(), b.is_contiguous()), (Ok(Stored::F32), true, false));
    assert_eq!(c.dtype, Err("Bool".to_owned()));
    let numbers = |tensor: &Pickled| -> Vec<f32> {
        let mut bytes = vec![0; tensor.range.len()];
        file.read(tensor.range.start, &mut bytes).unwrap();
        let bytes = tensor.gather(&bytes, 4).unwrap();
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    assert_eq!(numbers(a), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(numbers(b), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    a.storage.check(&file).unwrap();
    let wrong = Storage { checksum: a.storage.checksum ^ 1, ..a.storage.clone() };
    assert!(wrong.check(&file).unwrap_err().to_string().contains("checksum"));
}

/// The names of the tensors in a dict that is filled entry by entry, as `SETITEM` does.
fn names(entries: &[[&[u8]; 2]]) -> Vec<String> {
    let mut program = b"\x80\x02}".to_vec();
    for [key, value] in entries {
        program.extend([key, value, &b"s"[..]].concat());
    }
    program.push(b'.');
    read(&program).unwrap().into_iter().map(|tensor| tensor.name).collect()
}

#[test]
fn every_form_of_a_text_names_a_tensor() {
    let weight = tensor("FloatStorage", 0, [2, 3], [3, 1]);
    let short = "weight";
    for code in [b'U', b'C', 0x8c] {
        let key = [&[code, short.len() as u8], short.as_bytes()].concat();
        assert_eq!(names(&[[&key, &weight]]), [short], "{code:#x}");
    }
    let long = "weight".repeat(50);
    for code in [b'T', b'B', b'X'] {
        let key = [&[code][..], &(long.len() as u32).to_le_bytes(), long.as_bytes()].concat();
        assert_eq!(names(&[[&key, &weight]]), [long.as_str()], "{code:#x}");
    }
}

#[test]
fn values_that_are_no_tensors_are_passed_over() {
    let weight = tensor("FloatStorage", 0, [2, 3], [3, 1]);
    let found = names(&[
        [b"U\x01f", b"G\xff\xff\xff\xff\xff\xff\xff\xff"],
        [b"U\x01l", b"]K\x01aK\x02a"],
        // Bytes that are no text, as a value and as a key.
        [b"U\x01b", b"B\x02\0\0\0\xff\xfe"],
        [b"C\x02\xff\xfe", &weight],
        [b"U\x01w", &weight],
    ]);
    assert_eq!(found, ["w"]);
}

#[test]
fn values_are_kept_by_numbers_of_one_byte_and_of_four() {
    let weight = tensor("FloatStorage", 0, [2, 3], [3, 1]);
    // Both numbers end with the same byte.
    let kept = [&weight[..], b"r\x07\x11\x01\0"].concat();
    let found = names(&[[b"U\x01aq\x07", &kept], [b"U\x01b", b"j\x07\x11\x01\0"], [b"U\x01c", b"h\x07"]]);
    assert_eq!(found, ["a", "b"]);
    assert!(refusal(b"\x80\x02]q\x07j\x07\x11\x01\0.").contains("did not keep"));
}

#[test]
fn a_damaged_program_is_named_by_its_checksum() {
    let program = dict(&[("weight", tensor("FloatStorage", 0, [2, 3], [3, 1]))]);
    let (_folder, path) = checkpoint(&program);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|part| part == b"weight").unwrap();
    // Another name is a sound program, of another model.
    bytes[at] = b'h';
    std::fs::write(&path, bytes).unwrap();
    let error = tensors(&WeightFile::open(&path).unwrap()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    for (offset, shape, strides) in [
        (0, [3, 3], [3, 1]),
        (3, [2, 3], [3, 1]),
        (0, [2, 2], [7, 1]),
        (9, [0, 1], [1, 1]),
        (0, [200, 200], [0, 0]),
    ] {
        let said = refusal(&dict(&[("a", tensor("FloatStorage", offset, shape, strides))]));
        assert!(said.contains("outside of its storage"), "{said}");
    }
}

#[test]
fn a_program_that_is_no_state_dict_is_refused_by_name() {
    let model = b"\x80\x02cmodule\nModel\n)R}b.";
    assert!(refusal(model).contains("it is a module.Model; it holds no tensors"));
    assert!(refusal(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").contains("it is a os.system"));
    assert!(refusal(&dict(&[("n", b"K\x01".to_vec())])).contains("state_dict"));
    for (program, word) in [
        (&b"\x80\x02}"[..], "cut short"),
        (b"\x80\x02i.", "0x69"),
        (b"\x80\x02t.", "stack"),
        (b"\x80\x02h\x07.", "did not keep"),
        (b"\x80\x02K\x01K\x02a.", "no list"),
        (b"\x80\x02)Q.", "storage"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "cut short"),
        (b".", "no tensors"),
    ] {
        let said = refusal(program);
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn neither_depth_nor_sharing_costs_more_than_the_file() {
    // A hundred thousand tuples, each inside the next.
    let mut nested = b"\x80\x02)".to_vec();
    nested.extend(std::iter::repeat_n(0x85, 100_000));
    nested.push(b'.');
    assert!(refusal(&nested).contains("no tensors"));
    // Each list holds the one before it twice: 2^5000 values, were they copied.
    let mut doubled = b"\x80\x02]q\0".to_vec();
    for _ in 0..5000 {
        doubled.extend(b"]h\0ah\0aq\0");
    }
    doubled.push(b'.');
    assert!(refusal(&doubled).contains("no tensors"));
    let mut many = b"\x80\x02".to_vec();
    many.resize((1 << 20) + 10, b'N');
    assert!(refusal(&many).contains("more than 1048576 values"));
}

#[test]
fn the_format_of_old_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap();
    let error = tensors(&WeightFile::open(&path).unwrap()).unwrap_err().to_string();
    assert!(error.contains("before 1.6"), "{error}");
}
