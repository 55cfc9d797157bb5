//! The frames of the demo: three photos (see `models/samples/README.md`), a drawn scene, and a clip that pans and zooms
//! over them.

use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::{FrameSize, SizeError};
use crate::vision::preprocess::Resizer;

/// Name and bytes of the photos.
const PHOTOS: [(&str, &[u8]); 3] = [
    ("astronaut", include_bytes!("../../models/samples/astronaut.jpg")),
    ("chelsea", include_bytes!("../../models/samples/chelsea.jpg")),
    ("coffee", include_bytes!("../../models/samples/coffee.jpg")),
];

/// Size of the frames of the clip.
const CLIP: (u32, u32) = (480, 360);

/// A frame with a name for the table and the file.
pub struct NamedFrame {
    /// e.g. `astronaut`, `clip-07`.
    pub name: String,
    /// Packed RGB.
    pub frame: Frame,
}

/// Why the built-in frames are unusable: only a damaged build.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A photo does not decode.
    #[error("built-in picture {name}: {message}; the program is damaged, install it again")]
    Photo {
        /// Which.
        name: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// A size is impossible.
    #[error(transparent)]
    Size(#[from] SizeError),
}

fn named(name: String, size: FrameSize, bytes: Vec<u8>, number: usize) -> NamedFrame {
    let (format, stride) = (PixelFormat::Rgb24, 3 * size.width());
    let sequence = Sequence(number as u64);
    NamedFrame {
        name,
        frame: Frame {
            size,
            format,
            full_range: false,
            stride,
            bytes,
            sequence,
            captured: CaptureTime::default(),
        },
    }
}

/// The photos, the drawn scene, and `clip_frames` frames of the clip. Capture times are zero.
///
/// # Errors
/// [`SampleError`] if a built-in photo is damaged.
pub fn sample_frames(clip_frames: usize) -> Result<Vec<NamedFrame>, SampleError> {
    let mut stills = Vec::new();
    for (name, bytes) in PHOTOS {
        let picture = image::load_from_memory(bytes)
            .map_err(|e| SampleError::Photo {
                name,
                message: e.to_string(),
            })?
            .into_rgb8();
        stills.push((
            name,
            FrameSize::new(picture.width(), picture.height())?,
            picture.into_raw(),
        ));
    }
    let scene_size = FrameSize::new(640, 427)?;
    stills.push(("scene", scene_size, drawn_scene(scene_size)));
    let clip_size = FrameSize::new(CLIP.0, CLIP.1)?;
    let clip: Vec<_> = (0..clip_frames)
        .map(|i| {
            let part = i * stills.len() / clip_frames.max(1);
            let first = part * clip_frames / stills.len();
            let length = (clip_frames / stills.len()).max(1);
            let progress = (i - first.min(i)) as f64 / length as f64;
            let (_, size, rgb) = &stills[part];
            pan_and_zoom(rgb, *size, clip_size, progress.min(1.0), part % 2 == 1)
        })
        .collect::<Result<_, _>>()?;
    let mut frames = Vec::new();
    for (name, size, rgb) in stills {
        frames.push(named(name.into(), size, rgb, frames.len()));
    }
    for (i, rgb) in clip.into_iter().enumerate() {
        frames.push(named(format!("clip-{i:02}"), clip_size, rgb, frames.len()));
    }
    Ok(frames)
}

/// A window that shrinks from the whole picture to 60 % of it while it moves; `mirrored` moves the other way.
fn pan_and_zoom(
    rgb: &[u8],
    size: FrameSize,
    target: FrameSize,
    progress: f64,
    mirrored: bool,
) -> Result<Vec<u8>, SizeError> {
    let aspect = target.width() as f64 / target.height() as f64;
    let widest = (size.width() as f64).min(size.height() as f64 * aspect);
    let width = widest * (1.0 - 0.4 * progress);
    let height = width / aspect;
    let across = if mirrored { 1.0 - progress } else { progress };
    let x = ((size.width() as f64 - width) * across) as usize;
    let y = ((size.height() as f64 - height) * (0.5 - 0.3 * progress)) as usize;
    let window = FrameSize::new((width as u32).max(1), (height as u32).max(1))?;
    let rows = rgb.chunks_exact(3 * size.width()).skip(y).take(window.height());
    let cropped: Vec<u8> = rows
        .flat_map(|row| row[3 * x..][..3 * window.width()].iter().copied())
        .collect();
    let mut out = Vec::new();
    Resizer::new(window, target).run(&cropped, &mut out);
    Ok(out)
}

/// A house between trees at a road with a red car, under a sky with a sun; simple shapes with soft shading.
fn drawn_scene(size: FrameSize) -> Vec<u8> {
    let (w, h) = (size.width() as f32, size.height() as f32);
    let mut rgb = Vec::with_capacity(3 * size.pixels());
    for i in 0..size.pixels() {
        let (px, py) = (i % size.width(), i / size.width());
        let (x, y) = ((px as f32 + 0.5) / w, (py as f32 + 0.5) / h);
        // A fixed speckle: flat areas of one colour look like nothing a camera sees.
        let speckle = ((px * 7919 + py * 104_729) % 23) as f32 - 11.0;
        let c = scene_colour(x, y, w / h);
        rgb.extend(c.map(|v| (v + 0.7 * speckle).clamp(0.0, 255.0) as u8));
    }
    rgb
}

fn scene_colour(x: f32, y: f32, aspect: f32) -> [f32; 3] {
    let inside = |x0: f32, y0: f32, x1: f32, y1: f32| (x0..x1).contains(&x) && (y0..y1).contains(&y);
    let disc = |cx: f32, cy: f32, r: f32| ((x - cx) * aspect).hypot(y - cy) < r;
    // From front to back; the first shape that covers the point wins.
    if disc(0.68, 0.87, 0.045) || disc(0.83, 0.87, 0.045) {
        return if disc(0.68, 0.87, 0.02) || disc(0.83, 0.87, 0.02) {
            [150.0; 3]
        } else {
            [25.0; 3]
        };
    }
    if inside(0.70, 0.725, 0.75, 0.775) || inside(0.765, 0.725, 0.815, 0.775) {
        return [170.0, 205.0, 225.0];
    }
    if inside(0.62, 0.78, 0.89, 0.87) || (inside(0.66, 0.70, 0.85, 0.79) && x - 0.66 > (0.79 - y) * 0.35) {
        return [196.0, 28.0, 32.0];
    }
    if (0.80..0.98).contains(&y) {
        let dash = (0.885..0.9).contains(&y) && (x * 9.0).fract() < 0.55;
        return if dash {
            [225.0, 220.0, 200.0]
        } else {
            [92.0, 92.0, 96.0]
        };
    }
    if inside(0.36, 0.60, 0.43, 0.78) {
        return [110.0, 66.0, 38.0];
    }
    if inside(0.24, 0.50, 0.32, 0.60) || inside(0.47, 0.50, 0.55, 0.60) {
        let frame = (x * 100.0).rem_euclid(4.0) < 0.5 || (y - 0.55).abs() < 0.006;
        return if frame { [240.0; 3] } else { [95.0, 130.0, 165.0] };
    }
    if inside(0.19, 0.44, 0.60, 0.78) {
        let brick = (y * 55.0).fract() < 0.12;
        return if brick {
            [196.0, 168.0, 142.0]
        } else {
            [212.0, 186.0, 158.0]
        };
    }
    if (0.25..0.44).contains(&y) && (x - 0.395).abs() < 0.04 + (y - 0.25) * 1.0 {
        return [150.0, 62.0, 46.0];
    }
    for (cx, cy, r) in [
        (0.09, 0.45, 0.13),
        (0.05, 0.55, 0.10),
        (0.13, 0.56, 0.11),
        (0.72, 0.50, 0.11),
        (0.78, 0.56, 0.09),
    ] {
        if disc(cx, cy, r) {
            let leaf = ((x * 310.0).sin() * (y * 270.0).cos() * 18.0) + (cy - y) * 90.0;
            return [46.0 + leaf, 104.0 + leaf, 40.0 + 0.5 * leaf];
        }
    }
    if inside(0.08, 0.6, 0.105, 0.78) || inside(0.74, 0.6, 0.76, 0.78) {
        return [88.0, 62.0, 42.0];
    }
    if y > 0.70 {
        let blade = (x * 900.0).sin() * 10.0;
        return [86.0 + blade, 142.0 + blade, 58.0];
    }
    if disc(0.90, 0.13, 0.06) {
        return [255.0, 236.0, 150.0];
    }
    for (cx, cy) in [(0.62, 0.14), (0.67, 0.12), (0.72, 0.15), (0.12, 0.20), (0.17, 0.18)] {
        if disc(cx, cy, 0.05) {
            return [240.0, 243.0, 248.0];
        }
    }
    [112.0 + 90.0 * y, 166.0 + 60.0 * y, 226.0 + 18.0 * y]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_whole_and_the_clip_moves() {
        let frames = sample_frames(9).unwrap();
        assert_eq!(frames.len(), 4 + 9);
        for f in &frames {
            assert_eq!(f.frame.bytes.len(), 3 * f.frame.size.pixels(), "{}", f.name);
        }
        assert!(frames[4..].windows(2).all(|w| w[0].frame.bytes != w[1].frame.bytes));
        assert_eq!(
            (frames[3].name.as_str(), frames[12].name.as_str()),
            ("scene", "clip-08")
        );
        assert_eq!(frames[12].frame.sequence, Sequence(12));
        assert_eq!(sample_frames(0).unwrap().len(), 4);
    }
}
