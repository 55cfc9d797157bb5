//! `samclipd bench`: what a frame costs on this machine, stage by stage, and what a further query adds.
//!
//! Built-in pictures go through the pipeline and become frame messages. Every round asks the queries alone and then together
//! with [`ABSENT`], on the same frame, so that whatever else the machine does meets both alike.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use super::config::MotionTable;
use super::embedder::QuerySet;
use super::health::resident_bytes;
use super::pipeline::{Detections, Pipeline, QuerySpec};
use super::report::{MaskOutput, frame_message};
use super::sample_frames::sample_frames;
use crate::clock::Clock;
use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::FrameSize;
use crate::vision::motion::Background;

/// Things that none of the built-in pictures shows.
pub const ABSENT: [&str; 10] = [
    "anvil",
    "bulldozer",
    "cactus",
    "dolphin",
    "igloo",
    "lighthouse",
    "saxophone",
    "submarine",
    "tractor",
    "volcano",
];

/// Frames of the clip in one round, beside the still pictures.
const CLIP_FRAMES: usize = 12;

/// Looks of the motion gate that are measured.
const MOTION_ROUNDS: usize = 50;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What is looked for.
    pub queries: Vec<String>,
    /// Rounds over the built-in pictures that are counted, at least 1; one more comes first and is not.
    pub rounds: usize,
    /// Whether the result is printed as JSON.
    pub json: bool,
}

/// Times of one stage in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageCost {
    /// The stage.
    pub stage: &'static str,
    /// Median.
    pub median_ms: f64,
    /// What 95 of 100 frames stay below.
    pub p95_ms: f64,
    /// Share of the frame's time, 0-1.
    pub share: f64,
}

/// The figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bench {
    /// Model and hash.
    pub model: String,
    /// What runs it.
    pub provider: String,
    /// Variant of the graphs.
    pub precision: String,
    /// Side of the model's input, pixels.
    pub side: usize,
    /// Frames counted.
    pub frames: usize,
    /// Queries asked.
    pub queries: usize,
    /// All stages, in order; `message` makes the frame message.
    pub stages: Vec<StageCost>,
    /// Median of the whole frame in milliseconds.
    pub frame_ms: f64,
    /// Frames per second, one after the other.
    pub frames_per_second: f64,
    /// Share of everything but encoder and decoder, 0-1.
    pub besides_inference: f64,
    /// What one further query for something absent adds to a frame, as a share of it; may be below 0 by noise.
    pub absent_query: f64,
    /// Median time that the motion gate takes for a frame of 1920x1080 pixels in YUYV, in milliseconds.
    pub motion_ms: f64,
    /// Resident memory at the end in bytes, where the kernel tells.
    pub memory_bytes: Option<u64>,
}

/// One frame: its stages, the message last.
struct Lap([(&'static str, Duration); 6]);

impl Lap {
    fn total(&self) -> Duration {
        self.0.iter().map(|(_, time)| *time).sum()
    }
}

/// Measures, and prints the figures.
///
/// # Errors
/// A query that is refused, a model that cannot be run, output that cannot be written.
pub fn bench(
    pipeline: &mut Pipeline,
    options: &BenchOptions,
    clock: &dyn Clock,
    out: &mut dyn Write,
) -> anyhow::Result<Bench> {
    ensure!(options.rounds > 0, "--rounds is 0, expected at least 1");
    let asked: Vec<QuerySpec> = options.queries.iter().map(|q| QuerySpec::from_text(q)).collect();
    let absent = ABSENT.map(QuerySpec::from_text);
    let more: Vec<QuerySpec> = asked.iter().cloned().chain(absent).collect();
    let alone = pipeline.prepare_queries(&asked, None)?;
    let together = pipeline.prepare_queries(&more, None)?;
    let frames = sample_frames(CLIP_FRAMES)?;
    let (mut laps, mut added) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        for named in &frames {
            let mut lap = |queries: &Arc<QuerySet>| {
                pipeline.ask(queries);
                let found = pipeline.run(&named.frame)?;
                message(pipeline, found, clock)
            };
            let (without, with) = (lap(&alone)?, lap(&together)?);
            // Memory is touched and caches are filled in the first round.
            if round > 0 {
                added.push(with.total().as_secs_f64() / without.total().as_secs_f64() - 1.0);
                laps.push(without);
            }
        }
    }
    let result = figures(pipeline, asked.len(), &laps, &mut added, motion_cost()?);
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&result)?)?;
    } else {
        print(&result, out)?;
    }
    Ok(result)
}

/// The stages of a frame, with the time of making its message.
fn message(pipeline: &Pipeline, found: Detections, clock: &dyn Clock) -> anyhow::Result<Lap> {
    let started = Instant::now();
    frame_message("bench", pipeline, &found, clock.now(), MaskOutput::default(), &[])?.encode()?;
    let [a, b, c, d, e] = found.times.by_name();
    Ok(Lap([a, b, c, d, e, ("message", started.elapsed())]))
}

fn figures(pipeline: &Pipeline, queries: usize, laps: &[Lap], added: &mut [f64], motion_ms: f64) -> Bench {
    let total: Duration = laps.iter().map(Lap::total).sum();
    let stage = |index: usize| {
        let times = laps.iter().map(|lap| 1e3 * lap.0[index].1.as_secs_f64());
        let mut times: Vec<f64> = times.collect();
        StageCost {
            stage: laps.first().map_or("", |lap| lap.0[index].0),
            share: times.iter().sum::<f64>() / (1e3 * total.as_secs_f64()),
            median_ms: quantile(&mut times, 0.5),
            p95_ms: quantile(&mut times, 0.95),
        }
    };
    let stages: Vec<StageCost> = (0..6).map(stage).collect();
    let inference: f64 = stages
        .iter()
        .filter(|s| matches!(s.stage, "encoder" | "decoder"))
        .map(|s| s.share)
        .sum();
    let mut whole: Vec<f64> = laps.iter().map(|lap| 1e3 * lap.total().as_secs_f64()).collect();
    Bench {
        model: pipeline.model().into(),
        provider: pipeline.provider().into(),
        precision: pipeline.precision().into(),
        side: pipeline.manifest().encoder.side,
        frames: laps.len(),
        queries,
        frame_ms: quantile(&mut whole, 0.5),
        frames_per_second: laps.len() as f64 / total.as_secs_f64(),
        besides_inference: 1.0 - inference,
        motion_ms,
        absent_query: quantile(added, 0.5) / ABSENT.len() as f64,
        memory_bytes: resident_bytes(),
        stages,
    }
}

/// What it costs to see whether anything moves.
fn motion_cost() -> anyhow::Result<f64> {
    let size = FrameSize::new(1920, 1080)?;
    let format = PixelFormat::Yuyv;
    let stride = format.row_bytes(size.width());
    let frame = Frame {
        size,
        format,
        full_range: false,
        stride,
        bytes: vec![128; format.frame_bytes(stride, size.height())],
        sequence: Sequence(0),
        captured: CaptureTime::default(),
    };
    let (mut background, rules) = (Background::default(), MotionTable::default().rules());
    let mut times = Vec::new();
    for _ in 0..MOTION_ROUNDS {
        let started = Instant::now();
        background.look(&frame, &rules)?;
        times.push(1e3 * started.elapsed().as_secs_f64());
    }
    Ok(quantile(&mut times, 0.5))
}

/// The value that a share of the values does not exceed; 0 for none.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((share * last as f64).round() as usize)
        .copied()
        .unwrap_or(0.0)
}

fn print(result: &Bench, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "model {}, {} pixels, provider {}, precision {}; {} frames, {} queries\n\n{:<12} {:>10} {:>10} {:>7}",
        result.model,
        result.side,
        result.provider,
        result.precision,
        result.frames,
        result.queries,
        "stage",
        "median ms",
        "p95 ms",
        "share"
    )?;
    for cost in &result.stages {
        let percent = 100.0 * cost.share;
        writeln!(
            out,
            "{:<12} {:>10.2} {:>10.2} {percent:>5.1} %",
            cost.stage, cost.median_ms, cost.p95_ms
        )?;
    }
    writeln!(
        out,
        "\none frame: {:.1} ms, {:.1} frames per second\neverything but inference: {:.1} % of a frame\n\
         a further query for something absent: {:.2} % of a frame\nmotion gate, 1920x1080 YUYV: {:.2} ms",
        result.frame_ms,
        result.frames_per_second,
        100.0 * result.besides_inference,
        100.0 * result.absent_query,
        result.motion_ms
    )?;
    match result.memory_bytes {
        Some(bytes) => writeln!(out, "resident memory: {:.0} MiB", bytes as f64 / (1 << 20) as f64),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut values = vec![3.0, 1.0, 2.0];
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.95)), (2.0, 3.0));
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
