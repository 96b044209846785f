//! A small, sound GGUF file to start from, by the format's description in llama.cpp's `docs/gguf.md`.

#[derive(Default)]
struct Writer {
    metadata: Vec<u8>,
    keys: u64,
    infos: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn key(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.keys += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    fn string(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(key, 8, &bytes);
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, values: &[u8]) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(values);
        self.key(key, 9, &bytes);
    }

    /// A tensor of zeros in Q8_0 (kind 8: 34 bytes for 32 values) or f32; `shape` innermost first, as the file has it.
    fn tensor(&mut self, name: &str, shape: &[u64]) {
        let matrix = shape.len() > 1;
        self.tensors += 1;
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|n| self.infos.extend(n.to_le_bytes()));
        self.infos.extend(if matrix { 8_u32 } else { 0 }.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        let values = shape.iter().product::<u64>() as usize;
        let bytes = if matrix { values / 32 * 34 } else { values * 4 };
        self.data.resize((self.data.len() + bytes).next_multiple_of(32), 0);
    }

    fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(self.tensors.to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(self.metadata);
        out.extend(self.infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.data);
        out
    }
}

/// A Llama of one layer and 32 dimensions, with a byte-level BPE tokenizer.
pub(crate) fn llama() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.string("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
    ] {
        writer.key(&format!("llama.{key}"), 4, &u32::to_le_bytes(value));
    }
    writer.key("llama.rope.freq_base", 6, &1e4_f32.to_le_bytes());
    writer.key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
    writer.string("tokenizer.ggml.model", "gpt2");
    writer.string("tokenizer.ggml.pre", "smollm");
    let pieces = ["a", "b", "ab", "<|im_end|>"];
    let mut bytes = Vec::new();
    pieces.iter().for_each(|piece| text(&mut bytes, piece));
    writer.array("tokenizer.ggml.tokens", 8, pieces.len(), &bytes);
    writer.array("tokenizer.ggml.token_type", 5, 4, &[1_i32, 1, 1, 3].map(i32::to_le_bytes).concat());
    let mut merges = Vec::new();
    text(&mut merges, "a b");
    writer.array("tokenizer.ggml.merges", 8, 1, &merges);
    writer.key("tokenizer.ggml.eos_token_id", 4, &3_u32.to_le_bytes());
    writer.string("tokenizer.chat_template", "{{ messages[0].content }}");
    writer.tensor("token_embd.weight", &[32, 4]);
    writer.tensor("output_norm.weight", &[32]);
    for (name, shape) in [
        ("attn_norm", &[32][..]),
        ("attn_q", &[32, 32]),
        ("attn_k", &[32, 16]),
        ("attn_v", &[32, 16]),
        ("attn_output", &[32, 32]),
        ("ffn_norm", &[32]),
        ("ffn_gate", &[32, 64]),
        ("ffn_up", &[32, 64]),
        ("ffn_down", &[64, 32]),
    ] {
        writer.tensor(&format!("blk.0.{name}.weight"), shape);
    }
    writer.finish()
}
