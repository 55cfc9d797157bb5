//! A run: a recipe, its data, its folder, and the stages one after the other.
//!
//! Every stage opens its checkpoint if there is one, so a run that was killed goes on where it was. Teachers are trained
//! by the recipe or are somebody's checkpoints ([`RunOptions::sam`], [`RunOptions::clip`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::contract::hash_file;
use crate::text::tokenizer::Tokenizer;
use crate::train::dataset::{Dataset, Layout, Purpose};
use crate::train::distill::{self, Teachers};
use crate::train::feed::Feed;
use crate::train::finetune;
use crate::train::import;
use crate::train::kernels::Kernels;
use crate::train::model::resize;
use crate::train::processes::Processes;
use crate::train::recipe::{Recipe, StageName};
use crate::train::session::RunFolder;
use crate::train::sharpen;
use crate::train::teachers::{self, clip_config};
use crate::train::text_bank::TextBank;
use crate::train::weights::Weights;
use crate::train::words;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The recipe file.
    pub recipe: PathBuf,
    /// WebDataset tars, globs of them, folders of published data sets; none means drawn scenes alone.
    pub data: Vec<String>,
    /// Layout of the folders; recognised if not given.
    pub layout: Option<Layout>,
    /// Folder of the checkpoints; made if it is missing.
    pub out: PathBuf,
    /// A SAM checkpoint as teacher, in place of the recipe's `[teach_sam]`.
    pub sam: Option<PathBuf>,
    /// An OpenCLIP checkpoint as teacher, in place of the recipe's `[teach_clip]`.
    pub clip: Option<PathBuf>,
    /// Weights of the recipe's bundle, or the bundle itself, in place of all stages before `[finetune]` or `[sharpen]`.
    pub start: Option<PathBuf>,
    /// The processes that train together.
    pub processes: Processes,
}

/// A recipe with its data, its folder and the backend that computes it.
pub struct Run<B: Kernels> {
    /// The recipe.
    pub recipe: Recipe,
    feed: Feed,
    tokenizer: Tokenizer,
    folder: RunFolder<B>,
    sam: Option<PathBuf>,
    clip: Option<PathBuf>,
    start: Option<PathBuf>,
}

impl<B: Kernels> Run<B> {
    /// Reads recipe and data and makes the folder; trains on `device`.
    ///
    /// # Errors
    /// What cannot be read, written or understood; a teacher that neither the recipe trains nor a file gives.
    pub fn open(options: RunOptions, device: B::Device) -> Result<Self> {
        let recipe = Recipe::read(&options.recipe)?;
        recipe.precision.check::<B>(&device)?;
        for (given, trained, section, flag) in [
            (&options.sam, &recipe.teach_sam, "teach_sam", "--sam"),
            (&options.clip, &recipe.teach_clip, "teach_clip", "--clip"),
        ] {
            ensure!(
                given.is_some() || trained.is_some() || options.start.is_some(),
                "{}: no [{section}], so the teacher is a checkpoint of yours; give it with {flag} FILE",
                options.recipe.display()
            );
        }
        ensure!(
            options.start.is_none() || options.sam.is_none(),
            "--sam: found beside --start, expected one of them; a model that goes on learning holds its SAM already"
        );
        std::fs::create_dir_all(&options.out).with_context(|| format!("cannot create {}", options.out.display()))?;
        let dataset = match options.data.as_slice() {
            [] => None,
            patterns => Some(open_photos(patterns, options.layout)?),
        };
        let data = dataset
            .as_ref()
            .map_or_else(|| "drawn scenes".into(), Dataset::fingerprint);
        let mut teachers = String::new();
        for (name, file) in [("SAM", &options.sam), ("CLIP", &options.clip)] {
            if let Some(file) = file {
                teachers.push_str(&format!(", {name} teacher {}", hash_file(file)?));
            }
        }
        if let Some(start) = &options.start {
            teachers.push_str(&format!(", from {}", import::fingerprint(start)?));
        }
        let folder = RunFolder {
            path: options.out,
            data,
            teachers,
            processes: options.processes,
            device,
        };
        let feed = Feed::new(dataset.map(Arc::new), &recipe);
        let runs = |name: StageName| match name {
            StageName::TeachSam => options.sam.is_none() && options.start.is_none(),
            name => options.start.is_none() || name >= StageName::Finetune,
        };
        let mut stages = StageName::ALL.into_iter();
        if let Some(name) = stages.find(|&name| runs(name) && recipe.learns_masks(name)) {
            feed.check_regions(name.section())?;
        }
        Ok(Self {
            tokenizer: Tokenizer::shortened(recipe.merges)?,
            feed,
            folder,
            sam: options.sam,
            clip: options.clip,
            start: options.start,
            recipe,
        })
    }

    /// The teachers, and the student that they make.
    ///
    /// # Errors
    /// Of the stages, or of a checkpoint that does not fit the recipe.
    pub fn teachers(&self) -> Result<(Teachers<B>, Weights)> {
        let Self {
            recipe, feed, folder, ..
        } = self;
        let own = [
            (&self.sam, &recipe.teach_sam, StageName::TeachSam),
            (&self.clip, &recipe.teach_clip, StageName::TeachClip),
        ];
        for (given, stage, name) in own {
            let Some(stage) = stage
                .as_ref()
                .filter(|_| given.is_none() && folder.processes.count() > 1)
            else {
                continue;
            };
            ensure!(
                folder.is_finished(name, stage)?,
                "{}: not finished, and {} processes were started; a teacher is trained by one: run `train teachers` first, \
                 with the same recipe, data and folder",
                folder.checkpoint(name).display(),
                folder.processes.count()
            );
        }
        // A checkpoint that does not fit is to be known before hours of training.
        let given = self.clip.as_ref().map(|_| self.clip_teacher()).transpose()?;
        let sam = match (&self.sam, &recipe.teach_sam) {
            (Some(file), _) => import::sam(file, Some(&recipe.sam))?.0,
            (None, stage) => teachers::sam(recipe, trained(stage.as_ref())?, feed, folder)?,
        };
        let clip = match given {
            Some(clip) => clip,
            None => self.clip_teacher()?,
        };
        let text = TextBank::new(&clip, recipe.merged(), self.tokenizer.clone(), folder.device.clone());
        let student = distill::student(recipe, &sam, &clip);
        let teachers = Teachers::new(recipe, sam, &clip, text, self.tokenizer.clone());
        Ok((teachers, student))
    }

    /// The CLIP teacher: somebody's checkpoint, or what the recipe's stage makes or has made.
    fn clip_teacher(&self) -> Result<Weights> {
        let Self {
            recipe, feed, folder, ..
        } = self;
        Ok(match (&self.clip, &recipe.teach_clip) {
            (Some(file), _) => import::clip(file, Some(&clip_config(recipe)))?.0,
            (None, stage) => teachers::clip(recipe, trained(stage.as_ref())?, feed, &self.tokenizer, folder)?,
        })
    }

    /// The weights that `stage` ends with, after all stages before it; of the teachers, those of the student that both make.
    ///
    /// # Errors
    /// Of the stages, or of weights that do not fit the recipe.
    pub fn through(&self, stage: StageName) -> Result<Weights> {
        let weights = match stage {
            StageName::TeachSam | StageName::TeachClip => self.teachers().map(|(_, student)| student),
            StageName::Probe => self.probe().map(|(_, probed)| probed),
            StageName::Distill => self.distill().map(|(_, distilled)| distilled),
            StageName::Adapt => self.adapt(),
            StageName::Words => self.words(),
            StageName::Finetune => self.finetune(),
            StageName::Sharpen => self.sharpen(),
        }?;
        let skipped = self.feed.unreadable();
        if skipped > 0 {
            tracing::warn!(skipped, "photos that could not be read gave way to others");
        }
        Ok(weights)
    }

    /// Stage 1, after the teachers.
    ///
    /// # Errors
    /// Of the stages.
    pub fn probe(&self) -> Result<(Teachers<B>, Weights)> {
        let (mut teachers, student) = self.teachers()?;
        let probed = distill::probe(&self.recipe, &self.feed, &mut teachers, || student, &self.folder)?;
        Ok((teachers, probed))
    }

    /// Stage 2, after stage 1.
    ///
    /// # Errors
    /// Of the stages.
    pub fn distill(&self) -> Result<(Teachers<B>, Weights)> {
        let (mut teachers, probed) = self.probe()?;
        let distilled = distill::distill(&self.recipe, &self.feed, &mut teachers, || probed, &self.folder)?;
        Ok((teachers, distilled))
    }

    /// Stage 3 if the recipe has it, after stage 2.
    ///
    /// # Errors
    /// Of the stages.
    pub fn adapt(&self) -> Result<Weights> {
        let (mut teachers, distilled) = self.distill()?;
        Ok(distill::adapt(
            &self.recipe,
            &self.feed,
            &mut teachers,
            distilled,
            &self.folder,
        )?)
    }

    /// Other words for the names if the recipe asks for them, after stage 3.
    ///
    /// # Errors
    /// Of the stages.
    pub fn words(&self) -> Result<Weights> {
        let adapted = self.adapt()?;
        let Self {
            recipe, feed, folder, ..
        } = self;
        Ok(words::words(recipe, feed, &self.tokenizer, adapted, folder)?)
    }

    /// The weights of [`RunOptions::start`], or of the stages `before`.
    fn start(&self, before: impl FnOnce(&Self) -> Result<Weights>) -> Result<Weights> {
        match &self.start {
            Some(start) => Ok(import::trained(start, &self.recipe.exported().merged())?),
            None => before(self),
        }
    }

    /// More labelled photos if the recipe has that stage, after the words or from [`RunOptions::start`]; with the CLIP
    /// teacher of the run, or [`RunOptions::clip`].
    ///
    /// # Errors
    /// Of the stages, or of weights that do not fit the recipe.
    pub fn finetune(&self) -> Result<Weights> {
        let trained = self.start(Self::words)?;
        let has_teacher = self.start.is_none() || self.clip.is_some();
        let taught = self.recipe.finetune.is_some() && has_teacher;
        let clip = taught.then(|| self.clip_teacher()).transpose()?;
        let Self {
            recipe, feed, folder, ..
        } = self;
        Ok(finetune::finetune(
            recipe,
            feed,
            &self.tokenizer,
            clip.as_ref(),
            trained,
            folder,
        )?)
    }

    /// The SAM head on the daemon's prompts if the recipe has that stage, after everything else or from
    /// [`RunOptions::start`]: the weights of the bundle.
    ///
    /// # Errors
    /// Of the stages, or of weights that do not fit the recipe.
    pub fn sharpen(&self) -> Result<Weights> {
        let trained = self.start(Self::finetune)?;
        let Self {
            recipe, feed, folder, ..
        } = self;
        Ok(sharpen::sharpen(recipe, feed, &self.tokenizer, trained, folder)?)
    }
}

fn trained<T>(stage: Option<&T>) -> Result<&T> {
    stage.context("a run without a teacher's stage has the teacher's file")
}

/// The bundle's weights before any training, from two checkpoints: backbone and SAM head are SAM's, the text tower is
/// CLIP's, the CLIP head is what stage 1 starts from.
///
/// # Errors
/// A checkpoint that does not fit the recipe.
pub fn untrained(recipe: &Recipe, sam: &Path, clip: &Path) -> Result<Weights> {
    let sam = import::sam(sam, Some(&recipe.sam))?.0;
    let clip = import::clip(clip, Some(&clip_config(recipe)))?.0;
    let student = distill::student(recipe, &sam, &clip);
    Ok(match &recipe.adapt {
        None => student,
        Some(_) => resize::positions(&student, &recipe.sam, &recipe.adapted().sam),
    })
}

/// Opens photos to measure on: every sample is decoded once; those that cannot be are left out and named in the log. Of a folder
/// without a set, `purpose` decides.
///
/// # Errors
/// Patterns that match nothing, unreadable tars, or no readable sample at all.
pub fn open_data(patterns: &[String], layout: Option<Layout>, purpose: Purpose) -> Result<Dataset> {
    let mut dataset = Dataset::open_as(patterns, layout, purpose)?;
    dataset.skip_corrupt();
    opened(dataset, patterns)
}

/// Opens photos to learn from; those that cannot be decoded are found when their turn comes.
fn open_photos(patterns: &[String], layout: Option<Layout>) -> Result<Dataset> {
    opened(Dataset::open_as(patterns, layout, Purpose::Learning)?, patterns)
}

fn opened(dataset: Dataset, patterns: &[String]) -> Result<Dataset> {
    for error in dataset.skipped() {
        tracing::warn!(%error, "sample skipped");
    }
    tracing::info!(
        samples = dataset.len(),
        skipped = dataset.skipped().len(),
        "data opened"
    );
    ensure!(!dataset.is_empty(), "{patterns:?}: no readable sample; check the paths");
    Ok(dataset)
}
