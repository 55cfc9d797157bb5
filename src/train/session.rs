//! One training stage: steps, checkpoints, resume.
//!
//! The batch of step `i` is a function of seed, stage and `i` alone, and a checkpoint holds weights, moments and the
//! step count; so a run that was killed goes on exactly where its last checkpoint was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use burn_autodiff::Autodiff;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, read_sync};
use burn_flex::Flex;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::train::autodiff::Graph;
use crate::train::curve;
use crate::train::feed::FeedError;
use crate::train::frozen::StoreError;
use crate::train::kernels::Kernels;
use crate::train::optimizer::{AdamW, AdamWConfig, Gradients};
use crate::train::precision::Precision;
use crate::train::processes::Processes;
use crate::train::recipe::{Recipe, Stage, StageName, Watch};
use crate::train::schedule::warmup_cosine;
use crate::train::weights::{self, Values, Weights, WeightsError};

/// A backend with gradients.
pub type Tape<B> = Autodiff<B>;
/// A tensor of [`Tape`].
pub type Tensor<B> = FloatTensor<Tape<B>>;

/// Steps between checkpoints.
const CHECKPOINT_EVERY: u64 = 100;

/// Why a stage stopped.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Reading or writing a checkpoint.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The checkpoint belongs to another run.
    #[error("{path}: made from {found}, this run is {expected}; choose another folder or delete the file")]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// Its run's identity.
        found: String,
        /// This run's.
        expected: String,
    },
    /// The curve beside the checkpoint.
    #[error("{path}: cannot append: {source}; free space or make the folder writable, and run again")]
    Curve {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The photos.
    #[error(transparent)]
    Data(#[from] FeedError),
    /// What frozen networks say cannot be kept.
    #[error(transparent)]
    Features(#[from] StoreError),
    /// The loss or its gradient is not a finite number.
    #[error(
        "stage {stage}, step {step}: loss is {loss}, and it or its gradient is no finite number; lower the stage's learning_rate \
         in the recipe and delete {path}, if it is there, which is bound to the old one; earlier stages are kept"
    )]
    NotFinite {
        /// The stage.
        stage: String,
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
        /// The stage's checkpoint.
        path: PathBuf,
    },
}

/// What a checkpoint is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The part of the recipe that decides the stage's result, as TOML ([`Recipe::deciding`]).
    ///
    /// [`Recipe::deciding`]: crate::train::recipe::Recipe::deciding
    pub recipe: String,
    /// Fingerprint of the data.
    pub data: String,
}

impl Identity {
    /// What differs from `other`, as both sides have it: the data, or the keys of the recipe.
    fn difference(&self, other: &Self) -> Option<(String, String)> {
        if self.data != other.data {
            return Some((format!("data {:?}", self.data), format!("data {:?}", other.data)));
        }
        if self.recipe == other.recipe {
            return None;
        }
        let [ours, theirs] = [&self.recipe, &other.recipe].map(|text| keys(text));
        let only = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
            let lines = a.iter().filter(|(k, v)| b.get(*k) != Some(v));
            let lines: Vec<String> = lines.map(|(k, v)| format!("{k} = {v}")).collect();
            format!(
                "recipe with {}",
                if lines.is_empty() {
                    "nothing more".into()
                } else {
                    lines.join(", ")
                }
            )
        };
        Some((only(&ours, &theirs), only(&theirs, &ours)))
    }
}

/// Dotted keys of a TOML text and their values; a text that is none is one key.
fn keys(text: &str) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: &toml::Table, out: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let name = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                toml::Value::Table(inner) => flatten(&name, inner, out),
                other => {
                    out.insert(name, other.to_string());
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    match text.parse::<toml::Table>() {
        Ok(table) => flatten("", &table, &mut out),
        Err(_) => {
            out.insert("text".into(), format!("{text:?}"));
        }
    }
    out
}

/// Where a run keeps its checkpoints, the data it is made from, and what computes it: the CPU, or another backend `B`.
#[derive(Clone, Debug)]
pub struct RunFolder<B: Kernels = Flex> {
    /// The folder.
    pub path: PathBuf,
    /// Fingerprint of the photos.
    pub data: String,
    /// Fingerprint of the teachers that are somebody's checkpoints; empty where the recipe trains both.
    pub teachers: String,
    /// The processes that train together.
    pub processes: Processes,
    /// The device that this process computes on.
    pub device: B::Device,
}

impl<B: Kernels> RunFolder<B> {
    /// The checkpoint file of a stage.
    #[must_use]
    pub fn checkpoint(&self, stage: StageName) -> PathBuf {
        self.path.join(format!("{}.safetensors", stage.checkpoint()))
    }

    /// What the result of a stage of `recipe` is bound to.
    #[must_use]
    pub fn identity(&self, recipe: &Recipe, stage: StageName) -> Identity {
        let data = match (stage, self.processes.count()) {
            (StageName::TeachSam | StageName::TeachClip, _) => self.data.clone(),
            (_, 1) => format!("{}{}", self.data, self.teachers),
            (_, count) => format!("{}{}, {count} processes", self.data, self.teachers),
        };
        Identity {
            recipe: recipe.deciding(stage),
            data,
        }
    }

    /// Opens a stage of `recipe`: from its checkpoint if there is one, else from `initial`.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn session(
        &self,
        recipe: &Recipe,
        stage: StageName,
        initial: impl FnOnce() -> Weights,
    ) -> Result<Session<B>, SessionError> {
        let identity = self.identity(recipe, stage);
        let checkpoint = self.checkpoint(stage);
        let mut session = Session::open(&checkpoint, stage.checkpoint(), identity, self.device.clone(), initial)?;
        session.processes = self.processes.clone();
        session.precision = recipe.precision;
        Ok(session)
    }

    /// Whether a stage's checkpoint holds its last step.
    ///
    /// # Errors
    /// [`SessionError::Weights`] for a checkpoint that cannot be read.
    pub fn is_finished(&self, name: StageName, stage: &Stage) -> Result<bool, SessionError> {
        let path = self.checkpoint(name);
        let step = |path| Ok::<_, SessionError>(weights::read_metadata(path)?.get("step").cloned());
        Ok(path.exists() && step(&path)? == Some(stage.steps.to_string()))
    }
}

/// Loss of one step and its named parts, for the log.
pub struct StepLoss<B: Kernels> {
    /// The scalar that is minimised.
    pub total: Tensor<B>,
    /// Parts by name.
    pub parts: Vec<(&'static str, f32)>,
}

/// A stage in progress.
pub struct Session<B: Kernels = Flex> {
    path: PathBuf,
    name: String,
    identity: Identity,
    /// Current weights.
    pub weights: Weights,
    optimizer: AdamW,
    /// Moving averages of the weights that learn, where the stage asks for them and is not at its end.
    average: Weights,
    watched: Watched,
    measure: Option<Measure>,
    processes: Processes,
    device: B::Device,
    precision: Precision,
}

/// A measure of what the student has kept, in points; more is better.
pub type Measure = Box<dyn FnMut(&Weights) -> f32>;

/// State of an early stop.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Watched {
    /// Best look so far.
    best: Option<f32>,
    /// Whether the stage has ended before its last step.
    stopped: bool,
}

/// Prefix of averaged weights in a checkpoint.
const AVERAGE: &str = "average.";

/// The model's weights of a checkpoint, without what only a resumed run needs: moments and averages.
#[must_use]
pub fn model_weights(checkpoint: Weights) -> Weights {
    let state = |name: &str| {
        [AVERAGE, "first.", "second."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    checkpoint.into_iter().filter(|(name, _)| !state(name)).collect()
}

impl<B: Kernels> Session<B> {
    /// Opens the stage `name` on `device`: from the checkpoint `path` if there is one, else from `initial`.
    ///
    /// # Errors
    /// [`SessionError`] if the checkpoint is damaged or belongs to another recipe or other data.
    pub fn open(
        path: &Path,
        name: &str,
        identity: Identity,
        device: B::Device,
        initial: impl FnOnce() -> Weights,
    ) -> Result<Self, SessionError> {
        let path = path.to_owned();
        let mut session = Self {
            path: path.clone(),
            name: name.into(),
            identity,
            weights: Weights::new(),
            optimizer: AdamW::default(),
            average: Weights::new(),
            watched: Watched::default(),
            measure: None,
            processes: Processes::alone(),
            device,
            precision: Precision::Fp32,
        };
        if !path.exists() {
            session.weights = initial();
            return Ok(session);
        }
        let metadata = weights::read_metadata(&path)?;
        let field = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let found = Identity {
            recipe: field("recipe"),
            data: field("data"),
        };
        if let Some((found, expected)) = found.difference(&session.identity) {
            return Err(SessionError::OtherRun { path, found, expected });
        }
        let step = field("step").parse().unwrap_or(0);
        session.watched = Watched {
            best: field("best_look").parse().ok(),
            stopped: field("stopped") == "early",
        };
        let checkpoint = weights::read(&path)?;
        session.optimizer = AdamW::from_weights(step, &checkpoint);
        let average =
            |(name, values): (&String, &Values)| Some((name.strip_prefix(AVERAGE)?.to_owned(), values.clone()));
        session.average = checkpoint.iter().filter_map(average).collect();
        session.weights = model_weights(checkpoint);
        Ok(session)
    }

    /// Steps taken.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.optimizer.step
    }

    /// The processes that train together.
    #[must_use]
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// Writes the checkpoint, if this is the first of the processes.
    ///
    /// # Errors
    /// [`SessionError::Weights`] if it cannot be written; the previous one is kept.
    pub fn save(&self) -> Result<(), SessionError> {
        if !self.processes.is_first() {
            return Ok(());
        }
        let mut all = self.weights.clone();
        all.extend(self.optimizer.to_weights());
        let average = |(name, values): (&String, &Values)| (format!("{AVERAGE}{name}"), values.clone());
        all.extend(self.average.iter().map(average));
        let metadata = BTreeMap::from([
            ("stage".to_owned(), self.name.clone()),
            ("step".to_owned(), self.optimizer.step.to_string()),
            ("recipe".to_owned(), self.identity.recipe.clone()),
            ("data".to_owned(), self.identity.data.clone()),
            (
                "stopped".to_owned(),
                if self.watched.stopped { "early" } else { "" }.to_owned(),
            ),
            (
                "best_look".to_owned(),
                self.watched.best.map_or_else(String::new, |best| best.to_string()),
            ),
        ]);
        Ok(weights::write(&self.path, &all, &metadata)?)
    }

    /// Has `measure` look at the weights as the stage's `watch` says.
    pub fn watch_with(&mut self, measure: Measure) {
        self.measure = Some(measure);
    }

    /// The file with the weights of the best look.
    fn best_path(&self) -> PathBuf {
        self.path.with_extension("best.safetensors")
    }

    /// Appends values of the current step to the stage's [`curve`].
    fn record<'a>(&self, values: impl Iterator<Item = (&'a str, f32)>) -> Result<(), SessionError> {
        if !self.processes.is_first() {
            return Ok(());
        }
        let path = self.path.with_extension("curve.csv");
        curve::append(&path, self.step(), values).map_err(|source| SessionError::Curve { path, source })
    }

    /// One look: keeps the weights if they are the best so far; if they lost more than `watch` tolerates, takes back the
    /// best ones and says so with true.
    fn look(&mut self, watch: &Watch) -> Result<bool, SessionError> {
        let Some(measure) = &mut self.measure else {
            return Ok(false);
        };
        // One process looks and tells the others: figures of unlike machines may differ, and all have to take the same way.
        let mut found = if self.processes.is_first() {
            measure(&self.weights)
        } else {
            0.0
        };
        self.processes.sum(&mut found, &mut Gradients::new());
        let best = self.watched.best.unwrap_or(f32::MIN);
        tracing::info!(stage = %self.name, step = self.step(), mask_iou = found, best, "kept of SAM, in points");
        self.record(std::iter::once(("box mask IoU", found)))?;
        if found >= best {
            self.watched.best = Some(found);
            if self.processes.is_first() {
                weights::write(&self.best_path(), &self.weights, &BTreeMap::new())?;
            }
            self.processes.meet();
        }
        if found >= best - watch.tolerance {
            return Ok(false);
        }
        tracing::warn!(stage = %self.name, step = self.step(), mask_iou = found, best, tolerance = watch.tolerance,
            "the student forgets: the stage ends here, with the weights of the best look");
        self.weights = weights::read(&self.best_path())?;
        self.average.clear();
        self.watched.stopped = true;
        self.save()?;
        Ok(true)
    }

    /// Runs the stage to its end: `batch` makes the micro-batches of a step on another thread, `loss` computes one of them,
    /// and their gradients add up. `rate` gives each weight's factor on the learning rate, 0 for frozen weights.
    ///
    /// # Errors
    /// [`SessionError`] if a checkpoint cannot be written, photos cannot be read or the loss is not finite.
    pub fn run<I: Send>(
        &mut self,
        stage: &Stage,
        optimizer: &AdamWConfig,
        rate: impl Fn(&str) -> f32,
        batch: impl Fn(u64) -> Result<Vec<I>, FeedError> + Sync,
        mut loss: impl FnMut(&Graph<Tape<B>>, I) -> StepLoss<B>,
    ) -> Result<(), SessionError> {
        if self.watched.stopped {
            return Ok(());
        }
        if let (Some(watch), 0) = (&stage.watch, self.step()) {
            self.look(watch)?;
        }
        let progress = progress_bar(&self.name, stage.steps, self.step());
        if !self.processes.is_first() {
            progress.set_draw_target(ProgressDrawTarget::hidden());
        }
        let mut log = Log::default();
        let first = self.step();
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(2);
            let batch = &batch;
            scope.spawn(move || {
                // A closed channel means that the loop below ended early.
                (first..stage.steps).try_for_each(|step| send.send(batch(step)).ok())
            });
            for step in first..stage.steps {
                let waited = Instant::now();
                let Ok(inputs) = receive.recv() else { break };
                let inputs = inputs?;
                log.input_wait += waited.elapsed();
                let started = Instant::now();
                let (mut value, mut summed) = (0.0, Gradients::new());
                for input in inputs {
                    let (part, parts, more) = gradients(&self.weights, &self.device, self.precision, &rate, |graph| {
                        loss(graph, input)
                    });
                    value += part;
                    log.add(&parts);
                    add(&mut summed, more);
                }
                self.processes.sum(&mut value, &mut summed);
                let base = stage.learning_rate * warmup_cosine(step, stage.steps, stage.warmup);
                let (adam, weights) = (&mut self.optimizer, &mut self.weights);
                let taken = value
                    .is_finite()
                    .then(|| adam.step(optimizer, weights, &summed, |name| base * rate(name)));
                let Some(norm) = taken.flatten() else {
                    return Err(SessionError::NotFinite {
                        stage: self.name.clone(),
                        step,
                        loss: value,
                        path: self.path.clone(),
                    });
                };
                if let Some(kept) = stage.average {
                    self.average(kept, summed.keys());
                }
                if step + 1 == stage.steps {
                    self.weights.append(&mut self.average);
                }
                log.compute += started.elapsed();
                progress.set_position(step + 1);
                if (step + 1).is_multiple_of(25) || step + 1 == stage.steps {
                    progress.set_message(log.line());
                    if self.processes.is_first() {
                        tracing::info!(stage = %self.name, step = step + 1, norm, "{}", log.line());
                    }
                    self.record(log.means())?;
                    log = Log::default();
                }
                if let Some(watch) = stage.watch.as_ref().filter(|w| (step + 1).is_multiple_of(w.every))
                    && self.look(watch)?
                {
                    break;
                }
                if (step + 1).is_multiple_of(CHECKPOINT_EVERY) || step + 1 == stage.steps {
                    self.save()?;
                }
            }
            Ok(())
        })?;
        // The next stage of every process reads what the first one wrote.
        self.processes.meet();
        progress.finish();
        Ok(())
    }
}

impl<B: Kernels> Session<B> {
    /// Moves the averages of `names` towards the current weights, faster in the first steps, when there is little to
    /// average: the share kept is at most (1 + n) / (10 + n) after n steps.
    fn average<'a>(&mut self, kept: f32, names: impl Iterator<Item = &'a String>) {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // exact far beyond any run
        let steps = self.optimizer.step.min(1 << 24) as f32;
        let kept = kept.min((1.0 + steps) / (10.0 + steps));
        for name in names {
            let current = &self.weights[name];
            let average = self.average.entry(name.clone()).or_insert_with(|| current.clone());
            for (a, w) in average.data.iter_mut().zip(&current.data) {
                *a = kept * *a + (1.0 - kept) * w;
            }
        }
    }
}

/// Means since the last line of the log.
#[derive(Default)]
struct Log {
    parts: BTreeMap<&'static str, (f32, u32)>,
    input_wait: Duration,
    compute: Duration,
}

impl Log {
    fn add(&mut self, parts: &[(&'static str, f32)]) {
        for &(name, value) in parts.iter().filter(|(_, v)| v.is_finite()) {
            let (sum, count) = self.parts.entry(name).or_default();
            *sum += value;
            *count += 1;
        }
    }

    fn means(&self) -> impl Iterator<Item = (&'static str, f32)> {
        let parts = self.parts.iter();
        parts.map(|(name, (sum, count))| (*name, sum / *count as f32))
    }

    fn line(&self) -> String {
        let mut line: Vec<String> = self.means().map(|(name, mean)| format!("{name} {mean:.3}")).collect();
        let total = (self.input_wait + self.compute).as_secs_f64().max(1e-9);
        line.push(format!(
            "input wait {:.0} %",
            100.0 * self.input_wait.as_secs_f64() / total
        ));
        line.join(", ")
    }
}

/// A bar with the time that is left.
pub(super) fn progress_bar(name: &str, steps: u64, done: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix} {pos}/{len} {wide_bar} {eta} {msg}").expect("the template is constant");
    let bar = ProgressBar::new(steps)
        .with_style(style)
        .with_prefix(name.to_owned())
        .with_position(done);
    bar.reset_eta();
    bar
}

/// Adds `more` to `sum`.
fn add(sum: &mut Gradients, more: Gradients) {
    for (name, values) in more {
        match sum.entry(name) {
            Entry::Vacant(slot) => {
                slot.insert(values);
            }
            Entry::Occupied(mut slot) => slot.get_mut().iter_mut().zip(values).for_each(|(s, v)| *s += v),
        }
    }
}

/// Loss, its parts, and gradients of every weight whose `rate` is above 0; none where no such weight has a part in the loss.
pub fn gradients<B: Kernels>(
    weights: &Weights,
    device: &B::Device,
    precision: Precision,
    rate: impl Fn(&str) -> f32,
    loss: impl FnOnce(&Graph<Tape<B>>) -> StepLoss<B>,
) -> (f32, Vec<(&'static str, f32)>, Gradients) {
    let parameters = Graph::<Tape<B>>::new(weights, device.clone()).parameters().clone();
    let parameters = parameters.into_iter().map(|(name, tensor)| {
        let tensor = if rate(&name) > 0.0 {
            tensor.require_grad()
        } else {
            tensor
        };
        (name, tensor)
    });
    let graph = Graph::<Tape<B>>::from_parameters(parameters.collect(), device.clone()).with_precision(precision);
    let StepLoss { total, parts } = loss(&graph);
    let value = graph.values(&total)[0];
    let mut gradients = Gradients::new();
    if !total.is_tracked() {
        return (value, parts, gradients);
    }
    let mut tape = Tape::<B>::backward(total);
    for (name, tensor) in graph.parameters() {
        if rate(name) > 0.0
            && let Some(gradient) = Tape::<B>::grad_remove(tensor, &mut tape)
        {
            let data = read_sync(B::float_into_data(gradient)).expect("a gradient can be read back");
            gradients.insert(name.clone(), data.try_into_vec::<f32>().expect("gradients are f32"));
        }
    }
    (value, parts, gradients)
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;
    use crate::train::ops::Ops;

    const CPU: FlexDevice = FlexDevice;

    fn identity(recipe: &str) -> Identity {
        Identity {
            recipe: format!("name = \"x\"\nseed = {recipe}"),
            data: "none".into(),
        }
    }

    fn checkpoint(folder: &Path) -> PathBuf {
        folder.join("test.safetensors")
    }

    fn initial() -> Weights {
        [(
            "w".to_owned(),
            Values {
                shape: vec![3],
                data: vec![1.0, -2.0, 0.5],
            },
        )]
        .into()
    }

    /// 150 steps towards a moving target; the loss of `broken` is not a number.
    fn run(folder: &Path, broken: Option<u64>) -> Result<Weights, SessionError> {
        run_averaged(folder, broken, None)
    }

    /// As `run`, watched every 20 steps by a measure that falls from step `from` on.
    fn run_watched(folder: &Path, broken: Option<u64>, from: u64) -> Result<(Weights, Vec<Weights>), SessionError> {
        let mut session = Session::<Flex>::open(&checkpoint(folder), "test", identity("1"), CPU, initial)?;
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let (record, first) = (std::rc::Rc::clone(&seen), session.step().div_ceil(20));
        session.watch_with(Box::new(move |weights| {
            record.borrow_mut().push(weights.clone());
            let step = (first + record.borrow().len() as u64 - u64::from(first == 0)) * 20;
            if step < from {
                step as f32
            } else {
                from as f32 - (step - from) as f32
            }
        }));
        train(
            &mut session,
            broken,
            None,
            Some(Watch {
                every: 20,
                photos: 1,
                tolerance: 15.0,
            }),
        )?;
        let seen = seen.borrow().clone();
        Ok((session.weights, seen))
    }

    #[test]
    fn a_student_that_forgets_ends_with_the_weights_of_its_best_look_also_after_a_stop() {
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (weights, seen) = run_watched(whole.path(), None, 60).unwrap();
        assert_eq!(seen.len(), 5, "looks at steps 0, 20, 40, 60 and 80");
        assert_eq!(weights, seen[3]);
        assert_eq!(
            run_watched(whole.path(), None, 60).unwrap(),
            (weights, Vec::new()),
            "it stays ended"
        );
        run_watched(stopped.path(), Some(110), 120).unwrap_err();
        let resumed = run_watched(stopped.path(), None, 120).unwrap();
        let whole = tempfile::tempdir().unwrap();
        assert_eq!(resumed.0, run_watched(whole.path(), None, 120).unwrap().0);
    }

    fn run_averaged(folder: &Path, broken: Option<u64>, average: Option<f32>) -> Result<Weights, SessionError> {
        let mut session = Session::<Flex>::open(&checkpoint(folder), "test", identity("1"), CPU, initial)?;
        train(&mut session, broken, average, None)?;
        Ok(session.weights)
    }

    fn stage(average: Option<f32>, watch: Option<Watch>) -> Stage {
        Stage {
            steps: 150,
            batch: 1,
            learning_rate: 0.05,
            backbone_rate: 1.0,
            warmup: 10,
            prompts: 0,
            average,
            accumulate: 1,
            separate: None,
            repeat: None,
            watch,
        }
    }

    fn train(
        session: &mut Session,
        broken: Option<u64>,
        average: Option<f32>,
        watch: Option<Watch>,
    ) -> Result<(), SessionError> {
        session.run(
            &stage(average, watch),
            &AdamWConfig::default(),
            |_| 1.0,
            |step| Ok(vec![(step, (step as f32).sin())]),
            |graph, (step, target)| {
                let target = graph.input(vec![target; 3], &[3]);
                let error = graph.sub(&graph.weight("w", &[3]), &target);
                let total = graph.sum(&graph.mul(&error, &error), 0);
                let factor = if broken == Some(step) { f32::NAN } else { 1.0 };
                StepLoss {
                    total: graph.scale(&total, factor),
                    parts: Vec::new(),
                }
            },
        )
    }

    #[test]
    fn a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not() {
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = run(whole.path(), None).unwrap();
        assert!(matches!(
            run(stopped.path(), Some(120)),
            Err(SessionError::NotFinite { step: 120, .. })
        ));
        let resumed = Session::<Flex>::open(&checkpoint(stopped.path()), "test", identity("1"), CPU, || {
            unreachable!("there is a checkpoint")
        });
        assert_eq!(resumed.unwrap().step(), 100);
        assert_eq!(run(stopped.path(), None).unwrap(), expected);
    }

    #[test]
    fn averages_survive_a_stop_and_are_what_the_stage_ends_with() {
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = run_averaged(whole.path(), None, Some(0.9)).unwrap();
        run_averaged(stopped.path(), Some(120), Some(0.9)).unwrap_err();
        assert_eq!(run_averaged(stopped.path(), None, Some(0.9)).unwrap(), expected);
        assert_eq!(
            run_averaged(whole.path(), None, Some(0.9)).unwrap(),
            expected,
            "a finished stage"
        );
        let last = run(tempfile::tempdir().unwrap().path(), None).unwrap();
        assert_ne!(expected, last, "the average is the last step's weights");
        let stored = weights::read(&checkpoint(whole.path())).unwrap();
        assert_eq!(model_weights(stored), expected);
    }

    #[test]
    fn gradients_of_a_steps_micro_batches_add_up() {
        let end = |micro: &'static [f32]| {
            let folder = tempfile::tempdir().unwrap();
            let mut session =
                Session::<Flex>::open(&checkpoint(folder.path()), "test", identity("1"), CPU, initial).unwrap();
            let stage = Stage {
                steps: 40,
                ..stage(None, None)
            };
            let batch = |_| Ok(micro.iter().map(|&target| (target, 1.0 / micro.len() as f32)).collect());
            let loss = |graph: &Graph<Tape<Flex>>, (target, share): (f32, f32)| {
                let error = graph.sub(&graph.weight("w", &[3]), &graph.input(vec![target; 3], &[3]));
                let total = graph.scale(&graph.sum(&graph.mul(&error, &error), 0), share);
                StepLoss {
                    total,
                    parts: Vec::new(),
                }
            };
            session
                .run(&stage, &AdamWConfig::default(), |_| 1.0, batch, loss)
                .unwrap();
            session.weights["w"].data.clone()
        };
        let apart = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            apart(end(&[0.3]), end(&[0.1, 0.5])) < 1e-5,
            "the mean of two gradients is that of the mean target"
        );
        assert!(apart(end(&[0.3]), end(&[0.1, 0.1])) > 1e-2);
    }

    #[test]
    fn a_loss_without_a_weight_that_learns_has_no_gradients() {
        let loss = |graph: &Graph<Tape<Flex>>| StepLoss {
            total: graph.sum(&graph.weight("w", &[3]), 0),
            parts: Vec::new(),
        };
        for (rate, learning) in [(0.0, 0), (1.0, 1)] {
            let (value, _, gradients) = gradients::<Flex>(&initial(), &CPU, Precision::Fp32, |_| rate, loss);
            assert_eq!((value, gradients.len()), (-0.5, learning));
        }
    }

    #[test]
    fn a_checkpoint_of_another_recipe_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), None).unwrap();
        let error = Session::<Flex>::open(&checkpoint(folder.path()), "test", identity("2"), CPU, initial)
            .err()
            .unwrap()
            .to_string();
        let expected = "made from recipe with seed = 1, this run is recipe with seed = 2; choose another folder";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_damaged_checkpoint_is_one_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), None).unwrap();
        let path = checkpoint(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = Session::<Flex>::open(&checkpoint(folder.path()), "test", identity("1"), CPU, initial)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("not a readable checkpoint"), "{error}");
    }
}
