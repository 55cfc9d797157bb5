//! WiSE-FT (Wortsman et al., arXiv 2109.01903): weights between two checkpoints of one architecture.

use crate::train::weights::{self, Values, Weights, WeightsError};

/// A share of the second checkpoint, as `--alpha` takes it.
///
/// # Errors
/// What is no number from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("found {text}, expected a share from 0 to 1"))
}

/// `(1 - alpha) · a + alpha · b` of every tensor; 0 is `a`, 1 is `b`.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every tensor that only one of them has or whose shapes differ.
pub fn interpolate(a: &Weights, b: &Weights, alpha: f32) -> Result<Weights, WeightsError> {
    weights::check(b, &weights::shapes(a), "the second checkpoint")?;
    let between = a.iter().map(|(name, from)| {
        let pairs = from.data.iter().zip(&b[name].data);
        let values = Values {
            shape: from.shape.clone(),
            data: pairs.map(|(a, b)| a + alpha * (b - a)).collect(),
        };
        (name.clone(), values)
    });
    Ok(between.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(name: &str, data: &[f32]) -> Weights {
        let values = Values {
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        [(name.to_owned(), values)].into()
    }

    #[test]
    fn the_ends_are_the_checkpoints_and_the_middle_lies_between() {
        let (a, b) = (weights("w", &[0.0, 2.0]), weights("w", &[4.0, -2.0]));
        assert_eq!(interpolate(&a, &b, 0.0).unwrap(), a);
        assert_eq!(interpolate(&a, &b, 1.0).unwrap(), b);
        assert_eq!(interpolate(&a, &b, 0.25).unwrap()["w"].data, [1.0, 1.0]);
    }

    #[test]
    fn a_share_lies_between_the_ends() {
        assert_eq!((share("0"), share("0.25"), share("1")), (Ok(0.0), Ok(0.25), Ok(1.0)));
        for wrong in ["-0.1", "1.01", "NaN", "half", ""] {
            assert_eq!(
                share(wrong),
                Err(format!("found {wrong}, expected a share from 0 to 1"))
            );
        }
    }

    #[test]
    fn checkpoints_of_two_architectures_are_refused_with_the_list() {
        let error = interpolate(&weights("w", &[0.0]), &weights("v", &[0.0]), 0.5)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("missing w [1]") && error.contains("extra v [1]"),
            "{error}"
        );
        assert!(interpolate(&weights("w", &[0.0]), &weights("w", &[0.0, 1.0]), 0.5).is_err());
    }
}
