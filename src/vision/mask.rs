//! Binary masks of frame size: area, overlap, bounding box.
//!
//! Every thing that is tracked keeps its mask, so a pixel is one bit: a mask of 1280x720 takes 115 kB.

use super::geometry::FrameSize;

/// One bit per pixel, row-major, of a whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryMask {
    size: FrameSize,
    /// Row-major, the lowest bit first; those behind the last pixel are 0.
    words: Vec<u64>,
}

/// Bits of a word.
const WORD: usize = u64::BITS as usize;

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
            words: vec![0; size.pixels().div_ceil(WORD)],
        }
    }

    /// A mask from row-major pixels; missing ones are empty, surplus ones are dropped.
    #[must_use]
    pub fn from_pixels(size: FrameSize, pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut mask = Self::empty(size);
        let mut pixels = pixels.into_iter().take(size.pixels());
        for word in &mut mask.words {
            for (bit, pixel) in pixels.by_ref().take(WORD).enumerate() {
                *word |= u64::from(pixel) << bit;
            }
        }
        mask
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
    pub fn pixels(&self) -> impl Iterator<Item = bool> + '_ {
        let all = self
            .words
            .iter()
            .flat_map(|word| (0..WORD).map(move |bit| word >> bit & 1 == 1));
        all.take(self.size.pixels())
    }

    /// Whether a pixel is set; `false` outside the frame.
    #[must_use]
    pub fn get(&self, x: usize, y: usize) -> bool {
        x < self.size.width() && y < self.size.height() && self.bits(y * self.size.width() + x, 1) == 1
    }

    /// `count` pixels (1 to 64) from `start` on, counted row-major, the first one lowest.
    fn bits(&self, start: usize, count: usize) -> u64 {
        let (word, shift) = (start / WORD, start % WORD);
        let low = self.words[word] >> shift;
        let high = match (shift, self.words.get(word + 1)) {
            (1.., Some(next)) => next << (WORD - shift),
            _ => 0,
        };
        (low | high) & (u64::MAX >> (WORD - count))
    }

    /// Number of set pixels.
    #[must_use]
    pub fn area(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Sets every pixel that is set in `other`, a mask of the same size; one of another size changes nothing.
    pub fn unite(&mut self, other: &Self) {
        if self.size == other.size {
            self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
        }
    }

    /// Number of pixels set in both; 0 for masks of different sizes.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> usize {
        if self.size != other.size {
            return 0;
        }
        let pairs = self.words.iter().zip(&other.words);
        pairs.map(|(a, b)| (a & b).count_ones() as usize).sum()
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
            let pieces = (0..length).step_by(WORD).map(|at| {
                let count = WORD.min(length - at);
                self.bits(here + at, count) & other.bits(there + at, count)
            });
            pieces.map(|both| both.count_ones() as usize).sum::<usize>()
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
        let width = self.size.width();
        let mut found: Option<PixelBox> = None;
        for y in 0..self.size.height() {
            let pieces = (0..width)
                .step_by(WORD)
                .map(|x| (x, self.bits(y * width + x, WORD.min(width - x))));
            for (x, piece) in pieces.filter(|(_, piece)| *piece != 0) {
                let first = x + piece.trailing_zeros() as usize;
                let last = x + WORD - piece.leading_zeros() as usize;
                let b = found.get_or_insert(PixelBox {
                    x1: first,
                    y1: y,
                    x2: last,
                    y2: y + 1,
                });
                (b.x1, b.x2, b.y2) = (b.x1.min(first), b.x2.max(last), y + 1);
            }
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
        let mut both = a.clone();
        both.unite(&b);
        assert_eq!(both, mask(&[".....", ".###.", ".##.."]));
        both.unite(&mask(&["#"]));
        assert_eq!(both.area(), 5);
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
    fn masks_wider_than_a_word_count_as_pixel_by_pixel() {
        for (width, height) in [(1, 1), (63, 3), (64, 2), (65, 5), (130, 7), (200, 1)] {
            let size = FrameSize::new(width, height).unwrap();
            let drawn = |seed: usize| (0..size.pixels()).map(move |i| (i * 7 + seed * 13) % (11 + seed) < 3);
            let (a, b) = (
                BinaryMask::from_pixels(size, drawn(1)),
                BinaryMask::from_pixels(size, drawn(2)),
            );
            assert!(a.pixels().eq(drawn(1)), "{size}");
            let inside = |mask: &BinaryMask, x: i64, y: i64| {
                let at = |v: i64| usize::try_from(v).ok();
                at(x).zip(at(y)).is_some_and(|(x, y)| mask.get(x, y))
            };
            let all = || (0..i64::from(height)).flat_map(|y| (0..i64::from(width)).map(move |x| (x, y)));
            assert_eq!(a.area(), all().filter(|&(x, y)| inside(&a, x, y)).count(), "{size}");
            let set = || all().filter(|&(x, y)| inside(&a, x, y));
            let bounds = a.bounding_box().unwrap();
            assert_eq!(bounds.x1 as i64, set().map(|p| p.0).min().unwrap(), "{size}");
            assert_eq!(bounds.x2 as i64, set().map(|p| p.0).max().unwrap() + 1, "{size}");
            assert_eq!(bounds.y1 as i64, set().map(|p| p.1).min().unwrap(), "{size}");
            assert_eq!(bounds.y2 as i64, set().map(|p| p.1).max().unwrap() + 1, "{size}");
            let Some(theirs) = b.bounding_box() else { continue };
            for shift in [(0, 0), (1, 0), (-3, 1), (65, 0), (-64, -1), (7, 2)] {
                let expected = set().filter(|&(x, y)| inside(&b, x + shift.0, y + shift.1)).count();
                assert_eq!(
                    a.intersection_moved(bounds, &b, theirs, shift),
                    expected,
                    "{size} {shift:?}"
                );
            }
        }
    }

    #[test]
    fn an_empty_mask_has_no_box_and_no_overlap() {
        let a = mask(&["...", "..."]);
        assert_eq!(a.bounding_box(), None);
        assert_eq!(a.iou(&a), 0.0);
        assert_eq!(a.iou(&mask(&["#"])), 0.0);
    }
}
