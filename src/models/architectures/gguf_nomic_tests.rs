//! Nomic BERT with experts as llama.cpp's converter writes it: the bias of the experts is left out, their second matrices are
//! turned.

use super::*;
use crate::Result;
use crate::compute::{Cpu, Matrix, Weight};
use crate::models::architectures::{Tensors, Transformer};
use crate::models::heads::pooling::{Pooling, SentenceEncoder as _};

const NAME: &str = "nomic_moe";

/// The tensors of the folder, but the biases of experts are zero.
struct WithoutBias(Weights);

impl Tensors for WithoutBias {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.0.matrix(name, shape)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        match name.ends_with("experts.bias") {
            true => Weight::from_f32(&vec![0.0; length], &[length]),
            false => self.0.vector(name, length),
        }
    }
}

fn weights() -> Weights {
    Weights::open(&ModelFiles::open(NAME, &fixture(NAME)).unwrap().weights).unwrap()
}

/// The names of gguf-py 0.19.
fn renamed(name: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        ("encoder.layers.", "blk."),
        ("attn.Wqkv", "attn_qkv"),
        ("attn.out_proj", "attn_output"),
        ("norm1", "attn_output_norm"),
        ("norm2", "layer_output_norm"),
        ("mlp.fc1", "ffn_up"),
        ("mlp.fc2", "ffn_down"),
        ("mlp.router.layer", "ffn_gate_inp"),
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("emb_ln", "token_embd_norm"),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// The file without the metadata `without`.
fn written_but(without: &str) -> Writer {
    let config: Value = read_json(&fixture(NAME).join("config.json")).unwrap();
    let tokenizer: Value = read_json(&fixture(NAME).join("tokenizer.json")).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let writer = unigram(Writer::default().text("general.architecture", "nomic-bert-moe"), &tokenizer)
        .flag("nomic-bert-moe.attention.causal", false)
        .float("nomic-bert-moe.attention.layer_norm_epsilon", 1e-5)
        .float("nomic-bert-moe.rope.freq_base", 10_000.0)
        .number("nomic-bert-moe.pooling_type", 1)
        .flag("tokenizer.ggml.add_sep_token", true);
    let sizes = [
        ("context_length", "n_positions"),
        ("embedding_length", "n_embd"),
        ("feed_forward_length", "n_inner"),
        ("block_count", "n_layer"),
        ("attention.head_count", "n_head"),
        ("expert_count", "num_experts"),
        ("expert_used_count", "moe_top_k"),
        ("moe_every_n_layers", "moe_every_n_layers"),
    ];
    let kept = sizes.into_iter().filter(|(name, _)| *name != without);
    let mut writer = kept
        .fold(writer, |writer, (name, key)| writer.number(&format!("nomic-bert-moe.{name}"), number(key)));
    let weights = weights();
    let (count, wide, hidden) = (number("num_experts"), number("n_inner"), number("n_embd"));
    let shape = [count, wide, hidden].map(|size| size as usize);
    let mut names: Vec<_> = weights.names().filter(|name| !name.ends_with("experts.bias")).collect();
    names.sort_unstable();
    for name in names {
        let values = weights.get(name).unwrap().to_f32().unwrap();
        if let Some(layer) = name.strip_suffix(".mlp.experts.mlp.w1") {
            let name = format!("{}.ffn_up_exps.weight", renamed(layer));
            writer = writer.tensor(&name, &shape, 0, &f32s(&values));
        } else if let Some(layer) = name.strip_suffix(".mlp.experts.mlp.w2") {
            let [count, wide, hidden] = shape;
            let at =
                |expert: usize, column: usize, row: usize| values[(expert * wide + row) * hidden + column];
            let turned: Vec<f32> = (0..count * hidden * wide)
                .map(|index| at(index / (hidden * wide), index / wide % hidden, index % wide))
                .collect();
            let name = format!("{}.ffn_down_exps.weight", renamed(layer));
            writer = writer.tensor(&name, &[count, hidden, wide], 0, &f32s(&turned));
        } else {
            writer = writer.tensor(&renamed(name), weights.shape(name).unwrap(), 0, &f32s(&values));
        }
    }
    writer
}

#[test]
fn nomic_bert_with_experts_is_that_of_its_folder_without_their_bias() {
    let (_folder, path) = written_but("").write();
    let encoder = load(path).unwrap();
    let files = ModelFiles::open(NAME, &fixture(NAME)).unwrap();
    let config = ModelConfig::read(&files, ModelKind::Embedding).unwrap();
    let cpu = || Cpu::new(Isa::best(), WeightFormat::F32);
    let plain = Transformer::load(cpu(), &*config.architecture, &WithoutBias(weights())).unwrap();
    let mut whole_differs = false;
    for case in json::<Vec<Case>>("nomic_moe/reference.json", "cases") {
        let ids = encoder.tokenizer.encode(&case.text, 24).unwrap();
        assert_eq!(ids, case.ids, "{:?}", case.text);
        let ends = [0, ids.len() as u32];
        let batch = PackedBatch::new(&ids, &ends).unwrap();
        let (mut vector, mut wanted) = (vec![0.0; encoder.width()], vec![0.0; encoder.width()]);
        encoder.encode(&batch, &mut vector).unwrap();
        plain.encode(&batch, Pooling::Mean, &mut wanted).unwrap();
        let scaled = |row: &mut Vec<f32>| {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        };
        scaled(&mut vector);
        scaled(&mut wanted);
        let furthest = |of: &[f32]| vector.iter().zip(of).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest(&wanted) <= 1e-6, "{:?}: {}", case.text, furthest(&wanted));
        whole_differs |= furthest(&case.embedding) > 1e-3;
    }
    assert!(whole_differs, "the bias counts");
}

#[test]
fn metadata_of_experts_that_is_missing_is_named() {
    for key in ["expert_count", "expert_used_count", "moe_every_n_layers"] {
        let found = load(written_but(key).write().1).map(drop).unwrap_err().to_string();
        assert!(found.contains(&format!("nomic-bert-moe.{key}")), "{found}");
    }
}
