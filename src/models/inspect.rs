//! What a model is, judged by its small files and the headers of its weights, before it is loaded.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::adapter_files::{attach, attach_folder, base_of, refuse_both};
use super::architectures::{ModelKind, check_masked, check_tensors};
use super::config::ModelConfig;
use super::encoder::Encoder;
use super::formats::gguf::Gguf;
use super::hub::{Hub, Progress};
use super::json::read_json_with_nulls;
use super::kind::kind_of_files;
use super::manifest::{ModelFiles, WeightFiles};
use super::resolve::{ResolveOptions, adapter_folder, resolve};
use super::sentence::SentenceConfig;
use super::settings::{EncoderSettings, Overrides};
use super::source::Source;
use super::static_embedding::StaticForm;
use super::tokenizers::config::TokenizerConfig;
use super::weights::Weights;
use crate::compute::WeightFormat;
use crate::output::Shapes;
use crate::{Error, Result};

/// What the small files of a model say. Of its weights, the headers alone were read.
#[derive(Debug)]
pub struct Inspection {
    /// Its files. Those of a hub model that is not on this machine are its small ones.
    pub files: ModelFiles,
    /// What it is used for.
    pub kind: ModelKind,
    /// What its configuration says.
    pub config: ModelConfig,
    /// What sentence-transformers saved with it; `None` for a generator.
    pub sentence: Option<SentenceConfig>,
    /// The algorithm of its tokenizer, or the name of its class.
    pub tokenizer: Option<String>,
    /// Bytes of its weights on disk, or on the hub.
    pub weight_bytes: Option<u64>,
    /// How many weights the headers of its files list, if they are on this machine.
    listed: Option<ListedNumbers>,
    /// The number format of its weights; `None` for a GGUF file, which mixes them.
    pub stored: Option<String>,
    /// Whether the weights are on this machine.
    pub local: bool,
    /// What it gives, `None` for a generator. Widths of a model that is not on this machine are those of its states.
    pub shapes: Option<Shapes>,
}

/// What the configuration of a model says, and the headers of its weights if they are on this machine.
struct Facts {
    config: ModelConfig,
    sentence: Option<SentenceConfig>,
    shapes: Option<Shapes>,
    weights: Option<Weights>,
}

impl Facts {
    fn of_generator(files: &ModelFiles, local: bool) -> Result<Self> {
        let config = ModelConfig::read(files, ModelKind::Generator)?;
        let weights = if local { Some(checked_weights(files, &config, true)?) } else { None };
        weights.iter().try_for_each(|weights| weights.check_adapter_read(config.kind))?;
        Ok(Self { config, sentence: None, shapes: None, weights })
    }

    /// Of the weights on this machine, those behind the transformer are read: they are small.
    fn of_encoder(files: &ModelFiles, kind: ModelKind, local: bool) -> Result<Self> {
        let overrides = Overrides { kind: Some(kind), ..Overrides::default() };
        let mut settings = EncoderSettings::read(files, overrides)?;
        if !local {
            settings.check_class()?;
            let shapes = settings.expected_shapes();
            let EncoderSettings { config, sentence, .. } = settings;
            return Ok(Self { config, sentence: Some(sentence), shapes: Some(shapes), weights: None });
        }
        let weights = checked_weights(files, &settings.config, false)?;
        settings.read_layers()?;
        let (width, vocabulary) = (settings.config.output_width(), settings.config.describe().vocabulary);
        if let Some(masked) = settings.config.family.masked_lm.filter(|_| kind == ModelKind::Sparse) {
            check_masked(&weights, masked, [vocabulary, width])?;
        }
        let tokenizer = settings.tokenizer()?;
        let (head, _) = settings.head(&weights, &tokenizer, width)?;
        weights.check_adapter_read(kind)?;
        // It shortens what a text may have.
        settings.late_texts(&tokenizer, overrides)?;
        let EncoderSettings { config, sentence, .. } = settings;
        let shapes = Some(head.shapes(width, vocabulary, true));
        Ok(Self { config, sentence: Some(sentence), shapes, weights: Some(weights) })
    }
}

/// The small files of a model of the hub, with all of its adapter, and what [`Hub::configuration`] says of its weights.
fn of_hub(
    id: &str,
    source: &Source,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<(ModelFiles, Option<Option<u64>>)> {
    if let Some(adapter) = &options.adapter {
        let (files, bytes) = Hub::new(options)?.configuration(id, progress)?;
        return Ok((attach(files, adapter, options, progress)?, bytes));
    }
    let error = match Hub::new(options)?.configuration(id, progress) {
        Ok((files, bytes)) => return refuse_both(&files).map(|()| (files, bytes)),
        Err(error) => error,
    };
    let Some(folder) = adapter_folder(&error, source, options, progress)? else { return Err(error) };
    let (base, revision) = base_of(id, &folder, false)?;
    let options = ResolveOptions { revision, ..options.clone() };
    let (files, bytes) = match &base {
        Source::Hub(base) => Hub::new(&options)?.configuration(base, progress)?,
        _ => return Err(error),
    };
    Ok((ModelFiles { model: id.to_owned(), ..attach_folder(files, id, &folder)? }, bytes))
}

/// The weights of `files`, whose headers must list what the transformer of `config` reads.
fn checked_weights(files: &ModelFiles, config: &ModelConfig, generates: bool) -> Result<Weights> {
    let weights = config.weights(files)?.without_sums();
    check_tensors(&*config.architecture, &weights, generates)?;
    weights.check_read()?;
    Ok(weights)
}

/// A static model, which has no transformer. One on this machine was loaded: its table stays in its file.
#[derive(Debug)]
pub struct StaticInspection {
    /// Its form.
    pub form: &'static str,
    /// Prompts and normalization.
    pub sentence: SentenceConfig,
    /// The algorithm of its tokenizer.
    pub tokenizer: Option<String>,
    /// Bytes of its weights on disk, or on the hub.
    pub weight_bytes: Option<u64>,
    /// What its weights say; `None` where they are not on this machine.
    pub table: Option<StaticTable>,
    /// Tokens of a text, if it is cut after some.
    pub max_length: Option<usize>,
}

/// The table of a static model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticTable {
    /// Length of a row.
    pub width: usize,
    /// The numbers in all tensors.
    pub parameters: u64,
    /// Their format.
    pub dtype: &'static str,
    /// Bytes in memory.
    pub memory_bytes: u64,
}

/// What the files of a model say.
#[derive(Debug)]
pub enum Inspected {
    /// A model of the registry.
    Model(Box<Inspection>),
    /// A static model.
    Static(Box<StaticInspection>),
}

impl StaticInspection {
    fn of(files: &ModelFiles, form: StaticForm, kind: Option<ModelKind>, local: bool) -> Result<Self> {
        let sentence = form.sentence(files, kind)?;
        let mut max_length = form.max_length();
        let mut table = None;
        if local {
            let encoder = Encoder::load_static(files, form, Overrides { kind, ..Overrides::default() })?;
            max_length = Some(encoder.config.max_length).filter(|&length| length < usize::MAX);
            table = Some(StaticTable {
                width: encoder.width(),
                parameters: count(&Weights::open(&files.weights)?, false).plain,
                dtype: encoder.dtype(),
                memory_bytes: encoder.memory_bytes(),
            });
        }
        let (form, tokenizer) = (form.name(), of_folder(files));
        Ok(Self { form, sentence, tokenizer, weight_bytes: None, table, max_length })
    }
}

impl Inspected {
    /// Reads the small files of `source`, and the headers of its weights: the tensors of its network must be there in its
    /// shapes. Of a hub model that is not on this machine, the small files alone are downloaded. `kind` is what the model is to
    /// be used for; without it, the files decide.
    ///
    /// # Errors
    /// The reason why the model does not run: [`Error::ModelNotFound`], [`Error::MissingFile`], [`Error::InvalidFile`],
    /// [`Error::Unsupported`], [`Error::Download`], [`Error::Permission`].
    pub fn of(
        source: &Source,
        options: &ResolveOptions,
        kind: Option<ModelKind>,
        progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
    ) -> Result<Self> {
        let (files, remote_bytes) = match source {
            Source::Hub(id) => of_hub(id, source, options, progress)?,
            Source::Server(_) => {
                return Err(Error::Unsupported {
                    model: source.to_string(),
                    reason: "a server runs it, so there are no files to look at; `model-manager doctor` without a \
                             model asks the servers of the slots"
                        .into(),
                });
            }
            _ => (resolve(source, options, progress)?, None),
        };
        let local = remote_bytes.is_none();
        let on_disk = || {
            let sizes = files.weights.paths().iter().map(|path| Some(fs::metadata(path).ok()?.len()));
            sizes.sum::<Option<u64>>()
        };
        let weight_bytes = remote_bytes.unwrap_or_else(on_disk);
        if let Some(form) = files.static_form()? {
            let found = StaticInspection::of(&files, form, kind, local)?;
            return Ok(Self::Static(Box::new(StaticInspection { weight_bytes, ..found })));
        }
        let kind = kind.or_else(|| kind_of_files(&files)).unwrap_or(ModelKind::Embedding);
        let Facts { config, sentence, shapes, weights } = match kind {
            ModelKind::Generator => Facts::of_generator(&files, local)?,
            _ => Facts::of_encoder(&files, kind, local)?,
        };
        let listed =
            weights.filter(|_| config.gguf.is_none()).map(|weights| count(&weights, is_microscaled(&config)));
        let stored = match (&config.gguf, listed.zip(weight_bytes)) {
            (Some(_), _) => None,
            (None, _) if is_microscaled(&config) => Some(format!("{}, experts in MXFP4", stored(&config))),
            // Whatever the configuration says: a file that was converted often keeps the old one.
            (None, Some((count, bytes))) if stored(&config) == "float32" && bytes < 3 * count.plain => {
                Some("16 bits".to_owned())
            }
            (None, _) => Some(stored(&config)),
        };
        let tokenizer = match &config.gguf {
            Some(gguf) => of_gguf(gguf),
            None => of_folder(&files),
        };
        Ok(Self::Model(Box::new(Inspection {
            files,
            kind,
            config,
            sentence,
            tokenizer,
            weight_bytes,
            listed,
            stored,
            local,
            shapes,
        })))
    }

    /// The model of the registry, if it is one.
    pub fn model(self) -> Option<Inspection> {
        if let Self::Model(found) = self { Some(*found) } else { None }
    }
}

impl Inspection {
    /// Weights: those that the files list, else as many as their bytes and their number format say.
    pub fn parameters(&self) -> Option<u64> {
        if let Some(ListedNumbers { plain, microscaled }) = self.listed {
            return Some(plain + microscaled);
        }
        if is_microscaled(&self.config) {
            return None; // a part of them takes half a byte each
        }
        let size = match self.stored.as_deref()? {
            "float16" | "bfloat16" => 2,
            "float64" => 8,
            _ => 4,
        };
        Some(self.weight_bytes? / size)
    }

    /// About how many bytes its weights take in memory in `format`. Those of a GGUF file keep their own.
    pub fn memory_bytes(&self, format: WeightFormat) -> Option<u64> {
        if matches!(self.files.weights, WeightFiles::Gguf(_)) {
            return self.weight_bytes;
        }
        // The last two have a scale, and int4 a minimum too, for every 32 weights.
        let thirty_seconds = match format {
            WeightFormat::F32 => 128,
            WeightFormat::Bf16 | WeightFormat::F16 => 64,
            WeightFormat::Int8 => 36,
            WeightFormat::Int4 => 20,
        };
        let listed = self.listed.unwrap_or_default();
        let others = self.parameters()? - listed.microscaled;
        Some(others / 32 * thirty_seconds + listed.microscaled / 32 * MICROSCALED)
    }
}

/// How many numbers files list.
#[derive(Debug, Clone, Copy, Default)]
struct ListedNumbers {
    /// Each has a place of its own.
    plain: u64,
    /// Two have a byte, and 32 a scale: MXFP4.
    microscaled: u64,
}

/// Bytes of 32 such weights in memory, in every format: eight bits each, and a scale.
const MICROSCALED: u64 = 34;

/// Whether experts are stored in MXFP4.
fn is_microscaled(config: &ModelConfig) -> bool {
    config.json["quantization_config"]["quant_method"] == "mxfp4"
}

/// The numbers in all tensors; `microscaled` is whether experts are stored in MXFP4.
fn count(weights: &Weights, microscaled: bool) -> ListedNumbers {
    let mut listed = ListedNumbers::default();
    for name in weights.names() {
        let Some(shape) = weights.shape(name) else { continue };
        let numbers = shape.iter().map(|&size| size as u64).product::<u64>();
        match name.rsplit('_').next().filter(|_| microscaled) {
            Some("blocks") => listed.microscaled += 2 * numbers,
            Some("scales") => {}
            _ => listed.plain += numbers,
        }
    }
    listed
}

/// The number format that `config.json` names. Without one, transformers has written float32.
fn stored(config: &ModelConfig) -> String {
    let name = ["dtype", "torch_dtype"].iter().find_map(|key| config.json[key].as_str());
    name.unwrap_or("float32").trim_start_matches("torch.").to_owned()
}

fn of_gguf(gguf: &Gguf) -> Option<String> {
    Some(match gguf.text("tokenizer.ggml.model")? {
        "gpt2" => "BPE".into(),
        "bert" => "WordPiece".into(),
        "llama" => "SentencePiece BPE".into(),
        "t5" => "Unigram".into(),
        other => other.to_owned(),
    })
}

fn of_folder(files: &ModelFiles) -> Option<String> {
    let own = files.beside_weights("tokenizer.json").and_then(|path| algorithm(&path));
    let vocabulary = |name, algorithm: &str| files.beside_weights(name).map(|_| algorithm.to_owned());
    own.or_else(|| TokenizerConfig::read(files).ok()?.word("tokenizer_class"))
        .or_else(|| vocabulary("vocab.txt", "WordPiece"))
        .or_else(|| vocabulary("merges.txt", "BPE"))
}

/// The algorithm in a `tokenizer.json`; the rest of the file is skipped.
fn algorithm(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct TokenizerHeader {
        model: TokenizerAlgorithm,
    }
    #[derive(Deserialize)]
    struct TokenizerAlgorithm {
        r#type: String,
    }
    read_json_with_nulls::<TokenizerHeader>(path).ok().map(|file| file.model.r#type)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::config::SystemHost;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn inspect_any(name: &str, kind: Option<ModelKind>) -> Result<Inspected> {
        let source = Source::parse(&fixture(name).display().to_string()).unwrap();
        let mut options = ResolveOptions::new(Arc::new(SystemHost));
        options.offline = true;
        Inspected::of(&source, &options, kind, &mut |_| Ok(()))
    }

    fn inspect(name: &str, kind: Option<ModelKind>) -> Result<Inspection> {
        inspect_any(name, kind).map(|found| found.model().unwrap())
    }

    #[test]
    fn static_models_say_what_they_are() {
        let inspect = |name: &str, kind| match inspect_any(name, kind) {
            Ok(Inspected::Static(found)) => Ok(*found),
            Ok(Inspected::Model(found)) => panic!("{name} is {}", found.config.family.model_type),
            Err(error) => Err(error.to_string()),
        };
        for (name, form, length) in [
            ("model2vec", "model2vec", Some(512)),
            ("model2vec_modules", "StaticEmbedding", Some(512)),
            ("static_embedding", "StaticEmbedding", None),
        ] {
            let found = inspect(name, None).unwrap();
            assert_eq!((found.form, found.max_length), (form, length), "{name}");
            let table = found.table.unwrap();
            assert!(table.width > 0 && table.parameters > 0 && table.memory_bytes > 0, "{name}: {table:?}");
            assert!(found.weight_bytes.unwrap() > table.width as u64 && found.tokenizer.is_some(), "{name}");
        }
        for kind in [ModelKind::Generator, ModelKind::Classifier, ModelKind::Sparse] {
            let refusal = inspect("static_embedding", Some(kind)).unwrap_err();
            assert!(refusal.contains("static model") && refusal.contains(kind.result()), "{refusal}");
        }
        let folder = tempfile::tempdir().unwrap();
        for entry in
            fs::read_dir(fixture("model2vec")).unwrap().flatten().filter(|entry| entry.path().is_file())
        {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        let refusal = inspect(&folder.path().display().to_string(), None).unwrap_err();
        assert!(refusal.contains("tokenizer.json"), "{refusal}");
    }

    #[test]
    fn folders_say_what_they_are_without_their_weights() {
        let bert = inspect("bert_plain", None).unwrap();
        assert_eq!((bert.kind, bert.config.family.model_type), (ModelKind::Embedding, "bert"));
        assert_eq!((bert.tokenizer.as_deref(), bert.local), (Some("WordPiece"), true));
        assert!(bert.sentence.is_some());
        let [four, two] = [WeightFormat::F32, WeightFormat::Bf16].map(|f| bert.memory_bytes(f).unwrap());
        assert!(four.abs_diff(2 * two) < 256 && two > 0);
        assert!(four <= bert.weight_bytes.unwrap());
        let half = inspect("bert_fp16", None).unwrap();
        assert_eq!(half.parameters(), bert.parameters());
        assert!(half.weight_bytes.unwrap() * 3 / 2 < bert.weight_bytes.unwrap());
        let gpt2 = inspect("gpt2", None).unwrap();
        assert_eq!((gpt2.kind, gpt2.sentence.is_none()), (ModelKind::Generator, true));
        assert_eq!(inspect("xlmr", None).unwrap().tokenizer.as_deref(), Some("Unigram"));
    }

    #[test]
    fn what_does_not_run_says_why() {
        let error = inspect("gpt2", Some(ModelKind::Embedding)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(matches!(inspect("no_such_folder", None), Err(Error::ModelNotFound { .. })));
        let options = ResolveOptions::new(Arc::new(SystemHost));
        let server = Source::parse("ollama://127.0.0.1:1/m").unwrap();
        assert!(Inspected::of(&server, &options, None, &mut |_| Ok(())).is_err());
    }

    #[test]
    fn a_damaged_tokenizer_has_no_algorithm() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("tokenizer.json");
        for text in ["", "[]", "{\"model\": 7}", "{\"model\": {}}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(algorithm(&path), None);
        }
    }
}
