//! Matrix products of factors that are rounded to bf16, summed in fp32.
//!
//! Processors with AMX multiply tiles of 16 × 32 by 32 × 16 values in one instruction (Intel, Architecture Instruction Set Extensions
//! Programming Reference, chapter 3). Others multiply the same rounded values as fp32, which is no faster than without rounding; the
//! results differ by the order of their sums alone.

use std::sync::OnceLock;

use half::bf16;

use super::product::Matrix;

#[cfg(target_arch = "x86_64")]
mod tiles;

/// A right factor `[K, N]`, rounded and laid out for products.
pub(super) struct Rounded(Layout);

enum Layout {
    #[cfg(target_arch = "x86_64")]
    Tiles(tiles::Right),
    /// Rows of rounded values.
    Rows {
        values: Vec<f32>,
        rows: usize,
        columns: usize,
    },
}

/// Whether this processor is faster with bf16 than without; the first call says so where it is not.
fn is_fast() -> bool {
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let fast = tiles::found();
        #[cfg(not(target_arch = "x86_64"))]
        let fast = false;
        if !fast {
            tracing::warn!("found no AMX in this processor, so products in bf16 are no faster than those in fp32");
        }
        fast
    })
}

impl Rounded {
    pub(super) fn new(b: Matrix) -> Self {
        match is_fast() {
            #[cfg(target_arch = "x86_64")]
            true => Self(Layout::Tiles(tiles::Right::new(b))),
            _ => Self::in_rows(b),
        }
    }

    fn in_rows(b: Matrix) -> Self {
        let (rows, columns) = b.size();
        let mut values = vec![0.0; rows * columns];
        round(b, 1.0, &mut values);
        Self(Layout::Rows { values, rows, columns })
    }

    /// `out := keep · out + (factor · a) · self`, both factors rounded; see [`super::product::multiply`], which checks the sizes.
    pub(super) fn multiply(&self, out: &mut [f32], stride: usize, keep: bool, factor: f32, a: Matrix) {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Layout::Tiles(right) => right.multiply(out, stride, keep, factor, a),
            Layout::Rows { values, rows, columns } => {
                let (count, inner) = a.size();
                let mut left = vec![0.0; count * inner];
                round(a, factor, &mut left);
                let left = Matrix::new(&left, count, inner, inner);
                left.times(out, stride, keep, 1.0, Matrix::new(values, *rows, *columns, *columns));
            }
        }
    }
}

/// `factor · x`, rounded, in rows.
fn round(x: Matrix, factor: f32, out: &mut [f32]) {
    let (_, columns) = x.size();
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = bf16::from_f32(factor * x.at(row, column)).to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that no product of rounded ones has by chance: thirds of different sizes.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7 + seed * 3) % 31) as f32 / 3.0 - 4.7)
            .collect()
    }

    /// `keep · out + factor · a · b`, each factor rounded, summed as f64.
    fn expected(out: &[f32], stride: usize, keep: bool, factor: f32, a: Matrix, b: Matrix) -> Vec<f64> {
        let ((rows, inner), (_, columns)) = (a.size(), b.size());
        let mut all: Vec<f64> = out.iter().copied().map(f64::from).collect();
        for row in 0..rows {
            for column in 0..columns {
                let term =
                    |k| bf16::from_f32(factor * a.at(row, k)).to_f64() * bf16::from_f32(b.at(k, column)).to_f64();
                let before = if keep {
                    f64::from(out[row * stride + column])
                } else {
                    0.0
                };
                all[row * stride + column] = before + (0..inner).map(term).sum::<f64>();
            }
        }
        all
    }

    #[test]
    fn rounded_factors_are_multiplied_and_nothing_else_is_touched() {
        for (rows, inner, columns) in [
            (1, 1, 1),
            (32, 32, 32),
            (70, 33, 5),
            (3, 100, 90),
            (17, 64, 49),
            (64, 31, 96),
        ] {
            let (left, right) = (values(rows * inner, 1), values(inner * columns, 2));
            let straight = Matrix::new(&left, rows, inner, inner);
            let turned = Matrix::new(&left, inner, rows, rows).transposed();
            for a in [straight, turned] {
                let straight = Matrix::new(&right, inner, columns, columns);
                let turned = Matrix::new(&right, columns, inner, inner).transposed();
                for (b, keep) in [(straight, false), (straight, true), (turned, false), (turned, true)] {
                    let stride = columns + 3;
                    let before = values(rows * stride, 5);
                    let expected = expected(&before, stride, keep, 0.3, a, b);
                    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                    for rounded in [Rounded::new(b), Rounded::in_rows(b)] {
                        let mut out = before.clone();
                        rounded.multiply(&mut out, stride, keep, 0.3, a);
                        for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
                            let apart = (f64::from(*found) - expected).abs();
                            assert!(
                                apart <= 1e-5 * largest,
                                "{rows} × {inner} × {columns}, keep {keep}, value {i}: {found}, not {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so() {
        for (place, value) in [(0, f32::NAN), (40, f32::INFINITY), (63, f32::NAN)] {
            let mut left = vec![1.0; 64];
            left[place] = value;
            let right = vec![1.0; 64];
            let mut out = [0.0];
            let b = Rounded::new(Matrix::new(&right, 64, 1, 1));
            b.multiply(&mut out, 1, false, 1.0, Matrix::new(&left, 1, 64, 64));
            assert_eq!(out[0].is_nan(), value.is_nan(), "{}", out[0]);
            assert!(!out[0].is_finite());
        }
    }
}
