//! From a batch of sequences to their results: the pass of the model, and the head.

use std::collections::HashMap;

use super::encoder::{Encoder, misuse};
use super::head::Head;
use super::heads::pooling::normalize;
use super::heads::{DenseLayer, Pooling, SparseBatch, TokenHead};
use super::late_texts::LateTexts;
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::compute::memory::zeroed;
use crate::compute::{PackedBatch, Rows};
use crate::output::{Combined, Output, OutputKind};
use crate::sync::Mutex;

/// Makes an item of a text's ids, its `second` and the states of its tokens. Called from several threads.
type MakeItem<'a, T> = dyn Fn(&[u32], u32, Rows<'_>) -> Result<T> + Sync + 'a;

impl Encoder {
    /// The vectors of a batch, or its logits, into `out`, row-major `[sequences, width]`: pooled, through the layers of
    /// the head, and L2-normalized when the model itself does that. Whether they are finite is for the caller to see.
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn encode(&self, batch: &PackedBatch<'_>, out: &mut [f32]) -> Result<()> {
        let pooling = self.config.pooling;
        let pooled = |batch: &PackedBatch<'_>| -> Result<Vec<f32>> {
            let mut states = zeroed(batch.sequences() * self.model.width())?;
            self.model.encode(batch, pooling, &mut states)?;
            Ok(states)
        };
        match &self.head {
            Head::Vectors { dense, .. } if dense.is_empty() => self.model.encode(batch, pooling, out)?,
            Head::Vectors { dense, .. } => {
                let vectors = dense.iter().fold(pooled(batch)?, |vectors, layer| layer.apply(&vectors));
                out.copy_from_slice(&vectors);
            }
            Head::Scores(classifier) => {
                let shorter = classifier.without_padding(batch);
                let batch = match &shorter {
                    Some((ids, offsets)) => PackedBatch { ids, offsets, ..*batch },
                    None => *batch,
                };
                let states = match self.pair_chat.is_some() && pooling == Pooling::Last {
                    true => self.last_states(&batch)?,
                    false => pooled(&batch)?,
                };
                out.copy_from_slice(&classifier.apply(states));
            }
            Head::Sparse(..) | Head::Tokens(_) => return Err(misuse("this model pools no states")),
        }
        if self.config.normalize {
            out.chunks_exact_mut(self.width().max(1)).for_each(normalize);
        }
        Ok(())
    }

    /// The last state of each sequence. What sequences begin with, up to their second text, is computed once where it is the
    /// same.
    fn last_states(&self, batch: &PackedBatch<'_>) -> Result<Vec<f32>> {
        let width = self.model.width();
        let mut out = zeroed(batch.sequences() * width)?;
        let begin = |index: usize| {
            let range = batch.range(index);
            let shared = batch.second_starts.get(index).map_or(0, |&second| second as usize);
            range.start..range.start + shared.min(range.len().saturating_sub(1))
        };
        let mut groups: HashMap<&[u32], Vec<usize>> = HashMap::new();
        for index in 0..batch.sequences() {
            groups.entry(&batch.ids[begin(index)]).or_default().push(index);
        }
        for (prefix, members) in groups {
            let (mut ids, mut offsets) = (Vec::new(), vec![0]);
            for &index in &members {
                ids.extend_from_slice(&batch.ids[begin(index).end..batch.range(index).end]);
                offsets.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
            }
            let mut states = zeroed(members.len() * width)?;
            self.model.encode_after(prefix, &PackedBatch::new(&ids, &offsets)?, &mut states)?;
            for (&index, state) in members.iter().zip(states.chunks_exact(width.max(1))) {
                out[index * width..(index + 1) * width].copy_from_slice(state);
            }
        }
        Ok(out)
    }

    /// The items of this kind of a batch into `out`, whose shape is one of [`Encoder::shapes`].
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn compute(&self, kind: OutputKind, batch: &PackedBatch<'_>, out: &mut Output) -> Result<()> {
        match (out, &self.head) {
            (Output::Dense(out) | Output::Scores(out), _) => self.encode(batch, out.values_mut()),
            (Output::Sparse(out), Head::Sparse(pooling, _)) => {
                let sparse = SparseBatch::new(batch.sequences());
                self.model
                    .logits(batch, &|sequence, first, rows| sparse.add(*pooling, sequence, first, rows))?;
                out.items.iter_mut().zip(sparse.into_vectors()).for_each(|(item, vector)| *item = vector);
                Ok(())
            }
            (Output::Sparse(out), Head::Vectors { lexical: Some(lexical), .. }) => {
                self.each_text(batch, &mut out.items, &|ids, _, rows| lexical.weights(ids, rows))
            }
            (Output::Sparse(_), _) => Err(misuse("this model gives no sparse vectors")),
            (Output::Multi(out), Head::Vectors { tokens: Some(tokens), .. } | Head::Tokens(tokens))
                if kind != OutputKind::States =>
            {
                self.each_text(batch, &mut out.items, &|ids, second, rows| {
                    tokens.vectors(ids, rows, self.late.as_ref().map(|late| late.skipped(second)))
                })
            }
            (Output::Multi(out), _) => self.each_text(batch, &mut out.items, &|ids, _, rows| {
                TokenHead::default().vectors(ids, rows, None)
            }),
            (Output::All(out), Head::Vectors { dense, lexical: Some(lexical), tokens: Some(tokens) }) => self
                .each_text(batch, &mut out.items, &|ids, _, rows| {
                    let vector = self.pooled(dense, rows)?;
                    let (sparse, multi) = (lexical.weights(ids, rows)?, tokens.vectors(ids, rows, None)?);
                    Ok(Combined { dense: vector.into(), sparse, multi })
                }),
            (Output::All(_), _) => Err(misuse("this model gives no three results")),
        }
    }

    /// The vector of some of a text's states, one after another, into `out`.
    ///
    /// # Errors
    /// [`Error::Internal`] for a model that gives no vectors; [`Error::OutOfMemory`].
    pub fn pool(&self, states: &[f32], out: &mut [f32]) -> Result<()> {
        let (Head::Vectors { dense, .. }, width) = (&self.head, self.model.width()) else {
            return Err(misuse("this model pools no states"));
        };
        out.copy_from_slice(&self.pooled(dense, Rows::new(states, width, width))?);
        Ok(())
    }

    fn pooled(&self, dense: &[DenseLayer], rows: Rows<'_>) -> Result<Vec<f32>> {
        let mut vector = zeroed(self.model.width())?;
        self.config.pooling.pool(rows, &mut vector);
        vector = dense.iter().fold(vector, |vector, layer| layer.apply(&vector));
        if self.config.normalize {
            normalize(&mut vector);
        }
        Ok(vector)
    }

    /// What `make` makes of the ids, the `second` and the states of each text of a batch.
    fn each_text<T: Default + Send>(
        &self,
        batch: &PackedBatch<'_>,
        out: &mut Vec<T>,
        make: &MakeItem<'_, T>,
    ) -> Result<()> {
        let second = |index: usize| batch.second_starts.get(index).copied().unwrap_or(u32::MAX);
        let of = |late: &LateTexts| -> Vec<u32> {
            let tokens = batch.ranges().map(|range| range.len());
            tokens.enumerate().map(|(index, tokens)| late.hidden(tokens, second(index))).collect()
        };
        let hidden = self.late.as_ref().map(of).filter(|hidden| hidden.iter().any(|&tokens| tokens > 0));
        let marked = match &hidden {
            Some(hidden) => PackedBatch { second_starts: &[], hidden, ..*batch },
            // `second_starts` says which are queries and which documents: their tokens have one type.
            None if self.late.is_some() => PackedBatch { second_starts: &[], ..*batch },
            None => *batch,
        };
        let items: Vec<Mutex<Result<T>>> =
            (0..batch.sequences()).map(|_| Mutex::new(Ok(T::default()))).collect();
        self.model.states(&marked, &|index, _, rows| {
            *items[index].lock() = make(&batch.ids[batch.range(index)], second(index), rows);
        })?;
        *out = items.into_iter().map(Mutex::into_inner).collect::<Result<_>>()?;
        Ok(())
    }
}
