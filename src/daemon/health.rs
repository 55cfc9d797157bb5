//! Counters of the running daemon and the stats message made of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::message::payload::{CameraStats, SCHEMA, SpoolMessage, StatsMessage};
use crate::publish::mqtt::PublishStats;

use super::config::{self, Config};
use super::intake::Intake;
use super::latest::Latest;
use super::pipeline::{Detections, Pipeline};
use super::run::Delivery;

/// Counters for the stats message.
pub(super) struct Health {
    started: Moment,
    pub(super) since: Moment,
    frames: Vec<u64>,
    frames_in_period: Vec<u64>,
    stages: BTreeMap<&'static str, Duration>,
}

impl Health {
    pub(super) fn new(now: Moment, cameras: usize) -> Self {
        let zeros = vec![0; cameras];
        Self {
            started: now,
            since: now,
            frames: zeros.clone(),
            frames_in_period: zeros,
            stages: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, slot: usize, found: &Detections) {
        self.frames[slot] += 1;
        self.frames_in_period[slot] += 1;
        for (stage, time) in found.times.by_name() {
            *self.stages.entry(stage).or_default() += time;
        }
    }

    /// Time of a stage that is not the pipeline's.
    pub(super) fn add(&mut self, stage: &'static str, time: Duration) {
        *self.stages.entry(stage).or_default() += time;
    }

    pub(super) fn restart(&mut self, now: Moment) {
        self.since = now;
        self.frames_in_period.fill(0);
        self.stages.clear();
    }

    pub(super) fn message(
        &self,
        pipeline: &Pipeline,
        config: &Config,
        latest: &Latest<Delivery>,
        intakes: &[Intake],
        now: Moment,
        published: &PublishStats,
    ) -> StatsMessage {
        let seconds = now.since(self.since).as_secs_f32().max(1e-3);
        let all = self.frames_in_period.iter().sum::<u64>().max(1) as f32;
        let camera = |(slot, camera): (usize, &config::Camera)| {
            let losses = intakes[slot].losses();
            let stats = CameraStats {
                fps: self.frames_in_period[slot] as f32 / seconds,
                frames: self.frames[slot],
                skipped: latest.dropped(slot) + losses.passed,
                lost: losses.lost,
                corrupt: losses.corrupt,
                reopened: intakes[slot].reopened(),
            };
            (camera.id.to_string(), stats)
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
            cameras: config.cameras.iter().enumerate().map(camera).collect(),
            stage_ms: self
                .stages
                .iter()
                .map(|(s, t)| ((*s).to_owned(), t.as_secs_f32() * 1e3 / all))
                .collect(),
        }
    }
}

/// Resident memory of this process, where the kernel tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
