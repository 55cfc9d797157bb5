//! Camera-space and model-space geometry.
//!
//! The model sees a square of side `S`: the frame is scaled so that its longest side becomes `S`, lies at the top left,
//! and the rest is padding. Rounding of the scaled size is SAM's (`ResizeLongestSide`: `int(x * scale + 0.5)`).
//! Pixel centres lie at +0.5 in both spaces.

/// Width and height in pixels; both at least 1 and at most 32 768.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameSize {
    width: u32,
    height: u32,
}

/// A size that no frame can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame size {width}x{height}: each side must be 1 to {max}", max = FrameSize::LARGEST_SIDE)]
pub struct SizeError {
    /// The width found.
    pub width: u32,
    /// The height found.
    pub height: u32,
}

impl FrameSize {
    /// Largest accepted side, pixels.
    pub const LARGEST_SIDE: u32 = 32_768;

    /// A checked size.
    ///
    /// # Errors
    /// [`SizeError`] if a side is 0 or above [`Self::LARGEST_SIDE`].
    pub fn new(width: u32, height: u32) -> Result<Self, SizeError> {
        let fits = |side| (1..=Self::LARGEST_SIDE).contains(&side);
        if fits(width) && fits(height) {
            Ok(Self { width, height })
        } else {
            Err(SizeError { width, height })
        }
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(self) -> usize {
        self.width as usize
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(self) -> usize {
        self.height as usize
    }

    /// Number of pixels.
    #[must_use]
    pub fn pixels(self) -> usize {
        self.width() * self.height()
    }
}

impl std::fmt::Display for FrameSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A point in camera pixels; origin top left, pixel centres at +0.5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FramePoint {
    /// Rightwards.
    pub x: f32,
    /// Downwards.
    pub y: f32,
}

/// A point in model input pixels (letterboxed square); origin top left, pixel centres at +0.5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelPoint {
    /// Rightwards.
    pub x: f32,
    /// Downwards.
    pub y: f32,
}

/// How a frame lies in the model's square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letterbox {
    frame: FrameSize,
    scaled: FrameSize,
    side: usize,
}

impl Letterbox {
    /// Scales the longest side of `frame` to `side` (1 to 16 384 pixels), anchored top left.
    #[must_use]
    pub fn fit(frame: FrameSize, side: usize) -> Self {
        let side = side.clamp(1, 16_384);
        let scale = side as f64 / f64::from(frame.width.max(frame.height));
        let round = |x: u32| ((f64::from(x) * scale + 0.5) as u32).clamp(1, side as u32);
        let scaled = FrameSize {
            width: round(frame.width),
            height: round(frame.height),
        };
        Self { frame, scaled, side }
    }

    /// Scales both sides of `frame` to `side` (1 to 16 384 pixels), whatever that does to its shape; there is no padding.
    #[must_use]
    pub fn stretched(frame: FrameSize, side: usize) -> Self {
        let side = side.clamp(1, 16_384);
        let scaled = FrameSize {
            width: side as u32,
            height: side as u32,
        };
        Self { frame, scaled, side }
    }

    /// Size of the camera frame.
    #[must_use]
    pub fn frame(&self) -> FrameSize {
        self.frame
    }

    /// Size of the picture inside the square.
    #[must_use]
    pub fn scaled(&self) -> FrameSize {
        self.scaled
    }

    /// Side of the square.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// Maps a camera point into the square.
    #[must_use]
    pub fn to_model(&self, p: FramePoint) -> ModelPoint {
        let (fx, fy) = self.factors();
        ModelPoint {
            x: p.x * fx,
            y: p.y * fy,
        }
    }

    /// Maps back to the camera frame; `None` if the point lies in the padding or outside.
    #[must_use]
    pub fn to_frame(&self, p: ModelPoint) -> Option<FramePoint> {
        let inside =
            (0.0..=self.scaled.width as f32).contains(&p.x) && (0.0..=self.scaled.height as f32).contains(&p.y);
        let (fx, fy) = self.factors();
        inside.then(|| FramePoint {
            x: p.x / fx,
            y: p.y / fy,
        })
    }

    /// Which cells of a `grid × grid` partition of the square have their centre inside the picture, row-major.
    #[must_use]
    pub fn valid_cells(&self, grid: usize) -> Vec<bool> {
        let cell = self.side as f32 / grid.max(1) as f32;
        let inside = |i: usize, limit: usize| (i as f32 + 0.5) * cell < limit as f32;
        // A picture thinner than half a cell still owns the first row and column.
        (0..grid * grid)
            .map(|i| (i % grid, i / grid))
            .map(|(x, y)| (x == 0 || inside(x, self.scaled.width())) && (y == 0 || inside(y, self.scaled.height())))
            .collect()
    }

    /// Model pixels per camera pixel, per axis (they differ by the rounding of the scaled size).
    fn factors(&self) -> (f32, f32) {
        (
            self.scaled.width as f32 / self.frame.width as f32,
            self.scaled.height as f32 / self.frame.height as f32,
        )
    }
}

/// Bilinear taps along one axis: for each destination sample the two source cells and the weight of the second.
pub(crate) struct Taps {
    taps: Vec<(u32, u32, f32)>,
}

impl Taps {
    /// Taps for `count` camera pixels of one axis that covers `scaled` of `side` model pixels, read from `cells` cells
    /// over the whole side. Cell centres lie at `(i + 0.5) · side / cells`; beyond the outermost centre the value is
    /// held. Cells whose centre is outside the picture are not read.
    pub(crate) fn from_frame(count: usize, scaled: usize, side: usize, cells: usize) -> Self {
        let (count_f, cell) = (count.max(1) as f64, side as f64 / cells.max(1) as f64);
        let last_inside = ((scaled as f64 / cell - 0.5).ceil() as usize)
            .saturating_sub(1)
            .min(cells.saturating_sub(1));
        let taps = (0..count)
            .map(|i| {
                let model = (i as f64 + 0.5) * scaled as f64 / count_f;
                let source = (model / cell - 0.5).clamp(0.0, last_inside as f64);
                let low = source.floor();
                let high = (low as usize + 1).min(last_inside);
                (low as u32, high as u32, (source - low) as f32)
            })
            .collect();
        Self { taps }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        self.taps.iter().map(|&(a, b, w)| (a as usize, b as usize, w))
    }
}

/// Resamples a `cells × cells` map that covers the model's square to the camera frame, bilinear, padding cropped.
///
/// `values` is row-major `[cells, cells]`; `out` receives `[height, width]`.
pub(crate) fn resample_to_frame(values: &[f32], cells: usize, letterbox: &Letterbox, out: &mut Vec<f32>) {
    let (frame, scaled, side) = (letterbox.frame(), letterbox.scaled(), letterbox.side());
    let columns = Taps::from_frame(frame.width(), scaled.width(), side, cells);
    let rows = Taps::from_frame(frame.height(), scaled.height(), side, cells);
    out.clear();
    out.reserve(frame.pixels());
    let mut row = vec![0.0f32; cells];
    for (top, bottom, weight) in rows.iter() {
        let (a, b) = (&values[top * cells..][..cells], &values[bottom * cells..][..cells]);
        for ((r, &a), &b) in row.iter_mut().zip(a).zip(b) {
            *r = a + (b - a) * weight;
        }
        out.extend(columns.iter().map(|(l, r, w)| row[l] + (row[r] - row[l]) * w));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(width: u32, height: u32) -> FrameSize {
        FrameSize::new(width, height).unwrap()
    }

    #[test]
    fn the_scaled_size_is_sams() {
        // segment_anything 1.0, ResizeLongestSide.get_preprocess_shape
        for (frame, side, expected) in [
            (size(641, 359), 1024, size(1024, 574)),
            (size(641, 359), 192, size(192, 108)),
            (size(359, 641), 512, size(287, 512)),
            (size(30, 10_000), 64, size(1, 64)),
        ] {
            assert_eq!(Letterbox::fit(frame, side).scaled(), expected);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (w, h) in [(0, 1), (1, 0), (32_769, 1)] {
            assert!(FrameSize::new(w, h).is_err());
        }
    }

    #[test]
    fn a_point_in_the_padding_has_no_place_in_the_frame() {
        let lb = Letterbox::fit(size(641, 359), 1024);
        assert!(lb.to_frame(ModelPoint { x: 10.0, y: 575.0 }).is_none());
        assert!(lb.to_frame(ModelPoint { x: -0.1, y: 5.0 }).is_none());
    }

    #[test]
    fn a_stretched_frame_fills_the_square() {
        let lb = Letterbox::stretched(size(640, 160), 64);
        assert_eq!(
            lb.to_model(FramePoint { x: 320.0, y: 120.0 }),
            ModelPoint { x: 32.0, y: 48.0 }
        );
        assert_eq!(
            lb.to_frame(ModelPoint { x: 64.0, y: 64.0 }),
            Some(FramePoint { x: 640.0, y: 160.0 })
        );
        assert!(lb.valid_cells(4).iter().all(|&valid| valid));
        let mut out = Vec::new();
        resample_to_frame(&[0.0, 1.0, 2.0, 3.0], 2, &lb, &mut out);
        assert_eq!(
            [out[0], out[639], out[159 * 640], out[160 * 640 - 1]],
            [0.0, 1.0, 2.0, 3.0]
        );
    }

    #[test]
    fn cells_in_the_padding_are_not_valid() {
        let valid = Letterbox::fit(size(64, 32), 64).valid_cells(4);
        assert_eq!(valid.iter().filter(|&&v| v).count(), 8);
        assert!(valid[..8].iter().all(|&v| v));
        let thin = Letterbox::fit(size(1000, 1), 64).valid_cells(4);
        assert_eq!(thin.iter().filter(|&&v| v).count(), 4);
    }

    #[test]
    fn padding_never_bleeds_into_the_frame() {
        let lb = Letterbox::fit(size(7, 3), 64);
        let values: Vec<f32> = (0..64).map(|i| if i / 8 * 8 < 28 { 1.0 } else { -100.0 }).collect();
        let mut out = Vec::new();
        resample_to_frame(&values, 8, &lb, &mut out);
        assert_eq!(out.len(), 21);
        assert!(out.iter().all(|&v| (v - 1.0).abs() < 1e-6), "{out:?}");
    }

    proptest! {
        #[test]
        fn the_inverse_returns_to_the_same_point(w in 1u32..5000, h in 1u32..5000, side in 1usize..2049,
                                                 u in 0.0f32..1.0, v in 0.0f32..1.0) {
            let lb = Letterbox::fit(size(w, h), side);
            let p = FramePoint { x: u * w as f32, y: v * h as f32 };
            let q = lb.to_frame(lb.to_model(p)).unwrap();
            prop_assert!((q.x - p.x).abs() < 1e-2 && (q.y - p.y).abs() < 1e-2);
            prop_assert!(lb.valid_cells(7).iter().any(|&v| v));
        }
    }
}
