//! Masks → polygons: rings traced along pixel edges, then simplified; and back, by filling.
//!
//! Pixels are 4-connected: two that only touch at a corner belong to two rings. Outer rings run clockwise on the screen
//! (y down), holes the other way round, so a renderer with the even-odd or the non-zero rule fills the same pixels.
//! Simplification is Douglas–Peucker; a tolerance of 0 drops only points on straight edges.

use super::mask::BinaryMask;

/// A closed ring of pixel corners; the last point is not repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Corners `[x, y]` in frame pixels, 0 to width and 0 to height.
    pub points: Vec<[i32; 2]>,
    /// Whether the ring is the border of a hole.
    pub hole: bool,
}

impl Ring {
    /// As [`doubled_area`].
    #[must_use]
    pub fn doubled_area(&self) -> i64 {
        doubled_area(&self.points)
    }
}

/// Twice the signed area inside of a closed line; positive for outer rings.
#[must_use]
pub fn doubled_area(points: &[[i32; 2]]) -> i64 {
    let next = points.iter().cycle().skip(1);
    points
        .iter()
        .zip(next)
        .map(|(a, b)| i64::from(a[0]) * i64::from(b[1]) - i64::from(b[0]) * i64::from(a[1]))
        .sum()
}

/// Traces every border of the mask; points only where the direction changes.
#[must_use]
pub fn trace(mask: &BinaryMask) -> Vec<Ring> {
    let (width, height) = (mask.size().width() as i32, mask.size().height() as i32);
    let get = |x: i32, y: i32| x >= 0 && y >= 0 && mask.get(x as usize, y as usize);
    // Every ring has at least one edge that runs east, with a set pixel below it.
    let is_east_edge = |x: i32, y: i32| get(x, y) && !get(x, y - 1);
    let Some(bounds) = mask.bounding_box() else {
        return Vec::new();
    };
    let mut visited = vec![false; (width * height) as usize];
    let mut rings = Vec::new();
    for start_y in bounds.y1 as i32..bounds.y2 as i32 {
        for start_x in bounds.x1 as i32..bounds.x2 as i32 {
            if visited[(start_y * width + start_x) as usize] || !is_east_edge(start_x, start_y) {
                continue;
            }
            let (mut x, mut y, mut dx, mut dy) = (start_x, start_y, 1, 0);
            let mut points = Vec::new();
            loop {
                if (dx, dy) == (1, 0) {
                    let seen = &mut visited[(y * width + x) as usize];
                    if std::mem::replace(seen, true) {
                        break;
                    }
                }
                (x, y) = (x + dx, y + dy);
                // The pixels ahead, left and right of the direction (inside lies on the right).
                let (left, right) = match (dx, dy) {
                    (1, 0) => (get(x, y - 1), get(x, y)),
                    (0, 1) => (get(x, y), get(x - 1, y)),
                    (-1, 0) => (get(x - 1, y), get(x - 1, y - 1)),
                    _ => (get(x - 1, y - 1), get(x, y - 1)),
                };
                if !right {
                    points.push([x, y]);
                    (dx, dy) = (-dy, dx);
                } else if left {
                    points.push([x, y]);
                    (dx, dy) = (dy, -dx);
                }
            }
            let hole = doubled_area(&points) < 0;
            rings.push(Ring { points, hole });
        }
    }
    rings
}

/// Drops points that lie within `tolerance` pixels of the remaining outline; rings that vanish are dropped.
#[must_use]
pub fn simplify(rings: Vec<Ring>, tolerance: f32) -> Vec<Ring> {
    let tolerance = if tolerance.is_finite() {
        f64::from(tolerance.max(0.0))
    } else {
        0.0
    };
    let simplified = rings.into_iter().filter_map(|ring| {
        let points = simplify_ring(&ring.points, tolerance);
        // A ring of area 0, or turned inside out, is thinner than the tolerance.
        let kept = points.len() >= 3 && doubled_area(&points).signum() == ring.doubled_area().signum();
        kept.then_some(Ring {
            points,
            hole: ring.hole,
        })
    });
    simplified.collect()
}

fn simplify_ring(points: &[[i32; 2]], tolerance: f64) -> Vec<[i32; 2]> {
    let Some(&first) = points.first() else {
        return Vec::new();
    };
    let squared = |a: [i32; 2], b: [i32; 2]| {
        let (x, y) = (i64::from(a[0] - b[0]), i64::from(a[1] - b[1]));
        x * x + y * y
    };
    let far = points
        .iter()
        .enumerate()
        .max_by_key(|&(_, &p)| squared(first, p))
        .map_or(0, |(i, _)| i);
    let closed: Vec<[i32; 2]> = points.iter().copied().chain([first]).collect();
    let mut keep = vec![false; closed.len()];
    (keep[0], keep[far]) = (true, true);
    let mut stack = vec![(0, far), (far, points.len())];
    while let Some((from, to)) = stack.pop() {
        let worst = (from + 1..to)
            .map(|i| (i, distance(closed[i], closed[from], closed[to])))
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((index, _)) = worst.filter(|&(_, d)| d > tolerance) {
            keep[index] = true;
            stack.extend([(from, index), (index, to)]);
        }
    }
    points.iter().zip(keep).filter_map(|(&p, k)| k.then_some(p)).collect()
}

/// Distance of `p` from the segment `a`–`b`.
fn distance(p: [i32; 2], a: [i32; 2], b: [i32; 2]) -> f64 {
    let to = |q: [i32; 2]| (f64::from(q[0] - a[0]), f64::from(q[1] - a[1]));
    let ((bx, by), (px, py)) = (to(b), to(p));
    let length = bx * bx + by * by;
    let t = if length > 0.0 {
        ((px * bx + py * by) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    (px - t * bx).hypot(py - t * by)
}

/// Fills rings (even-odd) into a mask; pixels count where their centre is inside.
#[must_use]
pub fn fill(rings: &[Ring], size: super::geometry::FrameSize) -> BinaryMask {
    let corners = |ring: &Ring| ring.points.iter().map(|p| p.map(|v| v as f32)).collect();
    let corners: Vec<Vec<[f32; 2]>> = rings.iter().map(corners).collect();
    let mut pixels = vec![false; size.pixels()];
    let rings: Vec<&[[f32; 2]]> = corners.iter().map(Vec::as_slice).collect();
    fill_even_odd(&rings, size.width(), &mut pixels);
    BinaryMask::from_pixels(size, pixels)
}

/// Sets the pixels of a `width` wide picture whose centres lie inside closed rings of corners `[x, y]`, all rings together by
/// the even-odd rule; what lies outside the picture is cut off.
pub fn fill_even_odd(rings: &[&[[f32; 2]]], width: usize, pixels: &mut [bool]) {
    let mut crossings: Vec<f32> = Vec::new();
    for (y, row) in pixels.chunks_exact_mut(width.max(1)).enumerate() {
        let level = y as f32 + 0.5;
        let edges = rings
            .iter()
            .flat_map(|ring| ring.iter().zip(ring.iter().cycle().skip(1)));
        crossings.clear();
        crossings.extend(
            edges
                .filter(|(a, b)| (a[1] <= level) != (b[1] <= level))
                .map(|(a, b)| a[0] + (level - a[1]) / (b[1] - a[1]) * (b[0] - a[0])),
        );
        crossings.sort_unstable_by(f32::total_cmp);
        for pair in crossings.chunks_exact(2) {
            // Columns whose centre x + 0.5 lies in [left, right).
            let column = |x: f32| (x - 0.5).ceil().clamp(0.0, width as f32) as usize;
            row[column(pair[0])..column(pair[1])].fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vision::geometry::FrameSize;

    fn mask(rows: &[&str]) -> BinaryMask {
        let size = FrameSize::new(rows[0].len() as u32, rows.len() as u32).unwrap();
        BinaryMask::from_pixels(size, rows.concat().chars().map(|c| c == '#'))
    }

    #[test]
    fn a_ring_with_a_hole_gives_two_rings_of_opposite_turn() {
        let rings = trace(&mask(&["####.", "#..#.", "####."]));
        assert_eq!(rings.len(), 2);
        assert_eq!((rings[0].hole, rings[0].doubled_area()), (false, 24));
        assert_eq!((rings[1].hole, rings[1].doubled_area()), (true, -4));
        assert_eq!(rings[0].points.len(), 4);
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_two_rings() {
        let rings = trace(&mask(&["#.", ".#"]));
        assert_eq!(rings.len(), 2);
        assert!(rings.iter().all(|r| !r.hole && r.doubled_area() == 2));
    }

    #[test]
    fn a_staircase_within_the_tolerance_becomes_a_triangle() {
        let rows: Vec<String> = (0..20).map(|i| "#".repeat(i + 1) + &".".repeat(20 - i)).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let rings = trace(&mask(&rows));
        assert_eq!(rings[0].points.len(), 42);
        let simple = simplify(rings.clone(), 1.5);
        assert!(simple[0].points.len() <= 5, "{simple:?}");
        assert_eq!(simplify(rings.clone(), 0.0), rings);
        assert_eq!(simplify(trace(&mask(&["...", ".#.", "..."])), 50.0), []);
    }

    #[test]
    fn an_empty_mask_has_no_rings() {
        assert_eq!(trace(&mask(&["...", "..."])), []);
    }

    proptest! {
        #[test]
        fn filling_the_traced_rings_returns_the_mask(w in 1u32..24, h in 1u32..24, bits in prop::collection::vec(any::<bool>(), 576)) {
            let mask = BinaryMask::from_pixels(FrameSize::new(w, h).unwrap(), bits);
            let rings = trace(&mask);
            prop_assert_eq!(fill(&rings, mask.size()), mask.clone());
            prop_assert_eq!(rings.iter().map(Ring::doubled_area).sum::<i64>(), 2 * mask.area() as i64);
            for ring in simplify(rings, 2.0) {
                prop_assert!(ring.points.len() >= 3);
            }
        }
    }
}
