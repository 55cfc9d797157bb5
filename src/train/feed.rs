//! What a training step eats: views of photos and drawn scenes, prompts with their masks, names per pixel.
//!
//! Everything is a function of (seed, stage, step), so a resumed run sees the same batches.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::train::dataset::augment::{Augmentation, Fit, Normalisation, View, augment};
use crate::train::dataset::names::{canonical, overlap, whole_person};
use crate::train::dataset::{ClassNames, Sample};
use crate::train::dataset::{Dataset, Split, epoch_order, split};
use crate::train::synth;

/// SAM's normalisation, 0-255 RGB (paper.md section 6): both branches of the student use it.
pub const NORMALISATION: Normalisation = Normalisation {
    mean: [123.675, 116.28, 103.53],
    std: [58.395, 57.12, 57.375],
};

/// Name of pixels that belong to none of the names their collection annotates.
pub const BACKGROUND: &str = "background";

/// Samples by step: photos of the training split in shuffled epochs, mixed with drawn scenes.
pub struct Feed {
    dataset: Option<Dataset>,
    labelled: Vec<usize>,
    other: Vec<usize>,
    synth_share: f64,
    seed: u64,
}

/// A name per pixel of a view, and what is known not to be there.
#[derive(Clone, Debug, Default)]
pub struct PixelNames {
    /// `[S, S]`: 0 unknown, 1 background, `i + 2` for `names[i]`.
    pub index: Vec<u16>,
    /// Names of the indices above 1.
    pub names: Vec<String>,
    /// Names that background pixels certainly are not.
    pub annotated: Vec<String>,
}

/// One sample, ready for the model.
#[derive(Clone, Debug)]
pub struct Item {
    /// The view's pixels and segments.
    pub view: View,
    /// Names per pixel, if anything is labelled.
    pub names: Option<PixelNames>,
    /// Text that describes the whole picture, if there is one.
    pub text: Option<String>,
}

impl Feed {
    /// A feed over the training split of `dataset`; drawn scenes alone if there is none.
    #[must_use]
    pub fn new(dataset: Option<Dataset>, synth_share: f64, seed: u64) -> Self {
        let (mut labelled, mut other) = (Vec::new(), Vec::new());
        if let Some(dataset) = &dataset {
            for (index, raw) in dataset.samples().iter().enumerate() {
                if split(&raw.key) == Split::Train {
                    if raw.mask.is_some() {
                        labelled.push(index)
                    } else {
                        other.push(index)
                    }
                }
            }
        }
        let synth_share = if labelled.is_empty() && other.is_empty() {
            1.0
        } else {
            synth_share
        };
        Self {
            dataset,
            labelled,
            other,
            synth_share,
            seed,
        }
    }

    /// The photos, if there are any.
    #[must_use]
    pub fn dataset(&self) -> Option<&Dataset> {
        self.dataset.as_ref()
    }

    /// Canonical names of all classes of the photos, background first, each once.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![BACKGROUND.to_owned()];
        for name in self.dataset.iter().flat_map(|d| d.names().iter()).filter_map(canonical) {
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The random generator of one slot of one step of one stage.
    #[must_use]
    pub fn rng(&self, stage: u64, step: u64, slot: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ (stage << 48));
        rng.set_stream(step * 4096 + slot as u64);
        rng
    }

    /// The sample of one slot. `unlabelled` is the share of photos without class masks.
    pub fn sample(&self, stage: u64, step: u64, slot: usize, batch: usize, unlabelled: f64) -> Sample {
        let mut rng = self.rng(stage, step, slot);
        let scene = rng.random_bool(self.synth_share);
        let pool = if rng.random_bool(unlabelled) && !self.other.is_empty() || self.labelled.is_empty() {
            &self.other
        } else {
            &self.labelled
        };
        if let (false, Some(dataset)) = (scene || pool.is_empty(), &self.dataset) {
            let count = step as usize * batch + slot;
            let epoch = (count / pool.len()) as u64;
            let order = epoch_order(pool, self.seed, epoch);
            // A photo that does not decode is replaced by a scene; `Dataset::skip_corrupt` has named it at the start.
            if let Ok(sample) = dataset.get(order[count % pool.len()]) {
                return sample;
            }
        }
        synth::draw(rng.random(), 320)
    }

    /// An augmented item of `side` pixels.
    pub fn item(&self, sample: &Sample, side: usize, rng: &mut impl Rng) -> Item {
        let fit = if rng.random_bool(0.5) {
            Fit::Letterbox
        } else {
            Fit::Stretch
        };
        let ranges = Augmentation {
            scale: (0.35, 1.0),
            fit,
            ..Augmentation::default()
        };
        let whole = sample.info.source == "ccp" && rng.random_bool(0.85);
        let person = self
            .dataset
            .as_ref()
            .filter(|_| whole)
            .and_then(|d| whole_person(sample, d.names()));
        let text = describe(sample, rng);
        if let Some(mask) = person {
            let sample = Sample {
                mask: Some(mask),
                ..sample.clone()
            };
            let view = augment(&sample, side, &ranges, &NORMALISATION, rng);
            return Item {
                names: self.pixel_names(&sample, &view),
                view,
                text,
            };
        }
        let view = augment(sample, side, &ranges, &NORMALISATION, rng);
        Item {
            names: self.pixel_names(sample, &view),
            view,
            text,
        }
    }

    fn pixel_names(&self, sample: &Sample, view: &View) -> Option<PixelNames> {
        if !sample.regions.is_empty() {
            let index = view
                .segments
                .as_ref()?
                .iter()
                .map(|&id| if id == 0 { 1 } else { id + 1 });
            let (w, h) = view.content;
            let mut index: Vec<u16> = index.collect();
            for (i, v) in index.iter_mut().enumerate() {
                if i % view.side >= w || i / view.side >= h {
                    *v = 0;
                }
            }
            let annotated = sample.regions.clone();
            return Some(PixelNames {
                index,
                names: sample.regions.clone(),
                annotated,
            });
        }
        let table = self.dataset.as_ref()?.names();
        let classes = view.classes.as_ref()?;
        let mut names: Vec<String> = Vec::new();
        let mut of_class = vec![0_u16; table.len()];
        for (class, slot) in of_class.iter_mut().enumerate() {
            if class == usize::from(ClassNames::BACKGROUND) {
                *slot = u16::from(sample.info.source != "ccp");
            } else if let Some(name) = u8::try_from(class).ok().and_then(|c| table.name(c)).and_then(canonical) {
                let position = names.iter().position(|n| n == name).unwrap_or_else(|| {
                    names.push(name.to_owned());
                    names.len() - 1
                });
                *slot = u16::try_from(position + 2).unwrap_or(0);
            }
        }
        let index = classes.iter().map(|&c| of_class[usize::from(c)]).collect();
        let annotated = sample
            .info
            .vocab
            .iter()
            .filter_map(|n| canonical(n))
            .map(str::to_owned)
            .collect();
        Some(PixelNames {
            index,
            names,
            annotated,
        })
    }
}

/// A text for the whole picture: a caption, a label in a template, or the list of classes.
fn describe(sample: &Sample, rng: &mut impl Rng) -> Option<String> {
    let info = &sample.info;
    if !info.captions.is_empty() {
        return Some(info.captions[rng.random_range(0..info.captions.len())].clone());
    }
    if !info.labels.is_empty() {
        let label = &info.labels[rng.random_range(0..info.labels.len())];
        return Some(in_template(label, rng));
    }
    let names: Vec<&str> = info.classes.iter().filter_map(|n| canonical(n)).collect();
    (!names.is_empty()).then(|| format!("a photo of {}", names.join(", ")))
}

/// A name in one of the 80 templates, at random.
pub fn in_template(name: &str, rng: &mut impl Rng) -> String {
    let templates = crate::text::templates::TEMPLATES;
    templates[rng.random_range(0..templates.len())].replace("{}", name)
}

/// Share of mask prompts among the prompts of a batch where the recipe says nothing else.
pub const MASK_PROMPTS: f64 = 1.0 / 3.0;

/// Prompts for the SAM head with the masks they ask for.
#[derive(Clone, Debug, Default)]
pub struct PromptBatch {
    /// Prompts per image.
    pub per_image: usize,
    /// `[B·Q, N, 2]` pixels of the model input.
    pub coords: Vec<f32>,
    /// `[B·Q, N]`.
    pub labels: Vec<f32>,
    /// `[B·Q, 4g, 4g]` mask logits.
    pub mask: Vec<f32>,
    /// `[B·Q]`: 1 where there is a mask prompt.
    pub has_mask: Vec<f32>,
    /// `[B·Q, 4g, 4g]`, 0-1: share of the cell inside the mask.
    pub target: Vec<f32>,
    /// `[B·Q]`: 1 where the prompt counts, 0 for images without masks.
    pub counts: Vec<f32>,
    /// `[B·Q]`: index of the name that the mask belongs to, for mask prompts by the CLIP head.
    pub named: Vec<Option<u16>>,
}

impl PromptBatch {
    /// Adds `per_image` prompts for one view; `n` points each, mask side `low` (4g). A share `masks` of them has a mask
    /// prompt and points, the others have points or a box.
    pub fn push(&mut self, item: &Item, per_image: usize, n: usize, low: usize, masks: f64, rng: &mut impl Rng) {
        self.per_image = per_image;
        let regions = regions(item);
        for _ in 0..per_image {
            let region = (!regions.is_empty()).then(|| &regions[rng.random_range(0..regions.len())]);
            let Some(region) = region else {
                self.coords.extend(std::iter::repeat_n(0.0, 2 * n));
                self.labels.extend(std::iter::repeat_n(-1.0, n));
                self.mask.extend(std::iter::repeat_n(0.0, low * low));
                self.target.extend(std::iter::repeat_n(0.0, low * low));
                self.has_mask.push(0.0);
                self.counts.push(0.0);
                self.named.push(None);
                continue;
            };
            let side = item.view.side;
            let target = shrink(|i| region.contains(item, i), side, low);
            let with_mask = rng.random_bool(masks);
            let (coords, labels) = if !with_mask && rng.random_bool(0.5) {
                region.noisy_box(side, n, rng)
            } else {
                region.random_points(side, n, rng)
            };
            self.coords.extend(coords);
            self.labels.extend(labels);
            if with_mask {
                self.mask.extend(coarse_logits(&target, low, rng));
            } else {
                self.mask.extend(std::iter::repeat_n(0.0, low * low));
            }
            self.has_mask.push(f32::from(u8::from(with_mask)));
            self.target.extend(target);
            self.counts.push(1.0);
            self.named.push(region.name);
        }
    }
}

impl PromptBatch {
    /// Makes the centres of `patches` of an `n × n` grid over `side` pixels the foreground points of prompt `row`; no
    /// patches leave it as it is.
    pub fn set_points(&mut self, row: usize, patches: &[usize], n: usize, side: usize) {
        if patches.is_empty() {
            return;
        }
        let slots = self.labels.len() / self.counts.len();
        let (coords, labels) = (
            &mut self.coords[2 * row * slots..][..2 * slots],
            &mut self.labels[row * slots..][..slots],
        );
        coords.fill(0.0);
        labels.fill(-1.0);
        let cell = side as f32 / n as f32;
        for (slot, &patch) in patches.iter().enumerate().take(slots) {
            // Pixel indices: the prompt encoder adds the half pixel of the centre.
            coords[2 * slot] = ((patch % n) as f32 + 0.5) * cell - 0.5;
            coords[2 * slot + 1] = ((patch / n) as f32 + 0.5) * cell - 0.5;
            labels[slot] = 1.0;
        }
    }
}

/// A connected or named part of a view.
struct Region {
    name: Option<u16>,
    segment: Option<u16>,
    pixels: Vec<u32>,
}

impl Region {
    fn contains(&self, item: &Item, i: usize) -> bool {
        match (self.name, self.segment) {
            (Some(name), _) => item.names.as_ref().is_some_and(|n| n.index[i] == name),
            (None, Some(segment)) => item.view.segments.as_ref().is_some_and(|s| s[i] == segment),
            (None, None) => false,
        }
    }

    /// One to `min(3, n)` points inside.
    fn random_points(&self, side: usize, n: usize, rng: &mut impl Rng) -> (Vec<f32>, Vec<f32>) {
        let count = rng.random_range(1..=n.min(3));
        let (mut coords, mut labels) = (Vec::with_capacity(2 * n), Vec::with_capacity(n));
        for k in 0..n {
            if k < count {
                let pixel = self.pixels[rng.random_range(0..self.pixels.len())] as usize;
                coords.extend([(pixel % side) as f32, (pixel / side) as f32]);
                labels.push(1.0);
            } else {
                coords.extend([0.0, 0.0]);
                labels.push(-1.0);
            }
        }
        (coords, labels)
    }

    /// The bounding box with each side moved by up to a tenth of the box, 20 px at most (SAM's training).
    fn noisy_box(&self, side: usize, n: usize, rng: &mut impl Rng) -> (Vec<f32>, Vec<f32>) {
        let (mut low, mut high) = ([side as f32; 2], [0.0_f32; 2]);
        for &pixel in &self.pixels {
            let at = [(pixel as usize % side) as f32, (pixel as usize / side) as f32];
            for axis in 0..2 {
                low[axis] = low[axis].min(at[axis]);
                high[axis] = high[axis].max(at[axis] + 1.0);
            }
        }
        let mut jitter = |value: f32, extent: f32| {
            let reach = (0.1 * extent).clamp(0.01, 20.0);
            (value + rng.random_range(-reach..reach)).clamp(0.0, side as f32)
        };
        let extent = [high[0] - low[0], high[1] - low[1]];
        let corners: Vec<f32> = [(low[0], 0), (low[1], 1), (high[0], 0), (high[1], 1)]
            .map(|(v, axis)| jitter(v, extent[axis]))
            .into();
        let mut coords = corners;
        coords.resize(2 * n, 0.0);
        let mut labels = vec![2.0, 3.0];
        labels.resize(n, -1.0);
        (coords, labels)
    }
}

/// Named parts (all pixels of a name) and segments of at least 0.2 % of the view.
fn regions(item: &Item) -> Vec<Region> {
    let side = item.view.side;
    let least = side * side / 500;
    let mut by_id: std::collections::BTreeMap<(bool, u16), Vec<u32>> = std::collections::BTreeMap::new();
    if let Some(names) = &item.names {
        for (i, &v) in names.index.iter().enumerate().filter(|(_, v)| **v > 1) {
            by_id
                .entry((true, v))
                .or_default()
                .push(u32::try_from(i).unwrap_or(u32::MAX));
        }
    }
    if let Some(segments) = &item.view.segments {
        for (i, &v) in segments.iter().enumerate().filter(|(_, v)| **v > 0) {
            by_id
                .entry((false, v))
                .or_default()
                .push(u32::try_from(i).unwrap_or(u32::MAX));
        }
    }
    let region = |((named, id), pixels): ((bool, u16), Vec<u32>)| Region {
        name: named.then_some(id),
        segment: (!named).then_some(id),
        pixels,
    };
    by_id
        .into_iter()
        .filter(|(_, p)| p.len() >= least)
        .map(region)
        .collect()
}

/// Share of set pixels per cell: `[side, side]` to `[low, low]`.
fn shrink(set: impl Fn(usize) -> bool, side: usize, low: usize) -> Vec<f32> {
    let cell = side / low;
    let mut out = vec![0.0; low * low];
    for y in 0..low * cell {
        for x in 0..low * cell {
            if set(y * side + x) {
                out[(y / cell) * low + x / cell] += 1.0;
            }
        }
    }
    let scale = 1.0 / (cell * cell) as f32;
    out.iter_mut().for_each(|v| *v *= scale);
    out
}

/// Mask logits as a patch classifier would give them: quarter resolution, noisy, clamped to ±10.
fn coarse_logits(target: &[f32], low: usize, rng: &mut impl Rng) -> Vec<f32> {
    let patches = low / 4;
    let mut coarse = vec![0.0; patches * patches];
    for (i, &t) in target.iter().enumerate() {
        coarse[(i / low / 4) * patches + (i % low) / 4] += t / 16.0;
    }
    let (gain, noise) = (rng.random_range(4.0..12.0), rng.random_range(0.5..3.0));
    for value in &mut coarse {
        *value = ((*value - 0.5) * gain + rng.random_range(-noise..noise)).clamp(-10.0, 10.0);
    }
    upsample(&coarse, patches, low)
}

/// Bilinear `[from, from]` to `[to, to]`, pixel centres aligned.
#[must_use]
pub fn upsample(x: &[f32], from: usize, to: usize) -> Vec<f32> {
    let position = |i: usize| {
        let p = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, (from - 1) as f32);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // p is clamped to the grid
        let low = p as usize;
        (low, (low + 1).min(from - 1), p - low as f32)
    };
    let mut out = Vec::with_capacity(to * to);
    for y in 0..to {
        let (y0, y1, fy) = position(y);
        for column in 0..to {
            let (x0, x1, fx) = position(column);
            let top = x[y0 * from + x0] * (1.0 - fx) + x[y0 * from + x1] * fx;
            let bottom = x[y1 * from + x0] * (1.0 - fx) + x[y1 * from + x1] * fx;
            out.push(top * (1.0 - fy) + bottom * fy);
        }
    }
    out
}

/// Targets of the region-text loss for a batch: every cell's name among a list of names.
#[derive(Clone, Debug, Default)]
pub struct NameTargets {
    /// The names, background first.
    pub names: Vec<String>,
    /// `[B·cells², K]`: weight at the cell's name; all 0 for cells that do not count.
    pub target: Vec<f32>,
    /// `[B·cells², K]`: 0 where the name may compete for the cell, −1e4 where it may not.
    pub allowed: Vec<f32>,
}

impl NameTargets {
    /// Targets on a `cells × cells` grid. `base` are the photos' names ([`Feed::names`]); names of drawn scenes
    /// are added. `weight` gives a name's weight in the loss.
    #[must_use]
    pub fn new(items: &[Item], base: &[String], cells: usize, weight: impl Fn(&str) -> f32) -> Self {
        let mut names = base.to_vec();
        for name in items.iter().filter_map(|i| i.names.as_ref()).flat_map(|n| &n.names) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let k = names.len();
        let rows = items.len() * cells * cells;
        let (mut target, mut allowed) = (vec![0.0; rows * k], vec![0.0; rows * k]);
        for (b, item) in items.iter().enumerate() {
            let Some(pixel_names) = &item.names else { continue };
            let column: Vec<usize> = pixel_names
                .names
                .iter()
                .map(|n| names.iter().position(|m| m == n).unwrap_or(0))
                .collect();
            let blocked = |name: &str| -> Vec<f32> {
                names
                    .iter()
                    .map(|n| if n != name && overlap(n, name) { -1e4 } else { 0.0 })
                    .collect()
            };
            let by_name: Vec<Vec<f32>> = pixel_names.names.iter().map(|n| blocked(n)).collect();
            let known = |n: &String| n == BACKGROUND || pixel_names.annotated.contains(n);
            let background: Vec<f32> = names.iter().map(|n| if known(n) { 0.0 } else { -1e4 }).collect();
            let cell = item.view.side / cells;
            for y in 0..cells {
                for x in 0..cells {
                    let pixel = (y * cell + cell / 2) * item.view.side + x * cell + cell / 2;
                    let row = ((b * cells + y) * cells + x) * k;
                    let (column, blocked) = match pixel_names.index[pixel] {
                        0 => continue,
                        1 => (0, &background),
                        i => (column[usize::from(i) - 2], &by_name[usize::from(i) - 2]),
                    };
                    target[row + column] = weight(&names[column]);
                    allowed[row..row + k].copy_from_slice(blocked);
                }
            }
        }
        let total: f32 = target.iter().sum();
        if total > 0.0 {
            target.iter_mut().for_each(|t| *t /= total);
        }
        Self { names, target, allowed }
    }
}
