//! Which of a camera's formats, sizes and rates costs the least and still gives the model what it wants.

use std::cmp::Ordering;

use v4l::framesize::{FrameSizeEnum, Stepwise};

use super::device::{FourCC, Rate};
use crate::vision::frame::PixelFormat;

/// Frames per second that are enough where the configuration says nothing.
const ENOUGH: f32 = 15.0;

/// A format that can be read: its four-cc code, its layout (`None`: motion JPEG), and the work per pixel from the buffer
/// to the model's input, in rough multiples of YUYV's.
pub(super) struct Readable {
    code: &'static [u8; 4],
    pub(super) layout: Option<PixelFormat>,
    work: f32,
}

/// Formats that are read.
const FORMATS: [Readable; 6] = [
    readable(b"YUYV", Some(PixelFormat::Yuyv), 1.0),
    readable(b"UYVY", Some(PixelFormat::Uyvy), 1.0),
    readable(b"NV12", Some(PixelFormat::Nv12), 1.0),
    readable(b"RGB3", Some(PixelFormat::Rgb24), 1.0),
    readable(b"MJPG", None, 8.0),
    readable(b"GREY", Some(PixelFormat::Grey), 0.5),
];

const fn readable(code: &'static [u8; 4], layout: Option<PixelFormat>, work: f32) -> Readable {
    Readable { code, layout, work }
}

/// What is known of a format, if it can be read. Cameras say `JPEG` as well as `MJPG`.
pub(super) fn find(code: FourCC) -> Option<&'static Readable> {
    let code = if &code.repr == b"JPEG" { b"MJPG" } else { &code.repr };
    FORMATS.iter().find(|f| f.code == code)
}

/// The four-cc codes that are read, for people.
pub(super) fn codes() -> String {
    FORMATS.map(|f| String::from_utf8_lossy(f.code).into_owned()).join(", ")
}

/// What the model wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The longest side, in pixels: more is scaled down, less shows less.
    pub(super) side: u32,
    /// Frames per second.
    pub(super) rate: Option<f32>,
}

/// One thing a camera can deliver.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    pub(super) code: FourCC,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Highest rate, if the driver tells.
    pub(super) fastest: Option<f32>,
}

impl Offer {
    /// What it lacks and costs, most important first: colour, detail, rate, work per frame.
    fn cost(&self, wanted: &Wanted) -> [f32; 4] {
        let Some(format) = find(self.code) else {
            return [f32::INFINITY; 4];
        };
        let lacks = |want: f32, have: f32| ((want - have) / want).max(0.0);
        let longest = self.width.max(self.height) as f32;
        let rate = wanted.rate.unwrap_or(ENOUGH);
        [
            f32::from(u8::from(format.layout == Some(PixelFormat::Grey))),
            lacks(wanted.side.max(1) as f32, longest),
            // Drivers say 29.97 for 30.
            self.fastest.map_or(0.0, |fastest| lacks(rate * 0.98, fastest)),
            format.work * self.width as f32 * self.height as f32,
        ]
    }
}

/// The offer that costs the least; of equals the first, which is the driver's preference.
pub(super) fn cheapest(offers: &[Offer], wanted: &Wanted) -> Option<Offer> {
    let order = |a: &[f32; 4], b: &[f32; 4]| {
        let first_difference = a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne());
        first_difference.unwrap_or(Ordering::Equal)
    };
    let known = offers.iter().filter(|o| find(o.code).is_some());
    known.copied().min_by(|a, b| order(&a.cost(wanted), &b.cost(wanted)))
}

/// The sizes worth looking at: all discrete ones, and of a range the smallest that is wide enough, in the shape that the
/// camera has now.
pub(super) fn sizes(offered: Vec<FrameSizeEnum>, now: (u32, u32), side: u32) -> Vec<(u32, u32)> {
    let size = |size| match size {
        FrameSizeEnum::Discrete(d) => (d.width, d.height),
        FrameSizeEnum::Stepwise(range) => within(&range, now, side),
    };
    let found: Vec<_> = offered.into_iter().map(size).collect();
    if found.is_empty() { vec![now] } else { found }
}

fn within(range: &Stepwise, (width, height): (u32, u32), side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.max(height).max(1));
    let fit = |side: u32, least: u32, most: u32, step: u32| {
        let wanted = (f64::from(side) * scale).ceil() as u32;
        let steps = wanted.saturating_sub(least).div_ceil(step.max(1));
        least.saturating_add(steps.saturating_mul(step.max(1))).min(most)
    };
    (
        fit(width, range.min_width, range.max_width, range.step_width),
        fit(height, range.min_height, range.max_height, range.step_height),
    )
}

/// The rates that can be named, slowest first: of a range its ends.
pub(super) fn named(offered: &[Rate]) -> Vec<f32> {
    let ends = |&rate: &Rate| match rate {
        Rate::One(rate) => vec![rate],
        Rate::Between(slowest, fastest) => vec![slowest, fastest],
    };
    let mut rates: Vec<f32> = offered.iter().flat_map(ends).collect();
    rates.sort_by(f32::total_cmp);
    rates.dedup();
    rates
}

/// The slowest rate that is fast enough, else the fastest there is.
pub(super) fn rate(offered: &[Rate], wanted: Option<f32>) -> Option<f32> {
    let wanted = wanted?;
    let near = |&rate: &Rate| match rate {
        Rate::One(rate) => rate,
        Rate::Between(slowest, fastest) => wanted.max(slowest).min(fastest),
    };
    let near = || offered.iter().map(near);
    let enough = near().filter(|r| *r >= wanted * 0.98).min_by(f32::total_cmp);
    enough.or_else(|| near().max_by(f32::total_cmp)).or(Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(code: &[u8; 4], width: u32, height: u32, fastest: f32) -> Offer {
        Offer {
            code: FourCC::new(code),
            width,
            height,
            fastest: Some(fastest),
        }
    }

    /// What a common webcam offers over USB 2.
    fn webcam() -> Vec<Offer> {
        vec![
            offer(b"MJPG", 1280, 720, 30.0),
            offer(b"MJPG", 640, 480, 30.0),
            offer(b"YUYV", 1280, 720, 9.0),
            offer(b"YUYV", 640, 480, 29.97),
            offer(b"YUYV", 320, 240, 30.0),
            offer(b"H264", 1920, 1080, 30.0),
        ]
    }

    #[test]
    fn the_smallest_raw_size_that_covers_the_model_wins() {
        let choose = |side, rate| cheapest(&webcam(), &Wanted { side, rate }).unwrap();
        assert_eq!(choose(320, None), offer(b"YUYV", 320, 240, 30.0));
        assert_eq!(choose(448, Some(30.0)), offer(b"YUYV", 640, 480, 29.97));
        // Raw pictures are too slow at this size, unless few are wanted.
        assert_eq!(choose(1024, None), offer(b"MJPG", 1280, 720, 30.0));
        assert_eq!(choose(1024, Some(5.0)), offer(b"YUYV", 1280, 720, 9.0));
        // Nothing is large enough: the largest.
        assert_eq!(choose(2048, Some(30.0)), offer(b"MJPG", 1280, 720, 30.0));
    }

    #[test]
    fn grey_is_taken_only_where_there_is_no_colour() {
        let wanted = Wanted { side: 320, rate: None };
        let grey = offer(b"GREY", 640, 480, 60.0);
        let jpeg = offer(b"MJPG", 160, 120, 5.0);
        assert_eq!(cheapest(&[grey, jpeg], &wanted), Some(jpeg));
        assert_eq!(cheapest(&[grey, offer(b"H264", 640, 480, 30.0)], &wanted), Some(grey));
        assert_eq!(cheapest(&[offer(b"H264", 640, 480, 30.0)], &wanted), None);
    }

    #[test]
    fn of_a_range_of_sizes_the_smallest_that_covers_the_model_is_asked_for() {
        let range = |min, max, step| {
            vec![FrameSizeEnum::Stepwise(Stepwise {
                min_width: min,
                max_width: max,
                step_width: step,
                min_height: min,
                max_height: max,
                step_height: step,
            })]
        };
        assert_eq!(sizes(range(16, 4096, 8), (1920, 1080), 320), [(320, 184)]);
        assert_eq!(sizes(range(640, 4096, 1), (1920, 1080), 320), [(640, 640)]);
        assert_eq!(sizes(range(16, 256, 0), (1080, 1920), 320), [(180, 256)]);
        assert_eq!(sizes(vec![], (1920, 1080), 320), [(1920, 1080)]);
    }

    #[test]
    fn the_slowest_rate_that_is_fast_enough_is_asked_for() {
        let offered = [10.0, 15.0, 29.97].map(Rate::One);
        assert_eq!(rate(&offered, Some(12.0)), Some(15.0));
        assert_eq!(rate(&offered, Some(30.0)), Some(29.97));
        assert_eq!(rate(&offered[..2], Some(60.0)), Some(15.0));
        assert_eq!((rate(&[], Some(5.0)), rate(&offered, None)), (Some(5.0), None));
    }

    #[test]
    fn of_a_range_of_rates_the_wanted_one_is_asked_for() {
        let range = [Rate::Between(1.0, 90.0)];
        let wanted = [5.0, 0.5, 120.0];
        assert_eq!(wanted.map(|w| rate(&range, Some(w))), [5.0, 1.0, 90.0].map(Some));
        assert_eq!(named(&range), [1.0, 90.0]);
        assert_eq!(named(&[30.0, 15.0, 30.0].map(Rate::One)), [15.0, 30.0]);
    }
}
