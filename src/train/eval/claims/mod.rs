//! `train study`: the paper's claims, tested at small scale.
//!
//! One small recipe is trained in the ways that the paper compares, on drawn scenes and, if there are any, on photos:
//! [`variants`] lists them. Every result is measured the same way ([`figures`]); what three runs that differ in their seed alone are
//! apart at most is the noise that an effect has to exceed ([`verdict`]). [`report`] writes it all down. A stopped study goes
//! on where it was: every variant is a run with checkpoints.

mod comparison;
mod figures;
mod pictures;
mod plot;
mod report;
mod variants;
mod verdict;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};

use anyhow::{Context, Result, ensure};

use crate::runtime::RuntimeOptions;
use crate::text::tokenizer::Tokenizer;
use crate::train::dataset::{Dataset, Purpose};
use crate::train::processes::Processes;
use crate::train::recipe::Recipe;
use crate::train::run::open_data;
use crate::train::session::RunFolder;
use crate::train::synth;

/// What `train study` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Recipe of the small model, for example models/study/recipe.toml.
    #[arg(long)]
    pub recipe: PathBuf,
    /// WebDataset tars of photos or globs of them; drawn scenes alone without any.
    #[arg(long, num_args = 1..)]
    pub data: Vec<String>,
    /// Folder of the runs and of the report (report.md, figures.json, plots and pictures).
    #[arg(long)]
    pub out: PathBuf,
    /// At most so many validation samples per measurement.
    #[arg(long, default_value_t = 100)]
    pub photos: usize,
    /// Drawn scenes to train and measure on.
    #[arg(long, default_value_t = 1500)]
    pub scenes: u64,
}

/// The variants that differ in their seed alone: the paper's training, and the noise.
const SEEDS: [&str; 3] = ["two-stage", "repeat", "second repeat"];

/// One data set of the study.
struct Source {
    name: &'static str,
    dataset: Arc<Dataset>,
}

/// Everything that was measured on one data set.
struct Results {
    source: &'static str,
    samples: usize,
    /// What `Figures::understanding` is on this data.
    understanding: &'static str,
    variants: Vec<variants::Trained>,
    interpolated: Vec<(f32, figures::Figures)>,
    sizes: Vec<figures::AtSize>,
    comparison: comparison::Comparison,
}

/// Trains, measures and writes the report; returns its path.
///
/// # Errors
/// What cannot be read, trained, measured or written.
pub fn run(options: &Options) -> Result<PathBuf> {
    let recipe = Recipe::read(&options.recipe)?;
    ensure!(
        recipe.teach_sam.is_some() && recipe.teach_clip.is_some() && recipe.distill.separate.is_some(),
        "{}: a study needs [teach_sam], [teach_clip] and distill.separate",
        options.recipe.display()
    );
    recipe.precision.check::<Flex>(&FlexDevice)?;
    made(&options.out)?;
    let mut sources = vec![scenes(options, &recipe)?];
    if !options.data.is_empty() {
        sources.push(Source {
            name: "photos",
            dataset: Arc::new(open_data(&options.data, None, Purpose::Learning)?),
        });
    }
    let mut results = Vec::new();
    for source in sources {
        results.push(study(&recipe, source, options)?);
    }
    report::write(options, &recipe, &results)
}

/// The drawn scenes as a data set with a split of its own.
fn scenes(options: &Options, recipe: &Recipe) -> Result<Source> {
    let tar = made(&options.out.join("drawn"))?.join("scenes.tar");
    synth::shard::write_files(&tar, recipe.seed, options.scenes, recipe.sam.image_size)?;
    let dataset = Arc::new(open_data(&[tar.display().to_string()], None, Purpose::Measuring)?);
    Ok(Source { name: "drawn", dataset })
}

fn study(recipe: &Recipe, source: Source, options: &Options) -> Result<Results> {
    let Source { name, dataset } = source;
    let folder = RunFolder {
        path: made(&options.out.join(name))?,
        data: dataset.fingerprint(),
        teachers: String::new(),
        processes: Processes::alone(),
        device: FlexDevice,
    };
    let data = figures::Data {
        dataset: Arc::clone(&dataset),
        limit: options.photos,
        runtime: RuntimeOptions::default(),
        words: RefCell::default(),
    };
    let tokenizer = Tokenizer::shortened(recipe.merges)?;
    let teachers = variants::Made::train(recipe, &dataset, &tokenizer, &folder)?;
    let trained = variants::all(recipe, &teachers, &folder, &data)?;
    let find = |name: &str| {
        trained
            .iter()
            .find(|v| v.name == name)
            .expect("the table of variants has it")
    };
    let interpolated = variants::interpolated(recipe, &find("probed").weights, &find("naive").weights, &data)?;
    let mut sizes = Vec::new();
    for name in ["two-stage", "all sizes"] {
        sizes.extend(figures::at_sizes(name, recipe, &find(name).weights, &data)?);
    }
    let merged = SEEDS.map(|name| &find(name).weights);
    let comparison = comparison::compare(recipe, &teachers, merged, &data)?;
    if name == "drawn" {
        pictures::write(&options.out, &trained, &data)?;
    }
    Ok(Results {
        source: name,
        samples: dataset.len(),
        understanding: figures::understanding_name(&dataset),
        variants: trained,
        interpolated,
        sizes,
        comparison,
    })
}

fn made(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.to_owned())
}
