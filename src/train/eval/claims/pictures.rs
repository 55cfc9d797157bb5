//! What forgetting looks like: masks from the same boxes by three models, side by side.
//!
//! Drawn scenes only: photos of a user's collection do not belong in a report that is passed on.

use std::path::Path;

use anyhow::{Context as _, Result};
use image::{Rgb, RgbImage};

use super::super::instance::{mask, regions};
use super::super::segmenter::Prompt;
use super::figures::{Data, open_at};
use super::variants::Trained;
use crate::train::dataset::{Sample, Split};

/// Columns behind the scene itself.
const MODELS: [&str; 3] = ["untrained", "naive", "two-stage"];

/// Scenes, one per row.
const ROWS: usize = 4;

/// Colours of the regions.
const COLOURS: [[u8; 3]; 4] = [[230, 60, 60], [60, 120, 230], [60, 180, 90], [230, 170, 40]];

/// Writes `out/masks.png`: the scene, then the masks of the SAM teacher, of naive distillation and of two-stage.
pub(super) fn write(out: &Path, trained: &[Trained], data: &Data) -> Result<()> {
    let unseen = || {
        let indices = data.dataset.indices(Split::Validation).into_iter();
        indices.filter_map(|index| data.dataset.get(index).ok())
    };
    let several = unseen().filter(|sample| regions(sample, data.dataset.names()).len() >= 2);
    let mut scenes: Vec<Sample> = several.take(ROWS).collect();
    if scenes.is_empty() {
        scenes = unseen().take(ROWS).collect();
    }
    let side = scenes
        .iter()
        .map(|s| s.photo.width.max(s.photo.height))
        .max()
        .unwrap_or(0) as u32;
    let columns = MODELS.len() as u32 + 1;
    let mut sheet = RgbImage::from_pixel(columns * (side + 4), scenes.len() as u32 * (side + 4), Rgb([255; 3]));
    let mut paste = |row: usize, column: usize, picture: &RgbImage| {
        let place = |i: usize| i64::from(side + 4) * i as i64;
        image::imageops::replace(&mut sheet, picture, place(column), place(row));
    };
    for (row, scene) in scenes.iter().enumerate() {
        paste(row, 0, &picture(scene));
    }
    for (column, name) in MODELS.iter().enumerate() {
        let found = trained.iter().find(|t| t.name == *name);
        let Trained { weights, recipe, .. } = found.context("the table of variants has it")?;
        let mut model = open_at(recipe, weights, recipe.sam.image_size, data)?;
        for (row, scene) in scenes.iter().enumerate() {
            let mut drawn = picture(scene);
            let asked: Vec<Prompt> = regions(scene, data.dataset.names())
                .iter()
                .take(COLOURS.len())
                .map(|region| Prompt::Box(region.bounds))
                .collect();
            let letterbox = model.encode(scene)?;
            for (answer, colour) in model.decode(&letterbox, &asked)?.iter().zip(COLOURS) {
                let mask = mask(answer, 0, &letterbox);
                for (pixel, _) in drawn.pixels_mut().zip(mask.pixels()).filter(|(_, inside)| *inside) {
                    for (value, tint) in pixel.0.iter_mut().zip(colour) {
                        *value = ((u16::from(*value) + 2 * u16::from(tint)) / 3) as u8;
                    }
                }
            }
            paste(row, column + 1, &drawn);
        }
    }
    let path = out.join("masks.png");
    sheet
        .save(&path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn picture(sample: &Sample) -> RgbImage {
    let photo = &sample.photo;
    RgbImage::from_raw(photo.width as u32, photo.height as u32, photo.rgb.clone()).expect("a photo has all its pixels")
}
