//! Results that parallel loops write once.
//!
//! A zeroed buffer costs a pass over memory by one thread before the loop starts. Here each part is prepared by the task that
//! fills it, while it is in that core's cache.
#![allow(unsafe_code)] // memory is handed to the loop before all of it holds values

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// `groups` results of `size` values, one after another. Each is cut into parts of `part` values (the last may be shorter);
/// `fill(group, first, values)` gets the part that starts at value `first` of its group, holding zeros.
pub(super) fn written(
    groups: usize,
    size: usize,
    part: usize,
    fill: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    written_with(groups, size, part, fill).0
}

/// As [`written`]; also what `fill` returns of each part, in their order.
pub(super) fn written_with<T: Send>(
    groups: usize,
    size: usize,
    part: usize,
    fill: impl Fn(usize, usize, &mut [f32]) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    prepared([groups, size, part], &zeroed, fill)
}

/// As [`written`], but `values` holds `row` again and again: what is added to every row of a result. Parts are whole rows.
pub(super) fn written_onto(
    row: &[f32],
    groups: usize,
    size: usize,
    part: usize,
    fill: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    prepared([groups, size, part], &|memory| repeated(memory, row), fill).0
}

/// As [`written_with`], on what `prepare` makes of the memory of a part.
fn prepared<T: Send>(
    [groups, size, part]: [usize; 3],
    prepare: &(impl Fn(&mut [MaybeUninit<f32>]) -> &mut [f32] + Sync),
    fill: impl Fn(usize, usize, &mut [f32]) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    let (mut out, fill) = (Vec::with_capacity(groups * size), &fill);
    if groups * size == 0 {
        return (out, Vec::new());
    }
    let memory = &mut out.spare_capacity_mut()[..groups * size];
    let parts = memory.par_chunks_mut(size).enumerate().flat_map(|(group, memory)| {
        let parts = memory.par_chunks_mut(part).enumerate();
        parts.map(move |(i, memory)| {
            let length = memory.len();
            let values = prepare(memory);
            assert_eq!(values.len(), length, "all of a part is prepared");
            fill(group, i * part, values)
        })
    });
    let told = parts.collect();
    // SAFETY: the parts cover the `groups · size` values that were reserved, and `prepare` made values of all of each:
    // nothing else than its memory can be lent for as long.
    unsafe { out.set_len(groups * size) };
    (out, told)
}

fn zeroed(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for value in memory.iter_mut() {
        value.write(0.0);
    }
    // SAFETY: every value was written above; `MaybeUninit<f32>` has the layout of `f32`.
    unsafe { &mut *(std::ptr::from_mut(memory) as *mut [f32]) }
}

fn repeated<'a>(memory: &'a mut [MaybeUninit<f32>], row: &[f32]) -> &'a mut [f32] {
    let mut rows = memory.chunks_exact_mut(row.len());
    for values in &mut rows {
        values.write_copy_of_slice(row);
    }
    assert!(rows.into_remainder().is_empty(), "parts are whole rows");
    // SAFETY: every value was written above: nothing remains behind the rows.
    unsafe { &mut *(std::ptr::from_mut(memory) as *mut [f32]) }
}
