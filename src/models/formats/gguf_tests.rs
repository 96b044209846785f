use super::*;

/// Writes GGUF files, sound or not.
#[derive(Default, Clone)]
pub(crate) struct Writer {
    metadata: Vec<u8>,
    entries: usize,
    tensors: Vec<u8>,
    tensor_count: usize,
    data: Vec<u8>,
}

impl Writer {
    fn put(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.entries += 1;
        Self::put(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        &mut self.metadata
    }

    pub(crate) fn text(mut self, key: &str, text: &str) -> Self {
        Self::put(self.key(key, 8), text);
        self
    }

    pub(crate) fn number(mut self, key: &str, n: u32) -> Self {
        self.key(key, 4).extend(n.to_le_bytes());
        self
    }

    pub(crate) fn float(mut self, key: &str, x: f32) -> Self {
        self.key(key, 6).extend(x.to_le_bytes());
        self
    }

    pub(crate) fn flag(mut self, key: &str, flag: bool) -> Self {
        self.key(key, 7).push(flag.into());
        self
    }

    pub(crate) fn texts<S: AsRef<str>>(mut self, key: &str, texts: &[S]) -> Self {
        let out = self.key(key, 9);
        out.extend(8u32.to_le_bytes());
        out.extend((texts.len() as u64).to_le_bytes());
        for text in texts {
            Self::put(out, text.as_ref());
        }
        self
    }

    pub(crate) fn integers(mut self, key: &str, numbers: &[i32]) -> Self {
        let out = self.key(key, 9);
        out.extend(5u32.to_le_bytes());
        out.extend((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        self
    }

    pub(crate) fn flags(mut self, key: &str, flags: &[bool]) -> Self {
        let out = self.key(key, 9);
        out.extend(7u32.to_le_bytes());
        out.extend((flags.len() as u64).to_le_bytes());
        out.extend(flags.iter().map(|flag| u8::from(*flag)));
        self
    }

    pub(crate) fn floats(mut self, key: &str, numbers: &[f32]) -> Self {
        let out = self.key(key, 9);
        out.extend(6u32.to_le_bytes());
        out.extend((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        self
    }

    /// `shape` outermost first.
    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> Self {
        self.tensor_count += 1;
        Self::put(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| self.tensors.extend((n as u64).to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.aligned(32)
    }

    fn aligned(&self, alignment: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensor_count as u64).to_le_bytes());
        out.extend((self.entries as u64).to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend(&self.data);
        out
    }

    pub(crate) fn write(&self) -> (tempfile::TempDir, PathBuf) {
        raw(&self.bytes())
    }
}

fn raw(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn small() -> Writer {
    Writer::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 3)
        .float("llama.rope.freq_base", 1e5)
        .flag("tokenizer.ggml.add_bos_token", true)
        .texts("tokenizer.ggml.tokens", &["a", "ş"])
        .integers("tokenizer.ggml.token_type", &[1, 3])
        .tensor("norm", &[3], 0, &f32s(&[1.0, 2.0, 3.0]))
        .tensor("w", &[2, 32], 8, &[&[0x00, 0x3c][..], &[3; 32], &[0x00, 0x40], &[0xff; 32]].concat())
}

fn reason(bytes: &[u8]) -> String {
    let (_folder, path) = raw(bytes);
    match Gguf::open(&path) {
        Err(Error::InvalidFile { path: named, reason }) if named == path => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn metadata_and_tensors_are_read() {
    let (_folder, path) = small().write();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.text("general.architecture"), Some("llama"));
    assert_eq!(gguf.required("llama.block_count"), Ok(3));
    assert_eq!(gguf.float("llama.rope.freq_base"), Some(1e5));
    assert_eq!(gguf.flag("tokenizer.ggml.add_bos_token"), Some(true));
    assert_eq!(gguf.array("tokenizer.ggml.tokens").unwrap()[1], GgufValue::Text("ş".into()));
    let Matrix::Plain(norm) = gguf.matrix("norm").unwrap() else { panic!("plain numbers") };
    assert_eq!(norm.to_f32().unwrap(), [1.0, 2.0, 3.0]);
    let Matrix::Blocks(weights) = gguf.matrix("w").unwrap() else { panic!("blocks") };
    assert_eq!(
        (gguf.shape("w"), weights.to_f32().unwrap()[31..33].to_vec()),
        (Some(&[2, 32][..]), vec![3.0, -2.0])
    );
    assert!(gguf.required("llama.none").unwrap_err().to_string().contains("llama.none"));
    assert!(gguf.matrix("none").unwrap_err().to_string().contains("\"none\" is missing"));
}

#[test]
fn numbers_of_every_width_are_read() {
    let numbers: [(u32, Vec<u8>, GgufValue); 8] = [
        (0, vec![200], GgufValue::Integer(200)),
        (1, vec![254], GgufValue::Integer(-2)),
        (2, 60_000u16.to_le_bytes().into(), GgufValue::Integer(60_000)),
        (3, (-300i16).to_le_bytes().into(), GgufValue::Integer(-300)),
        (4, u32::MAX.to_le_bytes().into(), GgufValue::Integer(u32::MAX.into())),
        (10, u64::MAX.to_le_bytes().into(), GgufValue::Integer(u64::MAX.into())),
        (11, i64::MIN.to_le_bytes().into(), GgufValue::Integer(i64::MIN.into())),
        (12, 1e300f64.to_le_bytes().into(), GgufValue::Float(1e300)),
    ];
    let mut writer = Writer::default();
    for (kind, bytes, _) in &numbers {
        writer.key(&format!("one.{kind}"), *kind).extend(bytes);
        let list = writer.key(&format!("list.{kind}"), 9);
        list.extend(kind.to_le_bytes());
        list.extend(2u64.to_le_bytes());
        list.extend(bytes.repeat(2));
    }
    let (_folder, path) = writer.write();
    let gguf = Gguf::open(&path).unwrap();
    for (kind, _, value) in numbers {
        assert_eq!(gguf.get(&format!("one.{kind}")), Some(&value), "{kind}");
        let list = GgufValue::Array(vec![value.clone(), value]);
        assert_eq!(gguf.get(&format!("list.{kind}")), Some(&list), "{kind}");
    }
}

#[test]
fn tensors_begin_where_the_alignment_of_the_file_says() {
    for alignment in [1, 8, 4096] {
        let writer = Writer::default()
            .number("general.alignment", alignment)
            .tensor("a", &[1], 0, &f32s(&[1.0]))
            .tensor("b", &[1], 0, &f32s(&[2.0]));
        let (_folder, path) = raw(&writer.aligned(alignment as usize));
        let gguf = Gguf::open(&path).unwrap();
        for (name, value) in [("a", 1.0), ("b", 2.0)] {
            let Matrix::Plain(weight) = gguf.matrix(name).unwrap() else { panic!("plain numbers") };
            assert_eq!(weight.to_f32().unwrap(), [value], "{alignment} {name}");
        }
    }
    for wrong in [0, (1 << 20) + 1] {
        let writer = Writer::default().number("general.alignment", wrong);
        assert!(reason(&writer.bytes()).contains("alignment is no positive number"), "{wrong}");
    }
    let writer = Writer::default().text("general.alignment", "64");
    assert!(reason(&writer.bytes()).contains("alignment is no positive number"));
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small().bytes();
    for length in 1..whole.len() - 31 {
        assert!(!reason(&whole[..length]).is_empty(), "{length} of {}", whole.len());
    }
}

#[test]
fn what_is_no_gguf_is_called_that() {
    assert!(reason(b"GGML and more").contains("no GGUF file"));
    let mut old = small().bytes();
    old[4] = 1;
    assert!(reason(&old).contains("version is 1"));
}

#[test]
fn hostile_numbers_take_no_memory() {
    let whole = small().bytes();
    for at in [8, 16, 24] {
        let mut hostile = whole.clone();
        hostile[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!reason(&hostile).is_empty());
        hostile[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(!reason(&hostile).is_empty());
    }
    let huge = Writer::default().tensor("w", &[1 << 40, 1 << 40], 0, &[]);
    assert!(reason(&huge.bytes()).contains("outside of the file"));
    let odd = Writer::default().tensor("w", &[2, 33], 8, &[0; 100]);
    assert!(reason(&odd.bytes()).contains("Q8_0 tensor of shape [2, 33]"));
}

#[test]
fn a_format_without_a_kernel_is_named_when_it_is_needed() {
    let (_folder, path) = Writer::default().tensor("w", &[1, 256], 40, &[0; 144]).write();
    let error = Gguf::open(&path).unwrap().matrix("w").unwrap_err();
    assert!(matches!(&error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("\"w\" is stored in ggml's format number 40 (NVFP4)"), "{error}");
}

#[test]
fn metadata_cannot_take_many_times_its_size() {
    let mut many = Writer::default();
    let out = many.key("a", 9);
    out.extend(0u32.to_le_bytes());
    out.extend((5u64 << 20).to_le_bytes());
    out.resize(out.len() + (5 << 20), 1);
    assert!(reason(&many.bytes()).contains("more than 4194304 values"));
    let mut deep = Writer::default();
    let out = deep.key("a", 9);
    for _ in 0..1000 {
        out.extend(9u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
    }
    assert!(reason(&deep.bytes()).contains("unknown type 9"));
    let mut long = Writer::default();
    long.key("a", 9).extend([8u32.to_le_bytes(), [0xff; 4], [0xff; 4]].concat());
    assert!(reason(&long.bytes()).contains("too short"));
}

#[test]
fn names_are_there_once() {
    let twice = Writer::default().number("a", 1).text("a", "b");
    assert!(reason(&twice.bytes()).contains("a key twice"));
    let twice = Writer::default().tensor("w", &[1], 0, &[0; 4]).tensor("w", &[1], 0, &[0; 4]);
    assert!(reason(&twice.bytes()).contains("\"w\" is there twice"));
}

fn part(number: u32, count: u32, name: &str, value: f32) -> Writer {
    Writer::default()
        .text("general.architecture", if number == 0 { "llama" } else { "other" })
        .number("split.no", number)
        .number("split.count", count)
        .number("split.tensors.count", 2)
        .tensor(name, &[1], 0, &f32s(&[value]))
}

#[test]
fn metadata_of_another_kind_is_named_unless_it_is_the_id_of_a_token() {
    let writer = small().text("tokenizer.ggml.eos_token_id", "7").text("llama.layers", "7");
    let (_folder, path) = writer.write();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.number("tokenizer.ggml.eos_token_id"), None);
    assert_eq!(gguf.check_asked(), Ok(()));
    assert_eq!(gguf.number("llama.layers"), None);
    let error = gguf.check_asked().unwrap_err().to_string();
    assert!(error.contains("\"llama.layers\""), "{error}");
}

#[test]
fn names_of_other_forms_are_of_one_file() {
    for name in [
        "m.gguf",
        "m-1-of-00002.gguf",
        "m-00001-of-2.gguf",
        "m-00001-of-000002.gguf",
        "m-000001-of-00002.gguf",
        "m-0000x-of-00002.gguf",
        "m-+0001-of-00002.gguf",
        "m-00001-of-00002.bin",
    ] {
        assert_eq!(parts(Path::new(name)).unwrap(), [Path::new(name)], "{name}");
    }
    for name in ["m-00000-of-00002.gguf", "m-00003-of-00002.gguf"] {
        let error = parts(Path::new(name)).unwrap_err().to_string();
        assert!(error.contains("rename it"), "{error}");
    }
}

#[test]
fn all_parts_of_a_split_file_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    std::fs::write(path(1), part(0, 2, "a", 1.0).bytes()).unwrap();
    let missing = Gguf::open(&path(1)).unwrap_err();
    assert!(
        matches!(&missing, Error::MissingFile { file, .. } if file == "m-00002-of-00002.gguf"),
        "{missing}"
    );
    std::fs::write(path(2), part(1, 2, "b", 2.0).bytes()).unwrap();
    let gguf = Gguf::open(&path(1)).unwrap();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        let Matrix::Plain(weight) = gguf.matrix(name).unwrap() else { panic!("plain numbers") };
        assert_eq!(weight.to_f32().unwrap(), [value]);
    }
    assert_eq!((gguf.text("general.architecture"), gguf.path()), (Some("llama"), path(1).as_path()));
    assert!(gguf.file_bytes() > std::fs::metadata(path(1)).unwrap().len());
    let second = Gguf::open(&path(2)).unwrap_err().to_string();
    assert!(second.contains("give the first") && second.contains("m-00001-of-00002.gguf"), "{second}");
    std::fs::write(path(2), part(0, 2, "b", 2.0).bytes()).unwrap();
    assert!(
        Gguf::open(&path(1)).unwrap_err().to_string().contains("part 1 of 2, where its name makes it part 2")
    );
    std::fs::write(path(2), part(1, 2, "a", 2.0).bytes()).unwrap();
    assert!(Gguf::open(&path(1)).unwrap_err().to_string().contains("there twice"));
    let alone = folder.path().join("renamed.gguf");
    std::fs::rename(path(1), &alone).unwrap();
    assert!(Gguf::open(&alone).unwrap_err().to_string().contains("part 1 of 2"));
}
