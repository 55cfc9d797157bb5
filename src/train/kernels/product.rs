//! Matrix products on slices, by the `gemm` crate; by [`bf16`] where factors are rounded.
//!
//! What runs in parallel is blocks of rows, chosen by shape alone, so a result does not depend on the number of threads.
#![allow(unsafe_code)] // gemm takes pointers

use std::cell::RefCell;
use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::bf16::Rounded;
use super::buffer::{written, written_onto};
use super::fused::{dims, tensor};
use super::rows::add_rows;
use crate::train::precision::Precision;

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` values, `stride` apart.
    ///
    /// # Panics
    /// If `values` is too short.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(values.len(), rows, columns, stride);
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// Rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The values, from the first one of the matrix on; the distances of rows and of columns, one of which is 1.
    pub(super) fn layout(&self) -> (&'a [f32], usize, usize) {
        (self.values, self.row_stride, self.column_stride)
    }

    /// One value.
    pub(super) fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.row_stride + column * self.column_stride]
    }

    /// `out := keep · out + factor · self · b`; see [`multiply`], which checks the sizes.
    pub(super) fn times(self, out: &mut [f32], stride: usize, keep: bool, factor: f32, b: Matrix) {
        assert_eq!(self.columns, b.rows, "inner sizes of a product");
        check(out.len(), self.rows, b.columns, stride);
        let strides = |m: &Matrix| (m.column_stride.cast_signed(), m.row_stride.cast_signed());
        let ((a_column, a_row), (b_column, b_row)) = (strides(&self), strides(&b));
        // SAFETY: `check` compared every matrix's last value with its slice, when the matrix was made and above for `out`;
        // `out` is borrowed mutably, so it overlaps neither factor, and its rows do not overlap each other.
        unsafe {
            gemm::gemm(
                self.rows,
                b.columns,
                self.columns,
                out.as_mut_ptr(),
                1,
                stride.cast_signed(),
                keep,
                self.values.as_ptr(),
                a_column,
                a_row,
                b.values.as_ptr(),
                b_column,
                b_row,
                if keep { 1.0 } else { 0.0 },
                factor,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

fn check(length: usize, rows: usize, columns: usize, stride: usize) {
    assert!(rows > 0 && columns > 0, "a matrix of {rows} × {columns}");
    assert!(
        columns <= stride && (rows - 1) * stride + columns <= length,
        "{rows} rows of {columns} values, {stride} apart, in a slice of {length}"
    );
}

/// A right factor, ready to be multiplied.
pub(super) enum Right<'a> {
    Single(Matrix<'a>),
    Rounded(Rounded),
}

impl<'a> Right<'a> {
    /// `b`, rounded as `precision` says.
    ///
    /// # Panics
    /// For fp16, which [`Precision::check`] refuses before anything is computed.
    pub(super) fn new(b: Matrix<'a>, precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Single(b),
            Precision::Bf16 => Self::Rounded(Rounded::new(b)),
            Precision::Fp16 => panic!("no product on the processor is computed in fp16"),
        }
    }
}

/// `out := keep · out + factor · a · b`, where `out` has rows of `b`'s width, `stride` apart; `keep` false ignores what it holds.
/// `a` is rounded as `b` is.
///
/// # Panics
/// If sizes do not fit.
pub(super) fn multiply(out: &mut [f32], stride: usize, keep: bool, factor: f32, a: Matrix, b: &Right) {
    match b {
        Right::Single(b) => a.times(out, stride, keep, factor, *b),
        Right::Rounded(b) => b.multiply(out, stride, keep, factor, a),
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` a slice of `length` values of this thread; what it holds is undefined.
pub(super) fn with_scratch<T>(length: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        scratch.resize(length, 0.0);
    }
    let result = f(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}

/// Rows of a result that one task computes.
fn block(rows: usize) -> usize {
    if rows >= 1024 { 256 } else { 64 }
}

/// `x [R, I] · Wᵀ + b`, `w [O, I]`, `b [O]`.
pub(super) fn linear(x: &FlexTensor, w: &FlexTensor, b: Option<&FlexTensor>, precision: Precision) -> FlexTensor {
    let ([rows, inner], outer) = (pair(x), pair(w)[0]);
    let (x, w, b) = (x.to_contiguous(), w.to_contiguous(), b.map(FlexTensor::to_contiguous));
    let (x, w, b) = (
        x.storage::<f32>(),
        w.storage::<f32>(),
        b.as_ref().map(|b| b.storage::<f32>()),
    );
    let w = Right::new(Matrix::new(w, outer, inner, inner).transposed(), precision);
    let fill = |_: usize, first: usize, out: &mut [f32]| {
        let count = out.len() / outer;
        let x = Matrix::new(&x[first / outer * inner..], count, inner, inner);
        multiply(out, outer, b.is_some(), 1.0, x, &w);
    };
    let part = block(rows) * outer;
    let out = match b {
        Some(b) => written_onto(b, 1, rows * outer, part, fill),
        None => written(1, rows * outer, part, fill),
    };
    tensor(out, vec![rows, outer])
}

/// Gradient of [`linear`] by its input: `g [R, O] · W [O, I]`.
pub(super) fn linear_by_input(w: &FlexTensor, grad: &FlexTensor, precision: Precision) -> FlexTensor {
    let ([rows, outer], inner) = (pair(grad), pair(w)[1]);
    let (w, grad) = (w.to_contiguous(), grad.to_contiguous());
    let (w, grad) = (w.storage::<f32>(), grad.storage::<f32>());
    let w = Right::new(Matrix::new(w, outer, inner, inner), precision);
    let out = written(1, rows * inner, block(rows) * inner, |_, first, out| {
        let count = out.len() / inner;
        let grad = Matrix::new(&grad[first / inner * outer..], count, outer, outer);
        multiply(out, inner, false, 1.0, grad, &w);
    });
    tensor(out, vec![rows, inner])
}

/// Gradients of [`linear`] by weight `gᵀ · x` and by bias `Σ g`.
pub(super) fn linear_by_parameters(
    x: &FlexTensor,
    grad: &FlexTensor,
    precision: Precision,
) -> (FlexTensor, FlexTensor) {
    let ([rows, inner], outer) = (pair(x), pair(grad)[1]);
    let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
    let (x, grad) = (x.storage::<f32>(), grad.storage::<f32>());
    let (by_weight, by_bias) = sum_over_parts(rows, 256, [outer, inner], |rows, by_weight, by_bias| {
        let grad = &grad[rows.start * outer..rows.end * outer];
        let x = Right::new(
            Matrix::new(&x[rows.start * inner..], rows.len(), inner, inner),
            precision,
        );
        let transposed = Matrix::new(grad, rows.len(), outer, outer).transposed();
        multiply(by_weight, inner, false, 1.0, transposed, &x);
        add_rows(grad, by_bias);
    });
    (tensor(by_weight, vec![outer, inner]), tensor(by_bias, vec![outer]))
}

/// Sums what `add(rows, by_weight [O, I], by_bias [O])` adds for parts of `rows` rows, each of `least` or more; parts run in
/// parallel, each with a result of its own.
pub(super) fn sum_over_parts(
    rows: usize,
    least: usize,
    [outer, inner]: [usize; 2],
    add: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    // Few parts where results are large.
    let most = ((1 << 23) / (outer * inner)).clamp(2, 16);
    let part = rows.div_ceil(most).max(least);
    let parts: Vec<_> = (0..rows.div_ceil(part))
        .into_par_iter()
        .map(|i| {
            let (mut by_weight, mut by_bias) = (vec![0.0; outer * inner], vec![0.0; outer]);
            add(i * part..rows.min((i + 1) * part), &mut by_weight, &mut by_bias);
            (by_weight, by_bias)
        })
        .collect();
    let mut parts = parts.into_iter();
    let first = parts.next().expect("a product has rows");
    parts.fold(first, |(mut weight, mut bias), (w, b)| {
        add_rows(&w, &mut weight);
        add_rows(&b, &mut bias);
        (weight, bias)
    })
}

fn pair(x: &FlexTensor) -> [usize; 2] {
    dims(x).try_into().expect("a matrix has two axes")
}
