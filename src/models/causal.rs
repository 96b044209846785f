//! One decoder for all causal language models: what GPT-2, Llama and Qwen share, driven by their descriptions.
//!
//! ```text
//! tokens ─ embed (+ positions) ─┬─ norm ─ q k v ─ (norms) ─ rotary ─ cache ─ attention ─ output ─ + ─┐  × layers
//!                               └───────────────────────────────── norm ─ mlp ─────────────────── + ─┘
//! last rows ─ norm ─ head ─ logits
//! ```
//! A batch is the new tokens of several sequences laid end to end. Every row is computed as if it were alone.

use std::cell::RefCell;

use crate::sync::Mutex;

use super::decoder::{Cache, Decoder, Step};
use crate::compute::decoder::activations::{Activations, split};
use crate::compute::decoder::attention::{Queries, Span, attention};
use crate::compute::decoder::gemm::Epilogue;
use crate::compute::decoder::{
    CacheShape, KernelSet, KvCache, Linear, Matrix, RopeStyle, Rotary, WeightFormat,
};
use crate::compute::memory::try_room;
use crate::compute::{Activation, Threads, Weight};
use crate::{Error, Result};

/// Named tensors of any file format, under the names that transformers gives them.
pub trait Source {
    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool;

    /// A matrix of `[outputs, inputs]`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix>;

    /// A vector.
    ///
    /// # Errors
    /// When it is missing or has another length.
    fn vector(&self, name: &str, length: usize) -> Result<Weight>;
}

/// A normalisation of rows.
#[derive(Debug)]
pub enum Norm {
    /// By the root of the mean square.
    Rms {
        /// Factor of each number.
        scale: Vec<f32>,
        /// Added to the mean square.
        epsilon: f32,
    },
    /// By mean and variance.
    Layer {
        /// Factor of each number.
        scale: Vec<f32>,
        /// Added to each number.
        shift: Vec<f32>,
        /// Added to the variance.
        epsilon: f32,
    },
}

/// One layer.
#[derive(Debug)]
pub struct Block {
    /// Before attention.
    pub attention_norm: Norm,
    /// Queries, keys and values side by side.
    pub qkv: Linear,
    /// RMS normalisation of each query head and each key head, and its epsilon.
    pub head_norms: Option<(Vec<f32>, Vec<f32>, f32)>,
    /// After attention.
    pub output: Linear,
    /// Before the multilayer perceptron.
    pub mlp_norm: Norm,
    /// Its first layer.
    pub up: Linear,
    /// What happens between its layers.
    pub activation: Activation,
    /// Its second layer.
    pub down: Linear,
}

/// A causal language model in memory.
#[derive(Debug)]
pub struct Causal {
    /// The kernels.
    pub machine: KernelSet,
    /// How plain weights are held.
    pub hold: WeightFormat,
    /// Length of a state.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Layers, heads of keys and values, their length.
    pub cache: CacheShape,
    /// Most positions.
    pub context: usize,
    /// Token embeddings where the head has weights of its own.
    pub embedding: Option<Linear>,
    /// Learned positions, row-major `[context, hidden]`.
    pub positions: Option<Weight>,
    /// Rotary positions.
    pub rotary: Option<Rotary>,
    /// The layers.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub final_norm: Norm,
    /// States to logits.
    pub head: Linear,
}

thread_local! {
    /// Belongs to the thread that decodes: it leaves with the thread, and a fork's child has no lock of its parent.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// So many rows are worth a distribution of their own to threads, where little is done with each.
const MANY_ROWS: usize = 16;

/// The memory of one pass, kept between passes.
#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    wide: Vec<f32>,
    attended: Vec<f32>,
    angles: Vec<f32>,
    activations: Activations,
}

impl Cache for KvCache {
    fn len(&self) -> usize {
        Self::len(self)
    }
    fn truncate(&mut self, len: usize) {
        self.set_len(len.min(Self::len(self)));
    }
    fn reserve(&mut self, capacity: usize) -> Result<()> {
        Self::reserve(self, capacity)
    }
    fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        Self::fork(self, len, capacity)
    }
    fn shrink(&mut self) -> Result<()> {
        Self::shrink(self)
    }
    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }
}

impl Decoder for Causal {
    type Cache = KvCache;

    fn vocabulary(&self) -> usize {
        self.head.outputs()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn new_cache(&self, capacity: usize) -> Result<KvCache> {
        KvCache::new(&self.machine, self.cache, capacity)
    }

    fn cache_bytes(&self, capacity: usize) -> u64 {
        KvCache::bytes_for(&self.machine, self.cache, capacity)
    }

    fn forward(&self, steps: &mut [Step<'_, KvCache>], logits: &mut [f32]) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| self.pass(scratch, steps, logits))
    }
}

impl Causal {
    fn pass(&self, scratch: &mut Scratch, steps: &mut [Step<'_, KvCache>], logits: &mut [f32]) -> Result<()> {
        let threads = Threads::global();
        let rows: usize = steps.iter().map(|step| step.tokens.len()).sum();
        self.embed(steps, rows, scratch)?;
        for (index, block) in self.blocks.iter().enumerate() {
            self.attention_block(&threads, index, block, steps, rows, scratch)?;
            self.mlp(&threads, block, rows, scratch)?;
        }
        let (mut end, mut wanted) = (0, 0);
        for step in steps.iter_mut() {
            end += step.tokens.len();
            let len = Cache::len(step.cache) + step.tokens.len();
            step.cache.set_len(len);
            if step.wanted {
                // Rows move towards the front only, over rows that were read before.
                scratch.x.copy_within((end - 1) * self.hidden..end * self.hidden, wanted * self.hidden);
                wanted += 1;
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        let normed = try_room(&mut scratch.normed, wanted * self.hidden)?;
        self.final_norm.apply(&self.machine, &threads, &scratch.x[..wanted * self.hidden], normed)?;
        let then = Epilogue::Store(Activation::Identity);
        self.head.apply(&self.machine, &threads, &mut scratch.activations, normed, logits, then)
    }

    /// Bytes of weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        let blocks = self
            .blocks
            .iter()
            .map(|block| block.qkv.bytes() + block.output.bytes() + block.up.bytes() + block.down.bytes());
        let positions = self.positions.as_ref().map_or(0, |table| table.owned_bytes() as u64);
        blocks.sum::<u64>() + self.head.bytes() + self.embedding.as_ref().map_or(0, Linear::bytes) + positions
    }

    fn embed(&self, steps: &mut [Step<'_, KvCache>], rows: usize, scratch: &mut Scratch) -> Result<()> {
        let x = try_room(&mut scratch.x, rows * self.hidden)?;
        let angles = self.rotary.as_ref().map_or(0, |rotary| 2 * rotary.frequencies.len());
        let all_angles = try_room(&mut scratch.angles, rows * angles)?;
        let table = self.embedding.as_ref().unwrap_or(&self.head);
        let mut row = 0;
        for step in steps {
            let first = Cache::len(step.cache);
            let end = first + step.tokens.len();
            if end > self.context {
                return Err(Error::Input(format!(
                    "{end} tokens exceed the model's context of {}",
                    self.context
                )));
            }
            step.cache.reserve(end)?;
            for (position, &token) in (first..).zip(step.tokens) {
                let out = &mut x[row * self.hidden..][..self.hidden];
                if token as usize >= table.outputs() {
                    return Err(Error::Input(format!(
                        "token {token} is outside the vocabulary of {}",
                        table.outputs()
                    )));
                }
                table.row(&self.machine, token as usize, out);
                if let Some(positions) = &self.positions {
                    positions.add_row_f32(position, out)?;
                }
                if let Some(rotary) = &self.rotary {
                    rotary.angles(position, &mut all_angles[row * angles..][..angles]);
                }
                row += 1;
            }
        }
        Ok(())
    }

    /// `x += output(attention(norm(x)))`.
    fn attention_block(
        &self,
        threads: &Threads,
        layer: usize,
        block: &Block,
        steps: &mut [Step<'_, KvCache>],
        rows: usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { x, normed, wide, attended, angles, activations, .. } = scratch;
        let x = try_room(x, rows * self.hidden)?;
        let normed = try_room(normed, rows * self.hidden)?;
        block.attention_norm.apply(&self.machine, threads, x, normed)?;
        let stride = block.qkv.outputs();
        let wide = try_room(wide, rows * stride)?;
        let then = Epilogue::Store(Activation::Identity);
        block.qkv.apply(&self.machine, threads, activations, normed, wide, then)?;
        let CacheShape { kv_heads, width, .. } = self.cache;
        let (query_end, key_end) = (self.heads * width, (self.heads + kv_heads) * width);
        let turned = block.head_norms.is_some() || self.rotary.is_some();
        // Each row is turned by its own position.
        let pairs = self.rotary.as_ref().map_or(0, |rotary| rotary.frequencies.len());
        let interleaved = self.rotary.as_ref().is_some_and(|rotary| rotary.pairing == RopeStyle::Interleaved);
        let turn = |row: usize, values: &mut [f32]| {
            let angles = &angles[row * 2 * pairs..][..2 * pairs];
            let norms = block.head_norms.as_ref();
            let norms = norms.map(|(queries, keys, epsilon)| (&queries[..], &keys[..], *epsilon));
            self.machine.apply_rope(&mut values[..key_end], self.heads, width, norms, angles, interleaved);
        };
        // Many rows are turned by all threads; few of several sequences where they are put into the caches.
        let many = rows >= MANY_ROWS;
        if turned && many {
            let mut all: Vec<_> = wide.chunks_mut(stride).enumerate().collect();
            let shares: Vec<_> = all.chunks_mut(rows.div_ceil(threads.count())).map(Mutex::new).collect();
            threads.run(shares.len(), &|share| {
                shares[share].lock().iter_mut().for_each(|(row, values)| turn(*row, values));
            })?;
        }
        let mut rest = &mut *wide;
        let mut row = 0;
        let sequences: Vec<_> = steps
            .iter_mut()
            .map(|step| {
                let (own, others) = std::mem::take(&mut rest).split_at_mut(step.tokens.len() * stride);
                rest = others;
                row += step.tokens.len();
                Mutex::new((&mut *step.cache, own, row - step.tokens.len()))
            })
            .collect();
        threads.run(sequences.len(), &|sequence| {
            let (cache, own, first) = &mut *sequences[sequence].lock();
            let position = Cache::len(*cache);
            for (at, values) in own.chunks_mut(stride).enumerate() {
                if turned && !many {
                    turn(*first + at, values);
                }
                cache.put(layer, position + at, &values[query_end..key_end], &values[key_end..]);
            }
        })?;
        drop(sequences);
        let mut row = 0;
        let mut spans = Vec::with_capacity(steps.len());
        for step in steps.iter() {
            let position = Cache::len(&*step.cache);
            spans.push(Span { cache: &*step.cache, row, rows: step.tokens.len(), position });
            row += step.tokens.len();
        }
        let attended = try_room(attended, rows * query_end)?;
        let queries = Queries { values: wide, stride, heads: self.heads };
        attention(&self.machine, threads, layer, &spans, queries, attended)?;
        block.output.apply(&self.machine, threads, activations, attended, x, Epilogue::Add)
    }

    /// `x += down(activation(up(norm(x))))`.
    fn mlp(&self, threads: &Threads, block: &Block, rows: usize, scratch: &mut Scratch) -> Result<()> {
        let Scratch { x, normed, wide, activations, .. } = scratch;
        let x = try_room(x, rows * self.hidden)?;
        let normed = try_room(normed, rows * self.hidden)?;
        block.mlp_norm.apply(&self.machine, threads, x, normed)?;
        let wide = try_room(wide, rows * block.up.outputs())?;
        let then = Epilogue::Store(block.activation);
        block.up.apply(&self.machine, threads, activations, normed, wide, then)?;
        block.down.apply(&self.machine, threads, activations, wide, x, Epilogue::Add)
    }
}

impl Norm {
    fn apply(&self, machine: &KernelSet, threads: &Threads, x: &[f32], out: &mut [f32]) -> Result<()> {
        match self {
            Self::Rms { scale, epsilon } => split(threads, x, scale.len(), out, scale.len(), |x, out| {
                out.copy_from_slice(x);
                machine.kernels.rms_in_place(out, scale, *epsilon);
            }),
            Self::Layer { scale, shift, epsilon } => {
                split(threads, x, scale.len(), out, scale.len(), |x, out| {
                    out.copy_from_slice(x);
                    machine.kernels.norm(out, scale, shift, *epsilon, None);
                })
            }
        }
    }
}
