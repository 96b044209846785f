//! From the states of tokens to results that have a part for each token: vectors of late interaction, and weights by token.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::dense::DenseLayer;
use super::layout::HeadActivation;
use super::pooling::normalize;
use crate::compute::{Isa, Projection, Rows};
use crate::models::architectures::Tensors as _;
use crate::models::manifest::WeightFiles;
use crate::models::weights::Weights;
use crate::output::{MultiVector, SparseVector};
use crate::{Error, Result};

/// The vectors of a text's tokens.
#[derive(Debug, Default)]
pub struct TokenHead {
    layers: Vec<(Projection, HeadActivation)>,
    /// Vectors have length 1.
    pub normalize: bool,
    /// The first token, which stands for the whole text, gets none.
    pub without_first: bool,
}

impl TokenHead {
    /// The head of these layers.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the layer that does not take what it gets, of `width` values first.
    pub fn new(
        layers: Vec<DenseLayer>,
        width: usize,
        isa: Isa,
        named: &dyn Fn(usize) -> PathBuf,
    ) -> Result<Self> {
        let mut head = Self::default();
        let mut gets = width;
        for (index, layer) in layers.into_iter().enumerate() {
            if layer.inputs() != gets {
                let takes = layer.inputs();
                let reason = format!("it takes vectors of {takes} dimensions, but gets {gets}");
                return Err(Error::invalid_file(named(index), reason));
            }
            gets = layer.outputs();
            head.layers.push(layer.packed(isa)?);
        }
        Ok(head)
    }

    /// Values of a vector, of states of `width`.
    pub fn width(&self, width: usize) -> usize {
        self.layers.last().map_or(width, |(layer, _)| layer.outputs())
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> u64 {
        self.layers.iter().map(|(layer, _)| layer.memory_bytes()).sum()
    }

    /// The vectors of the tokens `ids`, whose states are `rows`, but for those of `skipped`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn vectors(
        &self,
        ids: &[u32],
        rows: Rows<'_>,
        skipped: Option<&HashSet<u32>>,
    ) -> Result<MultiVector> {
        let first = usize::from(self.without_first);
        let width = rows.iter().next().map_or(0, <[f32]>::len);
        let kept = ids.iter().zip(rows.iter()).skip(first);
        let kept = kept.filter(|(id, _)| skipped.is_none_or(|skipped| !skipped.contains(id)));
        let mut values: Vec<f32> = kept.flat_map(|(_, row)| row).copied().collect();
        let mut columns = width;
        for (layer, activation) in &self.layers {
            values = layer.apply(Rows::new(&values, columns, columns))?;
            columns = layer.outputs();
            values.iter_mut().for_each(|x| *x = activation.apply(*x));
        }
        if self.normalize {
            values.chunks_exact_mut(columns.max(1)).for_each(normalize);
        }
        Ok(MultiVector { values: values.into(), width: self.width(width) })
    }
}

/// Weights of the tokens of a text: bge-m3's sparse vectors.
#[derive(Debug)]
pub struct LexicalHead {
    layer: Projection,
    /// Special tokens, which get no weight.
    unused: HashSet<u32>,
}

impl LexicalHead {
    /// The head of this layer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(layer: &DenseLayer, isa: Isa, unused: HashSet<u32>) -> Result<Self> {
        Ok(Self { layer: layer.packed(isa)?.0, unused })
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> u64 {
        self.layer.memory_bytes()
    }

    /// The greatest weight of each token of `ids` above zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn weights(&self, ids: &[u32], rows: Rows<'_>) -> Result<SparseVector> {
        let mut best = BTreeMap::new();
        for (&id, weight) in ids.iter().zip(self.layer.apply(rows)?) {
            // A NaN must show, and not be passed over.
            let counts = weight > 0.0 || weight.is_nan();
            if counts && !self.unused.contains(&id) {
                let most = best.entry(id).or_insert(weight);
                if weight > *most || weight.is_nan() {
                    *most = weight;
                }
            }
        }
        let (indices, values): (Vec<u32>, Vec<f32>) = best.into_iter().unzip();
        Ok(SparseVector { indices: indices.into(), values: values.into() })
    }
}

/// The layer that PyTorch saved as `name` in the model's folder: a `weight` and a `bias`. `None` without that file.
///
/// # Errors
/// As for any weights.
pub fn saved_layer(
    folder: &Path,
    name: &str,
    inputs: usize,
    outputs: Option<usize>,
) -> Result<Option<DenseLayer>> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let weights = Weights::open(&WeightFiles::Pickle(vec![path.clone()]))?;
    let rows = outputs.or_else(|| weights.shape("weight").and_then(<[usize]>::first).copied());
    let rows = rows.ok_or_else(|| Error::invalid_file(&path, "it has no tensor \"weight\""))?;
    let weight = weights.matrix("weight", [rows, inputs])?.to_f32()?;
    let bias = match weights.contains("bias") {
        true => Some(weights.vector("bias", rows)?.to_f32()?),
        false => None,
    };
    Ok(Some(DenseLayer::biased(weight, bias, inputs)))
}
