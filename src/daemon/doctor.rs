//! `samclipd doctor`: what the configured job needs, what of it is there, and what helps where it is not.
//!
//! Every check runs, whatever the others say. Engines are not built here: a missing one is told of, `prepare` builds it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::capture::{Scheme, SourceUri};
use crate::clock::SystemClock;
use crate::contract::{Bundle, Manifest};
use crate::publish::probe::probe;
use crate::runtime::inventory;
use crate::runtime::progress::{Progress, Stage};
use crate::runtime::{self, Backend, RuntimeError, RuntimeOptions};

use super::cameras::sources;
use super::config::{Config, Mqtt};
use super::directories::state_dir;
use super::prepare::{size_of, try_writing};
use super::reload::takes_commands;
use super::schedule;

/// How long a broker may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to look at.
#[derive(Debug)]
pub struct DoctorOptions {
    /// The configuration and its path, or what is wrong with it; `None` if none is used.
    pub config: Option<(PathBuf, Result<Config, String>)>,
    /// The model bundle, or why none was found.
    pub model: Result<PathBuf, String>,
    /// How the daemon would open it.
    pub runtime: RuntimeOptions,
}

/// How a finding bears on the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good,
    /// Not there, and not needed for this job.
    Idle,
    /// The job cannot run.
    Bad,
}

/// Prints findings and remembers whether one was bad.
struct Report<'a> {
    out: &'a mut dyn Write,
    bad: usize,
}

impl Report<'_> {
    fn head(&mut self, title: &str) -> std::io::Result<()> {
        writeln!(self.out, "\n{title}")
    }

    fn say(&mut self, verdict: Verdict, text: &str, remedy: &str) -> std::io::Result<()> {
        let mark = match verdict {
            Verdict::Good => "ok     ",
            Verdict::Idle => "-      ",
            Verdict::Bad => "MISSING",
        };
        self.bad += usize::from(verdict == Verdict::Bad);
        writeln!(self.out, "  {mark}  {text}")?;
        if verdict != Verdict::Good && !remedy.is_empty() {
            writeln!(self.out, "           → {remedy}")?;
        }
        Ok(())
    }

    fn outcome(&mut self, outcome: Result<String, String>, otherwise: Verdict, remedy: &str) -> std::io::Result<()> {
        match outcome {
            Ok(text) => self.say(Verdict::Good, &text, ""),
            Err(text) => self.say(otherwise, &text, remedy),
        }
    }
}

/// Never lets an engine be built.
struct LookOnly;

impl Progress for LookOnly {
    fn stage(&self, _: &Stage) {}

    fn may_build(&self) -> bool {
        false
    }
}

/// Checks everything; whether the job can run.
///
/// # Errors
/// Only if the report cannot be written.
pub fn doctor(options: &DoctorOptions, out: &mut dyn Write) -> std::io::Result<bool> {
    writeln!(out, "samclipd {}", env!("CARGO_PKG_VERSION"))?;
    let mut report = Report { out, bad: 0 };
    let config = configuration(options, &mut report)?;
    cache(options, &mut report)?;
    report.head("model bundle")?;
    let bundle = match &options.model {
        Err(reason) => Err(reason.clone()),
        Ok(dir) => Manifest::read(dir).map_err(|e| e.to_string()),
    };
    let described = bundle.as_ref().map(describe).map_err(Clone::clone);
    report.outcome(described, Verdict::Bad, "copy the bundle again, or name another one")?;
    libraries(options, &mut report)?;
    if let Ok(bundle) = &bundle {
        running(options, config, bundle, &mut report)?;
    }
    if let Some(config) = config {
        cameras(config, &mut report)?;
        if config.mqtt.is_some() || takes_commands(config) {
            state(config, &mut report)?;
        }
        report.head("broker")?;
        match &config.mqtt {
            None => report.say(Verdict::Idle, "none configured: nothing is published", "")?,
            Some(mqtt) => {
                let remedy = "start the broker, or correct host, port and credentials under [mqtt]";
                report.outcome(broker(mqtt), Verdict::Bad, remedy)?;
            }
        }
    }
    if let Some(http) = config.and_then(|config| config.http.as_ref()) {
        report.head("page")?;
        let whom = |token: Option<String>| {
            if token.is_some() {
                "whoever has the token"
            } else {
                "this machine alone"
            }
        };
        let outcome = http
            .read_token()
            .map(|token| format!("http://{} for {}", http.listen, whom(token)));
        let remedy = "correct the file or its permissions; the daemon's user has to read it";
        report.outcome(outcome.map_err(|error| error.to_string()), Verdict::Bad, remedy)?;
    }
    let verdict = match report.bad {
        0 => "the configured job can run".to_owned(),
        1 => "the configured job cannot run: 1 thing is missing".to_owned(),
        n => format!("the configured job cannot run: {n} things are missing"),
    };
    writeln!(report.out, "\n{verdict}")?;
    Ok(report.bad == 0)
}

fn configuration<'a>(options: &'a DoctorOptions, report: &mut Report<'_>) -> std::io::Result<Option<&'a Config>> {
    report.head("configuration")?;
    match &options.config {
        None => {
            report.say(
                Verdict::Idle,
                "no file: the options of the command line are checked",
                "",
            )?;
            Ok(None)
        }
        Some((_, Err(reason))) => {
            report.say(
                Verdict::Bad,
                reason,
                "correct the file; `samclipd check-config FILE` checks it alone",
            )?;
            Ok(None)
        }
        Some((path, Ok(config))) => {
            let (cameras, queries) = (config.cameras.len(), config.queries.len());
            let text = format!("{}: {cameras} cameras, {queries} queries", path.display());
            report.say(Verdict::Good, &text, "")?;
            Ok(Some(config))
        }
    }
}

fn cache(options: &DoctorOptions, report: &mut Report<'_>) -> std::io::Result<()> {
    report.head("cache directory")?;
    let remedy = "set cache under [runtime] or --cache-dir to a directory that can be written; without one, engines and \
                  text embeddings are made anew at every start";
    let Some(dir) = &options.runtime.cache else {
        let text = "none: neither CACHE_DIRECTORY nor HOME is set";
        return report.say(Verdict::Idle, text, remedy);
    };
    let outcome = writable(dir).map_err(|error| format!("{} cannot be written: {error}", dir.display()));
    // The daemon works without, only slower; a named TensorRT would rebuild for minutes at every start.
    let verdict = if options.runtime.names_gpu() {
        Verdict::Bad
    } else {
        Verdict::Idle
    };
    report.outcome(outcome, verdict, remedy)
}

fn state(config: &Config, report: &mut Report<'_>) -> std::io::Result<()> {
    report.head("state directory")?;
    let remedy = "set state in the configuration to a directory that can be written; without one, events are lost while \
                  the broker is away, and live queries with the program";
    let Some(dir) = state_dir(config.state.as_deref()) else {
        let text = "none: neither STATE_DIRECTORY nor HOME is set";
        return report.say(Verdict::Idle, text, remedy);
    };
    let outcome = writable(&dir).map_err(|error| format!("{} cannot be written: {error}", dir.display()));
    report.outcome(outcome, Verdict::Idle, remedy)
}

/// What the cache directory holds, or that it will be made; nothing is made here, it would belong to the wrong user.
fn writable(dir: &Path) -> std::io::Result<String> {
    if dir.is_dir() {
        try_writing(dir)?;
        let (files, bytes) = size_of(dir);
        return Ok(format!(
            "{}: {files} files, {:.1} MB",
            dir.display(),
            bytes as f64 / 1e6
        ));
    }
    // The nearest parent that is there must be a directory; in a file nothing can be made.
    let nearest = dir.ancestors().find(|parent| parent.exists());
    let nearest = nearest.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    try_writing(nearest)?;
    Ok(format!("{}: not there yet, can be made", dir.display()))
}

/// Sides of sizes.
fn listed(sides: &[usize]) -> String {
    let sides = sides.iter().map(ToString::to_string);
    sides.collect::<Vec<_>>().join(", ")
}

fn describe(bundle: &Bundle) -> String {
    let manifest = &bundle.manifest;
    let precisions: Vec<&str> = manifest.precision.iter().map(|p| p.name.as_str()).collect();
    format!(
        "{}: {}@{}, {} pixels, precision {}",
        bundle.dir.display(),
        manifest.name,
        bundle.id(),
        listed(&manifest.sides()),
        precisions.join(", ")
    )
}

fn libraries(options: &DoctorOptions, report: &mut Report<'_>) -> std::io::Result<()> {
    let runtime = &options.runtime;
    let found = inventory::take(runtime);
    let needed = |needed: bool| if needed { Verdict::Bad } else { Verdict::Idle };
    report.head("ONNX Runtime library, in the order of the search")?;
    let usable = found.ort_libraries.iter().any(|(_, outcome)| outcome.is_ok());
    for (path, outcome) in &found.ort_libraries {
        let outcome = outcome.clone().map(|version| format!("{path}: version {version}"));
        report.outcome(outcome.map_err(|reason| format!("{path}: {reason}")), Verdict::Idle, "")?;
    }
    if !usable {
        let required = runtime.backend == Backend::Ort || runtime.names_gpu() || runtime.ort_library.is_some();
        let text = if cfg!(feature = "ort") {
            "no usable library"
        } else {
            "this build has no ONNX Runtime support"
        };
        let remedy = "install ONNX Runtime 1.17 or newer and set SAMCLIP_ORT_LIB to its libonnxruntime.so; tract runs \
                      without it";
        report.say(needed(required && runtime.backend != Backend::Tract), text, remedy)?;
    }
    report.head("GPU")?;
    // Not every machine tells in /proc: whether a GPU can be used shows when the model is opened.
    let gpu = found
        .gpu
        .ok_or_else(|| "no NVIDIA GPU or driver found in /proc".to_owned());
    report.outcome(
        gpu,
        Verdict::Idle,
        "if there is one, install the NVIDIA driver; in a container, pass the GPU in",
    )?;
    for (name, outcome) in &found.gpu_libraries {
        list(report, name, outcome, "")?;
    }
    report.head("providers of ONNX Runtime")?;
    if found.providers.is_empty() {
        report.say(Verdict::Idle, "none without the library", "")?;
    }
    let remedy = "install what the message names, in the version ONNX Runtime was built for";
    for (name, outcome) in &found.providers {
        list(report, name, outcome, remedy)?;
    }
    Ok(())
}

/// One line that decides nothing by itself: opening the model does.
fn list(report: &mut Report<'_>, name: &str, outcome: &Result<String, String>, remedy: &str) -> std::io::Result<()> {
    let (Ok(text) | Err(text)) = outcome;
    let verdict = if outcome.is_ok() { Verdict::Good } else { Verdict::Idle };
    report.say(verdict, &format!("{name}: {text}"), remedy)
}

/// Opens the graphs as the daemon would.
fn running(
    options: &DoctorOptions,
    config: Option<&Config>,
    bundle: &Bundle,
    report: &mut Report<'_>,
) -> std::io::Result<()> {
    report.head("running the model")?;
    match runtime::open_watched(bundle, &options.runtime, &LookOnly) {
        Ok(engine) => {
            let own = std::iter::once(bundle.manifest.encoder.side);
            let open: Vec<usize> = own.chain(engine.further.keys().copied()).collect();
            let text = format!(
                "provider {}, precision {}, {} pixels",
                engine.provider,
                engine.precision,
                listed(&open)
            );
            report.say(Verdict::Good, &text, "")?;
            if let Some(Err(fault)) = config.map(|config| schedule::check(config, &open)) {
                let remedy = "correct side and [camera.sizes] of the camera";
                report.say(Verdict::Bad, &fault.to_string(), remedy)?;
            }
            for note in &engine.notes {
                report.say(Verdict::Good, note, "")?;
            }
            let on_cpu = engine.provider == "ort-cpu";
            // The encoder is opened once more: never both at once, where memory is short.
            drop(engine);
            if on_cpu && let Ok(proof) = inventory::prove_on_cpu(bundle, &options.runtime) {
                let text = format!("warm-up run of the encoder: {}", proof.summary());
                report.say(Verdict::Good, &text, "")?;
            }
            Ok(())
        }
        Err(error @ RuntimeError::EngineMissing { .. }) => report.say(
            Verdict::Idle,
            &error.to_string(),
            "run `samclipd prepare` now, or let the daemon build them at its first start",
        ),
        Err(error) => report.say(Verdict::Bad, &error.to_string(), ""),
    }
}

fn cameras(config: &Config, report: &mut Report<'_>) -> std::io::Result<()> {
    report.head("cameras")?;
    // Read a second time: the whole file is known to be valid by now.
    for (camera, uri) in config.cameras.iter().zip(sources(config).unwrap_or_default()) {
        let (outcome, remedy) = source(&uri);
        let named = |text: String| format!("{}: {text}", camera.id);
        report.outcome(outcome.map(named).map_err(named), Verdict::Bad, remedy)?;
    }
    Ok(())
}

/// Whether a source is there and may be read. A camera is not opened, because the daemon may be using it; of files the first picture
/// is read.
fn source(uri: &SourceUri) -> (Result<String, String>, &'static str) {
    match uri.scheme {
        Scheme::V4l2 => (
            camera(uri),
            "plug the camera in, or choose one that `samclipd cameras` lists; reading needs the group video",
        ),
        Scheme::File | Scheme::Dir => (pictures(uri), "correct the source's path, its permissions or its files"),
    }
}

/// The size of the first picture of a file or folder.
fn pictures(uri: &SourceUri) -> Result<String, String> {
    let kind = uri
        .path
        .metadata()
        .map_err(|e| format!("{}: {e}", uri.path.display()))?;
    if uri.scheme == Scheme::File && !kind.is_file() && !kind.is_dir() {
        // A pipe has no end, and what is read of it is gone.
        return Ok(format!("{}: no plain file, not looked into", uri.text));
    }
    let mut source = crate::capture::open(uri, Arc::new(SystemClock::new())).map_err(|e| e.to_string())?;
    match source.next_frame() {
        Ok(Some(frame)) => Ok(format!("{}: {}", uri.text, frame.size)),
        Ok(None) => Err(format!("{}: no picture", uri.text)),
        Err(error) => Err(error.to_string()),
    }
}

/// What a camera offers, if that can be read and it has the controls that are wanted.
#[cfg(feature = "v4l2")]
fn camera(uri: &SourceUri) -> Result<String, String> {
    let node = crate::capture::camera_node(&uri.path).map_err(|e| e.to_string())?;
    let (found, faults) = crate::capture::look_at(&node, &uri.controls)?;
    let named = format!("{} {}", found.path.display(), found.card);
    let formats = found.formats.map_err(|e| format!("{named}: {e}"))?;
    let codes = |readable: bool| {
        let chosen = formats.iter().filter(|f| f.supported || !readable);
        chosen.map(|f| f.four_cc.as_str()).collect::<Vec<_>>().join(", ")
    };
    let asked = uri.format.map(|code| String::from_utf8_lossy(&code).into_owned());
    match (codes(true), asked) {
        (none, _) if none.is_empty() => Err(format!("{named}: none of its formats ({}) can be read", codes(false))),
        (some, Some(asked)) if !formats.iter().any(|f| f.supported && f.four_cc == asked) => {
            Err(format!("{named}: format={asked} is asked for, it offers {some}"))
        }
        _ if !faults.is_empty() => Err(format!("{named}: {}", faults.join("; "))),
        (some, _) => Ok(format!("{named}: {some}")),
    }
}

#[cfg(not(feature = "v4l2"))]
fn camera(_: &SourceUri) -> Result<String, String> {
    Err("this build has no camera support; rebuild with feature \"v4l2\"".into())
}

fn broker(mqtt: &Mqtt) -> Result<String, String> {
    let settings = mqtt.settings().map_err(|e| e.to_string())?;
    probe(&settings, PATIENCE)
        .map(|()| format!("{}:{} accepts the connection", mqtt.host, mqtt.port))
        .map_err(|e| e.to_string())
}
