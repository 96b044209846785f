//! Activation functions.

use super::math::activate;
use crate::compute::simd::Portable;

/// An elementwise function after a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// None.
    Identity,
    /// Exact GELU: `x Φ(x)`, with the error function.
    Gelu,
    /// GELU in its tanh approximation ("gelu_new").
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
}

impl Activation {
    /// The function of one number.
    #[must_use]
    pub fn of(self, x: f32) -> f32 {
        activate::<Portable, false>(Portable, self, [x; 4])[0]
    }
}
