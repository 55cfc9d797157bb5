//! Load time, run time and peak memory of the encoder, as ratios to fp32.
//!
//! Files take turns in one process, so that a busy machine slows all of them: run by run while they are small, a few
//! rounds of open, run and close for full-size ones, two of which do not fit memory. The figure is the median of the
//! ratios of neighbouring measurements. Peak memory is that of a child ([`peak_memory`]).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::QuantizeError;
use super::session::Runner;
use crate::contract::{Bundle, Compute, GraphKind};
use crate::train::eval::peak_memory;
use crate::vision::features::Features;

/// Runs of one round go on until this long, or [`RUNS`].
const ROUND: Duration = Duration::from_secs(4);

/// Files below this many bytes are all open at once.
const SMALL: u64 = 64 << 20;

/// Most runs of one round.
const RUNS: usize = 15;

/// An encoder file to time.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Variant.
    pub name: String,
    /// Its encoder.
    pub path: PathBuf,
    /// What it computes in; tract runs fp32 only.
    pub compute: Compute,
}

/// Ratios of one variant to the first one.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Variant.
    pub name: String,
    /// Back end.
    pub backend: &'static str,
    /// Load time over the first variant's.
    pub load: f64,
    /// Run time over the first variant's.
    pub run: f64,
    /// Peak resident size of a process that runs the encoder, MiB; `None` if the child did not say.
    pub peak_mib: Option<f64>,
}

/// Times every file on one back end; the first is the yardstick.
///
/// # Errors
/// [`QuantizeError::Runtime`] if a file cannot be opened or run.
pub fn compare(runner: &Runner, bundle: &Bundle, files: &[Timed], rounds: usize) -> Result<Vec<Timing>, QuantizeError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let side = bundle.manifest.encoder.side;
    let image: Vec<f32> = (0..3 * side * side)
        .map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let small = std::fs::metadata(&files[0].path).is_ok_and(|m| m.len() < SMALL);
    let mut times = vec![(Vec::new(), Vec::new()); files.len()];
    for _ in 0..rounds.max(1) {
        if small {
            turns(runner, bundle, files, &image, &mut times)?;
            continue;
        }
        for (file, times) in files.iter().zip(times.chunks_mut(1)) {
            turns(runner, bundle, std::slice::from_ref(file), &image, times)?;
        }
    }
    let spec = bundle.manifest.graph_spec(GraphKind::Encoder);
    let rows = files.iter().zip(&times).map(|(file, (loads, runs))| Timing {
        name: file.name.clone(),
        backend: runner.name,
        load: median_ratio(loads, &times[0].0),
        run: median_ratio(runs, &times[0].1),
        peak_mib: peak_memory::of_child(&[(&file.path, &spec)], runner.is_ort()),
    });
    Ok(rows.collect())
}

/// Load times and run times of one file, seconds.
type Times = (Vec<f64>, Vec<f64>);

/// One round: opens all files, then lets them take turns.
fn turns(
    runner: &Runner,
    bundle: &Bundle,
    files: &[Timed],
    image: &[f32],
    times: &mut [Times],
) -> Result<(), QuantizeError> {
    let mut features = Features::default();
    let mut engines = Vec::new();
    for (file, (loads, _)) in files.iter().zip(times.iter_mut()) {
        let start = Instant::now();
        let mut engine = runner.engine(bundle, &[(GraphKind::Encoder, file.path.clone())])?;
        loads.push(start.elapsed().as_secs_f64());
        // the first run allocates
        engine.encoder.encode(image, &mut features)?;
        engines.push(engine);
    }
    let round = Instant::now();
    for _ in 0..RUNS {
        for (engine, (_, runs)) in engines.iter_mut().zip(times.iter_mut()) {
            let start = Instant::now();
            engine.encoder.encode(image, &mut features)?;
            runs.push(start.elapsed().as_secs_f64());
        }
        if round.elapsed() > ROUND {
            break;
        }
    }
    Ok(())
}

/// Median of the ratios of neighbouring measurements.
fn median_ratio(values: &[f64], yardstick: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = values.iter().zip(yardstick).map(|(v, y)| v / y).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}
