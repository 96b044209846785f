//! Mixtures of experts on tensors: the host chooses, and each expert multiplies its rows at once.

use candle_core::{Result, Tensor};

use super::tensors::{TensorLinear, TensorNorm};
use crate::compute::experts::{ChosenExpert, ExpertLayers, ExpertNorms, Experts};
use crate::compute::kernels::activation::Activation;

impl ExpertLayers<TensorLinear> {
    fn apply(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.down.apply(&self.up.activated(x, activation)?)
    }
}

impl Experts<TensorLinear, TensorNorm> {
    /// What they make of `[rows, columns]`, which `norm` normalizes: the weighted sum for each row.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        norm: Option<&TensorNorm>,
        activation: Activation,
    ) -> Result<Tensor> {
        let of_block = norm.map_or_else(|| Ok(x.clone()), |norm| norm.apply(x))?;
        let normed = |own: fn(&ExpertNorms<TensorNorm>) -> &TensorNorm| match &self.norms {
            Some(norms) => own(norms).apply(x),
            None => Ok(of_block.clone()),
        };
        let mut scores = self.router.apply(&normed(|norms| &norms.router)?)?.to_vec2::<f32>()?;
        let used = self.routing.used;
        let mut rows = vec![(Vec::new(), Vec::new()); self.experts.len()];
        let mut chosen = vec![ChosenExpert::default(); used];
        for (row, scores) in scores.iter_mut().enumerate() {
            self.choose(scores, &mut chosen);
            for ChosenExpert { index, weight } in &chosen {
                let (rows, weights) = &mut rows[*index as usize];
                rows.push(row as u32);
                weights.push(*weight);
            }
        }
        let x = normed(|norms| &norms.input)?;
        let mut sum = x.zeros_like()?;
        if !self.bias.is_empty() {
            sum = sum.broadcast_add(&Tensor::new(&self.bias[..], x.device())?)?;
        }
        for (layers, (rows, weights)) in self.experts.iter().zip(rows).filter(|(_, own)| !own.0.is_empty()) {
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, x.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), x.device())?;
            let y = layers.apply(&x.index_select(&rows, 0)?, activation)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &y, 0)?;
        }
        if let Some(norms) = &self.norms {
            sum = norms.output.apply(&sum)?;
        }
        let Some(shared) = &self.shared else { return Ok(sum) };
        let mut y = shared.layers.apply(&of_block, activation)?;
        if let Some(norms) = &self.norms {
            y = norms.shared_output.apply(&y)?;
        }
        match &shared.gate {
            Some(gate) => {
                let gates = ((gate.apply(&of_block)?.neg()?.exp()? + 1.0)?).recip()?;
                sum + y.broadcast_mul(&gates)?
            }
            None => sum + y,
        }
    }
}
