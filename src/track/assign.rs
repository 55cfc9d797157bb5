//! Which mask belongs to which track: the one-to-one assignment with the largest total overlap.
//!
//! The solver is Kuhn and Munkres' (`pathfinding`), which is exact. Greedy assignment would hand the mask of one thing
//! to its neighbour whenever they pass each other.

use pathfinding::kuhn_munkres::kuhn_munkres;
use pathfinding::matrix::Matrix;

/// Overlaps become whole numbers for the solver: millionths.
const SCALE: f32 = 1e6;

/// Pairs of (row, column) with the largest total of `overlap`; pairs below `least` are never formed.
///
/// * `overlap` — of a row and a column, 0 to 1; anything that is no number counts as 0
///
/// Cost grows with the cube of the larger side: 20 × 20 takes microseconds, 100 × 100 milliseconds.
pub fn assign(rows: usize, columns: usize, least: f32, overlap: impl Fn(usize, usize) -> f32) -> Vec<(usize, usize)> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    // The solver wants at most as many rows as columns.
    let turned = rows > columns;
    let (short, long) = if turned { (columns, rows) } else { (rows, columns) };
    let weight = |a: usize, b: usize| {
        let found = if turned { overlap(b, a) } else { overlap(a, b) };
        if found >= least && found > 0.0 {
            (found.min(1.0) * SCALE) as i64
        } else {
            0
        }
    };
    let weights = Matrix::from_fn(short, long, |(a, b)| weight(a, b));
    let (_, chosen) = kuhn_munkres(&weights);
    let pairs = chosen.into_iter().enumerate().filter(|&(a, b)| weights[(a, b)] > 0);
    pairs.map(|(a, b)| if turned { (b, a) } else { (a, b) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_total_wins_over_the_largest_single_pair() {
        let table = [[0.9, 0.8], [0.7, 0.1]];
        assert_eq!(assign(2, 2, 0.2, |r, c| table[r][c]), [(0, 1), (1, 0)]);
    }

    #[test]
    fn pairs_below_the_least_overlap_are_left_alone_and_nan_is_no_overlap() {
        let table = [[0.1, 0.3], [f32::NAN, 0.0], [0.6, 0.2]];
        let mut pairs = assign(3, 2, 0.25, |r, c| table[r][c]);
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 1), (2, 0)]);
        assert!(assign(0, 5, 0.1, |_, _| 1.0).is_empty());
        assert!(assign(5, 0, 0.1, |_, _| 1.0).is_empty());
    }

    /// The best total, by trying every assignment.
    fn best_total(table: &[Vec<f32>], row: usize, taken: &mut Vec<bool>) -> f32 {
        if row == table.len() {
            return 0.0;
        }
        let mut best = best_total(table, row + 1, taken);
        for column in 0..taken.len() {
            if !taken[column] {
                taken[column] = true;
                best = best.max(table[row][column] + best_total(table, row + 1, taken));
                taken[column] = false;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_other_assignment_has_a_larger_total(
            table in (0usize..5, 1usize..5).prop_flat_map(|(r, c)| {
                prop::collection::vec(prop::collection::vec(0f32..=1.0, c), r)
            }),
        ) {
            let columns = table.first().map_or(1, Vec::len);
            let pairs = assign(table.len(), columns, 0.0, |r, c| table[r][c]);
            let total: f32 = pairs.iter().map(|&(r, c)| table[r][c]).sum();
            prop_assert!((total - best_total(&table, 0, &mut vec![false; columns])).abs() < 1e-4);
            let mut rows: Vec<_> = pairs.iter().map(|p| p.0).collect();
            let mut used: Vec<_> = pairs.iter().map(|p| p.1).collect();
            rows.sort_unstable();
            rows.dedup();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!((rows.len(), used.len()), (pairs.len(), pairs.len()));
        }
    }
}
