//! Motion on drawn frames with seeded noise.

use super::*;
use crate::vision::frame::{CaptureTime, Sequence};
use crate::vision::geometry::FrameSize;
use crate::vision::query::uniform;

const RULES: MotionRules = MotionRules {
    area: 0.002,
    change: 8.0,
};

/// Deviation of the noise of every pixel: a cheap sensor in a dark room.
const NOISE: f32 = 8.0;

/// Mean 0, deviation 1; nearly normal.
fn normal(random: &mut u64) -> f32 {
    (0..12).map(|_| uniform(random)).sum::<f32>() - 6.0
}

/// Ten grey frames a second, painted by `paint(frame, x, y)`, each pixel with noise; what is seen on each.
fn seen(size: (u32, u32), frames: usize, paint: impl Fn(usize, usize, usize) -> f32) -> Vec<Seen> {
    let (mut random, mut background) = (7, Background::default());
    let size = FrameSize::new(size.0, size.1).unwrap();
    let width = size.width();
    let look = |i: usize| {
        let mut pixel =
            |p: usize| (paint(i, p % width, p / width) + NOISE * normal(&mut random)).clamp(0.0, 255.0) as u8;
        let frame = Frame {
            size,
            format: PixelFormat::Grey,
            full_range: false,
            stride: width,
            bytes: (0..size.pixels()).map(&mut pixel).collect(),
            sequence: Sequence(i as u64),
            captured: CaptureTime {
                monotonic: Duration::from_millis(100 * i as u64),
                unix_micros: 0,
            },
        };
        background.look(&frame, &RULES).unwrap()
    };
    (0..frames).map(look).collect()
}

/// A scene with light and dark parts.
fn scene(x: usize, y: usize) -> f32 {
    60.0 + 80.0 * (((x / 40) + (y / 30)) % 2) as f32
}

fn numbers(seen: &[Seen], wanted: Seen) -> Vec<usize> {
    (0..seen.len()).filter(|&i| seen[i] == wanted).collect()
}

#[test]
fn noise_alone_is_never_motion_whatever_the_size() {
    for size in [(640, 360), (321, 239), (160, 120), (48, 40)] {
        let seen = seen(size, 150, |_, x, y| scene(x, y));
        assert_eq!(seen[0], Seen::First);
        assert!(seen[1..].iter().all(|s| *s == Seen::Still), "{size:?} {seen:?}");
    }
}

#[test]
fn a_small_thing_moves_until_it_rests_and_is_part_of_the_background() {
    // 32 x 48 of 640 x 360 pixels, 0.7 % of the picture; comes at frame 20, stops at frame 60, is taken away at 150.
    let thing = |i: usize, x: usize, y: usize| {
        let left = 5 * i.min(60);
        (20..150).contains(&i) && (left..left + 32).contains(&x) && (200..248).contains(&y)
    };
    let seen = seen(
        (640, 360),
        220,
        |i, x, y| {
            if thing(i, x, y) { 220.0 } else { scene(x, y) }
        },
    );
    let motion = numbers(&seen, Seen::Motion);
    assert!((20..=60).all(|i| motion.contains(&i)), "{motion:?}");
    assert!(!motion.iter().any(|i| *i < 20), "{motion:?}");
    // What rests is background after a few seconds, and so is the place it leaves.
    assert!(!motion.iter().any(|i| (130..150).contains(i) || *i > 225), "{motion:?}");
    assert!((150..155).all(|i| motion.contains(&i)), "{motion:?}");
}

#[test]
fn less_than_the_area_or_the_change_asked_for_is_not_motion() {
    // One cell of 10 pixels out of 64 x 36.
    let dot = |i: usize, x: usize, y: usize| i > 5 && (100..110).contains(&x) && (100..110).contains(&y);
    let small = seen((640, 360), 10, |i, x, y| if dot(i, x, y) { 255.0 } else { 90.0 });
    assert_eq!(numbers(&small, Seen::Motion), [0; 0]);
    let pale = seen((640, 360), 10, |i, x, _| if i > 5 && x > 400 { 93.0 } else { 90.0 });
    assert_eq!(numbers(&pale, Seen::Motion), [0; 0]);
    let enough = seen((640, 360), 10, |i, x, _| if i > 5 && x > 400 { 105.0 } else { 90.0 });
    assert_eq!(numbers(&enough, Seen::Motion)[0], 6);
}

#[test]
fn light_that_fades_over_a_minute_is_not_seen() {
    let seen = seen((320, 240), 600, |i, x, y| scene(x, y) * (1.0 - 0.8 * i as f32 / 600.0));
    assert!(seen[1..].iter().all(|s| *s == Seen::Still), "{seen:?}");
}

#[test]
fn a_light_that_is_switched_is_seen_once_each_time() {
    let lit = |i: usize| if (30..70).contains(&i) { 1.6 } else { 1.0 };
    let seen = seen((320, 240), 100, |i, x, y| scene(x, y) * lit(i));
    assert_eq!(numbers(&seen, Seen::Light), [30, 70]);
    assert_eq!(numbers(&seen, Seen::Motion), [0; 0]);
}

#[test]
fn a_frame_of_another_size_is_a_new_beginning_and_one_too_short_changes_nothing() {
    let mut background = Background::default();
    let mut frame = frame(PixelFormat::Grey, 64, 48, vec![10; 64 * 48]);
    assert_eq!(background.look(&frame, &RULES), Ok(Seen::First));
    let whole = std::mem::replace(&mut frame.bytes, vec![200; 64 * 48 - 1]);
    assert!(background.look(&frame, &RULES).is_err());
    frame.bytes = whole;
    assert_eq!(background.look(&frame, &RULES), Ok(Seen::Still));
    (frame.size, frame.stride) = (FrameSize::new(48, 64).unwrap(), 48);
    assert_eq!(background.look(&frame, &RULES), Ok(Seen::First));
}

fn frame(format: PixelFormat, width: u32, height: u32, bytes: Vec<u8>) -> Frame {
    let size = FrameSize::new(width, height).unwrap();
    Frame {
        size,
        format,
        full_range: false,
        stride: format.row_bytes(size.width()),
        bytes,
        sequence: Sequence(0),
        captured: CaptureTime::default(),
    }
}

#[test]
fn every_layout_of_the_same_picture_gives_the_same_grid() {
    let (width, height) = (131usize, 97usize);
    let mut random = 3;
    let luma: Vec<u8> = (0..width * height)
        .map(|p| (40.0 + (p % width) as f32 + 30.0 * uniform(&mut random)) as u8)
        .collect();
    let full = |y: u8| ((f32::from(y) - 16.0) * 255.0 / 219.0).round().clamp(0.0, 255.0) as u8;
    let rows = || luma.chunks(width);
    let packed = |order: fn(u8, u8) -> [u8; 4]| -> Vec<u8> {
        let pairs = |row: &[u8]| -> Vec<u8> {
            row.chunks(2)
                .flat_map(|pair| order(pair[0], *pair.last().unwrap()))
                .collect()
        };
        rows().flat_map(pairs).collect()
    };
    let planar = |format: PixelFormat| {
        let mut bytes = luma.clone();
        bytes.resize(format.frame_bytes(width, height), 128);
        bytes
    };
    let mut bytes_of = vec![
        (PixelFormat::Grey, luma.iter().map(|&y| full(y)).collect()),
        (PixelFormat::Rgb24, luma.iter().flat_map(|&y| [full(y); 3]).collect()),
        (PixelFormat::Yuyv, packed(|a, b| [a, 128, b, 128])),
        (PixelFormat::Uyvy, packed(|a, b| [128, a, 128, b])),
    ];
    for format in [
        PixelFormat::Nv12,
        PixelFormat::I420,
        PixelFormat::I422,
        PixelFormat::I444,
    ] {
        bytes_of.push((format, planar(format)));
    }
    let grids = bytes_of.into_iter().map(|(format, bytes)| {
        let mut grid = Grid::default();
        grid.read(&frame(format, width as u32, height as u32, bytes)).unwrap();
        (format, grid)
    });
    let grids: Vec<_> = grids.collect();
    let first = &grids[0].1;
    assert_eq!((first.columns, first.cells.len()), (16, 16 * 12));
    assert!(first.cells[15] > first.cells[0] + 90.0, "brighter to the right");
    for (format, grid) in &grids {
        let apart = |(a, b): (&f32, &f32)| (a - b).abs();
        let most = first.cells.iter().zip(&grid.cells).map(apart).fold(0.0, f32::max);
        // Full range is rounded to whole levels first.
        assert!(grid.columns == 16 && most < 0.3, "{format:?} differs by {most}");
    }
}

#[test]
fn luma_of_full_range_is_taken_as_it_is() {
    let cell = |format, full_range| {
        let mut frame = frame(format, 24, 16, vec![90; 2 * 24 * 16]);
        frame.full_range = full_range;
        let mut grid = Grid::default();
        grid.read(&frame).unwrap();
        grid.cells[0]
    };
    for format in [PixelFormat::Yuyv, PixelFormat::Nv12] {
        assert_eq!(cell(format, true), cell(PixelFormat::Grey, false));
        assert!((cell(format, false) - 86.16).abs() < 0.01);
    }
}

#[test]
fn rows_with_a_gap_behind_them_are_read_without_it() {
    let mut tight = Grid::default();
    tight
        .read(&frame(PixelFormat::Grey, 24, 16, vec![90; 24 * 16]))
        .unwrap();
    let mut gappy = frame(PixelFormat::Grey, 24, 16, Vec::new());
    gappy.stride = 32;
    gappy.bytes = (0..32 * 16).map(|i| if i % 32 < 24 { 90 } else { 255 }).collect();
    let mut grid = Grid::default();
    grid.read(&gappy).unwrap();
    assert_eq!(grid, tight);
}
