//! Which variant of a bundle's graphs runs where.
//!
//! A pure choice, so that it can be read as a table: tract computes in 32 bits only (8-bit graphs come out inexact and
//! 16-bit ones do not open there); CUDA gains from a 16-bit graph; TensorRT wants an 8-bit one, and otherwise makes its
//! own 16-bit engine out of the default graph. A variant that the user names overrides all of that.
//! Whatever is chosen has every size that is wanted.

use crate::contract::{Compute, Precision};

/// What runs the graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// tract on the CPU.
    Tract,
    /// ONNX Runtime on the CPU.
    OrtCpu,
    /// ONNX Runtime on an NVIDIA GPU.
    Cuda,
    /// TensorRT through ONNX Runtime.
    TensorRt,
}

impl Executor {
    /// The name in messages and topics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract-cpu",
            Self::OrtCpu => "ort-cpu",
            Self::Cuda => "ort-cuda",
            Self::TensorRt => "ort-tensorrt",
        }
    }
}

/// A variant, and what TensorRT may make of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice<'a> {
    /// The variant whose graphs are opened.
    pub variant: &'a Precision,
    /// Whether TensorRT may compute in 16 bits; without meaning elsewhere.
    pub half: bool,
    /// The variant that would have been chosen if it had every wanted size.
    pub passed_over: Option<&'a str>,
}

impl Choice<'_> {
    /// Why not the variant that is best for the executor.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let name = self.passed_over?;
        Some(format!("precision {name} passed over: it lacks a wanted size"))
    }
}

/// Why no variant can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrecisionError {
    /// The user names a variant that the bundle does not hold.
    #[error("precision {found:?} is not in the bundle; it holds {known}")]
    Unknown {
        /// The name.
        found: String,
        /// The names that exist.
        known: String,
    },
    /// The variant was not made at a size.
    #[error("precision {name:?} has no size of {side} pixels; of the bundle's, {having} has it")]
    NoSize {
        /// Name of the variant.
        name: String,
        /// The side that is wanted.
        side: usize,
        /// The names of those that have it.
        having: String,
    },
    /// The back end computes such a graph wrongly or not at all.
    #[error(
        "{executor} cannot run precision {name:?}, which computes in {compute}; it can run {runnable}, or use ONNX Runtime"
    )]
    Unsuitable {
        /// Name of the executor.
        executor: &'static str,
        /// The variant.
        name: String,
        /// What it computes in.
        compute: &'static str,
        /// Variants that the executor can run, or `none of the bundle's`.
        runnable: String,
    },
    /// The manifest lists nothing.
    #[error("the bundle holds no precision at all; export the model again")]
    Empty,
}

fn compute_name(compute: Compute) -> &'static str {
    match compute {
        Compute::Fp32 => "fp32",
        Compute::Fp16 => "fp16",
        Compute::Int8 => "int8",
    }
}

/// The first variant that computes in 32 bits.
#[must_use]
pub fn full_precision(variants: &[Precision]) -> Option<&Precision> {
    variants.iter().find(|v| v.compute == Compute::Fp32)
}

/// Chooses the variant for an executor; `named` is the user's wish, `sides` are sizes beside the bundle's own that it must have.
///
/// # Errors
/// [`PrecisionError`] if the wish cannot be had, or tract finds nothing that it runs exactly.
pub fn choose<'a>(
    variants: &'a [Precision],
    named: Option<&str>,
    sides: &[usize],
    executor: Executor,
) -> Result<Choice<'a>, PrecisionError> {
    let lacking = |v: &Precision| sides.iter().copied().find(|&side| v.at(side).is_none());
    let has = |v: &&Precision| lacking(v).is_none();
    // A variant that was written against the quality gate is for those who name it, or where nothing else is.
    let passed = |v: &&Precision| has(v) && !v.measured.as_ref().is_some_and(|m| m.forced);
    let any = variants.first().ok_or(PrecisionError::Empty)?;
    let default = variants
        .iter()
        .find(passed)
        .or(variants.iter().find(has))
        .unwrap_or(any);
    let first = |compute| variants.iter().filter(passed).find(|v| v.compute == compute);
    let full = || variants.iter().filter(has).find(|v| v.compute == Compute::Fp32);
    let variant = match (named, executor) {
        (Some(name), _) => variants
            .iter()
            .find(|v| v.name == name)
            .ok_or_else(|| PrecisionError::Unknown {
                found: name.to_owned(),
                known: names(variants, |_| true),
            })?,
        (None, Executor::Tract | Executor::OrtCpu) => first(Compute::Fp32).or_else(full).unwrap_or(default),
        (None, Executor::Cuda) => first(Compute::Fp16).unwrap_or(default),
        (None, Executor::TensorRt) => first(Compute::Int8).unwrap_or(default),
    };
    if let Some(side) = lacking(variant) {
        return Err(PrecisionError::NoSize {
            name: variant.name.clone(),
            side,
            having: names(variants, |v| v.at(side).is_some()),
        });
    }
    if executor == Executor::Tract && variant.compute != Compute::Fp32 {
        return Err(PrecisionError::Unsuitable {
            executor: executor.name(),
            name: variant.name.clone(),
            compute: compute_name(variant.compute),
            runnable: names(variants, |v| v.compute == Compute::Fp32),
        });
    }
    // Whoever names a 32-bit variant wants 32 bits: the way out where TensorRT's own fp16 loses too much.
    let half = named.is_none() || variant.compute != Compute::Fp32;
    let best = if sides.is_empty() {
        Some(variant)
    } else {
        choose(variants, named, &[], executor).ok().map(|choice| choice.variant)
    };
    let passed_over = best.map(|best| best.name.as_str()).filter(|name| *name != variant.name);
    Ok(Choice {
        variant,
        half,
        passed_over,
    })
}

fn names(variants: &[Precision], keep: impl Fn(&Precision) -> bool) -> String {
    let kept: Vec<&str> = variants.iter().filter(|v| keep(v)).map(|v| v.name.as_str()).collect();
    if kept.is_empty() {
        "none of the bundle's".into()
    } else {
        kept.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Measured, SizeFiles};

    fn variants(list: &[(&str, Compute)]) -> Vec<Precision> {
        let one = |&(name, compute): &(&str, Compute)| Precision {
            name: name.into(),
            compute,
            encoder: format!("{name}.onnx"),
            mask_decoder: String::new(),
            text_encoder: String::new(),
            relative_error: Default::default(),
            mean_iou_change: None,
            size: Vec::new(),
            measured: None,
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn every_executor_gets_the_variant_of_the_table() {
        use Compute::{Fp16, Fp32, Int8};
        use Executor::{Cuda, OrtCpu, TensorRt, Tract};
        let all = variants(&[("stored", Fp32), ("plain", Fp32), ("half", Fp16), ("eight", Int8)]);
        let one = variants(&[("stored", Fp32)]);
        let odd = variants(&[("eight", Int8), ("plain", Fp32)]);
        for (bundle, named, executor, name, half) in [
            (&all, None, Tract, "stored", true),
            (&all, None, OrtCpu, "stored", true),
            (&all, None, Cuda, "half", true),
            (&all, None, TensorRt, "eight", true),
            (&one, None, Tract, "stored", true),
            (&one, None, OrtCpu, "stored", true),
            (&one, None, Cuda, "stored", true),
            (&one, None, TensorRt, "stored", true),
            (&odd, None, Tract, "plain", true),
            (&odd, None, OrtCpu, "plain", true),
            (&odd, None, Cuda, "eight", true),
            (&all, Some("plain"), Tract, "plain", false),
            (&all, Some("eight"), OrtCpu, "eight", true),
            (&all, Some("stored"), TensorRt, "stored", false),
            (&all, Some("half"), TensorRt, "half", true),
        ] {
            let choice = choose(bundle, named, &[], executor).unwrap();
            assert_eq!(
                (choice.variant.name.as_str(), choice.half),
                (name, half),
                "{named:?} {executor:?}"
            );
        }
    }

    #[test]
    fn a_variant_forced_past_the_gate_runs_only_where_it_is_named() {
        use Compute::{Fp16, Fp32, Int8};
        use Executor::{Cuda, OrtCpu, TensorRt, Tract};
        let mut all = variants(&[("half", Fp16), ("stored", Fp32), ("eight", Int8), ("better", Int8)]);
        let measured = |forced| Measured {
            reference: "stored".into(),
            photos: 8,
            mask_agreement: 0.5,
            ranking_changed: 0.5,
            size_ratio: 0.5,
            calibration: None,
            float_layers: Vec::new(),
            forced,
        };
        for (variant, forced) in all.iter_mut().zip([true, false, true, false]) {
            variant.measured = Some(measured(forced));
        }
        for (bundle, named, executor, name) in [
            (&all[..], None, TensorRt, "better"),
            (&all[..3], None, TensorRt, "stored"),
            (&all[..3], None, Cuda, "stored"),
            (&all[..3], None, OrtCpu, "stored"),
            (&all[..3], None, Tract, "stored"),
            (&all[..], Some("eight"), TensorRt, "eight"),
            (&all[..], Some("half"), Cuda, "half"),
            // Nothing else is there.
            (&all[..1], None, Cuda, "half"),
        ] {
            let choice = choose(bundle, named, &[], executor).unwrap();
            assert_eq!(choice.variant.name, name, "{named:?} {executor:?}");
        }
    }

    #[test]
    fn tract_refuses_what_it_computes_wrongly_and_names_what_it_can_run() {
        let all = variants(&[
            ("stored", Compute::Fp32),
            ("half", Compute::Fp16),
            ("eight", Compute::Int8),
        ]);
        for (name, compute) in [("half", "fp16"), ("eight", "int8")] {
            let error = choose(&all, Some(name), &[], Executor::Tract).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{name:?}, which computes in {compute}; it can run stored, or")),
                "{error}"
            );
        }
        let none = variants(&[("eight", Compute::Int8)]);
        let error = choose(&none, None, &[], Executor::Tract).unwrap_err().to_string();
        assert!(error.contains("none of the bundle's"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let all = variants(&[("stored", Compute::Fp32), ("half", Compute::Fp16)]);
        let error = choose(&all, Some("fp8"), &[], Executor::Cuda).unwrap_err().to_string();
        assert_eq!(error, "precision \"fp8\" is not in the bundle; it holds stored, half");
        assert_eq!(choose(&[], None, &[], Executor::Cuda), Err(PrecisionError::Empty));
    }

    #[test]
    fn a_variant_that_lacks_a_wanted_size_is_passed_over_and_refused_by_name() {
        use Compute::{Fp32, Int8};
        let mut all = variants(&[("eight", Int8), ("stored", Fp32), ("plain", Fp32)]);
        all[2].size = vec![SizeFiles {
            side: 224,
            encoder: "e.onnx".into(),
            mask_decoder: "m.onnx".into(),
        }];
        for (executor, name, best) in [
            (Executor::TensorRt, "plain", "eight"),
            (Executor::Tract, "plain", "stored"),
            (Executor::OrtCpu, "plain", "stored"),
        ] {
            let choice = choose(&all, None, &[224], executor).unwrap();
            assert_eq!((choice.variant.name.as_str(), choice.passed_over), (name, Some(best)));
        }
        let error = choose(&all, Some("eight"), &[224], Executor::OrtCpu);
        let expected = "precision \"eight\" has no size of 224 pixels; of the bundle's, plain has it";
        assert_eq!(error.unwrap_err().to_string(), expected);
        let error = choose(&all[..2], None, &[224], Executor::OrtCpu).unwrap_err();
        assert!(matches!(error, PrecisionError::NoSize { side: 224, .. }), "{error}");
    }
}
