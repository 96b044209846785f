//! The transformer: one forward pass for all families, for vectors and for text, on any backend.
//!
//! ```text
//! norm first (GPT-2, Llama, Qwen):  x += output(attention(rope(qkv(norm(x)))));  x += down(activation(up(norm(x))))
//! norm last (BERT):                 x = norm(x + output(attention(qkv(x))));     x = norm(x + down(activation(up(x))))
//! parallel (GPT-NeoX, GPT-J, Phi): x += output(attention(rope(qkv(norm(x))))) + down(activation(up(norm(x))))
//! ```
//! Of "norm first", some families normalize what is added too (Gemma 2), or that alone (OLMo 2), and some layers have a gated
//! convolution (LFM2) or a gated delta rule (Qwen3.5) in the place of attention.
//!
//! Vectors are pooled from the rows of whole texts. To write text, a pass takes the new tokens of several sequences, whose
//! earlier tokens' keys and values lie in caches, and gives the logits after the last one.

use std::borrow::Cow;
use std::sync::Weak;

use super::architecture::{Architecture, Description, Placeholders, misuse};
use super::convolution::Convolution;
use super::layers::{Layers, Mixer, Mlp, PlacedLayer};
use super::masked::MaskedLm;
use super::tensors::{NormTensors, Tensors};
use crate::compute::file::WeightFile;
use crate::compute::{
    Activation, Backend, CacheShape, KvCache, Matrix, PackedBatch, Pass, RopeTable, Row, StatesOf, Step,
};
use crate::models::decoder::Decoder;
use crate::models::heads::layout::MaskedHead;
use crate::models::heads::pooling::{Pooling, ReadStates, SentenceEncoder};
use crate::{Error, Result};

/// Bytes of keys and values of the sequences that are computed at a time after a beginning that they share.
const SHARED_BYTES: u64 = 256 << 20;

/// A transformer on a backend.
pub struct Transformer<B: Backend> {
    backend: B,
    description: Description,
    words: B::Table,
    positions: Option<B::Table>,
    token_types: Option<B::Table>,
    embedding_norm: Option<B::Norm>,
    embedding_projection: Option<B::Linear>,
    projection_norm: Option<B::Norm>,
    convolution: Option<Convolution<B>>,
    layers: Layers<B>,
    final_norm: Option<B::Norm>,
    /// Makes output rows of normalized states.
    output_projection: Option<B::Linear>,
    /// Length of an output row.
    output_width: usize,
    /// Whether layers make something of the embeddings.
    keeps_embeddings: bool,
    placeholders: Option<Placeholders>,
    /// Whether both blocks of a layer read its input.
    parallel: bool,
    /// Of a model that writes text.
    head: Option<B::Linear>,
    /// Of a masked language model.
    masked: Option<MaskedLm<B>>,
    /// The files of its tensors; a table may still be read from one.
    files: Vec<Weak<WeightFile>>,
}

impl<B: Backend> Transformer<B> {
    /// Takes the weights from `tensors`, without those that make logits: an encoder.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; those of the backend.
    pub fn load(backend: B, architecture: &dyn Architecture, tensors: &dyn Tensors) -> Result<Self> {
        let norm = |norm: NormTensors| backend.norm(&norm.scale, norm.shift.as_ref(), norm.epsilon);
        let description = architecture.describe();
        if description.attention.is_empty() {
            return Err(misuse("no attention is described"));
        }
        let parallel = architecture.has_parallel_blocks();
        if parallel && !description.norm_first {
            return Err(misuse("blocks that end with the norm of their residual follow one another"));
        }
        let layers = Layers::load(&backend, architecture, tensors, &description)?;
        let embeddings = architecture.embeddings(tensors)?;
        let output = architecture.output_projection(tensors)?;
        let table = |matrix: Option<Matrix>| matrix.map(|matrix| backend.table(matrix)).transpose();
        Ok(Self {
            words: backend.table(embeddings.words)?,
            positions: table(embeddings.positions)?,
            token_types: table(embeddings.token_types)?,
            embedding_norm: embeddings.norm.map(norm).transpose()?,
            embedding_projection: embeddings.projection.map(|part| backend.linear(&[part])).transpose()?,
            projection_norm: embeddings.projection_norm.map(norm).transpose()?,
            convolution: Convolution::load(&backend, architecture, tensors)?,
            keeps_embeddings: layers.placed.iter().any(|placed| placed.layer.input.is_some()),
            layers,
            final_norm: architecture.final_norm(tensors)?.map(norm).transpose()?,
            output_projection: output.map(|part| backend.linear(&[part])).transpose()?,
            output_width: architecture.output_width(),
            placeholders: architecture.placeholders().cloned(),
            parallel,
            head: None,
            masked: None,
            files: tensors.files(),
            description,
            backend,
        })
    }

    /// Takes the weights of a model that writes text from `tensors`.
    ///
    /// # Errors
    /// As [`load`](Self::load); [`Error::Internal`] for a model that attends in both directions.
    pub fn load_decoder(backend: B, architecture: &dyn Architecture, tensors: &dyn Tensors) -> Result<Self> {
        let mut model = Self::load(backend, architecture, tensors)?;
        if !model.description.is_causal() {
            return Err(misuse("a decoder attends to earlier tokens alone"));
        }
        let head = (architecture.head(tensors)?, architecture.head_bias(tensors)?);
        model.head = Some(model.backend.linear(&[head])?);
        Ok(model)
    }

    /// Takes the weights of a masked language model from `tensors`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_masked(
        backend: B,
        architecture: &dyn Architecture,
        tensors: &dyn Tensors,
        head: &MaskedHead,
    ) -> Result<Self> {
        let mut model = Self::load(backend, architecture, tensors)?;
        let described = architecture.describe();
        let (embeddings, shape) =
            (architecture.embeddings(tensors)?, [described.vocabulary, described.hidden]);
        let masked = MaskedLm::load(&model.backend, tensors, head, embeddings, shape, described.activation)?;
        model.masked = Some(masked);
        Ok(model)
    }

    fn cache_shape(&self) -> CacheShape {
        self.layers.cache
    }

    fn check_lengths(&self, batch: &PackedBatch<'_>) -> Result<()> {
        batch.ranges().try_for_each(|range| self.check_length(range.len()))
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let longest = self.description.context;
        if tokens <= longest {
            return Ok(());
        }
        Err(Error::Input(format!("{tokens} tokens exceed the model's longest text ({longest})")))
    }

    /// Checks that no file that is still read from was changed since the model was loaded.
    fn check_files(&self) -> Result<()> {
        self.files.iter().filter_map(Weak::upgrade).try_for_each(|file| file.check())
    }

    /// The last layer's states: one row for each token of the pass, or `row` of each sequence alone.
    fn forward<'a>(&self, pass: &mut B::Pass<'a>, row: Option<Row>) -> Result<StatesOf<'a, B>> {
        let positions = self.positions.as_ref().map(|table| (table, self.description.positions));
        let mut x = pass.embed(&self.words, positions, self.token_types.as_ref())?;
        if self.description.factors.embedding != 1.0 {
            x = pass.scale(x, self.description.factors.embedding)?;
        }
        if let Some(norm) = &self.embedding_norm {
            x = pass.norm(x, norm)?;
        }
        if let Some(projection) = &self.embedding_projection {
            x = pass.project_embeddings(x, projection)?;
        }
        if let Some(norm) = &self.projection_norm {
            x = pass.norm(x, norm)?;
        }
        let ropes: Vec<_> =
            self.layers.rotaries.iter().map(|rotary| pass.rope(rotary)).collect::<Result<_>>()?;
        if self.description.norm_first {
            self.norm_first(pass, x, row, &ropes)
        } else {
            self.norm_last(pass, x, row, &ropes)
        }
    }

    /// What the mixer of a layer makes of `x`, which its input gave of `states`.
    fn mix<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        states: &StatesOf<'a, B>,
        x: StatesOf<'a, B>,
        PlacedLayer { layer, cache_index }: &PlacedLayer<B>,
        ropes: &[RopeTable<'_>],
    ) -> Result<StatesOf<'a, B>> {
        match &layer.mixer {
            Mixer::Attention {
                heads,
                head_norms,
                value_norm,
                rotary,
                unrotated,
                attention,
                relative,
                dynamic,
                gate,
                ..
            } => {
                let (heads, input) = (*heads, attention.input_heads(*heads));
                let scores = dynamic.as_ref().map(|dynamic| dynamic.scores(pass, states, &x)).transpose()?;
                let norms = head_norms.as_ref();
                let x = match (*rotary, *unrotated) {
                    (Some(rotary), None) => pass.rotate(x, input, norms, &ropes[rotary])?,
                    (Some(rotary), Some(nothing)) => {
                        let x = pass.rotate(x, input, None, &ropes[rotary])?;
                        pass.rotate(x, input, norms, &ropes[nothing])?
                    }
                    (None, _) => x,
                };
                let x = match value_norm {
                    Some(norm) => pass.norm_values(x, heads, norm)?,
                    None => x,
                };
                let mut attended = pass.attention(*cache_index, x, heads, attention, relative.as_ref())?;
                if let Some(gate) = gate {
                    let norm = layer.attention_norm.as_ref();
                    let gates = pass.norm_linear(states, norm, gate, Activation::Identity)?;
                    attended = pass.gate(attended, gates)?;
                }
                match dynamic.as_ref().zip(scores) {
                    Some((dynamic, scores)) => dynamic.append(pass, states, attended, scores, heads.heads),
                    None => Ok(attended),
                }
            }
            Mixer::ShortConvolution { convolution, .. } => {
                pass.short_convolution(*cache_index, x, convolution)
            }
            Mixer::DeltaRule { rule, .. } => pass.delta_rule(*cache_index, x, rule),
        }
    }

    fn norm_first<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        mut x: StatesOf<'a, B>,
        row: Option<Row>,
        ropes: &[RopeTable<'_>],
    ) -> Result<StatesOf<'a, B>> {
        let causal = self.description.is_causal();
        let mut embeddings = if self.keeps_embeddings { Some(pass.copy(&x)?) } else { None };
        for (index, placed) in self.layers.placed.iter().enumerate() {
            // The rows that are wanted are gathered after the mixer of the last layer that needs all rows. Windows pass that
            // place one after another, so with several of them they are gathered after the layer.
            let row = row.filter(|_| index == self.layers.last_of_all_rows);
            let mut gathered = false;
            // All windows of a layer before the next layer: with causality, keys and values are kept for one layer only.
            x = pass.in_windows(x, causal, &mut |pass, x, all_rows| {
                let row = row.filter(|_| all_rows);
                gathered |= row.is_some();
                self.norm_first_layer(pass, x, &mut embeddings, placed, row, ropes)
            })?;
            if let Some(row) = row.filter(|_| !gathered) {
                x = pass.gather_rows(x, row)?;
                embeddings = embeddings.map(|all| pass.gather_rows(all, row)).transpose()?;
            }
        }
        if let Some(embeddings) = embeddings {
            pass.discard(embeddings);
        }
        Ok(x)
    }

    /// What a layer adds to `x`, of which, and of the embeddings, it gathers `row` of each sequence after its mixer, if there is
    /// one.
    fn norm_first_layer<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        mut x: StatesOf<'a, B>,
        embeddings: &mut Option<StatesOf<'a, B>>,
        placed: &PlacedLayer<B>,
        row: Option<Row>,
        ropes: &[RopeTable<'_>],
    ) -> Result<StatesOf<'a, B>> {
        let (layer, factor) = (&placed.layer, self.description.factors.residual);
        let activation = layer.activation;
        let norm = layer.attention_norm.as_ref();
        let input = pass.norm_linear(&x, norm, layer.mixer.input(), Activation::Identity)?;
        let mut mixed = self.mix(pass, &x, input, placed, ropes)?;
        if let Some(row) = row {
            (mixed, x) = (pass.gather_rows(mixed, row)?, pass.gather_rows(x, row)?);
            *embeddings = embeddings.take().map(|all| pass.gather_rows(all, row)).transpose()?;
        }
        let (norm, down_norm) = (layer.mlp_norm.as_ref(), layer.down_norm.as_ref());
        let (up, down) = match &layer.mlp {
            Mlp::Dense { up, down } => (up, down),
            Mlp::Experts(experts) => {
                pass.linear_add(mixed, &layer.output, layer.output_norm.as_ref(), factor, &mut x)?;
                pass.add_experts(norm, experts, activation, (down_norm, factor), &mut x)?;
                return layer.end(pass, x, embeddings.as_ref());
            }
        };
        let first = match self.parallel {
            true => Some(pass.norm_linear(&x, norm, up, activation)?),
            false => None,
        };
        pass.linear_add(mixed, &layer.output, layer.output_norm.as_ref(), factor, &mut x)?;
        let up = match first {
            Some(up) => up,
            None => pass.norm_linear(&x, norm, up, activation)?,
        };
        pass.linear_add(up, down, down_norm, factor, &mut x)?;
        layer.end(pass, x, embeddings.as_ref())
    }

    /// The states that are read, of those of the last layer, and the norm that they still need.
    fn outputs<'a, 'n>(
        &'n self,
        pass: &mut B::Pass<'a>,
        x: StatesOf<'a, B>,
    ) -> Result<(StatesOf<'a, B>, Option<&'n B::Norm>)> {
        let norm = self.final_norm.as_ref();
        let Some(projection) = &self.output_projection else { return Ok((x, norm)) };
        let x = match norm {
            Some(norm) => pass.norm(x, norm)?,
            None => x,
        };
        Ok((pass.project_embeddings(x, projection)?, None))
    }

    /// `ids` as the model reads them.
    fn read_ids<'i>(&self, ids: &'i [u32]) -> Cow<'i, [u32]> {
        self.placeholders.as_ref().map_or(ids.into(), |placeholders| placeholders.replaced(ids))
    }

    fn norm_last<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        mut x: StatesOf<'a, B>,
        row: Option<Row>,
        ropes: &[RopeTable<'_>],
    ) -> Result<StatesOf<'a, B>> {
        let convolution = self.convolution.as_ref();
        let mut convolved = convolution.map(|convolution| convolution.apply(pass, &x)).transpose()?;
        for (index, placed) in self.layers.placed.iter().enumerate() {
            let layer = &placed.layer;
            let norms = layer.attention_norm.as_ref().zip(layer.mlp_norm.as_ref());
            let (attention_norm, mlp_norm) =
                norms.ok_or_else(|| misuse("a block has no norm to end with"))?;
            let input = pass.linear(&x, layer.mixer.input(), Activation::Identity)?;
            let mut mixed = self.mix(pass, &x, input, placed, ropes)?;
            if let Some(row) = row.filter(|_| index + 1 == self.layers.placed.len()) {
                // From here on no row looks at another.
                (mixed, x) = (pass.gather_rows(mixed, row)?, pass.gather_rows(x, row)?);
                convolved = convolved.map(|added| pass.gather_rows(added, row)).transpose()?;
            }
            x = pass.linear_add_norm(mixed, &layer.output, x, attention_norm)?;
            match &layer.mlp {
                Mlp::Dense { up, down } => {
                    let up = pass.linear(&x, up, layer.activation)?;
                    x = pass.linear_add_norm(up, down, x, mlp_norm)?;
                }
                Mlp::Experts(experts) => {
                    pass.add_experts(None, experts, layer.activation, (None, 1.0), &mut x)?;
                    x = pass.norm(x, mlp_norm)?;
                }
            }
            if let Some((convolution, added)) = convolution.zip(convolved.take()) {
                x = pass.add_norm(added, x, &convolution.norm)?;
            }
        }
        Ok(x)
    }
}

impl<B: Backend> SentenceEncoder for Transformer<B> {
    fn width(&self) -> usize {
        self.output_width
    }

    fn encode(&self, batch: &PackedBatch<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()> {
        let width = self.output_width;
        let ids = self.read_ids(batch.ids);
        let batch = &PackedBatch { ids: &ids, ..*batch };
        if out.len() != batch.sequences() * width {
            return Err(Error::Input(format!(
                "{} sequences of width {width} do not fit into {} values",
                batch.sequences(),
                out.len()
            )));
        }
        self.check_lengths(batch)?;
        self.backend.run(batch, width, out, &|pass, out| {
            let x = self.forward(pass, pooling.row())?;
            let (x, norm) = self.outputs(pass, x)?;
            pass.pool(x, norm, pooling, out)
        })?;
        // Rows of a table may have been read from a file that is being written to.
        self.check_files()
    }

    fn encode_after(&self, prefix: &[u32], batch: &PackedBatch<'_>, out: &mut [f32]) -> Result<()> {
        let longest = batch.ranges().map(|range| prefix.len() + range.len()).max().unwrap_or(0);
        // The positions of a long text may differ from those of a short one, from the first on.
        let same = self.longest_short_text().is_none_or(|short| longest <= short);
        if prefix.is_empty() || !same || !self.description.is_causal() {
            return self.encode_whole(prefix, batch, out);
        }
        self.check_length(longest)?;
        let width = self.output_width;
        let (prefix, ids) = (&*self.read_ids(prefix), self.read_ids(batch.ids));
        let batch = &PackedBatch { ids: &ids, ..*batch };
        let mut beginning = self.new_cache(prefix.len())?;
        let length = prefix.len();
        let step = Step { cache: &mut beginning, tokens: prefix, prompt: length, length, logits: 0 };
        self.backend.run_cached(&mut [step], width, &mut [], &|pass, _| {
            self.forward(pass, Some(Row::Last)).map(drop)
        })?;
        let mut next = 0;
        while next < batch.sequences() {
            // As many as fit into the memory: each has a copy of the beginning's last page.
            let mut caches = Vec::new();
            let mut bytes = 0;
            for range in (next..batch.sequences()).map(|index| batch.range(index)) {
                let length = prefix.len() + range.len();
                bytes += self.backend.cache_bytes(self.cache_shape(), length);
                if bytes > SHARED_BYTES && !caches.is_empty() {
                    break;
                }
                caches.push(beginning.fork(prefix.len(), length)?);
            }
            let members = next..next + caches.len();
            let mut steps: Vec<_> = caches
                .iter_mut()
                .zip(members.clone())
                .map(|(cache, index)| {
                    let tokens = &batch.ids[batch.range(index)];
                    let length = prefix.len() + tokens.len();
                    Step { cache, tokens, prompt: length, length, logits: 1 }
                })
                .collect();
            let out = &mut out[members.start * width..members.end * width];
            self.backend.run_cached(&mut steps, width, out, &|pass, out| {
                let x = self.forward(pass, Some(Row::Last))?;
                let (x, norm) = self.outputs(pass, x)?;
                pass.pool(x, norm, Pooling::Last, out)
            })?;
            next = members.end;
        }
        self.check_files()
    }

    fn states(&self, batch: &PackedBatch<'_>, each: &ReadStates<'_>) -> Result<()> {
        self.check_lengths(batch)?;
        let ids = self.read_ids(batch.ids);
        self.backend.run(&PackedBatch { ids: &ids, ..*batch }, 0, &mut [], &|pass, _| {
            let (indices, x) = (pass.sequence_indices(), self.forward(pass, None)?);
            let (x, norm) = self.outputs(pass, x)?;
            pass.for_each_sequence(x, norm, &mut |index, rows| each(indices[index], 0, rows))
        })?;
        self.check_files()
    }

    fn logits(&self, batch: &PackedBatch<'_>, each: &ReadStates<'_>) -> Result<()> {
        let masked = self.masked.as_ref().ok_or_else(|| misuse("a model without a head has no logits"))?;
        self.check_lengths(batch)?;
        self.backend.run(batch, 0, &mut [], &|pass, _| {
            let (indices, x) = (pass.sequence_indices(), self.forward(pass, None)?);
            masked.read(pass, x, &mut |index, first, rows| each(indices[index], first, rows))
        })?;
        self.check_files()
    }

    fn check(&self) -> Result<()> {
        self.check_files()
    }

    fn memory_bytes(&self) -> u64 {
        self.backend.memory_bytes()
    }

    fn device_bytes(&self) -> u64 {
        self.backend.device_bytes()
    }

    fn dtype(&self) -> &'static str {
        self.backend.dtype()
    }
}

impl<B: Backend> Decoder for Transformer<B> {
    type Cache = B::Cache;

    fn vocabulary(&self) -> usize {
        self.description.vocabulary
    }

    fn context(&self) -> usize {
        self.description.context
    }

    fn longest_short_text(&self) -> Option<usize> {
        self.layers.rotaries.iter().filter_map(|rotary| rotary.long.as_ref()).map(|long| long.from).min()
    }

    fn new_cache(&self, capacity: usize) -> Result<B::Cache> {
        let mut cache = self.backend.cache(self.cache_shape());
        cache.reserve(capacity)?;
        Ok(cache)
    }

    fn cache_bytes(&self, tokens: usize) -> u64 {
        self.backend.cache_bytes(self.cache_shape(), tokens)
    }

    fn phases_differ(&self) -> bool {
        self.backend.phases_differ()
    }

    fn forward(&self, steps: &mut [Step<'_, B::Cache>], logits: &mut [f32]) -> Result<()> {
        if self.placeholders.is_some() {
            let read: Vec<_> = steps.iter().map(|step| self.read_ids(step.tokens)).collect();
            let each = steps.iter_mut().zip(&read);
            let mut steps: Vec<_> =
                each.map(|(step, tokens)| Step { cache: &mut *step.cache, tokens, ..*step }).collect();
            return self.write(&mut steps, logits);
        }
        self.write(steps, logits)
    }
}

impl<B: Backend> Transformer<B> {
    /// The logits of steps with the tokens that the model reads.
    fn write(&self, steps: &mut [Step<'_, B::Cache>], logits: &mut [f32]) -> Result<()> {
        let head = self.head.as_ref().ok_or_else(|| misuse("a model without a head writes no text"))?;
        let ends = steps.iter().map(|step| step.cache.len() + step.tokens.len());
        if let Some(end) = ends.max().filter(|&end| end > self.description.context) {
            return Err(Error::Input(format!(
                "{end} tokens exceed the model's context of {}",
                self.description.context
            )));
        }
        self.backend.run_cached(steps, self.description.vocabulary, logits, &|pass, out| {
            let x = Self::forward(self, pass, Some(Row::Last))?;
            pass.logits(x, self.final_norm.as_ref(), head, out)?;
            self.description.factors.apply(out);
            Ok(())
        })?;
        // Rows of the word table may have been read from a file that is being written to.
        self.check_files()
    }
}

#[cfg(test)]
#[path = "transformer_tests.rs"]
mod tests;
