//! Parts of a layer that a few of these families have in another form than Llama.

use crate::Result;
use crate::compute::Xielu;
use crate::models::architectures::tensors::Tensors;

/// The form of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) enum NormForm {
    /// RMS normalization.
    Rms,
    /// Layer normalization.
    Layer,
    /// Layer normalization that shifts by zero.
    Unshifted,
}

/// The names of the perceptron's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) struct MlpNames {
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// Gate and first matrix as one.
    pub both: &'static str,
}

impl MlpNames {
    /// Llama's, and those of families that join two of them.
    pub(in crate::models::architectures) const LLAMA: Self =
        Self { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj", both: "mlp.gate_up_proj" };
}

/// The name of [`ClampedSwish`](crate::compute::ClampedSwish), which transformers gives none.
pub(super) const CLAMPED: &str = "clamped swish";

/// Where the numbers of [`Xielu`] are.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::architectures) enum XieluNumbers {
    /// In tensors of each layer.
    Tensors,
    /// Here, for each layer.
    Known(Vec<Xielu>),
}

impl XieluNumbers {
    /// Those of layer `index`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or a number cannot be computed with.
    pub(super) fn of_layer(&self, tensors: &dyn Tensors, index: usize) -> Result<Xielu> {
        if let Self::Known(layers) = self {
            return Ok(layers[index]);
        }
        let name = |part: &str| format!("model.layers.{index}.mlp.act_fn.{part}");
        let number = |part: &str, shape: &[usize]| -> Result<f32> {
            Ok(tensors.tensor(&name(part), shape)?.to_f32()?[0])
        };
        let [positive, negative] = [number("alpha_p", &[1])?, number("alpha_n", &[1])?];
        let [slope, cut] = [number("beta", &[])?, number("eps", &[])?];
        xielu(positive, negative, slope, cut).map_err(|reason| tensors.damaged(&name("alpha_p"), &reason))
    }
}

/// The activation of the numbers that files have.
///
/// # Errors
/// What cannot be computed with.
pub(super) fn xielu(alpha_p: f32, alpha_n: f32, beta: f32, eps: f32) -> Result<Xielu, String> {
    let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
    let own =
        Xielu { positive: softplus(alpha_p), negative: beta + softplus(alpha_n), slope: beta, cut: eps };
    let finite = [own.positive, own.negative, own.slope].iter().all(|number| number.is_finite());
    if finite && (-1.0..=0.0).contains(&eps) {
        return Ok(own);
    }
    Err(format!(
        "the numbers of its activation are {alpha_p}, {alpha_n}, {beta} and {eps}; they must be finite, and the last one -1 to 0"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_computed_with_are_refused() {
        let half = 0.5_f32.exp_m1().ln();
        let own = xielu(half, half, 0.25, -1e-6).unwrap();
        assert!((own.positive - 0.5).abs() < 1e-6 && (own.negative - 0.75).abs() < 1e-6, "{own:?}");
        assert_eq!((own.slope, own.cut), (0.25, -1e-6));
        assert_eq!(xielu(50.0, 0.0, 0.0, 0.0).unwrap().positive, 50.0);
        for wrong in [[f32::NAN, 0.0, 0.0, 0.0], [0.0, f32::INFINITY, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]] {
            let [a, b, c, d] = wrong;
            assert!(xielu(a, b, c, d).unwrap_err().contains("activation"), "{wrong:?}");
        }
    }
}
