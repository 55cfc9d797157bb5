//! Counters of the running daemon and the stats message made of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::message::payload::{CameraStats, SCHEMA, SpoolMessage, StatsMessage};
use crate::message::topic::CameraId;
use crate::publish::mqtt::PublishStats;

use super::pipeline::{Detections, Pipeline};
use super::report::clip;
use super::view::SourceCounts;

/// Frames of one camera.
#[derive(Default)]
struct Frames {
    all: u64,
    looks: BTreeMap<usize, u64>,
    in_period: u64,
}

/// Counters for the stats message.
pub(super) struct Health {
    started: Moment,
    pub(super) since: Moment,
    /// By slot of the hand-off.
    frames: BTreeMap<usize, Frames>,
    stages: BTreeMap<&'static str, Duration>,
}

impl Health {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            started: now,
            since: now,
            frames: BTreeMap::new(),
            stages: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, slot: usize, found: &Detections) {
        let frames = self.frames.entry(slot).or_default();
        frames.all += 1;
        frames.in_period += 1;
        for side in found.looks() {
            *frames.looks.entry(side).or_default() += 1;
        }
        for (stage, time) in found.times.by_name() {
            *self.stages.entry(stage).or_default() += time;
        }
    }

    /// What was counted of a slot is another one's from now on.
    pub(super) fn move_to(&mut self, from: usize, to: usize) {
        if let Some(frames) = self.frames.remove(&from) {
            self.frames.insert(to, frames);
        }
    }

    /// A slot is used no more.
    pub(super) fn forget(&mut self, slot: usize) {
        self.frames.remove(&slot);
    }

    /// Time of a stage that is not the pipeline's.
    pub(super) fn add(&mut self, stage: &'static str, time: Duration) {
        *self.stages.entry(stage).or_default() += time;
    }

    pub(super) fn restart(&mut self, now: Moment) {
        self.since = now;
        self.frames.values_mut().for_each(|frames| frames.in_period = 0);
        self.stages.clear();
    }

    /// The message; `cameras` are ids, slots and what their sources did.
    pub(super) fn message<'a>(
        &self,
        pipeline: &Pipeline,
        cameras: impl Iterator<Item = (&'a CameraId, usize, SourceCounts)>,
        now: Moment,
        published: &PublishStats,
    ) -> StatsMessage {
        let seconds = now.since(self.since).as_secs_f32().max(1e-3);
        let all = self.frames.values().map(|frames| frames.in_period).sum::<u64>().max(1) as f32;
        let camera = |(id, slot, counts): (&CameraId, usize, SourceCounts)| {
            let counted = self.frames.get(&slot);
            let looks = counted.iter().flat_map(|frames| &frames.looks);
            let stats = CameraStats {
                fps: counted.map_or(0.0, |frames| frames.in_period as f32 / seconds),
                frames: counted.map_or(0, |frames| frames.all),
                looks: looks.map(|(&side, &count)| (clip(side), count)).collect(),
                skipped: counts.skipped,
                still: counts.still,
                lost: counts.lost,
                corrupt: counts.corrupt,
                reopened: counts.reopened,
            };
            (id.to_string(), stats)
        };
        StatsMessage {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: now.since(self.started).as_secs(),
            model: pipeline.model().into(),
            provider: pipeline.provider().into(),
            precision: Some(pipeline.precision().into()),
            provider_nodes: pipeline
                .nodes()
                .iter()
                .map(|(provider, &count)| (provider.clone(), count as u64))
                .collect(),
            memory_bytes: resident_bytes(),
            dropped_messages: published.dropped,
            spool: published.spool.map(|spool| SpoolMessage {
                waiting: spool.waiting as u64,
                bytes: spool.bytes,
                dropped: spool.dropped,
                damaged: spool.damaged,
                failed: spool.failed,
            }),
            cameras: cameras.map(camera).collect(),
            stage_ms: self
                .stages
                .iter()
                .map(|(s, t)| ((*s).to_owned(), t.as_secs_f32() * 1e3 / all))
                .collect(),
        }
    }
}

/// Resident memory of this process, where the kernel tells.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
