//! Frozen features of one photo: a map of cells, and one vector.

use super::super::clip_tower::ClipTower;
use super::super::segmenter::Segmenter;
use super::super::{EvalError, ImageText};
use crate::train::dataset::Sample;
use crate::train::dataset::augment::Region;
use crate::vision::geometry::{FrameSize, Letterbox, resample_to_frame};

/// Features of the cells of a photo.
#[derive(Clone, Debug)]
pub struct FeatureMap {
    /// Features per cell.
    pub channels: usize,
    /// Side of the square grid.
    pub side: usize,
    /// `[channels, side, side]`.
    values: Vec<f32>,
    /// How the photo lies on the grid.
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Letterbox(Letterbox),
    /// Width and height of a photo that was stretched to the square.
    Stretched(usize, usize),
}

impl FeatureMap {
    /// Features of one cell, row-major index.
    #[must_use]
    pub fn cell(&self, cell: usize) -> Vec<f32> {
        let cells = self.side * self.side;
        (0..self.channels).map(|c| self.values[c * cells + cell]).collect()
    }

    /// The cell below a pixel of the photo.
    #[must_use]
    pub fn cell_of(&self, x: usize, y: usize) -> usize {
        let (fx, fy) = match self.place {
            Place::Stretched(width, height) => ((x as f32 + 0.5) / width as f32, (y as f32 + 0.5) / height as f32),
            Place::Letterbox(letterbox) => {
                let (frame, scaled, side) = (letterbox.frame(), letterbox.scaled(), letterbox.side() as f32);
                (
                    (x as f32 + 0.5) / frame.width() as f32 * scaled.width() as f32 / side,
                    (y as f32 + 0.5) / frame.height() as f32 * scaled.height() as f32 / side,
                )
            }
        };
        let cell = |f: f32| ((f * self.side as f32) as usize).min(self.side - 1);
        cell(fy) * self.side + cell(fx)
    }

    /// One value per cell, bilinearly on the photo's pixels.
    #[must_use]
    pub fn on_photo(&self, cells: &[f32]) -> Vec<f32> {
        match self.place {
            Place::Letterbox(letterbox) => {
                let mut out = Vec::new();
                resample_to_frame(cells, self.side, &letterbox, &mut out);
                out
            }
            Place::Stretched(width, height) => {
                let at = |i: usize, count: usize| {
                    let place =
                        ((i as f32 + 0.5) / count as f32 * self.side as f32 - 0.5).clamp(0.0, self.side as f32 - 1.0);
                    let low = place as usize;
                    (low, (low + 1).min(self.side - 1), place - low as f32)
                };
                let mut out = Vec::with_capacity(width * height);
                for y in 0..height {
                    let (top, bottom, v) = at(y, height);
                    for x in 0..width {
                        let (left, right, u) = at(x, width);
                        let row = |r: usize| {
                            let (a, b) = (cells[r * self.side + left], cells[r * self.side + right]);
                            a + u * (b - a)
                        };
                        let (a, b) = (row(top), row(bottom));
                        out.push(a + v * (b - a));
                    }
                }
                out
            }
        }
    }
}

/// Frozen features of a model.
pub trait Features {
    /// Features of the cells of a photo.
    ///
    /// # Errors
    /// [`EvalError`] if the photo cannot be used or the model fails.
    fn map(&mut self, photo: &Sample) -> Result<FeatureMap, EvalError>;

    /// One vector for a whole photo.
    ///
    /// # Errors
    /// As [`Self::map`].
    fn vector(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError>;
}

/// Which output of a bundle's encoder.
pub enum Source<'a> {
    /// The CLIP head's patch and image embeddings.
    ClipHead(&'a mut Segmenter),
    /// The neck's features, and their mean over the photo.
    Neck(&'a mut Segmenter),
}

impl Features for Source<'_> {
    fn map(&mut self, photo: &Sample) -> Result<FeatureMap, EvalError> {
        let (model, clip) = match self {
            Self::ClipHead(model) => (model, true),
            Self::Neck(model) => (model, false),
        };
        let letterbox = model.encode(photo)?;
        let spec = &model.bundle.manifest.encoder;
        let (channels, side, values) = if clip {
            (spec.embed_dim, spec.patch_grid, model.features.patch_embeddings.clone())
        } else {
            (spec.neck_channels, spec.grid(), model.features.image_embeddings.clone())
        };
        Ok(FeatureMap {
            channels,
            side,
            values,
            place: Place::Letterbox(letterbox),
        })
    }

    fn vector(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
        if let Self::ClipHead(model) = self {
            return model.image(photo);
        }
        let map = self.map(photo)?;
        let valid = match map.place {
            Place::Letterbox(letterbox) => letterbox.valid_cells(map.side),
            Place::Stretched(..) => vec![true; map.side * map.side],
        };
        let count = valid.iter().filter(|v| **v).count().max(1) as f32;
        let planes = map.values.chunks_exact(map.side * map.side);
        let sum = |plane: &[f32]| {
            plane
                .iter()
                .zip(&valid)
                .filter(|(_, v)| **v)
                .map(|(p, _)| p)
                .sum::<f32>()
        };
        Ok(planes.map(|plane| sum(plane) / count).collect())
    }
}

impl Features for ClipTower {
    fn map(&mut self, photo: &Sample) -> Result<FeatureMap, EvalError> {
        let tokens = self.region(photo, Region::whole(&photo.photo))?.tokens; // [n·n, W]
        let vision = &self.config.vision_cfg;
        let (side, width) = (vision.image_size / vision.patch_size, vision.width);
        let values = (0..width)
            .flat_map(|c| tokens.iter().skip(c).step_by(width).copied())
            .collect();
        let size = FrameSize::new(photo.photo.width as u32, photo.photo.height as u32)?;
        Ok(FeatureMap {
            channels: width,
            side,
            values,
            place: Place::Stretched(size.width(), size.height()),
        })
    }

    fn vector(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
        self.image(photo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(place: Place) -> FeatureMap {
        FeatureMap {
            channels: 2,
            side: 2,
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            place,
        }
    }

    #[test]
    fn cells_lie_below_the_pixels_that_they_cover() {
        let stretched = map(Place::Stretched(6, 2));
        assert_eq!(stretched.cell(2), [3.0, 7.0]);
        assert_eq!(
            [
                stretched.cell_of(0, 0),
                stretched.cell_of(3, 0),
                stretched.cell_of(5, 1)
            ],
            [0, 1, 3]
        );
        // a wide photo covers the upper row of the square alone
        let wide = map(Place::Letterbox(Letterbox::fit(FrameSize::new(6, 3).unwrap(), 32)));
        assert_eq!([wide.cell_of(0, 2), wide.cell_of(5, 2)], [0, 1]);
    }

    #[test]
    fn cell_values_reach_the_photo_bilinearly() {
        let stretched = map(Place::Stretched(4, 2));
        let found = stretched.on_photo(&[0.0, 1.0, 0.0, 1.0]);
        assert_eq!(found, [0.0, 0.25, 0.75, 1.0, 0.0, 0.25, 0.75, 1.0]);
    }
}
