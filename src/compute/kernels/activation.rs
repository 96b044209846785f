//! Activation functions.

/// An elementwise function after a linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// Hyperbolic tangent.
    Tanh,
    /// `max(x, 0)²`.
    ReluSquared,
    /// With numbers of its own in each layer.
    Xielu(Xielu),
    /// Of gated perceptrons: it limits both operands, and adds one to that which is not the gate.
    ClampedSwish(ClampedSwish),
}

impl Activation {
    /// What limits the gated operand, which grows by one then.
    pub(crate) fn gated_limit(self) -> Option<f32> {
        if let Self::ClampedSwish(own) = self { Some(own.limit) } else { None }
    }
}

/// `(clamp(u, -l, l) + 1) g / (1 + e^(-a g))` with `g = min(x, l)`, where `x` is the gate and `u` what it multiplies: GPT-OSS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwish {
    /// `a`.
    pub steepness: f32,
    /// `l`.
    pub limit: f32,
}

/// An activation that grows with the square of a positive number, and bends down from the line for a negative one:
/// `p x² + b x` above 0, and `n (e^min(x, c) - 1 - x) + b x` elsewhere.
///
/// Huang and Schlag, "Deriving Activation Functions Using Integration", 2024.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// `p`.
    pub positive: f32,
    /// `n`.
    pub negative: f32,
    /// `b`.
    pub slope: f32,
    /// `c`, next to 0 and not above it.
    pub cut: f32,
}
