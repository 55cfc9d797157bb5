//! Binary masks of frame size: area, overlap, bounding box.

use super::geometry::FrameSize;

/// One bit per pixel, row-major, of a whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryMask {
    size: FrameSize,
    pixels: Vec<bool>,
}

/// A bounding box in frame pixels: `x1, y1` inclusive, `x2, y2` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBox {
    /// Left edge.
    pub x1: usize,
    /// Top edge.
    pub y1: usize,
    /// Right edge, one past the last column.
    pub x2: usize,
    /// Bottom edge, one past the last row.
    pub y2: usize,
}

impl BinaryMask {
    /// An empty mask.
    #[must_use]
    pub fn empty(size: FrameSize) -> Self {
        Self {
            size,
            pixels: vec![false; size.pixels()],
        }
    }

    /// A mask from row-major pixels; missing ones are empty, surplus ones are dropped.
    #[must_use]
    pub fn from_pixels(size: FrameSize, pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut pixels: Vec<bool> = pixels.into_iter().take(size.pixels()).collect();
        pixels.resize(size.pixels(), false);
        Self { size, pixels }
    }

    /// Where `logits` (`[height, width]`) exceed `threshold`.
    #[must_use]
    pub fn from_logits(size: FrameSize, logits: &[f32], threshold: f32) -> Self {
        Self::from_pixels(size, logits.iter().map(|&v| v > threshold))
    }

    /// Frame size.
    #[must_use]
    pub fn size(&self) -> FrameSize {
        self.size
    }

    /// Row-major pixels.
    #[must_use]
    pub fn pixels(&self) -> &[bool] {
        &self.pixels
    }

    /// Whether a pixel is set; `false` outside the frame.
    #[must_use]
    pub fn get(&self, x: usize, y: usize) -> bool {
        x < self.size.width() && y < self.size.height() && self.pixels[y * self.size.width() + x]
    }

    /// Number of set pixels.
    #[must_use]
    pub fn area(&self) -> usize {
        self.pixels.iter().filter(|&&p| p).count()
    }

    /// Number of pixels set in both; 0 for masks of different sizes.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> usize {
        if self.size != other.size {
            return 0;
        }
        self.pixels.iter().zip(&other.pixels).filter(|&(&a, &b)| a & b).count()
    }

    /// Number of pixels set in both when this mask is moved by `shift` pixels (right, down); only pixels inside the
    /// masks' boxes are looked at. 0 for masks of different sizes.
    #[must_use]
    pub fn intersection_moved(&self, own: PixelBox, other: &Self, theirs: PixelBox, shift: (i64, i64)) -> usize {
        if self.size != other.size {
            return 0;
        }
        // In the other mask's coordinates; whatever the shift, within the other's box.
        let span = |a: (usize, usize), b: (usize, usize), moved: i64| {
            let low = (a.0 as i64).saturating_add(moved).max(b.0 as i64);
            let high = (a.1 as i64).saturating_add(moved).min(b.1 as i64);
            low..high.max(low)
        };
        let columns = span((own.x1, own.x2), (theirs.x1, theirs.x2), shift.0);
        let rows = span((own.y1, own.y2), (theirs.y1, theirs.y2), shift.1);
        let (width, length) = (self.size.width(), (columns.end - columns.start) as usize);
        if length == 0 {
            return 0;
        }
        rows.map(|y| {
            let there = y as usize * width + columns.start as usize;
            let here = (y - shift.1) as usize * width + (columns.start - shift.0) as usize;
            let pairs = self.pixels[here..here + length]
                .iter()
                .zip(&other.pixels[there..there + length]);
            pairs.filter(|&(&a, &b)| a & b).count()
        })
        .sum()
    }

    /// Intersection over union; 0 for two empty masks.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let both = self.intersection(other);
        let union = self.area() + other.area() - both;
        if union == 0 { 0.0 } else { both as f32 / union as f32 }
    }

    /// Smallest box around the set pixels; `None` if there are none.
    #[must_use]
    pub fn bounding_box(&self) -> Option<PixelBox> {
        let mut found: Option<PixelBox> = None;
        for (y, row) in self.pixels.chunks_exact(self.size.width()).enumerate() {
            let Some(first) = row.iter().position(|&p| p) else {
                continue;
            };
            let last = row.iter().rposition(|&p| p).map_or(first, |x| x) + 1;
            let b = found.get_or_insert(PixelBox {
                x1: first,
                y1: y,
                x2: last,
                y2: y + 1,
            });
            (b.x1, b.x2, b.y2) = (b.x1.min(first), b.x2.max(last), y + 1);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> BinaryMask {
        let size = FrameSize::new(rows[0].len() as u32, rows.len() as u32).unwrap();
        BinaryMask::from_pixels(size, rows.concat().chars().map(|c| c == '#'))
    }

    #[test]
    fn area_overlap_and_box_are_counted_in_pixels() {
        let (a, b) = (mask(&[".....", ".##..", ".##.."]), mask(&[".....", "..##.", "....."]));
        assert_eq!((a.area(), b.area(), a.intersection(&b)), (4, 2, 1));
        assert!((a.iou(&b) - 0.2).abs() < 1e-6);
        assert_eq!(
            a.bounding_box(),
            Some(PixelBox {
                x1: 1,
                y1: 1,
                x2: 3,
                y2: 3
            })
        );
        assert!(a.get(2, 2) && !a.get(5, 2) && !a.get(0, 3));
    }

    #[test]
    fn a_moved_mask_meets_the_other_where_it_was_moved_to() {
        let (a, b) = (mask(&["##...", "##...", "....."]), mask(&[".....", "..##.", "..##."]));
        let moved = |shift| a.intersection_moved(a.bounding_box().unwrap(), &b, b.bounding_box().unwrap(), shift);
        assert_eq!(
            [
                moved((0, 0)),
                moved((2, 1)),
                moved((1, 1)),
                moved((2, 0)),
                moved((3, 2))
            ],
            [0, 4, 2, 2, 1]
        );
        assert_eq!(
            [moved((i64::MAX, 0)), moved((i64::MIN, i64::MIN)), moved((-2, -1))],
            [0, 0, 0]
        );
        assert_eq!(
            a.intersection_moved(
                a.bounding_box().unwrap(),
                &mask(&["#"]),
                b.bounding_box().unwrap(),
                (0, 0)
            ),
            0
        );
    }

    #[test]
    fn an_empty_mask_has_no_box_and_no_overlap() {
        let a = mask(&["...", "..."]);
        assert_eq!(a.bounding_box(), None);
        assert_eq!(a.iou(&a), 0.0);
        assert_eq!(a.iou(&mask(&["#"])), 0.0);
    }
}
