//! Specks and pinholes of a mask: small parts away from it, and small gaps inside it.
//!
//! A mask decoder leaves both where it is unsure; SAM's own mask generator removes them too (`remove_small_regions`, arXiv
//! 2304.02643, appendix B). Done on the decoder's grid, a few thousand cells, before the mask goes to the frame.

/// Turns the sign of every connected part of `logits > 0`, and of every hole in it, that is smaller than `share` of all
/// positive cells. `logits` is a square grid; parts connect by edges, holes by corners too. What reaches the
/// border is no hole.
pub fn tidy(logits: &mut [f32], share: f32) {
    let side = logits.len().isqrt();
    let positive = logits.iter().filter(|l| **l > 0.0).count();
    let least = share * positive as f32;
    // Holes last: a speck inside a hole is part of it then.
    for part in [true, false] {
        let open = logits.iter().map(|&l| (l > 0.0) == part).collect();
        for cells in connected(open, !part) {
            let small = (cells.len() as f32) < least;
            if small && (part || !cells.iter().any(|&cell| at_border(cell, side))) {
                cells.iter().for_each(|&cell| logits[cell] = -logits[cell]);
            }
        }
    }
}

fn at_border(cell: usize, side: usize) -> bool {
    let (x, y) = (cell % side, cell / side);
    x == 0 || y == 0 || x + 1 == side || y + 1 == side
}

/// Connected regions of the `open` cells of a square grid, in the order of their first cells; cells connect by edges, and
/// `by_corners` if that is set.
pub(in crate::vision) fn connected(mut open: Vec<bool>, by_corners: bool) -> Vec<Vec<usize>> {
    let side = open.len().isqrt();
    let mut found = Vec::new();
    for start in 0..open.len() {
        if !std::mem::replace(&mut open[start], false) {
            continue;
        }
        let (mut cells, mut next) = (vec![start], 0);
        while let Some(&cell) = cells.get(next) {
            next += 1;
            let (x, y) = (cell % side, cell / side);
            for ny in y.saturating_sub(1)..(y + 2).min(side) {
                for nx in x.saturating_sub(1)..(x + 2).min(side) {
                    let touches = by_corners || nx == x || ny == y;
                    if touches && std::mem::replace(&mut open[ny * side + nx], false) {
                        cells.push(ny * side + nx);
                    }
                }
            }
        }
        found.push(cells);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `#` is 2, `.` is −1.
    fn drawn(rows: &[&str]) -> Vec<f32> {
        let cells = rows.iter().flat_map(|row| row.chars());
        cells.map(|c| if c == '#' { 2.0 } else { -1.0 }).collect()
    }

    fn tidied(rows: &[&str], share: f32) -> Vec<String> {
        let mut logits = drawn(rows);
        tidy(&mut logits, share);
        let cell = |l: &f32| if *l > 0.0 { '#' } else { '.' };
        logits
            .chunks(rows.len())
            .map(|row| row.iter().map(cell).collect())
            .collect()
    }

    #[test]
    fn specks_go_pinholes_close_and_what_is_large_stays() {
        let mask = [
            "#####..#", "#####...", "##.##...", "#####...", "##..#..#", "##..#..#", "#####..#", "#####..#",
        ];
        let clean = [
            "#####...", "#####...", "#####...", "#####...", "##..#..#", "##..#..#", "#####..#", "#####..#",
        ];
        assert_eq!(tidied(&mask, 0.1), clean, "40 positive cells: less than 4 is small");
        assert_eq!(tidied(&mask, 0.0), mask, "nothing is smaller than nothing");
    }

    #[test]
    fn a_gap_at_the_border_is_no_hole_and_parts_do_not_touch_by_a_corner() {
        assert_eq!(
            tidied(&["####", "####", ".###", "####"], 0.2),
            ["####", "####", ".###", "####"]
        );
        assert_eq!(
            tidied(&["###.", "###.", "###.", "...#"], 0.2),
            ["###.", "###.", "###.", "...."]
        );
    }

    #[test]
    fn a_hole_that_touches_the_outside_by_a_corner_is_none() {
        assert_eq!(
            tidied(&["####", "#.##", "##.#", "##.#"], 0.3),
            ["####", "#.##", "##.#", "##.#"]
        );
    }

    #[test]
    fn nothing_and_everything_stay_as_they_are() {
        for value in [-3.0, 3.0] {
            let mut logits = vec![value; 16];
            tidy(&mut logits, 0.5);
            assert_eq!(logits, [value; 16]);
        }
        tidy(&mut [], 0.5);
    }
}
