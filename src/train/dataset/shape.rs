//! Outlines of things as COCO, LVIS and SA-1B write them: polygons and run-length codes.
//!
//! A polygon covers the pixels whose centre is inside (even-odd rule); several polygons of one thing add up. Run-length
//! codes go down the columns and start with empty pixels ([`crate::vision::rle`]).

use serde::Deserialize;

use super::ClassNames;
use crate::vision::geometry::FrameSize;
use crate::vision::{polygon, rle};

/// The outline of one thing.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "segmentation: expected polygons [[x, y, …], …] or a run-length code {counts, size}"
)]
pub enum Outline {
    /// Rings `x1, y1, x2, y2, …` in photo pixels.
    Polygons(Vec<Vec<f32>>),
    /// Compressed run-length code; `[height, width]`.
    Code {
        /// The runs as text.
        counts: String,
        /// Height and width.
        size: [u32; 2],
    },
    /// Uncompressed run-length code; `[height, width]`.
    Runs {
        /// Lengths of runs, empty first.
        counts: Vec<u32>,
        /// Height and width.
        size: [u32; 2],
    },
}

/// One annotated thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Its index in the class table; [`ClassNames::UNLABELLED`] where it has no name there.
    pub class: u8,
    /// A group that counts as no segment of its own.
    pub crowd: bool,
    /// Where it is.
    pub outline: Outline,
}

impl Outline {
    /// Row-major pixels `[height, width]`; what is wrong with the outline otherwise.
    fn pixels(&self, width: usize, height: usize) -> Result<Vec<bool>, String> {
        let checked = |size: &[u32; 2]| match size.map(|s| s as usize) == [height, width] {
            true => FrameSize::new(size[1], size[0]).map_err(|error| error.to_string()),
            false => Err(format!(
                "size is {}x{}, its photo is {width}x{height}",
                size[1], size[0]
            )),
        };
        match self {
            Self::Polygons(rings) => {
                let mut pixels = vec![false; width * height];
                for ring in rings {
                    if ring.len() < 6 || !ring.len().is_multiple_of(2) || ring.iter().any(|v| !v.is_finite()) {
                        return Err(format!(
                            "polygon of {} numbers, expected at least three finite points",
                            ring.len()
                        ));
                    }
                    polygon::fill_even_odd(&[ring.as_chunks().0], width, &mut pixels);
                }
                Ok(pixels)
            }
            Self::Code { counts, size } => {
                let mask = rle::decode(counts, checked(size)?).map_err(|error| error.to_string())?;
                Ok(mask.pixels().collect())
            }
            Self::Runs { counts, size } => {
                let expected = checked(size)?.pixels();
                let covered: u64 = counts.iter().map(|&n| u64::from(n)).sum();
                if covered != expected as u64 {
                    return Err(format!("run lengths cover {covered} pixels, its photo has {expected}"));
                }
                let mut pixels = vec![false; expected];
                let mut at = 0;
                for (run, &length) in counts.iter().enumerate() {
                    for p in at..at + length as usize {
                        pixels[p % height * width + p / height] = run % 2 == 1;
                    }
                    at += length as usize;
                }
                Ok(pixels)
            }
        }
    }
}

/// Shapes with their pixels, the largest first, so that smaller ones lie on top.
fn painted(
    shapes: &[Shape],
    width: usize,
    height: usize,
    mut paint: impl FnMut(usize, &Shape, usize),
) -> Result<(), String> {
    let mut areas = Vec::with_capacity(shapes.len());
    for (index, shape) in shapes.iter().enumerate() {
        let pixels = shape
            .outline
            .pixels(width, height)
            .map_err(|error| format!("annotation {index}: {error}"))?;
        let set: Vec<u32> = (0u32..).zip(&pixels).filter(|(_, set)| **set).map(|(p, _)| p).collect();
        areas.push((index, set));
    }
    areas.sort_by_key(|(_, set)| std::cmp::Reverse(set.len()));
    for (order, (index, set)) in areas.iter().enumerate() {
        set.iter().for_each(|&p| paint(order, &shapes[*index], p as usize));
    }
    Ok(())
}

/// Class of every pixel; background where nothing is annotated.
pub(super) fn classes(shapes: &[Shape], width: usize, height: usize) -> Result<Vec<u8>, String> {
    let mut classes = vec![ClassNames::BACKGROUND; width * height];
    painted(shapes, width, height, |_, shape, p| classes[p] = shape.class)?;
    Ok(classes)
}

/// Segment of every pixel, from 1; crowds are none.
pub(super) fn segments(shapes: &[Shape], width: usize, height: usize) -> Result<Vec<u16>, String> {
    let mut ids = vec![0; width * height];
    painted(shapes, width, height, |order, shape, p| {
        if !shape.crowd {
            ids[p] = u16::try_from(order + 1).unwrap_or(u16::MAX);
        }
    })?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::mask::BinaryMask;

    fn parse(json: &str) -> Outline {
        serde_json::from_str(json).unwrap()
    }

    fn rows(pixels: &[bool], width: usize) -> Vec<String> {
        let row = |row: &[bool]| row.iter().map(|&p| if p { '#' } else { '.' }).collect();
        pixels.chunks(width).map(row).collect()
    }

    #[test]
    fn the_three_forms_of_one_outline_cover_the_same_pixels() {
        let expected = [".....", ".##..", ".##..", "....."];
        let mask = BinaryMask::from_pixels(
            FrameSize::new(5, 4).unwrap(),
            expected.concat().chars().map(|c| c == '#'),
        );
        let code = format!(r#"{{"counts": {:?}, "size": [4, 5]}}"#, rle::encode(&mask));
        for json in [
            "[[1, 1, 3, 1, 3, 3, 1, 3]]",
            "[[1, 1, 2, 1, 2, 3, 1, 3], [2, 1, 3, 1, 3, 3, 2, 3]]",
            r#"{"counts": [5, 2, 2, 2, 9], "size": [4, 5]}"#,
            &code,
        ] {
            assert_eq!(rows(&parse(json).pixels(5, 4).unwrap(), 5), expected, "{json}");
        }
    }

    #[test]
    fn a_polygon_covers_the_centres_inside_and_stays_in_the_photo() {
        let triangle = parse("[[0, 0, 4, 0, 0, 4]]").pixels(4, 3).unwrap();
        assert_eq!(rows(&triangle, 4), ["###.", "##..", "#..."]);
        let outside = parse("[[-9, -9, 99, -9, 99, 99, -9, 99]]").pixels(3, 2).unwrap();
        assert!(outside.iter().all(|p| *p));
    }

    #[test]
    fn impossible_outlines_say_what_was_found() {
        for (json, expected) in [
            ("[[1, 1, 3, 1]]", "polygon of 4 numbers"),
            ("[[1, 1, 3, 1, 3, 3, 1]]", "polygon of 7 numbers"),
            (
                r#"{"counts": [5, 2], "size": [4, 5]}"#,
                "cover 7 pixels, its photo has 20",
            ),
            (
                r#"{"counts": [4294967295, 4294967295], "size": [4, 5]}"#,
                "cover 8589934590 pixels",
            ),
            (r#"{"counts": [20], "size": [5, 4]}"#, "size is 4x5, its photo is 5x4"),
            (r#"{"counts": "?", "size": [4, 5]}"#, "run-length code"),
        ] {
            let error = parse(json).pixels(5, 4).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn small_things_lie_on_large_ones_and_crowds_are_no_segment() {
        let shape = |class, crowd, json: &str| Shape {
            class,
            crowd,
            outline: parse(json),
        };
        let shapes = [
            shape(3, false, "[[1, 0, 2, 0, 2, 1, 1, 1]]"),
            shape(2, false, "[[0, 0, 3, 0, 3, 1, 0, 1]]"),
            shape(4, true, "[[4, 0, 5, 0, 5, 1, 4, 1]]"),
        ];
        assert_eq!(classes(&shapes, 5, 1).unwrap(), [2, 3, 2, 1, 4]);
        assert_eq!(segments(&shapes, 5, 1).unwrap(), [1, 2, 1, 0, 0]);
    }
}
