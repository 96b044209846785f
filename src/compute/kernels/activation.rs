//! Activation functions.

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
    /// Hyperbolic tangent.
    Tanh,
}
