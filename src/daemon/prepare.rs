//! `samclipd prepare`: builds beforehand what the first start would build: engines and text embeddings.
//!
//! It runs the daemon's own opening path and nothing else, so what it leaves is what the daemon finds. It may be killed
//! at any moment and run again: engines count only with their marker, every embedding is a file of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::clock::{Clock, Moment};
use crate::contract::Manifest;
use crate::runtime::progress::{Progress, Stage};
use crate::runtime::{self, RuntimeOptions};

use super::pipeline::{Pipeline, QuerySpec};

/// How often a long step says that it is still going on.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The model bundle.
    pub model: PathBuf,
    /// How the daemon will open it.
    pub runtime: RuntimeOptions,
    /// What will be looked for; the bundle's background prompts are always prepared.
    pub queries: Vec<QuerySpec>,
    /// What it competes with, if not the bundle's own texts.
    pub background: Option<Vec<String>>,
}

/// Writes lines with the time since the start, and repeats the last step while it lasts.
struct Reporter<'a> {
    out: Mutex<&'a mut (dyn Write + Send)>,
    step: Mutex<String>,
    started: Moment,
    clock: &'a dyn Clock,
    stop: &'a AtomicBool,
}

impl Reporter<'_> {
    fn line(&self, text: &str) {
        let elapsed = self.clock.now().since(self.started).as_secs_f32();
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed terminal is no reason to leave an engine half-built.
        let _ = writeln!(out, "[{elapsed:7.1} s] {text}").and_then(|()| out.flush());
    }

    fn step(&self, text: String) {
        self.line(&text);
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Repeats the step until the other end of the channel is dropped.
    fn beat(&self, ended: &std::sync::mpsc::Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(HEARTBEAT) {
            let step = self.step.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.line(&format!("still {step}"));
        }
    }
}

impl Progress for Reporter<'_> {
    fn stage(&self, stage: &Stage) {
        self.step(stage.to_string());
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Opens the model as the daemon will, embeds every text, and says what was made and what was there already.
///
/// # Errors
/// Whatever would stop the daemon, and a cache directory that keeps nothing.
pub fn prepare(
    options: &PrepareOptions,
    clock: &dyn Clock,
    stop: &AtomicBool,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    let cache = options.runtime.cache.as_deref();
    let cache =
        cache.context("no cache directory: neither CACHE_DIRECTORY nor HOME is set; name one with --cache-dir")?;
    require_writable(cache)?;
    let reporter = Reporter {
        out: Mutex::new(out),
        step: Mutex::new(String::new()),
        started: clock.now(),
        clock,
        stop,
    };
    let (alive, ended): (Sender<()>, _) = channel();
    std::thread::scope(|scope| {
        let reporter = &reporter;
        scope.spawn(move || reporter.beat(&ended));
        let made = make(options, reporter);
        // Ends the heartbeat before the scope waits for it.
        drop(alive);
        made
    })?;
    let (files, bytes) = size_of(cache);
    reporter.line(&format!(
        "ready; {} holds {files} files, {:.1} MB",
        cache.display(),
        bytes as f64 / 1e6
    ));
    Ok(())
}

fn make(options: &PrepareOptions, reporter: &Reporter<'_>) -> anyhow::Result<()> {
    reporter.step(format!("checking {}", options.model.display()));
    let bundle = Manifest::read(&options.model)?;
    reporter.step("opening the graphs".into());
    let engine = runtime::open_watched(&bundle, &options.runtime, reporter)?;
    reporter.line(&format!("provider {}, precision {}", engine.provider, engine.precision));
    for note in &engine.notes {
        reporter.line(&format!("  {note}"));
    }
    reporter.step(format!(
        "embedding the texts of {} queries and {} background prompts",
        options.queries.len(),
        options.background.as_ref().unwrap_or(&bundle.manifest.background).len()
    ));
    let pipeline = Pipeline::new(&bundle, engine, options.runtime.cache.as_deref())?;
    pipeline.prepare_queries(&options.queries, options.background.as_deref())?;
    let counts = pipeline.word_counts();
    reporter.line(&format!(
        "text embeddings: {} computed, {} were there already",
        counts.computed, counts.cached
    ));
    if counts.lost > 0 {
        bail!(
            "{} text embeddings could not be kept in {}; free some space or choose another directory with --cache-dir",
            counts.lost,
            options.runtime.cache.as_deref().unwrap_or(Path::new("")).display()
        );
    }
    Ok(())
}

/// Makes a directory and writes a file into it, which is removed again.
fn require_writable(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)
        .and_then(|()| try_writing(dir))
        .with_context(|| format!("cache directory {} cannot be written", dir.display()))
}

/// Writes a file into a directory and removes it, whatever became of it.
pub(super) fn try_writing(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".probe.{}", std::process::id()));
    let written = std::fs::write(&probe, "samclip");
    let _ = std::fs::remove_file(&probe);
    written
}

/// Files and bytes below a directory.
pub(super) fn size_of(dir: &Path) -> (u64, u64) {
    let mut total = (0, 0);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let more = if kind.is_dir() {
            size_of(&entry.path())
        } else {
            (1, entry.metadata().map_or(0, |m| m.len()))
        };
        total = (total.0 + more.0, total.1 + more.1);
    }
    total
}
