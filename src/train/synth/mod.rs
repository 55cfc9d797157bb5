//! Drawn scenes: unlimited pictures with exact masks, captions and region names, from a seed.
//!
//! One to five shapes (ten kinds, twelve colours, six textures) lie over each other on a plain, shaded, noisy or photo
//! ground. A scene is the same [`Sample`] that photos give, so that every training stage takes either. What
//! it leaves out on purpose: perspective, light and anything that looks like a photo.

mod paint;
mod shape;
pub mod shard;

use rand::{Rng, RngExt as _};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::dataset::augment::{Region, resize};
use super::dataset::{ClassMask, ClassNames, Photo, Sample, SampleInfo, Segments};
use paint::{COLOURS, Paint, Texture, random, smooth};
use shape::Shape;

/// `source` of drawn samples.
pub const SOURCE: &str = "synth";

/// Class names of drawn scenes: unlabelled, background, then every colour of every shape (`red circle`); 122 in all.
#[must_use]
pub fn names() -> ClassNames {
    let shapes = Shape::ALL
        .iter()
        .flat_map(|shape| COLOURS.iter().map(move |(colour, _)| (shape, colour)));
    let named = shapes.map(|(shape, colour)| format!("{colour} {}", shape.name()));
    ClassNames::new(
        ["unlabelled".to_owned(), "background".to_owned()]
            .into_iter()
            .chain(named)
            .collect(),
    )
}

/// Draws the scene of `seed`, `side × side` pixels (at least 16).
///
/// Masks use [`names`]; `info.vocab` lists all of them; `segments` numbers the shapes from 1 and `regions` describes them with
/// their texture. Shapes that are almost hidden stay in the picture as unlabelled pixels.
#[must_use]
pub fn draw(seed: u64, side: usize) -> Sample {
    draw_over(seed, side, &[])
}

/// As [`draw`]; half of the scenes lie on a crop of one of `photos`, if there are any.
#[must_use]
pub fn draw_over(seed: u64, side: usize, photos: &[Photo]) -> Sample {
    let side = side.max(16);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut canvas, ground) = Ground::draw(side, photos, &mut rng);
    let count = [1, 1, 2, 2, 2, 3, 3, 4, 5][rng.random_range(0..9)];
    let things: Vec<Thing> = (0..count).map(|_| Thing::draw(side, ground.colour, &mut rng)).collect();
    let mut owners = vec![0u16; side * side];
    for (number, thing) in (1..).zip(&things) {
        thing.paint(&mut canvas, &mut owners, number, side);
    }
    finish(seed, side, &canvas, &owners, &things, &ground)
}

/// What the shapes lie on.
struct Ground {
    /// Named colour, which shapes avoid; none on photos.
    colour: Option<usize>,
    words: String,
}

impl Ground {
    fn draw(side: usize, photos: &[Photo], rng: &mut impl Rng) -> (Vec<f32>, Self) {
        if !photos.is_empty() && rng.random_bool(0.5) {
            let photo = &photos[rng.random_range(0..photos.len())];
            let short = photo.width.min(photo.height) as f32;
            let length = (short * rng.random_range(0.5..1.0)).max(1.0);
            let mut start = |size: usize| (size as f32 - length).max(0.0) * rng.random::<f32>();
            let (x, y) = (start(photo.width), start(photo.height));
            let region = Region {
                x,
                y,
                width: length,
                height: length,
                flip: rng.random_bool(0.5),
            };
            return (
                resize(photo, region, (side, side)),
                Self {
                    colour: None,
                    words: "in front of a photo".into(),
                },
            );
        }
        let colour = rng.random_range(0..COLOURS.len());
        let name = COLOURS[colour].0;
        let base: [f32; 3] = COLOURS[colour].1.map(|value| value + rng.random_range(-12.0..12.0));
        let (dx, dy, salt) = (rng.random_range(-0.3..0.3), rng.random_range(-0.3..0.3), rng.random());
        let period = side as f32 * rng.random_range(0.04..0.3);
        let (slope, bumps, words) = match rng.random_range(0..3) {
            0 => (0.0, 0.0, format!("on {} background", with_article(name))),
            1 => (1.0, 0.0, format!("on a shaded {name} background")),
            _ => (0.3, 110.0, format!("on a noisy {name} background")),
        };
        let mut canvas = Vec::with_capacity(side * side * 3);
        for y in 0..side {
            for x in 0..side {
                let (u, v) = (x as f32 / side as f32 - 0.5, y as f32 / side as f32 - 0.5);
                let light = 1.0 + slope * (dx * u + dy * v) * 2.0;
                let bump = if bumps > 0.0 {
                    bumps * (smooth(x as f32, y as f32, period, salt) - 0.5)
                } else {
                    0.0
                };
                canvas.extend(base.map(|value| value * light + bump));
            }
        }
        (
            canvas,
            Self {
                colour: Some(colour),
                words,
            },
        )
    }
}

/// One shape in place.
struct Thing {
    shape: Shape,
    paint: Paint,
    /// Centre and size in pixels.
    x: f32,
    y: f32,
    radius: f32,
    /// Rotation in radians.
    turn: f32,
}

impl Thing {
    fn draw(side: usize, avoid: Option<usize>, rng: &mut impl Rng) -> Self {
        let shape = Shape::ALL[rng.random_range(0..Shape::ALL.len())];
        let mut colour = rng.random_range(0..COLOURS.len());
        if Some(colour) == avoid {
            colour = (colour + rng.random_range(1..COLOURS.len())) % COLOURS.len();
        }
        let texture = match rng.random_bool(0.4) {
            true => Texture::Plain,
            false => Texture::ALL[rng.random_range(1..Texture::ALL.len())],
        };
        let radius = side as f32 * rng.random_range(0.09..0.32);
        let mut centre = || side as f32 * rng.random_range(0.08..0.92);
        let (x, y) = (centre(), centre());
        let turn = rng.random_range(-1.0..1.0) * shape.largest_turn();
        Self {
            shape,
            paint: Paint::draw(colour, texture, radius, rng),
            x,
            y,
            radius,
            turn,
        }
    }

    /// Index in [`names`].
    fn class(&self) -> u8 {
        let shape = Shape::ALL
            .iter()
            .position(|&shape| shape == self.shape)
            .expect("all shapes are listed");
        u8::try_from(2 + shape * COLOURS.len() + self.paint.colour).expect("122 names fit 8 bits")
    }

    fn name(&self) -> String {
        format!("{} {}", COLOURS[self.paint.colour].0, self.shape.name())
    }

    /// Name with texture: `striped blue square`.
    fn full_name(&self) -> String {
        self.paint
            .texture
            .word()
            .map_or_else(|| self.name(), |word| format!("{word} {}", self.name()))
    }

    /// Covers canvas and owners; a pixel belongs to the shape if its centre does.
    fn paint(&self, canvas: &mut [f32], owners: &mut [u16], number: u16, side: usize) {
        let (sin, cos) = self.turn.sin_cos();
        let range = |centre: f32| {
            let (low, high) = (centre - self.radius - 1.5, centre + self.radius + 1.5);
            (low.max(0.0) as usize).min(side)..(high.max(0.0) as usize + 1).min(side)
        };
        for row in range(self.y) {
            for column in range(self.x) {
                let (dx, dy) = (column as f32 + 0.5 - self.x, row as f32 + 0.5 - self.y);
                let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let distance = self.shape.distance(u, v, self.radius);
                let cover = (0.5 - distance).clamp(0.0, 1.0);
                if cover <= 0.0 {
                    continue;
                }
                let at = row * side + column;
                let colour = self.paint.at(u, v);
                for (value, new) in canvas[at * 3..at * 3 + 3].iter_mut().zip(colour) {
                    *value += (new - *value) * cover;
                }
                if distance <= 0.0 {
                    owners[at] = number;
                }
            }
        }
    }
}

/// Counts what is visible, adds sensor noise, writes masks and words.
fn finish(seed: u64, side: usize, canvas: &[f32], owners: &[u16], things: &[Thing], ground: &Ground) -> Sample {
    let mut visible = vec![0usize; things.len() + 1];
    for &owner in owners {
        visible[usize::from(owner)] += 1;
    }
    let least = (side * side / 800).max(12);
    // new segment number of each thing, 0 if too little of it shows
    let mut numbers = vec![0u16; things.len() + 1];
    let mut shown: Vec<&Thing> = Vec::new();
    for (index, thing) in things.iter().enumerate() {
        if visible[index + 1] >= least {
            shown.push(thing);
            numbers[index + 1] = u16::try_from(shown.len()).expect("a scene has few shapes");
        }
    }
    let class_of = |owner: u16| match (owner, numbers[usize::from(owner)]) {
        (0, _) => ClassNames::BACKGROUND,
        (_, 0) => ClassNames::UNLABELLED,
        (_, _) => things[usize::from(owner) - 1].class(),
    };
    let salt = seed as u32;
    let rgb = canvas.iter().enumerate().map(|(i, value)| {
        let noise = (random(i as i32, 0, salt) - 0.5) * 10.0;
        (value + noise).round().clamp(0.0, 255.0) as u8
    });
    let mut classes: Vec<String> = shown.iter().map(|thing| thing.name()).collect();
    classes.sort_unstable();
    classes.dedup();
    Sample {
        key: format!("synth_{seed:016x}"),
        photo: Photo {
            width: side,
            height: side,
            rgb: rgb.collect(),
        },
        mask: Some(ClassMask {
            width: side,
            height: side,
            classes: owners.iter().map(|&o| class_of(o)).collect(),
        }),
        segments: Some(Segments {
            width: side,
            height: side,
            ids: owners.iter().map(|&owner| numbers[usize::from(owner)]).collect(),
        }),
        info: SampleInfo {
            source: SOURCE.into(),
            licence: "drawn by the program".into(),
            labels: classes.clone(),
            classes,
            vocab: names().iter().skip(2).map(str::to_owned).collect(),
            captions: captions(&shown, ground),
            caption: None,
            class: None,
        },
        regions: shown.iter().map(|thing| thing.full_name()).collect(),
    }
}

/// Up to three sentences: everything with the ground, names alone, and where two things lie to each other.
fn captions(shown: &[&Thing], ground: &Ground) -> Vec<String> {
    let list = |names: Vec<String>| match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    };
    let full = list(shown.iter().map(|thing| with_article(&thing.full_name())).collect());
    let mut captions = vec![format!("{full} {}", ground.words)];
    if !shown.is_empty() {
        captions.push(list(shown.iter().map(|thing| with_article(&thing.name())).collect()));
    }
    if let [a, b, ..] = shown {
        let (dx, dy) = (b.x - a.x, b.y - a.y);
        let relation = match (dx.abs() > dy.abs(), dx > 0.0, dy > 0.0) {
            (true, true, _) => "to the left of",
            (true, false, _) => "to the right of",
            (false, _, true) => "above",
            (false, _, false) => "below",
        };
        captions.push(format!(
            "{} {relation} {}",
            with_article(&a.name()),
            with_article(&b.name())
        ));
    }
    captions
}

fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_repeats_with_its_seed() {
        assert_eq!(draw(7, 65), draw(7, 65));
        assert_ne!(draw(7, 65).photo, draw(8, 65).photo);
    }

    #[test]
    fn masks_segments_and_words_agree() {
        let names = names();
        assert_eq!(names.len(), 122);
        for seed in 0..300 {
            let sample = draw(seed, 97);
            let (mask, segments) = (sample.mask.unwrap(), sample.segments.unwrap());
            assert_eq!(
                (mask.classes.len(), segments.ids.len(), sample.photo.rgb.len()),
                (9409, 9409, 3 * 9409)
            );
            let mut found = std::collections::BTreeSet::new();
            for (&class, &id) in mask.classes.iter().zip(&segments.ids) {
                let name = names.name(class).unwrap();
                match id {
                    0 => assert!(class <= ClassNames::BACKGROUND),
                    id => {
                        assert!(sample.regions[usize::from(id) - 1].ends_with(name));
                        found.insert(name.to_owned());
                    }
                }
            }
            assert!(found.iter().eq(sample.info.classes.iter()), "seed {seed}");
            for name in &sample.info.classes {
                assert!(sample.info.captions[0].contains(name.as_str()));
            }
        }
    }

    #[test]
    fn the_named_colour_is_the_colour_of_the_mask() {
        let (mut near, mut total) = (0, 0);
        for seed in 0..100 {
            let sample = draw(seed, 64);
            for (class, rgb) in sample
                .mask
                .unwrap()
                .classes
                .iter()
                .zip(sample.photo.rgb.chunks_exact(3))
            {
                if *class >= 2 {
                    let colour = COLOURS[(usize::from(*class) - 2) % COLOURS.len()].1;
                    let apart: f32 = (0..3).map(|c| (colour[c] - f32::from(rgb[c])).abs()).sum();
                    near += usize::from(apart < 90.0);
                    total += 1;
                }
            }
        }
        assert!(near * 10 > total * 6, "{near} of {total} pixels look like their name");
    }

    #[test]
    fn captions_read_as_sentences() {
        assert_eq!(with_article("orange ring"), "an orange ring");
        let captions: Vec<String> = (0..200).flat_map(|seed| draw(seed, 32).info.captions).collect();
        assert!(
            captions
                .iter()
                .any(|caption| caption.contains(", ") && caption.contains(" and "))
        );
        assert!(captions.iter().any(|caption| caption.contains(" to the left of ")));
        assert!(
            captions
                .iter()
                .all(|caption| !caption.contains("a orange") && !caption.contains("  "))
        );
    }

    #[test]
    fn photos_lie_under_some_scenes() {
        let photo = Photo {
            width: 31,
            height: 50,
            rgb: [10, 200, 10].repeat(31 * 50),
        };
        let on_photo = (0..40).map(|seed| draw_over(seed, 33, std::slice::from_ref(&photo)));
        let count = on_photo
            .filter(|sample| sample.info.captions[0].ends_with("in front of a photo"))
            .count();
        assert!((10..30).contains(&count), "{count}");
        let tiny = Photo {
            width: 1,
            height: 1,
            rgb: vec![0; 3],
        };
        assert_eq!(draw_over(1, 0, &[tiny]).photo.width, 16);
    }
}
