//! `/metrics`: what is counted, in Prometheus' text format. Seconds and bytes; every name begins with `samclip_`.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{Shared, refusal};
use crate::daemon::board::DaemonState;
use crate::daemon::health::resident_bytes;
use crate::daemon::tally::Histogram;
use crate::daemon::view::{CameraSeen, Seen, View};
use crate::message::payload::DetectStatus;
use crate::publish::mqtt::PublishStats;
use crate::publish::spool::SpoolStats;

/// Names and values of labels.
type Labels = Vec<(&'static str, String)>;

/// One look at everything.
#[derive(Debug)]
struct Scrape {
    state: DaemonState,
    view: View,
    resident: Option<u64>,
}

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let scrape = Scrape {
        state: shared.board.now(),
        view: shared.view.clone(),
        resident: resident_bytes(),
    };
    match scrape.text() {
        Ok(text) => ([(CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

impl Scrape {
    fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("samclip");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Writes families of samples.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counters(&mut self, name: &str, help: &str, samples: Vec<(Labels, u64)>) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in &samples {
            family
                .encode_family(labels)?
                .encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauges(&mut self, name: &str, help: &str, unit: Option<&Unit>, samples: Vec<(Labels, f64)>) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in &samples {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
        Ok(())
    }

    /// Histograms of seconds.
    fn histograms(&mut self, name: &str, help: &str, samples: Vec<(Labels, Histogram)>) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let unit = Some(&Unit::Seconds);
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, times) in &samples {
            family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                times.sum(),
                times.count(),
                &times.buckets(),
                None,
            )?;
        }
        Ok(())
    }
}

/// A sample of every camera.
fn by_camera<T>(seen: &Seen, value: impl Fn(&CameraSeen) -> T) -> Vec<(Labels, T)> {
    let sample = |(id, camera): (&String, &CameraSeen)| (vec![("camera", id.clone())], value(camera));
    seen.cameras.iter().map(sample).collect()
}

/// A sample of every query of every camera.
fn by_query<T>(cameras: impl Iterator<Item = (String, Vec<(String, T)>)>) -> Vec<(Labels, T)> {
    let of_camera = |(camera, queries): (String, Vec<(String, T)>)| {
        let labels = move |query| vec![("camera", camera.clone()), ("query", query)];
        queries.into_iter().map(move |(query, value)| (labels(query), value))
    };
    cameras.flat_map(of_camera).collect()
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.process(&mut writer)?;
        self.board(&mut writer)?;
        self.view.look(|seen| {
            frames(&mut writer, seen)?;
            seen.publisher
                .as_ref()
                .map_or(Ok(()), |stats| publisher(&mut writer, stats))
        })
    }
}

impl Scrape {
    fn process(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let build = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", self.state.model.clone()),
            ("provider", self.state.provider.clone()),
        ];
        let help = "Version of the program, and what it runs";
        writer.gauges("build_info", help, None, vec![(build, 1.0)])?;
        let uptime = self.view.look(|seen| seen.started.elapsed().as_secs_f64());
        let seconds = Some(&Unit::Seconds);
        writer.gauges("uptime", "Time since the start", seconds, vec![(Vec::new(), uptime)])?;
        let resident = self.resident.map(|bytes| (Vec::new(), bytes as f64));
        let help = "Resident memory of the process";
        writer.gauges(
            "resident_memory",
            help,
            Some(&Unit::Bytes),
            resident.into_iter().collect(),
        )
    }

    fn board(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let cameras = &self.state.cameras;
        let online = cameras.iter().map(|(id, camera)| {
            let online = camera.status == Some(DetectStatus::Online);
            (vec![("camera", id.clone())], f64::from(u8::from(online)))
        });
        let help = "Whether frames of the camera are processed";
        writer.gauges("camera_online", help, None, online.collect())?;
        let things = cameras.iter().map(|(id, camera)| {
            let things = camera.detections.iter();
            (
                id.clone(),
                things
                    .map(|(query, (all, _))| (query.clone(), f64::from(*all)))
                    .collect(),
            )
        });
        writer.gauges("things", "Things that are there", None, by_query(things))
    }
}

fn frames(writer: &mut Writer<'_>, seen: &Seen) -> fmt::Result {
    let counts = |value: fn(&CameraSeen) -> u64| by_camera(seen, value);
    writer.counters("frames", "Frames processed", counts(|c| c.frames))?;
    writer.counters(
        "frames_failed",
        "Frames that could not be processed",
        counts(|c| c.failed),
    )?;
    let looks = seen.cameras.iter().flat_map(|(id, camera)| {
        let labels = |side: &usize| vec![("camera", id.clone()), ("side", side.to_string())];
        camera.looks.iter().map(move |(side, count)| (labels(side), *count))
    });
    let help = "Looks at frames, by side of the model's input in pixels";
    writer.counters("looks", help, looks.collect())?;
    let help = "Frames skipped for a newer one";
    writer.counters("frames_skipped", help, counts(|c| c.source.skipped))?;
    let help = "Frames left out because nothing moved";
    writer.counters("frames_still", help, counts(|c| c.source.still))?;
    let help = "Frames that the driver left out";
    writer.counters("frames_lost", help, counts(|c| c.source.lost))?;
    let help = "Frames that were damaged";
    writer.counters("frames_corrupt", help, counts(|c| c.source.corrupt))?;
    let help = "Times the source was opened; all but the first are reconnections";
    writer.counters("source_opens", help, counts(|c| c.source.opened))?;
    let masks = seen.cameras.iter().map(|(id, camera)| {
        let masks = camera.detections.iter().map(|(query, count)| (query.clone(), *count));
        (id.clone(), masks.collect())
    });
    writer.counters("detections", "Masks found", by_query(masks))?;
    let scores = seen.cameras.iter().map(|(id, camera)| {
        let glance = camera.glance.iter();
        let scores = glance.flat_map(|g| g.asked.specs().iter().zip(&g.best));
        (
            id.clone(),
            scores
                .map(|(spec, score)| (spec.id.clone(), f64::from(*score)))
                .collect(),
        )
    });
    writer.gauges(
        "query_score",
        "Best score on the last frame, 0-1",
        None,
        by_query(scores),
    )?;
    let help = "Time from capture to the end of processing";
    writer.histograms("frame_age", help, by_camera(seen, |camera| camera.age))?;
    let stages = seen
        .stages
        .iter()
        .map(|(stage, times)| (vec![("stage", (*stage).to_owned())], *times));
    writer.histograms("stage_duration", "Time of a stage of one frame", stages.collect())
}

fn publisher(writer: &mut Writer<'_>, stats: &PublishStats) -> fmt::Result {
    let one = |value| vec![(Vec::new(), value)];
    let connected = f64::from(u8::from(stats.connected));
    let help = "Whether the broker has accepted the connection";
    writer.gauges("mqtt_connected", help, None, vec![(Vec::new(), connected)])?;
    let help = "Times the broker accepted a connection";
    writer.counters("mqtt_connects", help, one(stats.connects))?;
    writer.counters("mqtt_messages_sent", "Messages handed to the broker", one(stats.sent))?;
    let help = "Messages dropped: the queue was full, or the message too large";
    writer.counters("mqtt_messages_dropped", help, one(stats.dropped))?;
    let help = "Messages that wait, spooled events not counted";
    writer.gauges(
        "mqtt_messages_waiting",
        help,
        None,
        vec![(Vec::new(), stats.waiting as f64)],
    )?;
    stats.spool.as_ref().map_or(Ok(()), |stats| spool(writer, stats))
}

fn spool(writer: &mut Writer<'_>, stats: &SpoolStats) -> fmt::Result {
    let one = |value| vec![(Vec::new(), value)];
    let help = "Events on disk that the broker has not acknowledged";
    writer.gauges(
        "spool_events_waiting",
        help,
        None,
        vec![(Vec::new(), stats.waiting as f64)],
    )?;
    let bytes = vec![(Vec::new(), stats.bytes as f64)];
    writer.gauges("spool", "Size of the events on disk", Some(&Unit::Bytes), bytes)?;
    writer.counters(
        "spool_events_dropped",
        "Events dropped: the spool was full",
        one(stats.dropped),
    )?;
    writer.counters(
        "spool_events_damaged",
        "Damaged places found in the spool",
        one(stats.damaged),
    )?;
    writer.counters(
        "spool_events_failed",
        "Events that could not be written",
        one(stats.failed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::gate::Attention;
    use std::time::Duration;

    #[test]
    fn names_types_and_values_are_as_prometheus_reads_them() {
        let view = View::new();
        view.open("yard", &Arc::new(Attention::new(None)));
        view.add("report", Duration::from_millis(2));
        let spool = SpoolStats {
            bytes: 2_048,
            ..SpoolStats::default()
        };
        let stats = PublishStats {
            sent: 7,
            spool: Some(spool),
            ..PublishStats::default()
        };
        view.counters(Some(stats), std::iter::empty());
        let scrape = Scrape {
            state: DaemonState::default(),
            view,
            resident: Some(4_096),
        };
        let text = scrape.text().unwrap();
        for line in [
            "# TYPE samclip_frames_total counter",
            "samclip_frames_total{camera=\"yard\"} 0",
            "samclip_frames_still_total{camera=\"yard\"} 0",
            "# TYPE samclip_stage_duration_seconds histogram",
            "samclip_stage_duration_seconds_bucket{stage=\"report\",le=\"0.0025\"} 1",
            "samclip_stage_duration_seconds_bucket{stage=\"report\",le=\"+Inf\"} 1",
            "samclip_stage_duration_seconds_count{stage=\"report\"} 1",
            "# TYPE samclip_build_info gauge",
            "samclip_resident_memory_bytes 4096.0",
            "samclip_mqtt_messages_sent_total 7",
            "samclip_spool_bytes 2048.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
