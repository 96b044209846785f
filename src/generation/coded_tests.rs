//! Whole models whose matrices are K-quants, against the same weights in float32.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;

/// Rows of K-quants are whole blocks of 256 weights.
const WIDTH: usize = 256;
const VOCABULARY: usize = 319;
const LAYERS: usize = 2;
/// Of an answer.
const TOKENS: usize = 12;

const PROMPT: &str = "Bugün hava çok güzel";

/// Most that the rounding of activations may change logits, relative to their size.
const ROUNDING: f32 = 0.03;
/// Far more than that: the best token is the best whatever is rounded.
const LEAD: f32 = 0.08;

/// A matrix's format, by its name in the file.
type Choice = fn(&str) -> GgmlDType;

/// A mixture, as llama.cpp's: some matrices have a wider form than the others, and so have values compared with their queries.
fn medium(name: &str, narrow: GgmlDType) -> GgmlDType {
    let wide = ["token_embd", "output.", "attn_v", "ffn_down"].iter().any(|part| name.contains(part));
    if wide { GgmlDType::Q6K } else { narrow }
}

/// Files, and seeds under which no token of the exact model's answer is a near tie.
const FILES: [(&str, u64, Choice); 5] = [
    ("Q4_K", 58, |_| GgmlDType::Q4K),
    ("Q5_K", 2, |_| GgmlDType::Q5K),
    ("Q6_K", 18, |_| GgmlDType::Q6K),
    ("Q4_K_M", 35, |name| medium(name, GgmlDType::Q4K)),
    ("Q5_K_M", 19, |name| medium(name, GgmlDType::Q5K)),
];

/// About normal, with this deviation.
fn noise(rng: &mut ChaCha8Rng, n: usize, deviation: f32) -> Vec<f32> {
    let mut uniform = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..n).map(|_| (uniform() + uniform() + uniform()) * 2.0 * deviation).collect()
}

fn ggml(format: GgmlDType) -> u32 {
    match format {
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        other => panic!("{other:?}"),
    }
}

/// A random Llama as two files: its matrices coded, and what the codes stand for, as candle reads them.
fn pair(seed: u64, choice: Choice) -> [Writer; 2] {
    let mut writers = [(); 2].map(|()| {
        with_tokenizer(Writer::default())
            .text("general.architecture", "llama")
            .number("llama.block_count", LAYERS as u32)
            .number("llama.context_length", 64)
            .number("llama.embedding_length", WIDTH as u32)
            .number("llama.feed_forward_length", 2 * WIDTH as u32)
            .number("llama.attention.head_count", 4)
            .number("llama.attention.head_count_kv", 2)
            .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
    });
    let mut put = |name: &str, shape: &[usize], kinds: [u32; 2], bytes: [&[u8]; 2]| {
        for (writer, (kind, bytes)) in writers.iter_mut().zip(kinds.into_iter().zip(bytes)) {
            *writer = std::mem::take(writer).tensor(name, shape, kind, bytes);
        }
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let layer = [
        ("attn_q", WIDTH, WIDTH),
        ("attn_k", WIDTH / 2, WIDTH),
        ("attn_v", WIDTH / 2, WIDTH),
        ("attn_output", WIDTH, WIDTH),
        ("ffn_gate", 2 * WIDTH, WIDTH),
        ("ffn_up", 2 * WIDTH, WIDTH),
        ("ffn_down", WIDTH, 2 * WIDTH),
    ];
    let layers = (0..LAYERS)
        .flat_map(|index| layer.map(|(name, rows, columns)| (format!("blk.{index}.{name}"), rows, columns)));
    let ends = ["token_embd", "output"].map(|name| (name.to_owned(), VOCABULARY, WIDTH));
    for (name, rows, columns) in layers.chain(ends) {
        let name = format!("{name}.weight");
        let deviation = if name.starts_with("token_embd") { 1.0 } else { (columns as f32).sqrt().recip() };
        let values = noise(&mut rng, rows * columns, deviation);
        let values = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
        let coded = QTensor::quantize(&values, choice(&name)).unwrap();
        let plain = coded.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let kinds = [ggml(choice(&name)), 0];
        put(&name, &[rows, columns], kinds, [&coded.data().unwrap(), &f32s(&plain)]);
    }
    let norms =
        (0..LAYERS).flat_map(|index| ["attn_norm", "ffn_norm"].map(|name| format!("blk.{index}.{name}")));
    for name in norms.chain(["output_norm".to_owned()]) {
        let scales: Vec<f32> = noise(&mut rng, WIDTH, 0.1).into_iter().map(|x| 1.0 + x).collect();
        put(&format!("{name}.weight"), &[WIDTH], [0, 0], [&f32s(&scales); 2]);
    }
    writers
}

fn greedy(model: TextModel) -> Vec<u32> {
    let generator = Generator::start(model, |_| ()).unwrap();
    let params = GenerationParams { max_new_tokens: Some(TOKENS), ..Default::default() };
    generator.generate(Prompt::Text(PROMPT), params, &mut || Ok(())).unwrap().tokens
}

/// How far the best logit lies before the second, in roots of the mean square of all.
fn lead(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let size = (logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32).sqrt();
    (sorted[sorted.len() - 1] - sorted[sorted.len() - 2]) / size
}

#[test]
fn coded_models_compute_what_their_weights_say() {
    for (file, seed, choice) in FILES {
        let [(_coded, coded), (_plain, plain)] = pair(seed, choice).map(|writer| writer.write());
        let open = |path: &Path, isa| from_gguf(file, path, WeightFormat::F32, isa).unwrap();
        let exact = open(&plain, Isa::best());
        // The prompt and the exact model's answer, as far as each next token was chosen by.
        let answer = greedy(open(&plain, Isa::best()));
        assert_eq!(answer.len(), TOKENS, "{file}");
        let mut text = exact.tokens.encode(PROMPT, true).unwrap();
        let mut steps = vec![];
        for &token in &answer {
            let expected = logits(&exact, &[&text]);
            assert!(lead(&expected) > LEAD, "{file}: another seed, please");
            steps.push((text.clone(), expected));
            text.push(token);
        }
        for isa in Isa::available() {
            let model = open(&coded, isa);
            for (text, expected) in &steps {
                // The weights are the same; what differs is the rounding of activations to eight bits.
                let error = distance(&logits(&model, &[text]), expected);
                assert!(error < ROUNDING, "{file} {isa}: {error}");
            }
            assert_eq!(greedy(model), answer, "{file} {isa}");
        }
    }
}

#[path = "unpacked_tests.rs"]
mod unpacked;
