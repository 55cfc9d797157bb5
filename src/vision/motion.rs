//! Whether anything moves: the brightness of a coarse grid of cells against a background that follows slowly.
//!
//! The grid is read from the frame's bytes as they are, before any conversion, from a sample of its rows. A cell has changed
//! when its mean brightness differs from the background's; the mean of hundreds of pixels hardly knows the sensor's noise. The
//! background follows within seconds: light that fades over minutes never shows, and what has come to rest is background
//! after a few seconds. When most of the picture becomes brighter, or most of it darker, that is the light or the camera's
//! exposure: the frame is told apart, and is the new background. Colours of the same brightness are not told apart.

use std::time::Duration;

use super::frame::{Frame, PixelFormat};
use super::pixels::{self, PixelError};

/// Time in which the background takes in 63 % of a change.
const FOLLOWS: Duration = Duration::from_secs(2);

/// Cells along the longer side of a large frame.
const CELLS: usize = 64;

/// Least side of a cell in pixels: fewer would not average the noise away.
const LEAST_SIDE: usize = 8;

/// Rows of a cell that are read at least; of a larger one every other, every third and so on.
const ROWS: usize = 8;

/// More than this share of the cells, all brighter or all darker, is the light.
const LIGHT: f32 = 0.5;

/// What counts as motion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MotionRules {
    /// Share of the picture that must have changed, above 0 to 1; one cell at least.
    pub area: f32,
    /// By how much the brightness of a cell must differ, of 255.
    pub change: f32,
}

/// What a frame shows, compared with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing to compare it with: the first frame, or the first of its size.
    First,
    /// Nothing moves.
    Still,
    /// Something moves.
    Motion,
    /// The light has changed.
    Light,
}

/// Mean brightness of the cells of a frame, 0-255.
#[derive(Clone, Debug, Default, PartialEq)]
struct Grid {
    columns: usize,
    /// Row by row.
    cells: Vec<f32>,
}

/// What a camera shows when nothing moves.
#[derive(Debug, Default)]
pub struct Background {
    mean: Grid,
    present: Grid,
    /// When the last frame was captured, on the monotonic clock.
    last: Duration,
}

impl Background {
    /// Compares a frame with what was there before, and takes it in.
    ///
    /// # Errors
    /// [`PixelError`] if the frame has too few bytes; nothing is taken in.
    pub fn look(&mut self, frame: &Frame, rules: &MotionRules) -> Result<Seen, PixelError> {
        self.present.read(frame)?;
        let at = frame.captured.monotonic;
        let since = at.saturating_sub(std::mem::replace(&mut self.last, at));
        let (columns, count) = (self.present.columns, self.present.cells.len());
        if (self.mean.columns, self.mean.cells.len()) != (columns, count) {
            self.mean.clone_from(&self.present);
            return Ok(Seen::First);
        }
        let share = 1.0 - (-since.as_secs_f32() / FOLLOWS.as_secs_f32()).exp();
        let (mut brighter, mut darker) = (0usize, 0usize);
        for (mean, now) in self.mean.cells.iter_mut().zip(&self.present.cells) {
            let difference = now - *mean;
            brighter += usize::from(difference >= rules.change);
            darker += usize::from(-difference >= rules.change);
            *mean += share * difference;
        }
        let share_of = |cells: usize| cells as f32 / count as f32;
        if share_of(brighter.max(darker)) > LIGHT {
            self.mean.clone_from(&self.present);
            return Ok(Seen::Light);
        }
        let changed = brighter + darker;
        let moves = changed > 0 && share_of(changed) >= rules.area;
        Ok(if moves { Seen::Motion } else { Seen::Still })
    }
}

impl Grid {
    /// Takes the cells of a frame.
    fn read(&mut self, frame: &Frame) -> Result<(), PixelError> {
        pixels::check(frame)?;
        let (width, height) = (frame.size.width(), frame.size.height());
        let side = width.max(height).div_ceil(CELLS).max(LEAST_SIDE);
        let (columns, rows) = ((width / side).max(1), (height / side).max(1));
        self.columns = columns;
        self.cells.clear();
        self.cells.resize(columns * rows, 0.0);
        for (index, cells) in self.cells.chunks_exact_mut(columns).enumerate() {
            let read = (index * height / rows..(index + 1) * height / rows).step_by((side / ROWS).max(1));
            let count = read.len() as f32;
            for y in read {
                add_row(frame, y, cells);
            }
            cells.iter_mut().for_each(|cell| *cell /= count);
        }
        Ok(())
    }
}

/// Adds the mean brightness of the parts of one row to the cells they belong to.
fn add_row(frame: &Frame, y: usize, cells: &mut [f32]) {
    let (width, columns) = (frame.size.width(), cells.len());
    let row = &frame.bytes[y * frame.stride..][..frame.format.row_bytes(width)];
    // Bytes of a pixel, and what the bytes of a part add up to.
    let (pixel, sum): (usize, fn(&[u8]) -> f32) = match frame.format {
        PixelFormat::Rgb24 => (3, sum_of_rgb),
        PixelFormat::Yuyv => (2, |part| sum_of_every_other(part, 0)),
        PixelFormat::Uyvy => (2, |part| sum_of_every_other(part, 1)),
        PixelFormat::Grey | PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::I422 | PixelFormat::I444 => {
            (1, |part| part.iter().map(|&v| u32::from(v)).sum::<u32>() as f32)
        }
    };
    let full = frame.full_range || matches!(frame.format, PixelFormat::Rgb24 | PixelFormat::Grey);
    let mut start = 0;
    for (index, cell) in cells.iter_mut().enumerate() {
        let end = (index + 1) * width / columns;
        let mean = sum(&row[pixel * start..pixel * end]) / (end - start) as f32;
        start = end;
        // Limited range as in [`super::pixels`].
        *cell += if full { mean } else { (mean - 16.0) * 255.0 / 219.0 };
    }
}

fn sum_of_every_other(part: &[u8], first: usize) -> f32 {
    part.chunks_exact(2).map(|pair| u32::from(pair[first])).sum::<u32>() as f32
}

/// Brightness by BT.601.
fn sum_of_rgb(part: &[u8]) -> f32 {
    let (mut red, mut green, mut blue) = (0u32, 0u32, 0u32);
    for rgb in part.chunks_exact(3) {
        red += u32::from(rgb[0]);
        green += u32::from(rgb[1]);
        blue += u32::from(rgb[2]);
    }
    0.299 * red as f32 + 0.587 * green as f32 + 0.114 * blue as f32
}

#[cfg(test)]
mod tests;
