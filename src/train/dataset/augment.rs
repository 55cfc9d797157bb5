//! From a photo of any size to a network input: crop, flip, resize, colours, normalise, for photo and masks together.
//!
//! The photo is resized with the antialiased triangle filter ("bilinear" of Pillow and torchvision), in f32 and without
//! Pillow's 8-bit rounding between the passes; masks take the nearest pixel. A random crop follows torchvision's
//! `RandomResizedCrop`.

use rand::{Rng, RngExt as _};

use super::{ClassMask, Photo, Sample, Segments};

/// Mean and standard deviation per channel, in 0-255 RGB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Subtracted first.
    pub mean: [f32; 3],
    /// Divided by then; not zero.
    pub std: [f32; 3],
}

/// How a region becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Both sides to S; the aspect changes.
    Stretch,
    /// Longest side to S, the rest padded right and bottom with 0 after normalising.
    Letterbox,
}

/// A part of a photo in pixels, possibly mirrored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width, above 0.
    pub width: f32,
    /// Height, above 0.
    pub height: f32,
    /// Whether left and right are swapped.
    pub flip: bool,
}

impl Region {
    /// All of a photo.
    #[must_use]
    pub fn whole(photo: &Photo) -> Self {
        Self {
            x: 0.0,
            y: 0.0,
            width: photo.width as f32,
            height: photo.height as f32,
            flip: false,
        }
    }
}

/// Factors on colours; 1 leaves them alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colours {
    /// Factor on all channels.
    pub brightness: f32,
    /// Factor on the distance from the mean grey of the view.
    pub contrast: f32,
    /// Factor on the distance from the pixel's own grey.
    pub saturation: f32,
}

impl Colours {
    /// No change.
    pub const SAME: Self = Self {
        brightness: 1.0,
        contrast: 1.0,
        saturation: 1.0,
    };
}

/// Ranges to draw a view from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Share of the photo's area that the crop covers, low and high, above 0 and at most 1.
    pub scale: (f32, f32),
    /// Width over height of the crop, low and high; drawn evenly on a logarithmic axis.
    pub aspect: (f32, f32),
    /// Probability of swapping left and right, 0-1.
    pub flip: f64,
    /// Largest change of brightness, contrast and saturation, 0 to below 1; 0.4 draws factors from 0.6 to 1.4.
    pub jitter: f32,
    /// How the crop becomes a square.
    pub fit: Fit,
}

impl Default for Augmentation {
    /// Crops of 40-100 % with aspect 3/4 to 4/3, half of them mirrored, mild colour changes, stretched.
    fn default() -> Self {
        Self {
            scale: (0.4, 1.0),
            aspect: (3.0 / 4.0, 4.0 / 3.0),
            flip: 0.5,
            jitter: 0.3,
            fit: Fit::Stretch,
        }
    }
}

/// A network input with its masks.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Side S in pixels.
    pub side: usize,
    /// Width and height of the picture inside the square; the rest is padding.
    pub content: (usize, usize),
    /// `[3, S, S]`, normalised, padding 0.
    pub pixels: Vec<f32>,
    /// `[S, S]` class indices, padding 0 = unlabelled.
    pub classes: Option<Vec<u8>>,
    /// `[S, S]` segment ids, padding 0 = none.
    pub segments: Option<Vec<u16>>,
    /// The part of the photo that the view shows.
    pub region: Region,
}

/// Draws a random view of a sample.
pub fn augment(
    sample: &Sample,
    side: usize,
    ranges: &Augmentation,
    normalisation: &Normalisation,
    rng: &mut impl Rng,
) -> View {
    let region = draw_region(&sample.photo, ranges, rng);
    augment_region(sample, region, side, ranges, normalisation, rng)
}

/// As [`augment`], of a region that is chosen already: only the colours are drawn.
pub fn augment_region(
    sample: &Sample,
    region: Region,
    side: usize,
    ranges: &Augmentation,
    normalisation: &Normalisation,
    rng: &mut impl Rng,
) -> View {
    let mut factor = || {
        if ranges.jitter > 0.0 {
            1.0 + rng.random_range(-ranges.jitter..=ranges.jitter)
        } else {
            1.0
        }
    };
    let colours = Colours {
        brightness: factor(),
        contrast: factor(),
        saturation: factor(),
    };
    view(sample, region, side, ranges.fit, colours, normalisation)
}

/// The whole photo, unchanged; what evaluation uses.
#[must_use]
pub fn plain(sample: &Sample, side: usize, fit: Fit, normalisation: &Normalisation) -> View {
    view(
        sample,
        Region::whole(&sample.photo),
        side,
        fit,
        Colours::SAME,
        normalisation,
    )
}

/// One region of a sample as a network input. A region that reaches outside the photo repeats its edge.
#[must_use]
pub fn view(
    sample: &Sample,
    region: Region,
    side: usize,
    fit: Fit,
    colours: Colours,
    normalisation: &Normalisation,
) -> View {
    let content = match fit {
        Fit::Stretch => (side, side),
        Fit::Letterbox => {
            let scale = side as f32 / region.width.max(region.height);
            let fitted = |length: f32| ((length * scale + 0.5) as usize).clamp(1, side.max(1));
            (fitted(region.width), fitted(region.height))
        }
    };
    let mut rgb = resize(&sample.photo, region, content);
    recolour(&mut rgb, colours);
    let mut pixels = vec![0.0; 3 * side * side];
    for (channel, plane) in pixels.chunks_exact_mut((side * side).max(1)).enumerate() {
        let (mean, factor) = (normalisation.mean[channel], 1.0 / normalisation.std[channel]);
        for (row, source) in plane.chunks_exact_mut(side).zip(rgb.chunks_exact(content.0 * 3)) {
            for (pixel, source) in row.iter_mut().zip(source.chunks_exact(3)) {
                *pixel = (source[channel] - mean) * factor;
            }
        }
    }
    let classes = sample
        .mask
        .as_ref()
        .map(|ClassMask { width, height, classes }| nearest(classes, (*width, *height), region, side, content));
    let segments = sample
        .segments
        .as_ref()
        .map(|Segments { width, height, ids }| nearest(ids, (*width, *height), region, side, content));
    View {
        side,
        content,
        pixels,
        classes,
        segments,
        region,
    }
}

/// A crop with the wanted area and aspect; after ten crops that do not fit, the whole photo.
fn draw_region(photo: &Photo, ranges: &Augmentation, rng: &mut impl Rng) -> Region {
    let (width, height) = (photo.width as f32, photo.height as f32);
    let flip = rng.random_bool(ranges.flip.clamp(0.0, 1.0));
    let mut between = |low: f32, high: f32| if high > low { rng.random_range(low..high) } else { low };
    for _ in 0..10 {
        let area = width * height * between(ranges.scale.0, ranges.scale.1);
        let aspect = between(ranges.aspect.0.ln(), ranges.aspect.1.ln()).exp();
        let (w, h) = ((area * aspect).sqrt(), (area / aspect).sqrt());
        if w >= 1.0 && h >= 1.0 && w <= width && h <= height {
            let (x, y) = (between(0.0, width - w), between(0.0, height - h));
            return Region {
                x,
                y,
                width: w,
                height: h,
                flip,
            };
        }
    }
    Region {
        flip,
        ..Region::whole(photo)
    }
}

/// The smallest box around `pixels`, row-major indices into a `width` wide picture: corners `[x, y]`, the second one
/// exclusive. No pixels give a box that holds nothing.
pub(in crate::train) fn bounds(pixels: impl IntoIterator<Item = usize>, width: usize) -> ([usize; 2], [usize; 2]) {
    let (mut low, mut high) = ([usize::MAX; 2], [0; 2]);
    for pixel in pixels {
        for (axis, value) in [pixel % width, pixel / width].into_iter().enumerate() {
            low[axis] = low[axis].min(value);
            high[axis] = high[axis].max(value + 1);
        }
    }
    (low, high)
}

/// Least side of a crop around a thing, in pixels of the photo: below, the photo holds no more detail.
const LEAST_SIDE: f32 = 28.8;

/// A crop around one labelled thing, 0.35 to 1.5 times its size, off its centre by up to a quarter, at most 5:3;
/// `None` without labels. The thing is drawn evenly from the classes of the mask, else from the segments.
pub fn around_a_thing(sample: &Sample, flip: f64, rng: &mut impl Rng) -> Option<Region> {
    let (width, ids): (usize, Vec<u16>) = match (&sample.mask, &sample.segments) {
        (Some(mask), _) => {
            let things = |&class: &u8| u16::from(class).saturating_sub(u16::from(super::ClassNames::BACKGROUND));
            (mask.width, mask.classes.iter().map(things).collect())
        }
        (None, Some(segments)) => (segments.width, segments.ids.clone()),
        (None, None) => return None,
    };
    let mut present: Vec<u16> = ids.iter().copied().filter(|&id| id > 0).collect();
    present.sort_unstable();
    present.dedup();
    if present.is_empty() {
        return None;
    }
    let id = present[rng.random_range(0..present.len())];
    let (low, high) = bounds((0..ids.len()).filter(|&i| ids[i] == id), width);
    let [low, high] = [low, high].map(|corner| corner.map(|v| v as f32));
    let zoom = rng.random_range(0.35_f32.ln()..1.5_f32.ln()).exp();
    let thing = [high[0] - low[0], high[1] - low[1]];
    let least = (0.6 * thing[0].max(thing[1]) * zoom).max(LEAST_SIDE);
    let photo = [sample.photo.width as f32, sample.photo.height as f32];
    let mut place = |axis: usize| {
        let length = (thing[axis] * zoom).max(least).min(photo[axis]);
        let centre = 0.5 * (low[axis] + high[axis]) + thing[axis] * rng.random_range(-0.25..0.25);
        ((centre - 0.5 * length).clamp(0.0, photo[axis] - length), length)
    };
    let ((x, width), (y, height)) = (place(0), place(1));
    Some(Region {
        x,
        y,
        width,
        height,
        flip: rng.random_bool(flip),
    })
}

/// Where one output pixel reads: first source pixel and the weights from there, summing to 1.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Triangle filter taps for `out` pixels over `start..start + length` of `available` source pixels.
fn taps(start: f32, length: f32, available: usize, out: usize, flip: bool) -> Vec<Taps> {
    let scale = length / out as f32;
    let support = scale.max(1.0);
    let tap = |i: usize| {
        let centre = start + (i as f32 + 0.5) * scale;
        let first = ((centre - support + 0.5).max(0.0) as usize).min(available - 1);
        let end = ((centre + support + 0.5).max(0.0) as usize).clamp(first + 1, available);
        let mut weights: Vec<f32> = (first..end)
            .map(|x| (1.0 - ((x as f32 + 0.5 - centre) / support).abs()).max(0.0))
            .collect();
        let sum: f32 = weights.iter().sum();
        if sum > 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        } else {
            // the centre lies outside the picture: its edge
            weights = vec![1.0];
        }
        Taps { first, weights }
    };
    if flip {
        (0..out).rev().map(tap).collect()
    } else {
        (0..out).map(tap).collect()
    }
}

/// Resizes a region to `[height, width, 3]`, 0-255.
pub(in crate::train) fn resize(photo: &Photo, region: Region, (width, height): (usize, usize)) -> Vec<f32> {
    if photo.width == 0 || photo.height == 0 {
        return vec![0.0; width * height * 3];
    }
    let columns = taps(region.x, region.width, photo.width, width, region.flip);
    let rows = taps(region.y, region.height, photo.height, height, false);
    let top = rows.iter().map(|tap| tap.first).min().unwrap_or(0);
    let bottom = rows.iter().map(|tap| tap.first + tap.weights.len()).max().unwrap_or(0);
    let mut narrow = vec![0.0f32; (bottom - top) * width * 3];
    let sources = photo.rgb.chunks_exact(photo.width * 3).skip(top);
    for (row, source) in narrow.chunks_exact_mut(width * 3).zip(sources) {
        for (pixel, tap) in row.chunks_exact_mut(3).zip(&columns) {
            let mut sum = [0.0f32; 3];
            let read = &source[tap.first * 3..(tap.first + tap.weights.len()) * 3];
            for (rgb, weight) in read.chunks_exact(3).zip(&tap.weights) {
                for channel in 0..3 {
                    sum[channel] += f32::from(rgb[channel]) * weight;
                }
            }
            pixel.copy_from_slice(&sum);
        }
    }
    let mut out = vec![0.0f32; width * height * 3];
    for (row, tap) in out.chunks_exact_mut(width * 3).zip(&rows) {
        for (offset, weight) in tap.weights.iter().enumerate() {
            let at = (tap.first + offset - top) * width * 3;
            for (sum, value) in row.iter_mut().zip(&narrow[at..at + width * 3]) {
                *sum += value * weight;
            }
        }
    }
    out
}

/// Applies colour factors to `[.., 3]` pixels in 0-255.
fn recolour(rgb: &mut [f32], colours: Colours) {
    if colours == Colours::SAME || rgb.is_empty() {
        return;
    }
    let grey = |pixel: &[f32]| 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
    let mean = rgb.chunks_exact(3).map(grey).sum::<f32>() / (rgb.len() / 3) as f32;
    for pixel in rgb.chunks_exact_mut(3) {
        let own = grey(pixel);
        for value in pixel {
            let saturated = own + colours.saturation * (*value - own);
            let contrasted = mean + colours.contrast * (saturated - mean);
            *value = (colours.brightness * contrasted).clamp(0.0, 255.0);
        }
    }
}

/// The nearest pixels of a region, in the top-left `content` of an `S × S` square.
fn nearest<T: Copy + Default>(
    source: &[T],
    (width, height): (usize, usize),
    region: Region,
    side: usize,
    content: (usize, usize),
) -> Vec<T> {
    let mut out = vec![T::default(); side * side];
    if width == 0 || height == 0 {
        return out;
    }
    let place = |i: usize, start: f32, length: f32, count: usize, available: usize| {
        ((start + (i as f32 + 0.5) * length / count as f32).max(0.0) as usize).min(available - 1)
    };
    let mut columns: Vec<usize> = (0..content.0)
        .map(|i| place(i, region.x, region.width, content.0, width))
        .collect();
    if region.flip {
        columns.reverse();
    }
    for (i, row) in out.chunks_exact_mut(side).take(content.1).enumerate() {
        let y = place(i, region.y, region.height, content.1, height);
        for (pixel, &x) in row.iter_mut().zip(&columns) {
            *pixel = source[y * width + x];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng as _;

    use super::super::SampleInfo;
    use super::*;

    const RAW: Normalisation = Normalisation {
        mean: [0.0; 3],
        std: [1.0; 3],
    };

    /// Left half red and class 2, right half blue and class 3.
    fn halves(width: usize, height: usize) -> Sample {
        let left = |i: usize| i % width < width / 2;
        let rgb = (0..width * height)
            .flat_map(|i| if left(i) { [200, 0, 0] } else { [0, 0, 100] })
            .collect();
        let classes: Vec<u8> = (0..width * height).map(|i| if left(i) { 2 } else { 3 }).collect();
        let ids = classes.iter().map(|&class| u16::from(class) * 100).collect();
        Sample {
            key: "halves".into(),
            photo: Photo { width, height, rgb },
            mask: Some(ClassMask { width, height, classes }),
            segments: Some(Segments { width, height, ids }),
            info: SampleInfo::default(),
            regions: Vec::new(),
        }
    }

    #[test]
    fn a_plain_view_of_the_same_size_returns_the_pixels() {
        let sample = halves(6, 6);
        let view = plain(&sample, 6, Fit::Stretch, &RAW);
        let expected: Vec<f32> = (0..3)
            .flat_map(|c| sample.photo.rgb.chunks_exact(3).map(move |rgb| f32::from(rgb[c])))
            .collect();
        assert_eq!(view.pixels, expected);
        assert_eq!(view.classes, sample.mask.map(|mask| mask.classes));
    }

    #[test]
    fn the_resize_agrees_with_pillow_bilinear() {
        // Pillow: Image.fromarray([[0, 10, 40, 90, 160, 250, 30]], 'F').resize((3, 1), BILINEAR)
        let rgb = [0u8, 10, 40, 90, 160, 250, 30].iter().flat_map(|&v| [v; 3]).collect();
        let photo = Photo {
            width: 7,
            height: 1,
            rgb,
        };
        let out = resize(&photo, Region::whole(&photo), (3, 1));
        for (pixel, expected) in out.chunks_exact(3).zip([12.8571, 99.4118, 152.1429]) {
            assert!((pixel[0] - expected).abs() < 1e-3, "{pixel:?} {expected}");
        }
    }

    #[test]
    fn a_letterbox_pads_right_and_bottom_with_zero_after_normalising() {
        let norm = Normalisation {
            mean: [200.0, 0.0, 0.0],
            std: [10.0, 1.0, 1.0],
        };
        let view = plain(&halves(12, 5), 9, Fit::Letterbox, &norm);
        assert_eq!(view.content, (9, 4)); // 5 · 9/12 = 3.75
        let plane = &view.pixels[..81];
        assert!(plane[0].abs() < 1e-4 && (plane[8] + 20.0).abs() < 1e-4);
        assert!(plane[36..].iter().all(|&value| value == 0.0));
        assert!(view.classes.unwrap()[36..].iter().all(|&class| class == 0));
        let tall = plain(&halves(5, 12), 9, Fit::Letterbox, &norm);
        assert_eq!(tall.content, (4, 9));
        assert!((0..9).all(|y| tall.pixels[y * 9 + 4..y * 9 + 9].iter().all(|&value| value == 0.0)));
    }

    #[test]
    fn a_crop_around_a_thing_shows_it_and_stays_inside() {
        let mut sample = halves(200, 100);
        let classes = &mut sample.mask.as_mut().unwrap().classes;
        classes.fill(1);
        for y in 30..60 {
            classes[y * 200 + 120..y * 200 + 150].fill(5);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut smallest = f32::MAX;
        for _ in 0..200 {
            let region = around_a_thing(&sample, 0.5, &mut rng).unwrap();
            assert!(region.x >= 0.0 && region.x + region.width <= 200.01, "{region:?}");
            assert!(region.y >= 0.0 && region.y + region.height <= 100.01, "{region:?}");
            let view = view(&sample, region, 32, Fit::Stretch, Colours::SAME, &RAW);
            assert!(view.classes.unwrap().contains(&5), "{region:?} misses the thing");
            smallest = smallest.min(region.width.max(region.height));
        }
        assert!((28.7..29.5).contains(&smallest), "closest crop {smallest}");
        sample.mask.as_mut().unwrap().classes.fill(1);
        assert_eq!(around_a_thing(&sample, 0.5, &mut rng), None);
    }

    #[test]
    fn photo_and_masks_move_together() {
        let sample = halves(37, 23);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let ranges = Augmentation {
            jitter: 0.0,
            ..Augmentation::default()
        };
        let mut mirrored = 0;
        for _ in 0..50 {
            let view = augment(&sample, 33, &ranges, &RAW, &mut rng);
            let (classes, segments) = (view.classes.unwrap(), view.segments.unwrap());
            mirrored += usize::from(view.region.flip);
            let mut disagree = 0;
            for i in 0..33 * 33 {
                let red = view.pixels[i] > 100.0;
                disagree += usize::from(red != (classes[i] == 2));
                assert_eq!(segments[i], u16::from(classes[i]) * 100);
            }
            assert!(disagree <= 33, "more than the one column at the border: {disagree}");
        }
        assert!((10..40).contains(&mirrored));
    }

    #[test]
    fn a_view_repeats_with_its_seed() {
        let sample = halves(20, 31);
        let draw = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            augment(
                &sample,
                16,
                &Augmentation {
                    fit: Fit::Letterbox,
                    ..Augmentation::default()
                },
                &RAW,
                &mut rng,
            )
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5).region, draw(6).region);
    }

    #[test]
    fn crops_keep_within_the_photo_and_their_ranges() {
        let sample = halves(101, 67);
        let ranges = Augmentation {
            scale: (0.2, 0.5),
            ..Augmentation::default()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..200 {
            let region = draw_region(&sample.photo, &ranges, &mut rng);
            assert!(region.x >= 0.0 && region.x + region.width <= 101.01);
            assert!(region.y >= 0.0 && region.y + region.height <= 67.01);
            let share = region.width * region.height / (101.0 * 67.0);
            assert!((0.199..0.501).contains(&share), "{share}");
        }
    }

    #[test]
    fn colours_follow_their_factors() {
        let mut rgb = [100.0, 50.0, 0.0, 20.0, 20.0, 20.0];
        recolour(
            &mut rgb,
            Colours {
                brightness: 2.0,
                ..Colours::SAME
            },
        );
        assert_eq!(rgb, [200.0, 100.0, 0.0, 40.0, 40.0, 40.0]);
        recolour(
            &mut rgb,
            Colours {
                saturation: 0.0,
                ..Colours::SAME
            },
        );
        assert!((rgb[0] - rgb[2]).abs() < 1e-4 && (rgb[0] - 118.5).abs() < 1e-3);
        recolour(
            &mut rgb,
            Colours {
                contrast: 0.0,
                ..Colours::SAME
            },
        );
        assert!((rgb[0] - 79.25).abs() < 1e-3 && (rgb[5] - 79.25).abs() < 1e-3);
    }

    #[test]
    fn one_pixel_photos_and_regions_outside_do_not_fail() {
        let view = plain(&halves(1, 1), 7, Fit::Letterbox, &RAW);
        assert_eq!(view.content, (7, 7));
        let far = Region {
            x: 900.0,
            y: -50.0,
            width: 10.0,
            height: 0.5,
            flip: true,
        };
        let view = super::view(&halves(9, 9), far, 5, Fit::Stretch, Colours::SAME, &RAW);
        assert!(view.pixels.iter().all(|value| value.is_finite()));
    }
}
