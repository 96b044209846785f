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
