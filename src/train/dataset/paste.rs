//! A thing cut from one photo and pasted into another picture.
//!
//! "Simple copy-paste" (Ghiasi et al., arXiv 2012.07177): the thing appears on grounds it was never photographed on and
//! in sizes the collections lack, a portrait's for example, so that a name is learnt from the thing and not from what
//! usually surrounds it.

use rand::{Rng, RngExt as _};

use super::augment::{Region, bounds, resize};
use super::names::{THINGS, canonical, whole_person};
use super::{ClassMask, ClassNames, Photo, Sample};

/// Least share of its photo that a thing covers to be cut out: smaller ones are blurred when they grow.
const LEAST_SHARE: f32 = 0.03;

/// A thing with its outline, in the box around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Canonical name.
    name: String,
    /// Class index in the dataset's table.
    class: u8,
    /// The box's pixels.
    photo: Photo,
    /// 255 on the thing, in all three channels.
    outline: Photo,
}

/// Cuts one thing out of `sample`, at random among those that are large enough; `None` if it has none. All labelled pixels
/// of a fashion photo are one person.
pub fn cut(sample: &Sample, names: &ClassNames, rng: &mut impl Rng) -> Option<Figure> {
    let mask = whole_person(sample, names).or_else(|| sample.mask.clone())?;
    let mut counts = [0_u32; 256];
    mask.classes.iter().for_each(|&class| counts[usize::from(class)] += 1);
    let least = LEAST_SHARE * mask.classes.len() as f32;
    let large: Vec<(u8, &str)> = (0..=u8::MAX)
        .filter(|&class| counts[usize::from(class)] as f32 >= least)
        .filter_map(|class| Some((class, canonical(names.name(class)?)?)))
        .filter(|(_, name)| THINGS.contains(name))
        .collect();
    if large.is_empty() {
        return None;
    }
    let (class, name) = large[rng.random_range(0..large.len())];
    let own = (0..mask.classes.len()).filter(|&i| mask.classes[i] == class);
    let (low, high) = bounds(own, mask.width);
    let (width, height) = (high[0] - low[0], high[1] - low[1]);
    let (mut rgb, mut outline) = (Vec::new(), Vec::new());
    for y in low[1]..high[1] {
        let row = y * mask.width;
        rgb.extend_from_slice(&sample.photo.rgb[3 * (row + low[0])..3 * (row + high[0])]);
        outline.extend((low[0]..high[0]).flat_map(|x| [if mask.classes[row + x] == class { 255 } else { 0 }; 3]));
    }
    let picture = |rgb| Photo { width, height, rgb };
    Some(Figure {
        name: name.to_owned(),
        class,
        photo: picture(rgb),
        outline: picture(outline),
    })
}

/// Pastes `figure` into a copy of `onto`, 0.3 to 1.4 times as high as the picture, half of the time standing on its lower
/// edge, possibly mirrored and partly outside. Masks follow: segments and regions of a drawn scene, the class mask of a photo,
/// which is made where there is none. Captions and labels stay, with the figure's name as a further label, unless it hides more than a
/// quarter of the picture, and with it what they speak of; then its name is the only label.
#[must_use]
pub fn paste(figure: &Figure, onto: &Sample, rng: &mut impl Rng) -> Sample {
    let mut sample = onto.clone();
    let (width, height) = (onto.photo.width, onto.photo.height);
    let drawn = !onto.regions.is_empty();
    if !drawn && onto.mask.is_none() {
        let classes = vec![ClassNames::UNLABELLED; width * height];
        sample.mask = Some(ClassMask { width, height, classes });
    }
    let region = Region {
        flip: rng.random_bool(0.5),
        ..Region::whole(&figure.photo)
    };
    let tall = rng.random_range(0.3..1.4) * height as f32;
    let scale = tall / region.height;
    let size = [region.width, region.height].map(|length| ((length * scale) as usize).clamp(1, 4 * width.max(height)));
    let (pixels, outline) = (
        resize(&figure.photo, region, (size[0], size[1])),
        resize(&figure.outline, region, (size[0], size[1])),
    );
    let centre = rng.random_range(0.1..0.9) * width as f32;
    let left = (centre - size[0] as f32 / 2.0) as i64;
    let reach = height as i64 - size[1] as i64;
    let top = if rng.random_bool(0.5) || reach == 0 {
        reach.max(height as i64 / 20)
    } else {
        rng.random_range(reach.min(0)..=reach.max(0))
    };
    let named = u16::try_from(sample.regions.len() + 1).unwrap_or(u16::MAX);
    let mut hidden = 0;
    for row in 0..size[1] {
        for column in 0..size[0] {
            let (x, y) = (left + column as i64, top + row as i64);
            let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
                continue;
            };
            let from = 3 * (row * size[0] + column);
            let cover = outline[from] / 255.0;
            if x >= width || y >= height || cover <= 0.0 {
                continue;
            }
            let at = y * width + x;
            for channel in 0..3 {
                let value = &mut sample.photo.rgb[3 * at + channel];
                let mixed = cover * pixels[from + channel] + (1.0 - cover) * f32::from(*value);
                *value = mixed.clamp(0.0, 255.0) as u8;
            }
            if cover > 0.5 {
                hidden += 1;
                if let (false, Some(mask)) = (drawn, &mut sample.mask) {
                    mask.classes[at] = figure.class;
                }
                if let Some(segments) = &mut sample.segments {
                    segments.ids[at] = if drawn { named } else { u16::MAX };
                }
            }
        }
    }
    if drawn {
        sample.regions.push(figure.name.clone());
    }
    let info = &mut sample.info;
    if 4 * hidden > width * height {
        info.captions.clear();
        info.caption = None;
        info.labels = vec![figure.name.clone()];
    } else if !info.labels.is_empty() {
        info.labels.push(figure.name.clone());
    }
    info.classes.push(figure.name.clone());
    sample
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng as _;

    use super::super::{SampleInfo, Segments};
    use super::*;

    fn names() -> ClassNames {
        ClassNames::new(
            ["unlabelled", "background", "sky", "person"]
                .map(str::to_owned)
                .to_vec(),
        )
    }

    /// A sky of one grey with a person of `size` in its middle, if any.
    fn sample(side: usize, size: usize, grey: u8, regions: &[&str]) -> Sample {
        let inside = |i: usize| (i % side).abs_diff(side / 2) * 2 < size && (i / side).abs_diff(side / 2) * 2 < size;
        Sample {
            key: "k".into(),
            photo: Photo {
                width: side,
                height: side,
                rgb: (0..side * side)
                    .flat_map(|i| [if inside(i) { 255 } else { grey }; 3])
                    .collect(),
            },
            mask: Some(ClassMask {
                width: side,
                height: side,
                classes: (0..side * side).map(|i| if inside(i) { 3 } else { 2 }).collect(),
            }),
            segments: Some(Segments {
                width: side,
                height: side,
                ids: vec![1; side * side],
            }),
            info: SampleInfo {
                captions: vec!["nobody is here".into()],
                labels: vec!["wall".into()],
                ..SampleInfo::default()
            },
            regions: regions.iter().map(|&r| r.to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_cut_is_the_thing_in_its_box() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let figure = cut(&sample(64, 20, 0, &[]), &names(), &mut rng).unwrap();
        assert_eq!(
            (figure.name.as_str(), figure.photo.width),
            ("person", figure.photo.height)
        );
        assert!(figure.photo.rgb.iter().all(|&v| v == 255) && figure.outline.rgb.iter().all(|&v| v == 255));
        assert_eq!(cut(&sample(64, 4, 0, &[]), &names(), &mut rng), None, "too small");
    }

    #[test]
    fn pixels_and_masks_agree_wherever_it_lands() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let figure = cut(&sample(64, 30, 0, &[]), &names(), &mut rng).unwrap();
        for drawn in [true, false] {
            let (mut landed, mut standing, mut silenced) = (0, 0, 0);
            for _ in 0..50 {
                let mut onto = sample(48, 0, 10, if drawn { &["a red circle"] } else { &[] });
                onto.mask = onto.mask.filter(|_| drawn);
                let out = paste(&figure, &onto, &mut rng);
                let ids = &out.segments.as_ref().unwrap().ids;
                let classes = &out.mask.as_ref().unwrap().classes;
                let pasted = |i: usize| {
                    if drawn {
                        ids[i] == 2
                    } else {
                        classes[i] == 3 && ids[i] == u16::MAX
                    }
                };
                for (i, rgb) in out.photo.rgb.chunks(3).enumerate() {
                    assert_eq!(pasted(i), rgb[0] > 132, "pixel {i}: colour {}", rgb[0]);
                }
                landed += usize::from((0..48 * 48).any(pasted));
                standing += usize::from((47 * 48..48 * 48).any(pasted));
                assert_eq!(out.regions.get(1).map(String::as_str), drawn.then_some("person"));
                assert_eq!(out.info.classes, ["person"]);
                let hides = 4 * (0..48 * 48).filter(|&i| pasted(i)).count() > 48 * 48;
                silenced += usize::from(hides);
                let (captions, labels) = if hides {
                    (0, &["person"][..])
                } else {
                    (1, &["wall", "person"][..])
                };
                assert_eq!(out.info.captions.len(), captions);
                assert_eq!(out.info.labels, labels);
            }
            assert!(
                landed > 45 && standing > 10 && (5..45).contains(&silenced),
                "{landed} landed, {standing} reach the lower edge, {silenced} hide what the words speak of"
            );
        }
    }
}
