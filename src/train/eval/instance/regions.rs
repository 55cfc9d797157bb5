//! The labelled regions of a photo, each with its mask, its box and a point deep inside.

use super::MOST;
use crate::train::dataset::names::canonical;
use crate::train::dataset::{ClassNames, Sample};
use crate::vision::geometry::{FramePoint, FrameSize};
use crate::vision::mask::BinaryMask;

/// Smallest region, as a share of the photo.
const LEAST_SHARE: f64 = 0.002;

/// One labelled region.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Its pixels.
    pub mask: BinaryMask,
    /// Left, top, right, bottom in photo pixels; the latter two exclusive.
    pub bounds: [f32; 4],
    /// The pixel centre farthest from the region's edge, in city-block distance.
    pub inside: FramePoint,
}

/// The largest regions of a photo: its segments, or the 4-connected parts of each named class where it has none.
#[must_use]
pub fn regions(sample: &Sample, names: &ClassNames) -> Vec<Region> {
    let (width, height) = (sample.photo.width, sample.photo.height);
    let Ok(size) = FrameSize::new(width as u32, height as u32) else {
        return Vec::new();
    };
    let parts: Vec<Vec<usize>> = match (&sample.segments, &sample.mask) {
        (Some(segments), _) => {
            let mut parts = vec![Vec::new(); usize::from(segments.ids.iter().copied().max().unwrap_or(0))];
            for (pixel, &id) in segments.ids.iter().enumerate().filter(|(_, id)| **id > 0) {
                parts[usize::from(id) - 1].push(pixel);
            }
            parts
        }
        (None, Some(mask)) => connected(&mask.classes, width, |class| {
            names.name(class).and_then(canonical).is_some()
        }),
        (None, None) => Vec::new(),
    };
    let least = ((LEAST_SHARE * size.pixels() as f64) as usize).max(1);
    let mut parts: Vec<Vec<usize>> = parts.into_iter().filter(|p| p.len() >= least).collect();
    parts.sort_by_key(|p| std::cmp::Reverse(p.len()));
    parts.truncate(MOST);
    parts.iter().filter_map(|pixels| region(size, pixels)).collect()
}

fn region(size: FrameSize, pixels: &[usize]) -> Option<Region> {
    let mut set = vec![false; size.pixels()];
    pixels.iter().for_each(|&p| set[p] = true);
    let inside = deepest(&set, size.width())?;
    let mask = BinaryMask::from_pixels(size, set);
    let b = mask.bounding_box()?;
    Some(Region {
        mask,
        bounds: [b.x1, b.y1, b.x2, b.y2].map(|v| v as f32),
        inside: FramePoint {
            x: (inside % size.width()) as f32 + 0.5,
            y: (inside / size.width()) as f32 + 0.5,
        },
    })
}

/// The set pixel with the largest city-block distance to a pixel that is not set; the frame's edge counts as not set.
fn deepest(set: &[bool], width: usize) -> Option<usize> {
    let height = set.len() / width.max(1);
    let mut distance: Vec<u32> = set.iter().map(|&s| if s { u32::MAX - 1 } else { 0 }).collect();
    let at = |distance: &[u32], x: Option<usize>, y: Option<usize>| match (x, y) {
        (Some(x), Some(y)) if x < width && y < height => distance[y * width + x],
        _ => 0,
    };
    for y in 0..height {
        for x in 0..width {
            let near = at(&distance, x.checked_sub(1), Some(y)).min(at(&distance, Some(x), y.checked_sub(1)));
            distance[y * width + x] = distance[y * width + x].min(near.saturating_add(1));
        }
    }
    for y in (0..height).rev() {
        for x in (0..width).rev() {
            let near = at(&distance, Some(x + 1), Some(y)).min(at(&distance, Some(x), Some(y + 1)));
            distance[y * width + x] = distance[y * width + x].min(near.saturating_add(1));
        }
    }
    (0..set.len())
        .filter(|&p| set[p])
        .max_by_key(|&p| (distance[p], std::cmp::Reverse(p)))
}

/// Pixels of each 4-connected part of one class, for the classes that `wanted` wants.
fn connected(classes: &[u8], width: usize, wanted: impl Fn(u8) -> bool) -> Vec<Vec<usize>> {
    let mut open: Vec<bool> = classes.iter().map(|&c| wanted(c)).collect();
    let mut parts = Vec::new();
    for start in 0..classes.len() {
        if !std::mem::replace(&mut open[start], false) {
            continue;
        }
        let (mut pixels, mut next) = (vec![start], 0);
        while let Some(&p) = pixels.get(next) {
            next += 1;
            let left = (p % width > 0).then(|| p - 1);
            let right = (p % width + 1 < width).then_some(p + 1);
            let (up, down) = (p.checked_sub(width), Some(p + width).filter(|&d| d < classes.len()));
            for near in [left, right, up, down].into_iter().flatten() {
                if open[near] && classes[near] == classes[start] {
                    open[near] = false;
                    pixels.push(near);
                }
            }
        }
        parts.push(pixels);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::{ClassMask, Photo, SampleInfo, Segments};

    fn sample(rows: &[&str], segments: bool) -> Sample {
        let (width, height) = (rows[0].len(), rows.len());
        let digits: Vec<u8> = rows.concat().bytes().map(|b| b - b'0').collect();
        let ids = digits.iter().map(|&d| u16::from(d)).collect();
        Sample {
            key: "k".into(),
            photo: Photo {
                width,
                height,
                rgb: vec![0; 3 * width * height],
            },
            mask: (!segments).then_some(ClassMask {
                width,
                height,
                classes: digits,
            }),
            segments: segments.then_some(Segments { width, height, ids }),
            info: SampleInfo::default(),
            regions: Vec::new(),
        }
    }

    fn names() -> ClassNames {
        ClassNames::new(["unlabelled", "background", "car", "cow"].map(str::to_owned).to_vec())
    }

    #[test]
    fn parts_of_a_class_are_regions_and_background_is_none() {
        let found = regions(&sample(&["2211122", "2213322", "0013311"], false), &names());
        let areas: Vec<usize> = found.iter().map(|r| r.mask.area()).collect();
        assert_eq!(areas, [4, 4, 4]);
        assert_eq!(found[0].bounds, [0.0, 0.0, 2.0, 2.0]);
        assert_eq!(found[1].bounds, [5.0, 0.0, 7.0, 2.0]);
    }

    #[test]
    fn segments_stand_for_themselves_and_the_point_lies_deepest() {
        let found = regions(
            &sample(&["1111100", "1111100", "1111102", "1111102", "1111102"], true),
            &names(),
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].inside, FramePoint { x: 2.5, y: 2.5 });
        assert_eq!(found[1].mask.area(), 3);
    }
}
