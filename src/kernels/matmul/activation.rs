//! The activations that a matmul applies as it stores its result.

/// What is applied to each value of a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// x / (1 + e^(-1.702 x)).
    QuickGelu,
    /// x / (1 + e^-x).
    Swish,
    /// x (1 + erf(x / sqrt 2)) / 2.
    Gelu,
    /// max(x, 0).
    Relu,
}
