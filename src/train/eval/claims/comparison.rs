//! One merged model against SAM and CLIP as two models: what SAM once and CLIP once per mask (K + 1 passes) cost, and
//! whose features a linear probe segments with best.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::super::clip_tower::{ClipTower, WholePhoto};
use super::super::peak_memory;
use super::super::probing::{Examples, Features, Source, probe};
use super::super::protocol::Protocol;
use super::super::speed::medians_ms;
use super::figures::{Data, open_at};
use super::variants::Made;
use crate::contract::GraphKind;
use crate::train::cost;
use crate::train::dataset::Split;
use crate::train::dataset::augment::Region;
use crate::train::distill;
use crate::train::recipe::Recipe;
use crate::train::teachers::clip_config;
use crate::train::weights::Weights;

/// Numbers of masks that two models classify one by one.
const MASKS: [usize; 4] = [1, 4, 16, 64];

/// Costs of both ways for one picture, on the processor that measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// Merged encoder at the SAM size, ms.
    pub(super) merged_ms: f64,
    /// SAM encoder at the SAM size, ms.
    pub(super) sam_ms: f64,
    /// CLIP image tower on one crop, ms.
    pub(super) clip_ms: f64,
    /// Masks and the time of K + 1 passes, ms.
    pub(super) separate_ms: Vec<(usize, f64)>,
    /// Million parameters of the encoders: merged with its CLIP head; SAM and CLIP together.
    pub(super) parameters: [f64; 2],
    /// Million multiply-accumulates of one picture: merged; SAM once; CLIP once.
    pub(super) mmac: [f64; 3],
    /// Mean IoU of linear probes for segmentation, percent, by features.
    pub(super) probes: Vec<(&'static str, f64)>,
    /// Files in MB: merged encoder; SAM encoder and CLIP image tower.
    pub(super) megabytes: [f64; 2],
    /// Peak resident size of a process that holds and runs the encoders, MiB: none; merged; SAM and CLIP. Absent where no child
    /// could be asked.
    pub(super) peak_mib: Option<[f64; 3]>,
}

/// Names of the probed features: the teachers', and the merged model's with each seed, in the order of [`SEEDS`](super::SEEDS).
pub(super) const TEACHERS: [&str; 2] = ["SAM teacher, neck", "CLIP teacher, tokens"];
pub(super) const MERGED: [[&str; 2]; 3] = [
    ["two-stage, neck", "two-stage, CLIP head"],
    ["repeat, neck", "repeat, CLIP head"],
    ["second repeat, neck", "second repeat, CLIP head"],
];

/// Measures costs on the first validation sample, probes on all; `merged` are trained with three seeds.
pub(super) fn compare(recipe: &Recipe, made: &Made, merged: [&Weights; 3], data: &Data) -> Result<Comparison> {
    let index = data.dataset.indices(Split::Validation).first().copied();
    let sample = data.dataset.get(index.context("no validation sample")?)?;
    let side = recipe.sam.image_size;
    // A head without layers: what is left is SAM's encoder and one projection.
    let mut sam_recipe = recipe.clone();
    sam_recipe.clip_head.layers = 0;
    let mut sam = open_at(
        &sam_recipe,
        &distill::student(&sam_recipe, &made.sam, &made.clip),
        side,
        data,
    )?;
    let mut student = open_at(recipe, merged[0], side, data)?;
    let config = clip_config(recipe);
    let mut clip = ClipTower::open(
        "CLIP",
        "the study",
        &config,
        &made.clip,
        WholePhoto::Stretched,
        &student.bundle,
        &data.runtime,
    )?;
    let bytes = |folder: &std::path::Path| std::fs::metadata(folder).map(|m| m.len() as f64 / 1e6);
    let path = |model: &super::super::segmenter::Segmenter| {
        model
            .bundle
            .graph_path(GraphKind::Encoder, Some(&model.engine.precision))
    };
    let megabytes = [bytes(&path(&student)?)?, bytes(&path(&sam)?)? + clip.bytes as f64 / 1e6];
    let ort = student.engine.provider.starts_with("ort");
    let spec = |model: &super::super::segmenter::Segmenter| model.bundle.manifest.graph_spec(GraphKind::Encoder);
    let (student_path, sam_path, (clip_path, clip_spec)) = (path(&student)?, path(&sam)?, clip.graph());
    let (student_spec, sam_spec) = (spec(&student), spec(&sam));
    let peaks = [
        &[][..],
        &[(student_path.as_path(), &student_spec)],
        &[(sam_path.as_path(), &sam_spec), (clip_path.as_path(), clip_spec)],
    ]
    .map(|graphs| peak_memory::of_child(graphs, ort));
    let peak_mib = match peaks {
        [Some(none), Some(one), Some(two)] => Some([none, one, two]),
        _ => None,
    };
    let whole = Region::whole(&sample.photo);
    let [merged_ms, sam_ms, clip_ms] = medians_ms([
        &mut || student.encode(&sample).map(drop),
        &mut || sam.encode(&sample).map(drop),
        &mut || clip.region(&sample, whole).map(drop),
    ])?;
    let parts = cost::parts(recipe);
    let [encoder, head, ..] = &parts[..] else {
        bail!(
            "{} parts of the model found, expected encoder and CLIP head",
            parts.len()
        );
    };
    let tower = cost::image_tower(&config);
    let (mut again, mut thrice) = (
        open_at(recipe, merged[1], side, data)?,
        open_at(recipe, merged[2], side, data)?,
    );
    let mut probes = Vec::new();
    let examples = Examples::tenths(&data.dataset, data.limit, Protocol::Open);
    let mut add = |name, features: &mut dyn Features| -> Result<()> {
        // The first row is segmentation, see the probe.
        if let Some(found) = probe(features, &examples)?.first() {
            probes.push((name, found.value));
        }
        Ok(())
    };
    add(TEACHERS[0], &mut Source::Neck(&mut sam))?;
    add(TEACHERS[1], &mut clip)?;
    for (names, model) in MERGED.into_iter().zip([&mut student, &mut again, &mut thrice]) {
        add(names[0], &mut Source::Neck(model))?;
        add(names[1], &mut Source::ClipHead(model))?;
    }
    let millions = |count: u64| count as f64 / 1e6;
    Ok(Comparison {
        merged_ms,
        sam_ms,
        clip_ms,
        separate_ms: MASKS.map(|masks| (masks, sam_ms + masks as f64 * clip_ms)).to_vec(),
        parameters: [
            millions(encoder.cost.parameters + head.cost.parameters),
            millions(encoder.cost.parameters + tower.parameters),
        ],
        mmac: [
            encoder.cost.multiply_accumulates + head.cost.multiply_accumulates,
            encoder.cost.multiply_accumulates,
            tower.multiply_accumulates,
        ]
        .map(millions),
        probes,
        megabytes,
        peak_mib,
    })
}
