//! One `train eval`: opens models and data, runs what is asked, and puts the models side by side.

mod models;

use anyhow::{Context, Result, ensure};

use super::instance::{Instances, instances};
use super::options::{Measure, Options};
use super::pair::{GRID, MOST, pair};
use super::presence::presence;
use super::probing::{Examples, Source, probe};
use super::protocol::Protocol;
use super::report::{Entry, Report, Section};
use super::segmenter::Segmenter;
use super::semantic::Photos;
use super::zero_shot::{Accuracy, Difference, Retrieval, accuracy_entries, classify, retrieve};
use super::{chosen, semantic, speed};
use crate::runtime::RuntimeOptions;
use crate::train::dataset::{Dataset, Purpose, Split};
use crate::train::recipe::Recipe;
use crate::train::run::open_data;
use models::{Models, at_stage_2};

/// What is asked of which photos.
struct Data<'a> {
    dataset: &'a Dataset,
    part: Option<Split>,
    limit: usize,
    protocol: Protocol,
    /// What probes are fitted on, if not nine tenths of the data.
    fitted: Option<&'a Dataset>,
}

impl<'a> Data<'a> {
    fn photos(&self) -> Photos<'a> {
        Photos {
            dataset: self.dataset,
            part: self.part,
            limit: self.limit,
            protocol: self.protocol,
        }
    }
}

/// Runs a study.
///
/// # Errors
/// What cannot be read, opened or run; no model at all.
pub fn run(options: &Options) -> Result<Report> {
    let recipe = options.recipe.as_deref().map(Recipe::read).transpose()?;
    let protocol = Protocol::asked(options)?;
    let dataset = open_data(&options.data, options.layout, Purpose::Measuring)?;
    let fitted = fitted(options, &dataset)?;
    let part = options.part();
    let mut models = Models::open(options, recipe.as_ref(), &RuntimeOptions::default())?;
    let any = models.segmenters().next().is_some();
    ensure!(
        any,
        "no model; give --bundle DIR, or --recipe FILE with --checkpoint, --run, or --sam and --clip"
    );
    let data = Data {
        dataset: &dataset,
        part: part.split(),
        limit: options.limit,
        protocol,
        fitted: fitted.as_ref(),
    };
    let count = chosen(&dataset, part.split()).count();
    let limited = if options.limit < count {
        format!(", at most {}", options.limit)
    } else {
        String::new()
    };
    let sections = sections(&mut models, &data, options, recipe.as_ref())?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        data: options.data.clone(),
        part: format!("{}, {count} samples{limited}", part.name()),
        skipped: dataset.skipped().iter().map(ToString::to_string).collect(),
        models: models.facts(),
        sections,
    };
    for (path, text) in [
        (&options.json, serde_json::to_string_pretty(&report)?),
        (&options.markdown, report.markdown()),
    ] {
        if let Some(path) = path {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(report)
}

fn sections(models: &mut Models, data: &Data<'_>, options: &Options, recipe: Option<&Recipe>) -> Result<Vec<Section>> {
    let Data {
        dataset, part, limit, ..
    } = *data;
    let mut sections = Vec::new();
    let forgetting = options.wants(Measure::Forgetting) && models.sam.is_some();
    let mut accuracies: Vec<(String, Vec<Accuracy>)> = Vec::new();
    let mut masks: Vec<(String, Instances)> = Vec::new();
    if options.wants(Measure::Classification) || forgetting {
        for (name, model) in models.image_text() {
            tracing::info!(model = %name, "zero-shot classification");
            accuracies.push((name, classify(model, dataset, part, limit)?));
        }
        let columns = accuracies
            .iter()
            .map(|(name, found)| (name.clone(), accuracy_entries(found)));
        sections.push(Section::new(
            "Zero-shot classification",
            &with_input(CLASSIFICATION, models),
            columns.collect(),
        ));
    }
    let mut recalls: Vec<(String, Retrieval)> = Vec::new();
    if options.wants(Measure::Retrieval) {
        for (name, model) in models.image_text() {
            tracing::info!(model = %name, "retrieval");
            recalls.push((name, retrieve(model, dataset, part, limit)?));
        }
        let columns = recalls.iter().map(|(name, found)| (name.clone(), found.entries()));
        let protocol = with_input(RETRIEVAL, models);
        sections.push(Section::new("Retrieval by captions", &protocol, columns.collect()));
    }
    if options.wants(Measure::Instance) || forgetting {
        for model in models.segmenters() {
            tracing::info!(model = %model.name, "masks from prompts");
            masks.push((model.name.clone(), instances(model, dataset, part, limit)?));
        }
        let columns = masks.iter().map(|(name, found)| (name.clone(), found.entries()));
        sections.push(Section::new("Masks from boxes and points", INSTANCE, columns.collect()));
    }
    if forgetting {
        sections.push(forgotten(models.students.len(), &accuracies, &masks));
    }
    if options.wants(Measure::Semantic) {
        let mut columns = Vec::new();
        for model in &mut models.students {
            tracing::info!(model = %model.name, "semantic segmentation");
            let found = semantic::semantic(model, &data.photos())?;
            if columns.is_empty() {
                columns.push(("one class everywhere".to_owned(), found.constant_entries()));
            }
            columns.push((model.name.clone(), found.entries()));
        }
        sections.push(Section::new(
            "Zero-shot semantic segmentation, IoU %",
            data.protocol.semantic(),
            columns,
        ));
    }
    if options.wants(Measure::Words) {
        let mut columns = Vec::new();
        for model in &mut models.students {
            tracing::info!(model = %model.name, "semantic segmentation in other words");
            let found = semantic::in_other_words(model, &data.photos())?;
            columns.push((model.name.clone(), found.entries()));
        }
        sections.push(Section::new("The same, asked in other words, IoU %", WORDS, columns));
    }
    if options.wants(Measure::Pair)
        && let (Some(sam), Some(clip)) = (&mut models.sam, &mut models.clip)
    {
        tracing::info!("SAM and CLIP as two models");
        let column = (
            "SAM teacher + CLIP teacher".to_owned(),
            pair(sam, clip, &data.photos())?.entries(),
        );
        let protocol = format!("{PAIR} Grid {GRID}x{GRID}, at most {MOST} masks.");
        sections.push(Section::new(
            "SAM and CLIP as two models, IoU %",
            &protocol,
            vec![column],
        ));
    }
    if options.wants(Measure::Probing) {
        let examples = match data.fitted {
            Some(fitted) => Examples::apart(fitted, &data.photos()),
            None => Examples::tenths(dataset, limit, data.protocol),
        };
        let mut columns = Vec::new();
        let name = |model: &Segmenter, what: &str| format!("{}, {what}", model.name);
        for model in &mut models.students {
            tracing::info!(model = %model.name, "linear probes");
            let head = name(model, "CLIP head");
            columns.push((head, probe(&mut Source::ClipHead(model), &examples)?));
            let neck = name(model, "neck");
            columns.push((neck, probe(&mut Source::Neck(model), &examples)?));
        }
        if let Some(sam) = &mut models.sam {
            columns.push((name(sam, "neck"), probe(&mut Source::Neck(sam), &examples)?));
        }
        if let Some(clip) = &mut models.clip {
            columns.push((format!("{}, last block", clip.name), probe(clip, &examples)?));
        }
        let protocol = probing_protocol(&options.probe_train);
        sections.push(Section::new("Linear probes on frozen features", &protocol, columns));
    }
    if options.wants(Measure::Presence) {
        for model in &mut models.students {
            tracing::info!(model = %model.name, "presence");
            let found = presence(&mut model.engine, &model.bundle, dataset, part, limit)?;
            sections.push(found.section(&model.name, PRESENCE));
        }
    }
    if options.wants(Measure::Cost)
        && let Some(first) = chosen(dataset, part).next()
    {
        let photo = dataset.get(first)?;
        let mut columns = Vec::new();
        let stage_2 = recipe.map(at_stage_2);
        for model in models.segmenters() {
            let native = recipe.is_some_and(|r| r.sam.image_size == model.bundle.manifest.encoder.side);
            let recipe = if native { stage_2.as_ref() } else { recipe };
            columns.push((model.name.clone(), speed::segmenter(model, &photo, recipe)?));
        }
        if let Some(clip) = &mut models.clip {
            columns.push((clip.name.clone(), speed::clip_tower(clip, &photo)?));
        }
        let protocol = format!("{COST} Median of {} runs.", speed::RUNS);
        sections.push(Section::new("Cost", &protocol, columns));
    }
    sections.retain(|section| !section.rows.is_empty());
    Ok(sections)
}

/// What probes are fitted on where --probe-train names it; its masks have to mean the same as those of `scored`.
fn fitted(options: &Options, scored: &Dataset) -> Result<Option<Dataset>> {
    if options.probe_train.is_empty() || !options.wants(Measure::Probing) {
        return Ok(None);
    }
    let fitted = open_data(&options.probe_train, options.layout, Purpose::Learning)?;
    ensure!(
        fitted.names().is_empty() || scored.names().is_empty() || fitted.names() == scored.names(),
        "{} and {} name classes differently; --probe-train needs another set of the same collection",
        options.probe_train.join(" "),
        options.data.join(" ")
    );
    Ok(Some(fitted))
}

/// The protocol of linear probes that are fitted on `train`, or on nine tenths of the data if that is nothing.
fn probing_protocol(train: &[String]) -> String {
    let examples = if train.is_empty() {
        "Fitted on the nine training tenths, scored on the validation tenth, whatever part the other tables show."
            .into()
    } else {
        format!(
            "Fitted on all of {}, scored on the data of the other tables.",
            train.join(" ")
        )
    };
    format!("{PROBING_FIT} {examples} {PROBING_SCORE}")
}

/// A protocol of whole photos, with what the models see of them.
fn with_input(protocol: &str, models: &Models) -> String {
    let clip = models.clip.as_ref().map_or("", |clip| clip.whole.protocol());
    let stretched = models.students.first().is_some_and(Segmenter::stretches);
    let students = match stretched {
        true => "Bundles and checkpoints see all of it, stretched.",
        false => "Bundles and checkpoints see all of it, letterboxed.",
    };
    format!("{protocol} {students} {clip}").trim_end().to_owned()
}

/// Differences of each student to the teachers, in points.
fn forgotten(students: usize, accuracies: &[(String, Vec<Accuracy>)], masks: &[(String, Instances)]) -> Section {
    let (sam, clip) = (&masks[students].1, &accuracies[students].1);
    let together = |models: &[Accuracy]| models.iter().flat_map(|a| a.right.iter().copied()).collect::<Vec<_>>();
    let teacher = together(clip);
    let mut columns = Vec::new();
    for ((name, masks), (_, accuracies)) in masks.iter().zip(accuracies).take(students) {
        let points = |own: f64, teacher: f64| 100.0 * (own - teacher);
        let mut entries = vec![
            Entry::new(
                "box, mean IoU against the SAM teacher",
                points(masks.boxes.value(), sam.boxes.value()),
                1,
            ),
            Entry::new(
                "one point, mean IoU against the SAM teacher",
                points(masks.points.value(), sam.points.value()),
                1,
            ),
        ];
        let each = accuracies.iter().zip(clip);
        let each = each.map(|(own, teacher)| (own.collection.as_str(), &own.right[..], &teacher.right[..]));
        let own = together(accuracies);
        for (collection, own, teacher) in each.chain([("all photos with labels", &own[..], &teacher[..])]) {
            if let Some(found) = Difference::paired(own, teacher) {
                let head = format!("{collection}: top-1 against the CLIP teacher");
                entries.push(Entry::new(&head, 100.0 * found.mean, 1));
                let error = found.error.map(|error| 100.0 * error);
                entries.extend(error.map(|error| Entry::new(format!("{head}, standard error"), error, 1)));
            }
        }
        columns.push((name.clone(), entries));
    }
    Section::new("Forgetting", FORGETTING, columns)
}

const CLASSIFICATION: &str = "The image embedding against every name that the photo's collection gives to any photo (80 \
    templates averaged); photos with one name, or a name and a finer one, which is asked.";
const RETRIEVAL: &str = "The image embedding against every caption as it is. R@K: the right one is among the first K.";
const INSTANCE: &str = "Regions: segments, or connected parts of a class where a photo has none; at least 0.2 % of the \
    photo, the 20 largest. Box: tight, single-mask output. Point: deepest inside, the mask of the highest predicted IoU \
    of three. No AP: prompts come from labels, so no detections are ranked.";
const FORGETTING: &str = "Student minus teacher in points; negative is forgotten. Each model at its own input size. \
    Standard error: of the difference on the same photos; two of them are what chance may do.";
const WORDS: &str =
    "As zero-shot semantic segmentation, each name replaced by the first of its other words where it has one.";
const PAIR: &str = "The SAM teacher's mask at each point of a grid, duplicates above IoU 0.7 dropped; the box of \
    each mask, cropped, goes through the CLIP teacher; names and background prompts compete by softmax, under \
    published-no-background the names alone; what no mask covers has no name. Pixels count as in zero-shot \
    semantic segmentation. K + 1 passes per photo.";
const PROBING_FIT: &str = "Ridge regression on one-hot targets, standardised features, penalty 0.001 per example.";
const PROBING_SCORE: &str = "Segmentation: cells of the feature map, scores bilinear on the photo, labelled pixels of the \
    classes, under published with background as one more. Classification: collections with at least twice as many \
    training photos as names.";
const PRESENCE: &str = "Labelled photos. Absent: ten names of the table that the collection annotates and the photo \
    lacks. Outside: ten words that no mask is named by, unless the photo's own words mention one. Present: labelled \
    names of at least 1 % of the photo. Frames are letterboxed as the daemon's. Alarm, hit: the daemon would publish a mask; located: its masks reach IoU 0.5. \
    Together: a list is asked at once; alone: each query against background prompts only. Per ten queries, and in \
    percent.";
const COST: &str = "The first photo; graphs as they are shipped.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::eval::presence::Share;

    #[test]
    fn the_report_says_what_probes_were_fitted_on() {
        assert!(probing_protocol(&[]).contains("nine training tenths"));
        let apart = probing_protocol(&["imagenet@train".to_owned()]);
        assert!(
            apart.contains("Fitted on all of imagenet@train") && !apart.contains("tenths"),
            "{apart}"
        );
    }

    #[test]
    fn probes_are_not_fitted_on_masks_that_mean_something_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = |set: &str, name: &str| {
            let path = root.path().join(set);
            for set in ["training", "validation"] {
                let (photos, masks) = (path.join("images").join(set), path.join("annotations").join(set));
                std::fs::create_dir_all(&photos).unwrap();
                std::fs::create_dir_all(&masks).unwrap();
                let picture = image::RgbImage::from_pixel(2, 2, image::Rgb([9; 3]));
                picture.save(photos.join(format!("{set}.png"))).unwrap();
                let mask = image::GrayImage::from_pixel(2, 2, image::Luma([1]));
                mask.save(masks.join(format!("{set}.png"))).unwrap();
            }
            std::fs::write(path.join("objectInfo150.txt"), format!("Idx\tName\n1\t{name}\n")).unwrap();
            path.display().to_string()
        };
        let (walls, skies) = (folder("walls", "wall"), folder("skies", "sky"));
        let scored = open_data(std::slice::from_ref(&walls), None, Purpose::Measuring).unwrap();
        let with = |train: &str| Options {
            data: vec![walls.clone()],
            probe_train: vec![train.to_owned()],
            ..Options::default()
        };
        let found = fitted(&with(&walls), &scored).unwrap().unwrap();
        assert_eq!(
            [&found, &scored].map(|set| set.samples()[0].key.as_str()),
            ["training", "validation"]
        );
        let error = fitted(&with(&skies), &scored).unwrap_err().to_string();
        assert!(
            error.contains("skies") && error.contains("name classes differently"),
            "{error}"
        );
        assert!(fitted(&Options::default(), &scored).unwrap().is_none());
    }

    #[test]
    fn what_is_forgotten_is_told_per_collection_and_of_all_photos_together() {
        let accuracy = |collection: &str, right: &[bool]| Accuracy {
            collection: collection.into(),
            names: 5,
            right: right.to_vec(),
            top5: Share::default(),
        };
        let model = |name: &str, a: &[bool], b: &[bool]| (name.to_owned(), vec![accuracy("a", a), accuracy("b", b)]);
        let student = model("student", &[true, false, false], &[false]);
        let teacher = model("teacher", &[true, true, false], &[true]);
        let masks = ["student", "teacher"].map(|name| (name.to_owned(), Instances::default()));
        let section = forgotten(1, &[student, teacher], &masks);
        let value = |name: &str| {
            let row = section.rows.iter().find(|row| row.name == name)?;
            row.values[0]
        };
        let close = |name: &str, expected: f64| {
            let found = value(name).unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found}");
        };
        close("a: top-1 against the CLIP teacher", -100.0 / 3.0);
        close("b: top-1 against the CLIP teacher", -100.0);
        assert_eq!(
            value("b: top-1 against the CLIP teacher, standard error"),
            None,
            "of one photo"
        );
        close("all photos with labels: top-1 against the CLIP teacher", -50.0);
        // differences 0, -1, 0, -1: their squares about the mean add up to 1
        let error = 100.0 * (1.0_f64 / (4.0 * 3.0)).sqrt();
        close(
            "all photos with labels: top-1 against the CLIP teacher, standard error",
            error,
        );
    }
}
