//! What matrix products are computed in.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::device::DeviceError;
use super::kernels::Kernels;

/// What the factors of a stage's matrix products are rounded to: linear layers, convolutions and attention of student and teachers.
/// Sums of products, all other operators, weights, gradients and the optimiser's moments are fp32 in any case (mixed precision,
/// Micikevicius et al., arXiv 1710.03740).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Not at all.
    #[default]
    Fp32,
    /// bf16: the range of fp32 and 8 bits of precision; on the processor.
    Bf16,
    /// fp16: 11 bits of precision. Factors are divided by their largest value, so that small gradients stay above 6e-8, the
    /// smallest that fp16 has, and no sum exceeds 65,504, the largest; on GPUs.
    Fp16,
}

impl Precision {
    /// Whether it is fp32, which recipes do not name.
    #[must_use]
    pub fn is_full(&self) -> bool {
        *self == Self::Fp32
    }

    /// Fails where `device` cannot compute in it.
    ///
    /// # Errors
    /// [`DeviceError::Precision`].
    pub fn check<B: Kernels>(self, device: &B::Device) -> Result<(), DeviceError> {
        let expected = [Self::Fp32, Self::Bf16, Self::Fp16];
        if B::computes_in(self, device) {
            return Ok(());
        }
        let expected = expected.iter().filter(|&&other| B::computes_in(other, device));
        Err(DeviceError::Precision {
            found: self,
            expected: expected.map(ToString::to_string).collect::<Vec<_>>().join(" or "),
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        })
    }
}
