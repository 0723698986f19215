//! What dropout leaves out.

use serde::{Deserialize, Serialize};

pub use crate::kernels::dropout::DropoutMask;
use crate::random::Random;

/// The shares of values that training leaves out of a text at random, each from 0 to below 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropout {
    /// Of the embedded tokens and of what each layer adds to them (`hidden_dropout_prob`).
    pub hidden: f64,
    /// Of the attention's weights (`attention_probs_dropout_prob`).
    pub attention: f64,
}

/// The choices of one forward pass, in the order of their use. A seed always gives the same ones.
#[cfg_attr(
    not(feature = "train"),
    allow(dead_code, reason = "only training leaves anything out")
)]
pub(crate) struct Dropping {
    rates: Dropout,
    random: Random,
}

impl Dropping {
    #[cfg(feature = "train")]
    pub(crate) fn new(rates: Dropout, seed: u64) -> Self {
        Self {
            rates,
            random: Random::new(seed),
        }
    }

    /// What the next sum or embedding leaves out, if anything.
    #[cfg(feature = "train")]
    pub(crate) fn hidden(&mut self) -> Option<DropoutMask> {
        self.mask(self.rates.hidden)
    }

    /// What the next attention leaves out, if anything.
    pub(crate) fn attention(&mut self) -> Option<DropoutMask> {
        self.mask(self.rates.attention)
    }

    fn mask(&mut self, share: f64) -> Option<DropoutMask> {
        let seed = self.random.bits();
        (share > 0.0).then_some(DropoutMask { seed, share })
    }
}
