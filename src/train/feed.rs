//! What a training step eats: views of photos and drawn scenes, prompts with their masks, names per pixel.
//!
//! Everything is a function of (seed, stage, step), so a resumed run sees the same batches.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::train::dataset::augment::{
    Augmentation, Fit, Normalisation, View, around_a_thing, augment, augment_region, bounds,
};
use crate::train::dataset::names::{
    FASHION, canonical, one_is_wider, overlap, person_on_ground, portrait, spoken, whole_of,
};
use crate::train::dataset::paste::{cut, paste};
use crate::train::dataset::{ClassNames, Dataset, DatasetError, RawSample, Sample, Split, epoch_order, split};
use crate::train::recipe::{Recipe, Variation};
use crate::train::strangers::STRANGERS;
use crate::train::synth;

/// SAM's normalisation, 0-255 RGB (paper.md section 6): both branches of the student use it.
pub const NORMALISATION: Normalisation = Normalisation {
    mean: [123.675, 116.28, 103.53],
    std: [58.395, 57.12, 57.375],
};

/// Name of pixels that belong to none of the names their collection annotates.
pub const BACKGROUND: &str = "background";

/// Least and largest share of a sample's area in a view.
pub const SCALES: (f32, f32) = (0.35, 1.0);

/// Joined to a stage's number for the SAM batches of a step, whose views are other ones than those of its CLIP batches.
pub const SAM_PICTURES: u64 = 1 << 9;

/// Joined to a stage's number for the choice of a sample: were it drawn from the numbers that decide how the sample is viewed, some
/// photos would never be seen from close up, and others never otherwise.
const CHOICE: u64 = 1 << 10;

/// Photos one after the other that cannot be read before a run gives up: the disk is gone then, or the data are no photos.
const GIVE_UP_AFTER: usize = 16;

/// Why a feed has nothing to give.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Photo after photo cannot be read.
    #[error(
        "{count} photos one after the other cannot be read, expected at most a few damaged ones; the last: {source}; check \
         the data and run again, the last checkpoint is kept"
    )]
    Unreadable {
        /// How many.
        count: usize,
        /// What is wrong with the last one.
        source: DatasetError,
    },
    /// A stage trains a SAM head, and nothing says where anything is.
    #[error(
        "none of {photos} photos has a class mask or segments, so {stage} has nothing to learn masks from; add photos that \
         have them, set synth_share above 0, or set losses.sam = 0"
    )]
    NoRegions {
        /// The section of the recipe.
        stage: &'static str,
        /// Photos to learn from.
        photos: usize,
    },
}

/// Which photos a batch shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// Any of them, a share of them (0-1) without class masks.
    Any {
        /// The share.
        unlabelled: f64,
    },
    /// The paper's D_CLIP: as [`Draw::Any`], without the photos that have segments and no words, if there are others.
    Clip {
        /// The share.
        unlabelled: f64,
    },
    /// The paper's D_SAM: photos with class masks or segments. They are gone through from the end of each epoch, so that the
    /// batches of a step show different photos.
    Sam,
}

/// Samples by step: photos of the training split in shuffled epochs, mixed with drawn scenes.
pub struct Feed {
    dataset: Option<Arc<Dataset>>,
    /// Photos with class masks.
    labelled: Pool,
    /// Photos without.
    other: Pool,
    /// Of those without, the photos that have words, or nothing at all.
    worded: Pool,
    /// Photos with class masks or segments.
    with_regions: Pool,
    /// Photos that could not be read.
    unreadable: Mutex<BTreeSet<usize>>,
    synth_share: f64,
    variation: Variation,
    seed: u64,
    threads: ThreadPool,
}

/// Photos that are gone through in shuffled epochs.
struct Pool {
    indices: Vec<usize>,
    /// The order of the epoch that was asked for last: a shuffle of millions for every photo would cost more than the photo.
    order: Mutex<(u64, Arc<[usize]>)>,
}

impl Pool {
    fn new(indices: Vec<usize>) -> Self {
        let order = Mutex::new((u64::MAX, Arc::default()));
        Self { indices, order }
    }

    /// The photo that comes after `count` others, each epoch gone through from its start or from its end; none in an empty pool.
    fn at(&self, count: usize, from_the_end: bool, seed: u64) -> Option<usize> {
        let epoch = count.checked_div(self.indices.len())? as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != epoch {
            *order = (epoch, epoch_order(&self.indices, seed, epoch).into());
        }
        let place = count % self.indices.len();
        let place = if from_the_end {
            self.indices.len() - 1 - place
        } else {
            place
        };
        Some(order.1[place])
    }
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
    /// Whether names say where a thing is and not where it ends: no region of theirs is a mask.
    pub rough: bool,
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
    /// A feed over the training split of `dataset`, mixed and varied as `recipe` says; drawn scenes alone if there is none.
    #[must_use]
    pub fn new(dataset: Option<Arc<Dataset>>, recipe: &Recipe) -> Self {
        let samples = dataset.iter().flat_map(|dataset| dataset.samples()).enumerate();
        let learnt: Vec<(usize, &RawSample)> = samples.filter(|(_, raw)| split(&raw.key) == Split::Train).collect();
        let pool = |fits: &dyn Fn(&RawSample) -> bool| {
            let indices = learnt.iter().filter(|(_, raw)| fits(raw)).map(|(index, _)| *index);
            Pool::new(indices.collect())
        };
        let worded = |raw: &RawSample| raw.segments.is_none() || raw.info.has_words();
        Self {
            labelled: pool(&|raw| raw.mask.is_some()),
            other: pool(&|raw| raw.mask.is_none()),
            worded: pool(&|raw| raw.mask.is_none() && worded(raw)),
            with_regions: pool(&|raw| raw.mask.is_some() || raw.segments.is_some()),
            unreadable: Mutex::default(),
            synth_share: if learnt.is_empty() { 1.0 } else { recipe.synth_share },
            variation: recipe.variation,
            seed: recipe.seed,
            threads: ThreadPoolBuilder::new()
                .thread_name(|index| format!("feed-{index}"))
                .build()
                .expect("the system starts threads"),
            dataset,
        }
    }

    /// Whether a stage that trains a SAM head, `section` of the recipe, has masks to learn from: refuses photos without any
    /// where no scenes are drawn, and warns where scenes are all that has masks.
    ///
    /// # Errors
    /// [`FeedError::NoRegions`].
    pub fn check_regions(&self, section: &'static str) -> Result<(), FeedError> {
        let photos = self.labelled.indices.len() + self.other.indices.len();
        if photos == 0 || !self.with_regions.indices.is_empty() {
            return Ok(());
        }
        if self.synth_share == 0.0 {
            return Err(FeedError::NoRegions { stage: section, photos });
        }
        tracing::warn!(
            stage = section,
            photos,
            "no photo has a class mask or segments: masks are learnt from drawn scenes alone"
        );
        Ok(())
    }

    /// Makes something of every slot, several at a time, in the order of the slots.
    ///
    /// # Errors
    /// [`FeedError`] of a slot.
    pub fn slots<T: Send>(
        &self,
        slots: Range<usize>,
        make: impl Fn(usize) -> Result<T, FeedError> + Send + Sync,
    ) -> Result<Vec<T>, FeedError> {
        self.threads.install(|| slots.into_par_iter().map(make).collect())
    }

    /// Decodes a photo; one that cannot be is named in the log and counted, once.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    pub fn read(&self, dataset: &Dataset, index: usize) -> Result<Sample, DatasetError> {
        dataset.get(index).inspect_err(|error| {
            let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
            if unreadable.insert(index) {
                tracing::warn!(%error, so_far = unreadable.len(), "photo skipped");
            }
        })
    }

    /// Photos that could not be read so far.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The photos, if there are any.
    #[must_use]
    pub fn dataset(&self) -> Option<&Dataset> {
        self.dataset.as_deref()
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

    /// The random generator of one slot of one step of one stage, for what is done with its sample.
    #[must_use]
    pub fn rng(&self, stage: u64, step: u64, slot: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ (stage << 48));
        rng.set_stream((step << 32) | slot as u64);
        rng
    }

    /// The sample of one slot, in a share of the cases with a thing from another photo pasted in. A photo that cannot be read
    /// gives way to the next one of its epoch.
    ///
    /// # Errors
    /// [`FeedError::Unreadable`].
    pub fn sample(&self, stage: u64, step: u64, slot: usize, batch: usize, draw: Draw) -> Result<Sample, FeedError> {
        let mut rng = self.rng(stage | CHOICE, step, slot);
        let count = step as usize * batch + slot;
        let sample = self.plain_sample(count, draw, &mut rng)?;
        let (Some(dataset), false) = (&self.dataset, self.labelled.indices.is_empty()) else {
            return Ok(sample);
        };
        // In a fashion photo, everything labelled may be read as one person, also what is pasted in.
        let fits = self.variation.pasted > 0.0 && sample.info.source != FASHION;
        if !fits || !rng.random_bool(self.variation.pasted) {
            return Ok(sample);
        }
        let from = self.labelled.indices[rng.random_range(0..self.labelled.indices.len())];
        let figure = self
            .read(dataset, from)
            .ok()
            .and_then(|from| cut(&from, dataset.names(), &mut rng));
        Ok(match figure {
            Some(figure) => paste(&figure, &sample, &mut rng),
            None => sample,
        })
    }

    fn plain_sample(&self, count: usize, draw: Draw, rng: &mut ChaCha8Rng) -> Result<Sample, FeedError> {
        let scene = rng.random_bool(self.synth_share);
        let pool = match draw {
            Draw::Sam => &self.with_regions,
            Draw::Any { unlabelled } | Draw::Clip { unlabelled } => {
                let worded = matches!(draw, Draw::Clip { .. }) && !self.worded.indices.is_empty();
                let other = if worded { &self.worded } else { &self.other };
                if rng.random_bool(unlabelled) && !other.indices.is_empty() || self.labelled.indices.is_empty() {
                    other
                } else {
                    &self.labelled
                }
            }
        };
        if let (false, Some(dataset)) = (scene, &self.dataset) {
            let tries = GIVE_UP_AFTER.min(pool.indices.len());
            for further in 0..tries {
                let Some(photo) = pool.at(count + further, draw == Draw::Sam, self.seed) else {
                    break;
                };
                match self.read(dataset, photo) {
                    Ok(sample) => return Ok(sample),
                    Err(source) if further + 1 == tries => return Err(FeedError::Unreadable { count: tries, source }),
                    Err(_) => {}
                }
            }
        }
        Ok(synth::draw(rng.random(), 320))
    }

    /// An augmented item of `side` pixels that shows a share `scale` of the sample's area, [`SCALES`] in most stages.
    pub fn item(&self, sample: &Sample, side: usize, scale: (f32, f32), rng: &mut impl Rng) -> Item {
        let fit = if rng.random_bool(0.5) {
            Fit::Letterbox
        } else {
            Fit::Stretch
        };
        let ranges = Augmentation {
            scale,
            fit,
            ..Augmentation::default()
        };
        let whole = sample.info.source == FASHION && rng.random_bool(0.85);
        let person = self
            .dataset
            .as_deref()
            .filter(|_| whole)
            .and_then(|d| person_on_ground(sample, d.names()));
        let text = describe(sample, rng);
        let portrait = self.dataset.as_deref().and_then(|d| portrait(sample, d.names()));
        let sample = person.as_ref().or(portrait.as_ref()).unwrap_or(sample);
        let close_ups = self.variation.close_ups;
        let close_up = close_ups > 0.0 && rng.random_bool(close_ups);
        let region = close_up.then(|| around_a_thing(sample, ranges.flip, rng)).flatten();
        let view = match region {
            Some(region) => augment_region(sample, region, side, &ranges, &NORMALISATION, rng),
            None => augment(sample, side, &ranges, &NORMALISATION, rng),
        };
        let mut item = Item {
            text,
            ..self.viewed(sample, view)
        };
        if let Some(names) = &mut item.names {
            names.rough = portrait.is_some();
        }
        item
    }

    /// A view of a sample as an item, with its names.
    #[must_use]
    pub fn viewed(&self, sample: &Sample, view: View) -> Item {
        Item {
            names: self.pixel_names(sample, &view),
            view,
            text: None,
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
                rough: false,
            });
        }
        let table = self.dataset.as_ref()?.names();
        let classes = view.classes.as_ref()?;
        let mut names: Vec<String> = Vec::new();
        // Fashion photos label garments alone, and passers-by wear some too.
        let ground = sample.info.source != FASHION || sample.info.vocab.iter().any(|name| name == "person");
        let mut of_class = vec![0_u16; table.len()];
        for (class, slot) in of_class.iter_mut().enumerate() {
            if class == usize::from(ClassNames::BACKGROUND) {
                *slot = u16::from(ground);
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
            rough: false,
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

/// One of the words that people use for a canonical name, at random.
pub fn in_other_words<'a>(name: &'a str, rng: &mut impl Rng) -> &'a str {
    let words = spoken(name).count();
    spoken(name).nth(rng.random_range(0..words)).unwrap_or(name)
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
    /// `[B·Q, 4g, 4g]`: 1 where the target is known, else 0; empty if it is known everywhere.
    pub known: Vec<f32>,
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
    /// Adds the prompts of further views, as many per view.
    pub fn append(&mut self, more: Self) {
        self.per_image = more.per_image;
        self.coords.extend(more.coords);
        self.labels.extend(more.labels);
        self.mask.extend(more.mask);
        self.has_mask.extend(more.has_mask);
        self.target.extend(more.target);
        self.known.extend(more.known);
        self.counts.extend(more.counts);
        self.named.extend(more.named);
    }

    /// Adds exact boxes around up to `most` of the largest regions of one view; `n` points each, mask side `low`.
    pub fn push_boxes(&mut self, item: &Item, most: usize, n: usize, low: usize) {
        let mut regions = regions(item);
        regions.sort_by_key(|region| std::cmp::Reverse(region.pixels.len()));
        regions.truncate(most);
        self.per_image = regions.len();
        for region in regions {
            let side = item.view.side;
            let ([left, top], [right, bottom]) = region.bounds(side);
            let (coords, labels) = box_prompt([left, top, right, bottom], n);
            self.coords.extend(coords);
            self.labels.extend(labels);
            self.target.extend(shrink(|i| region.contains(item, i), side, low));
            self.mask.extend(std::iter::repeat_n(0.0, low * low));
            self.has_mask.push(0.0);
            self.counts.push(1.0);
            self.named.push(region.name);
        }
    }

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

    /// Corners `[x, y]` of the bounding box in a view of `side` pixels.
    fn bounds(&self, side: usize) -> ([f32; 2], [f32; 2]) {
        let (low, high) = bounds(self.pixels.iter().map(|&pixel| pixel as usize), side);
        (low.map(|v| v as f32), high.map(|v| v as f32))
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
        let (low, high) = self.bounds(side);
        let mut jitter = |value: f32, extent: f32| {
            let reach = (0.1 * extent).clamp(0.01, 20.0);
            (value + rng.random_range(-reach..reach)).clamp(0.0, side as f32)
        };
        let extent = [high[0] - low[0], high[1] - low[1]];
        let corners = [(low[0], 0), (low[1], 1), (high[0], 0), (high[1], 1)].map(|(v, axis)| jitter(v, extent[axis]));
        box_prompt(corners, n)
    }
}

/// Points and labels of a box prompt (left, top, right, bottom) with `n` slots, at least 2.
fn box_prompt(corners: [f32; 4], n: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut coords, mut labels) = (corners.to_vec(), vec![2.0, 3.0]);
    coords.resize(2 * n, 0.0);
    labels.resize(n, -1.0);
    (coords, labels)
}

/// Named parts (all pixels of a name) and segments of at least 0.2 % of the view.
fn regions(item: &Item) -> Vec<Region> {
    let side = item.view.side;
    let least = side * side / 500;
    let mut by_id: std::collections::BTreeMap<(bool, u16), Vec<u32>> = std::collections::BTreeMap::new();
    if let Some(names) = item.names.as_ref().filter(|names| !names.rough) {
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
    /// are added. `weight` gives a name's weight in the loss. With `part_share`, a cell of a part whose whole is
    /// annotated too has that share of its target, the whole has the rest, and a cell of the whole is not the part. Of a
    /// name and a wider one ([`one_is_wider`]) that are both annotated, a cell is one alone.
    ///
    /// A cell of the whole is not the part even where the collection annotates no parts: what people wear would win over them
    /// otherwise, wherever both are asked for.
    #[must_use]
    pub fn new(
        items: &[Item],
        base: &[String],
        cells: usize,
        part_share: Option<f32>,
        weight: impl Fn(&str) -> f32,
    ) -> Self {
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
            let whole = |part: &str| part_share.and_then(|_| whole_of(part, &pixel_names.annotated));
            let both = |a: &str, b: &str| {
                [a, b]
                    .iter()
                    .all(|n| pixel_names.annotated.iter().any(|known| known == n))
            };
            let told_apart =
                |a: &str, b: &str| whole(a) == Some(b) || whole(b) == Some(a) || (one_is_wider(a, b) && both(a, b));
            let blocked = |name: &str| -> Vec<f32> {
                names
                    .iter()
                    .map(|n| {
                        if n != name && overlap(n, name) && !told_apart(n, name) {
                            -1e4
                        } else {
                            0.0
                        }
                    })
                    .collect()
            };
            let by_name: Vec<Vec<f32>> = pixel_names.names.iter().map(|n| blocked(n)).collect();
            let wholes: Vec<Option<usize>> = pixel_names
                .names
                .iter()
                .map(|n| names.iter().position(|m| Some(m.as_str()) == whole(n)))
                .collect();
            let known = |n: &String| n == BACKGROUND || pixel_names.annotated.contains(n);
            let background: Vec<f32> = names.iter().map(|n| if known(n) { 0.0 } else { -1e4 }).collect();
            let cell = item.view.side / cells;
            for y in 0..cells {
                for x in 0..cells {
                    let pixel = (y * cell + cell / 2) * item.view.side + x * cell + cell / 2;
                    let row = ((b * cells + y) * cells + x) * k;
                    let (column, whole, blocked) = match pixel_names.index[pixel] {
                        0 => continue,
                        1 => (0, None, &background),
                        i => {
                            let i = usize::from(i) - 2;
                            (column[i], wholes[i], &by_name[i])
                        }
                    };
                    let (weight, part) = (weight(&names[column]), part_share.unwrap_or(1.0));
                    target[row + column] = whole.map_or(weight, |_| weight * part);
                    if let Some(whole) = whole {
                        target[row + whole] = weight * (1.0 - part);
                    }
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

    /// Adds up to `count` of [`STRANGERS`] that compete for every cell but those of the background, which may show
    /// anything that nobody annotated.
    pub fn add_strangers(&mut self, count: usize, rng: &mut impl Rng) {
        let k = self.names.len();
        let known: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let strangers: Vec<String> = STRANGERS
            .sample(rng, count)
            .filter(|word| !known.contains(word))
            .map(|&word| word.to_owned())
            .collect();
        if strangers.is_empty() || k == 0 {
            return;
        }
        let widen = |rows: &[f32], filler: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let rows = rows.chunks(k).enumerate();
            rows.flat_map(|(i, row)| {
                row.iter()
                    .copied()
                    .chain(std::iter::repeat_n(filler(i), strangers.len()))
            })
            .collect()
        };
        let background: Vec<bool> = self.target.chunks(k).map(|row| row[0] > 0.0).collect();
        self.allowed = widen(&self.allowed, &|row| if background[row] { -1e4 } else { 0.0 });
        self.target = widen(&self.target, &|_| 0.0);
        self.names.extend(strangers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::augment::{Colours, Region};
    use crate::train::dataset::tests::{folder, jpeg, key_of};
    use crate::train::dataset::{ClassMask, Photo, SampleInfo};

    /// Two cells: a window on the left, its building on the right; the collection annotates `annotated`.
    fn facade(annotated: &[&str]) -> Item {
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let region = Region {
            x: 0.0,
            y: 0.0,
            width: 2.0,
            height: 2.0,
            flip: false,
        };
        Item {
            view: View {
                side: 2,
                content: (2, 2),
                pixels: Vec::new(),
                classes: None,
                segments: None,
                region,
            },
            names: Some(PixelNames {
                index: vec![2, 3, 2, 1],
                names: words(&["window", "building"]),
                annotated: words(annotated),
                rough: false,
            }),
            text: None,
        }
    }

    fn targets(annotated: &[&str], part_share: Option<f32>) -> NameTargets {
        let base = ["background", "window", "building", "sky"].map(str::to_owned);
        NameTargets::new(&[facade(annotated)], &base, 2, part_share, |_| 1.0)
    }

    #[test]
    fn a_part_shares_its_cell_with_its_whole_and_the_whole_is_not_the_part() {
        let told = targets(&["window", "building"], Some(0.75));
        assert_eq!(told.target[..8], [0.0, 0.1875, 0.0625, 0.0, 0.0, 0.0, 0.25, 0.0]);
        assert_eq!(told.allowed[..8], [0.0; 8]);
        let whole_alone = targets(&["building"], Some(0.75));
        assert_eq!(whole_alone.allowed[..8], [0.0; 8]);
        for (annotated, share) in [(&["window", "building"][..], None), (&["window"][..], Some(0.75))] {
            let apart = targets(annotated, share);
            assert_eq!(
                apart.target[..8],
                [0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0],
                "{annotated:?}"
            );
            assert_eq!(
                apart.allowed[..8],
                [0.0, 0.0, -1e4, 0.0, 0.0, -1e4, 0.0, 0.0],
                "{annotated:?}"
            );
        }
    }

    #[test]
    fn of_a_name_and_a_wider_one_that_are_both_annotated_a_cell_is_one_alone() {
        let mut item = facade(&[]);
        item.names.as_mut().unwrap().names = ["pavement", "road"].map(str::to_owned).to_vec();
        let told = |annotated: &[&str]| {
            let mut item = item.clone();
            item.names.as_mut().unwrap().annotated = annotated.iter().map(|&name| name.to_owned()).collect();
            let base = ["background", "pavement", "road", "sky"].map(str::to_owned);
            let told = NameTargets::new(&[item], &base, 2, Some(0.75), |_| 1.0);
            assert_eq!(
                told.target[..8],
                [0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0],
                "{annotated:?}"
            );
            [told.allowed[2], told.allowed[5]]
        };
        assert_eq!(told(&["pavement", "road"]), [0.0; 2]);
        assert_eq!(told(&["road"]), [-1e4; 2]);
    }

    #[test]
    fn strangers_compete_everywhere_but_on_background() {
        let mut told = targets(&["window", "building"], None);
        let before = told.clone();
        told.add_strangers(3, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(told.names.len(), 7);
        for cell in 0..4 {
            let (old, new) = (4 * cell..4 * cell + 4, 7 * cell..7 * cell + 4);
            assert_eq!(told.target[new.clone()], before.target[old.clone()]);
            assert_eq!(told.allowed[new.clone()], before.allowed[old]);
            assert_eq!(told.target[new.end..new.end + 3], [0.0; 3]);
            let stranger = if cell == 3 { -1e4 } else { 0.0 };
            assert_eq!(told.allowed[new.end..new.end + 3], [stranger; 3]);
        }
        told.add_strangers(0, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(told.names.len(), 7);
    }

    #[test]
    fn a_photo_of_one_thing_names_its_middle_and_asks_for_no_mask() {
        let key = key_of(Split::Train);
        let info = br#"{"source":"pets","labels":["cat","siamese"]}"#.to_vec();
        let (photo, words) = (format!("{key}.jpg"), format!("{key}.json"));
        let (_folder, pattern) = folder(&[(&photo, jpeg(60, 60)), (&words, info)]);
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let mut recipe = Recipe::read(&recipe).unwrap();
        (recipe.synth_share, recipe.variation) = (0.0, Variation::default());
        let feed = Feed::new(Some(Arc::new(Dataset::open(&[pattern]).unwrap())), &recipe);
        let sample = feed.sample(4, 0, 0, 8, Draw::Any { unlabelled: 1.0 }).unwrap();
        let item = feed.item(&sample, 32, (1.0, 1.0), &mut ChaCha8Rng::seed_from_u64(1));
        let text = item.text.clone().unwrap();
        assert!(text.contains("siamese") || text.contains("cat"), "{text}");
        assert!(regions(&item).is_empty());
        let base = ["background", "cat", "person"].map(str::to_owned);
        let targets = NameTargets::new(&[item], &base, 3, None, |_| 1.0);
        let ninth = 1.0 / 9.0;
        for (cell, (target, allowed)) in targets.target.chunks(3).zip(targets.allowed.chunks(3)).enumerate() {
            let expected = match cell {
                4 => ([0.0, ninth, 0.0], [0.0; 3]),
                _ => ([ninth, 0.0, 0.0], [0.0, -1e4, 0.0]),
            };
            assert_eq!((target, allowed), (&expected.0[..], &expected.1[..]), "cell {cell}");
        }
    }

    #[test]
    fn how_a_photo_is_seen_does_not_follow_from_its_choice() {
        let keys = (0..).map(|n| format!("p{n}")).filter(|key| split(key) == Split::Train);
        let keys: Vec<String> = keys.take(8).collect();
        let photos = keys.iter().map(|key| (format!("{key}.jpg"), jpeg(60, 30)));
        let members: Vec<(String, Vec<u8>)> = photos.collect();
        let members: Vec<(&str, Vec<u8>)> = members
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.clone()))
            .collect();
        let (_folder, pattern) = folder(&members);
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let mut recipe = Recipe::read(&recipe).unwrap();
        // Half of the samples are photos, half of the views letterboxed.
        (recipe.synth_share, recipe.variation) = (0.5, Variation::default());
        let feed = Feed::new(Some(Arc::new(Dataset::open(&[pattern]).unwrap())), &recipe);
        let (mut letterboxed, mut photos) = (0, 0);
        for step in 0..200 {
            let sample = feed.sample(4, step, 0, 1, Draw::Any { unlabelled: 0.0 }).unwrap();
            if keys.contains(&sample.key) {
                let item = feed.item(&sample, 32, (1.0, 1.0), &mut feed.rng(4, step, 0));
                photos += 1;
                letterboxed += usize::from(item.view.content != (32, 32));
            }
        }
        assert!((60..140).contains(&photos), "{photos}");
        assert!(
            photos / 4 < letterboxed && letterboxed < photos * 3 / 4,
            "{letterboxed} of {photos}"
        );
    }

    /// Keys of the training split that begin with `start`.
    fn learnt(start: &str, count: usize) -> Vec<String> {
        let keys = (0..)
            .map(|n| format!("{start}{n}"))
            .filter(|key| split(key) == Split::Train);
        keys.take(count).collect()
    }

    /// A feed over the members of one tar, by the shipped recipe without variation and scenes.
    fn feed_of(members: &[(String, Vec<u8>)]) -> (tempfile::TempDir, Feed) {
        let members: Vec<(&str, Vec<u8>)> = members.iter().map(|(name, b)| (name.as_str(), b.clone())).collect();
        let (folder, pattern) = folder(&members);
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let mut recipe = Recipe::read(&recipe).unwrap();
        (recipe.synth_share, recipe.variation) = (0.0, Variation::default());
        let feed = Feed::new(Some(Arc::new(Dataset::open(&[pattern]).unwrap())), &recipe);
        (folder, feed)
    }

    /// What `draw` shows in 60 steps of two pictures.
    fn drawn(feed: &Feed, draw: Draw) -> BTreeSet<String> {
        let slots = (0..60).flat_map(|step| [(step, 0), (step, 1)]);
        slots
            .map(|(step, slot)| feed.sample(4, step, slot, 2, draw).unwrap().key)
            .collect()
    }

    #[test]
    fn captions_and_segments_of_two_collections_serve_one_loss_each() {
        let code = r#"{"image":{},"annotations":[{"segmentation":{"size":[8,8],"counts":"0P2"}}]}"#;
        let (captions, segments) = (learnt("caption", 6), learnt("sa_", 3));
        let mut members: Vec<(String, Vec<u8>)> = Vec::new();
        for key in &captions {
            members.extend([
                (format!("{key}.jpg"), jpeg(8, 8)),
                (format!("{key}.txt"), b"a cat".to_vec()),
            ]);
        }
        for key in &segments {
            members.extend([(format!("{key}.jpg"), jpeg(8, 8)), (format!("{key}.json"), code.into())]);
        }
        let (_folder, feed) = feed_of(&members);
        feed.check_regions("distill").unwrap();
        let set = |keys: &[String]| keys.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(drawn(&feed, Draw::Sam), set(&segments));
        assert_eq!(drawn(&feed, Draw::Clip { unlabelled: 0.15 }), set(&captions));
        assert_eq!(
            drawn(&feed, Draw::Any { unlabelled: 0.15 }),
            set(&[captions, segments].concat())
        );
        let sample = feed.sample(4, 0, 0, 2, Draw::Sam).unwrap();
        let item = feed.item(&sample, 32, (1.0, 1.0), &mut ChaCha8Rng::seed_from_u64(1));
        assert!(!regions(&item).is_empty(), "a SAM batch has masks to learn from");
    }

    #[test]
    fn segments_alone_are_shown_to_the_clip_teacher_where_there_is_nothing_else() {
        let code = r#"{"annotations":[{"segmentation":{"size":[8,8],"counts":"0P2"}}]}"#;
        let [key] = &learnt("sa_", 1)[..] else { unreachable!() };
        let members = [(format!("{key}.jpg"), jpeg(8, 8)), (format!("{key}.json"), code.into())];
        let (_folder, feed) = feed_of(&members);
        assert_eq!(drawn(&feed, Draw::Clip { unlabelled: 0.0 }).len(), 1);
    }

    #[test]
    fn photos_without_masks_are_refused_by_a_stage_that_learns_masks() {
        let members: Vec<(String, Vec<u8>)> = learnt("p", 2)
            .iter()
            .map(|key| (format!("{key}.jpg"), jpeg(8, 8)))
            .collect();
        let (_folder, mut feed) = feed_of(&members);
        let error = feed.check_regions("distill").unwrap_err().to_string();
        assert!(
            error.starts_with("none of 2 photos has a class mask or segments, so distill"),
            "{error}"
        );
        feed.synth_share = 0.1;
        feed.check_regions("distill").unwrap();
    }

    #[test]
    fn a_damaged_photo_gives_way_to_another_and_a_run_without_photos_ends() {
        let keys = learnt("p", 8);
        let mut members: Vec<(String, Vec<u8>)> = keys.iter().map(|key| (format!("{key}.jpg"), jpeg(8, 8))).collect();
        let length = members[3].1.len();
        members[3].1.truncate(length / 2);
        let (folder, feed) = feed_of(&members);
        let expected: BTreeSet<String> = keys.iter().filter(|key| **key != keys[3]).cloned().collect();
        assert_eq!(drawn(&feed, Draw::Any { unlabelled: 0.0 }), expected);
        assert_eq!(feed.unreadable(), 1);
        std::fs::remove_file(folder.path().join("train-0000.tar")).unwrap();
        let error = feed
            .sample(4, 0, 0, 2, Draw::Any { unlabelled: 0.0 })
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("8 photos one after the other cannot be read"),
            "{error}"
        );
        assert!(error.contains("train-0000.tar: No such file"), "{error}");
        assert_eq!(feed.unreadable(), 8);
    }

    #[test]
    fn slots_beyond_thousands_have_random_numbers_of_their_own() {
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let feed = Feed::new(None, &Recipe::read(&recipe).unwrap());
        let first = |step, slot| feed.rng(4, step, slot).random::<u64>();
        let slots: BTreeSet<u64> = (0..3)
            .flat_map(|step| (0..5000).map(move |slot| (step, slot)))
            .map(|(step, slot)| first(step, slot))
            .collect();
        assert_eq!(slots.len(), 3 * 5000);
    }

    #[test]
    fn an_epoch_has_every_photo_once_and_a_resumed_run_the_same_order() {
        let pool = || Pool::new(vec![2, 3, 5, 7]);
        let whole = pool();
        let photos: Vec<usize> = (0..12).map(|count| whole.at(count, false, 9).unwrap()).collect();
        for (epoch, photos) in photos.chunks(4).enumerate() {
            assert_eq!(photos, epoch_order(&[2, 3, 5, 7], 9, epoch as u64));
        }
        let resumed = pool();
        assert_eq!(
            [6, 5].map(|count| resumed.at(count, false, 9).unwrap()),
            [photos[6], photos[5]]
        );
        let from_the_end: Vec<usize> = (4..8).map(|count| whole.at(count, true, 9).unwrap()).collect();
        assert_eq!(from_the_end, [photos[7], photos[6], photos[5], photos[4]]);
        assert_eq!(Pool::new(Vec::new()).at(0, false, 9), None);
    }

    #[test]
    fn a_pasted_thing_has_its_name_in_a_drawn_scene() {
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let recipe = Recipe::read(&recipe).unwrap();
        let table = ["unlabelled", "background", "person"].map(str::to_owned).to_vec();
        let (width, height) = (40, 40);
        let person = Sample {
            key: "k".into(),
            photo: Photo {
                width,
                height,
                rgb: vec![90; 3 * width * height],
            },
            mask: Some(ClassMask {
                width,
                height,
                classes: vec![2; width * height],
            }),
            segments: None,
            info: SampleInfo::default(),
            regions: Vec::new(),
        };
        let figure = cut(&person, &ClassNames::new(table), &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        let scene = synth::draw(1, 64);
        let pasted = paste(&figure, &scene, &mut ChaCha8Rng::seed_from_u64(2));
        let feed = Feed::new(None, &recipe);
        let named = |sample: &Sample| {
            let view = crate::train::dataset::augment::view(
                sample,
                Region::whole(&sample.photo),
                64,
                Fit::Stretch,
                Colours::SAME,
                &NORMALISATION,
            );
            feed.pixel_names(sample, &view).unwrap().names
        };
        assert!(!named(&scene).contains(&"person".to_owned()));
        assert_eq!(named(&pasted).last().map(String::as_str), Some("person"));
    }
}
