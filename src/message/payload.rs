//! Bodies of messages: versioned JSON and the words of state topics.
//!
//! `schema` is `major.minor`: readers accept any minor version of the major version they know and ignore keys they do
//! not know. Times are capture times, never sending times. Coordinates are pixels of the camera frame.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of every JSON body.
pub const SCHEMA: &str = "1.0";

/// JSON Schema of [`FrameMessage`].
pub const FRAME_SCHEMA: &str = include_str!("schemas/frame.json");

/// JSON Schema of [`StatsMessage`].
pub const STATS_SCHEMA: &str = include_str!("schemas/stats.json");

/// Why a body could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// JSON has no infinity and no NaN.
    #[error("{field} is {found}, expected a finite number")]
    NotFinite {
        /// Path of the field.
        field: String,
        /// The number.
        found: f64,
    },
    /// Not JSON, or not this message.
    #[error("message body: {0}")]
    Json(#[from] serde_json::Error),
    /// A version this program cannot read.
    #[error("message schema {found:?}, expected a version of {SCHEMA}'s major")]
    Schema {
        /// The version found.
        found: String,
    },
    /// A time outside years 1 to 9999.
    #[error("timestamp of {milliseconds} ms since 1970 is outside years 1 to 9999")]
    Timestamp {
        /// The time.
        milliseconds: i64,
    },
}

/// All detections of one frame: `<p>/<cam>/frame`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameMessage {
    /// [`SCHEMA`].
    pub schema: String,
    /// Camera id.
    pub camera: String,
    /// Number of the frame since the source was opened; gaps are dropped frames.
    pub seq: u64,
    /// Capture time, RFC 3339 in UTC with milliseconds; see [`rfc3339`].
    pub timestamp: String,
    /// Milliseconds from capture to the making of this message.
    pub age_ms: u64,
    /// Frame width and height in pixels.
    pub size: [u32; 2],
    /// Side in pixels of the model's square input that the frame went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_side: Option<u32>,
    /// Model name and the start of its hash: `nano@4f1c`.
    pub model: String,
    /// What ran the model: `tract-cpu`, `ort-cuda`.
    pub provider: String,
    /// Best score first.
    pub detections: Vec<Detection>,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Id of the track; absent until the thing counts (`min_hits`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_id: Option<String>,
    /// Query id.
    pub query: String,
    /// The text that was looked for.
    pub prompt: String,
    /// Calibrated score, 0-1.
    pub score: f32,
    /// Score from which on the query counts as present, 0-1.
    pub threshold: f32,
    /// Left, top, right, bottom in pixels; right and bottom are exclusive.
    #[serde(rename = "box")]
    pub bbox: [u32; 4],
    /// Pixels of the mask.
    pub area: u64,
    /// Ids of the zones the mask touches.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Rings of pixel corners, simplified to the configured tolerance; outer rings clockwise on the screen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polygon: Option<Vec<Vec<[i32; 2]>>>,
    /// The exact mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rle: Option<RleText>,
}

/// A mask in COCO's compressed run-length code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RleText {
    /// Height and width in pixels, in COCO's order.
    pub size: [u32; 2],
    /// Column-major runs.
    pub counts: String,
}

/// How the daemon is doing: `<p>/stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsMessage {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// As in [`FrameMessage`].
    pub model: String,
    /// As in [`FrameMessage`].
    pub provider: String,
    /// Variant of the model's graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Nodes of the model by provider, as counted in a warm-up run; absent on the CPU, where nothing needs proof.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub provider_nodes: BTreeMap<String, u64>,
    /// Resident memory in bytes; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Messages dropped because the broker was slow or away.
    pub dropped_messages: u64,
    /// Events on disk; absent without a spool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolMessage>,
    /// By camera id.
    pub cameras: BTreeMap<String, CameraStats>,
    /// Mean milliseconds per frame by stage, since the last message.
    pub stage_ms: BTreeMap<String, f32>,
}

/// How the events on disk are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolMessage {
    /// Events the broker has not acknowledged.
    pub waiting: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Events dropped since start because the spool was full.
    pub dropped: u64,
    /// Damaged places found since start.
    pub damaged: u64,
    /// Events that could not be written since start.
    pub failed: u64,
}

/// How one camera is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CameraStats {
    /// Frames per second through the whole pipeline, since the last message.
    pub fps: f32,
    /// Frames processed since start.
    pub frames: u64,
    /// Looks at them since start by side in pixels of the model's input; a frame that was looked at twice is counted in both.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub looks: BTreeMap<u32, u64>,
    /// Frames skipped for a newer one since start.
    pub skipped: u64,
    /// Frames left out since start because nothing moved.
    #[serde(default)]
    pub still: u64,
    /// Frames that the camera's driver left out since start.
    #[serde(default)]
    pub lost: u64,
    /// Damaged frames since start.
    #[serde(default)]
    pub corrupt: u64,
    /// How often the camera was opened again since start.
    #[serde(default)]
    pub reopened: u64,
}

impl FrameMessage {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`PayloadError::NotFinite`] for scores that are no numbers.
    pub fn encode(&self) -> Result<Vec<u8>, PayloadError> {
        for (i, detection) in self.detections.iter().enumerate() {
            finite(detection.score, || format!("detections[{i}].score"))?;
            finite(detection.threshold, || format!("detections[{i}].threshold"))?;
        }
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`PayloadError`] if it is not such a message or of another major version.
    pub fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let message: Self = serde_json::from_slice(bytes)?;
        check_schema(&message.schema)?;
        Ok(message)
    }
}

impl StatsMessage {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`PayloadError::NotFinite`] for times and rates that are no numbers.
    pub fn encode(&self) -> Result<Vec<u8>, PayloadError> {
        for (camera, stats) in &self.cameras {
            finite(stats.fps, || format!("cameras.{camera}.fps"))?;
        }
        for (stage, &milliseconds) in &self.stage_ms {
            finite(milliseconds, || format!("stage_ms.{stage}"))?;
        }
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`PayloadError`] if it is not such a message or of another major version.
    pub fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let message: Self = serde_json::from_slice(bytes)?;
        check_schema(&message.schema)?;
        Ok(message)
    }
}

pub(super) fn finite(found: f32, field: impl FnOnce() -> String) -> Result<(), PayloadError> {
    if found.is_finite() {
        Ok(())
    } else {
        Err(PayloadError::NotFinite {
            field: field(),
            found: found.into(),
        })
    }
}

pub(super) fn check_schema(found: &str) -> Result<(), PayloadError> {
    let major = |version: &str| version.split_once('.').map(|(major, _)| major.to_owned());
    if major(found).is_some() && major(found) == major(SCHEMA) {
        Ok(())
    } else {
        Err(PayloadError::Schema {
            found: found.chars().take(80).collect(),
        })
    }
}

/// Milliseconds since 1970-01-01 UTC as RFC 3339 text: `2026-11-23T21:04:05.120Z`.
///
/// # Errors
/// [`PayloadError::Timestamp`] outside years 1 to 9999.
pub fn rfc3339(milliseconds: i64) -> Result<String, PayloadError> {
    let range = -62_135_596_800_000..253_402_207_200_000;
    match jiff::Timestamp::from_millisecond(milliseconds) {
        Ok(time) if range.contains(&milliseconds) => Ok(format!("{time:.3}")),
        _ => Err(PayloadError::Timestamp { milliseconds }),
    }
}

/// `<p>/available`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Connected; sent after every connect.
    Online,
    /// The connection broke; the broker sends it as last will.
    Offline,
    /// The daemon ended on purpose.
    Stopped,
}

impl Availability {
    /// The body.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Stopped => "stopped",
        }
    }
}

/// `<p>/<cam>/status/detect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectStatus {
    /// Frames are processed.
    Online,
    /// The camera gives no frames.
    Offline,
    /// Switched off.
    Disabled,
    /// The accelerator is preparing its engine.
    BuildingEngine,
}

impl DetectStatus {
    /// The body.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Disabled => "disabled",
            Self::BuildingEngine => "building_engine",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> FrameMessage {
        FrameMessage {
            schema: SCHEMA.into(),
            camera: "dock".into(),
            seq: 88_123,
            timestamp: rfc3339(1_795_467_845_120).unwrap(),
            age_ms: 61,
            size: [1280, 720],
            input_side: Some(320),
            model: "nano@4f1c".into(),
            provider: "tract-cpu".into(),
            detections: vec![
                Detection {
                    track_id: Some("1795467840.3-a1b2".into()),
                    query: "blue-pallet".into(),
                    prompt: "a blue pallet".into(),
                    score: 0.83,
                    threshold: 0.6,
                    bbox: [410, 220, 700, 515],
                    area: 52_110,
                    zones: vec!["bay-2".into()],
                    polygon: Some(vec![vec![[410, 230], [690, 221], [700, 510], [415, 515]]]),
                    rle: Some(RleText {
                        size: [720, 1280],
                        counts: "ab0".into(),
                    }),
                },
                Detection {
                    track_id: None,
                    query: "person".into(),
                    prompt: "person".into(),
                    score: 1.0,
                    threshold: 0.0,
                    bbox: [0, 0, 1, 1],
                    area: 1,
                    zones: Vec::new(),
                    polygon: None,
                    rle: None,
                },
            ],
        }
    }

    fn stats() -> StatsMessage {
        StatsMessage {
            schema: SCHEMA.into(),
            version: "0.1.0".into(),
            uptime_s: 60,
            model: "nano@4f1c".into(),
            provider: "ort-tensorrt".into(),
            precision: Some("fp16-stored".into()),
            provider_nodes: [("TensorrtExecutionProvider".to_owned(), 2)].into(),
            memory_bytes: Some(1 << 28),
            dropped_messages: 0,
            spool: Some(SpoolMessage {
                waiting: 3,
                bytes: 2_048,
                dropped: 0,
                damaged: 0,
                failed: 0,
            }),
            cameras: [(
                "dock".to_owned(),
                CameraStats {
                    fps: 4.5,
                    frames: 270,
                    looks: BTreeMap::from([(224, 200), (320, 71)]),
                    skipped: 3,
                    still: 5,
                    lost: 2,
                    corrupt: 1,
                    reopened: 4,
                },
            )]
            .into(),
            stage_ms: [("encoder".to_owned(), 180.5)].into(),
        }
    }

    fn errors(schema: &str, body: &serde_json::Value) -> Vec<String> {
        let schema = serde_json::from_str(schema).unwrap();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        validator.iter_errors(body).map(|error| error.to_string()).collect()
    }

    #[test]
    fn every_message_is_valid_against_its_schema() {
        let body: serde_json::Value = serde_json::from_slice(&frame().encode().unwrap()).unwrap();
        assert_eq!(errors(FRAME_SCHEMA, &body), Vec::<String>::new());
        let body: serde_json::Value = serde_json::from_slice(&stats().encode().unwrap()).unwrap();
        assert_eq!(errors(STATS_SCHEMA, &body), Vec::<String>::new());
    }

    #[test]
    fn the_schemas_refuse_what_the_text_forbids() {
        let good = serde_json::to_value(frame()).unwrap();
        let broken = |path: &str, value: serde_json::Value| {
            let mut body = good.clone();
            *body.pointer_mut(path).unwrap() = value;
            errors(FRAME_SCHEMA, &body).len()
        };
        assert!(broken("/timestamp", "2026-11-23 21:04".into()) > 0);
        assert!(broken("/camera", "Dock 1".into()) > 0);
        assert!(broken("/detections/0/score", 1.5.into()) > 0);
        assert!(broken("/detections/0/box", serde_json::json!([1, 2, 3])) > 0);
        assert!(broken("/detections/0/polygon/0", serde_json::json!([[1, 2]])) > 0);
        assert!(broken("/schema", "2.0".into()) > 0);
        let mut body = serde_json::to_value(stats()).unwrap();
        body.as_object_mut().unwrap().remove("provider");
        assert!(!errors(STATS_SCHEMA, &body).is_empty());
    }

    #[test]
    fn a_frame_without_scores_that_are_numbers_is_not_sent() {
        let mut message = frame();
        message.detections[1].score = f32::NAN;
        let error = message.encode().unwrap_err().to_string();
        assert_eq!(error, "detections[1].score is NaN, expected a finite number");
        let mut message = stats();
        message.stage_ms.insert("decoder".into(), f32::INFINITY);
        assert!(message.encode().is_err());
    }

    #[test]
    fn timestamps_are_rfc_3339_with_milliseconds() {
        assert_eq!(rfc3339(1_795_467_845_120).unwrap(), "2026-11-23T21:04:05.120Z");
        assert_eq!(rfc3339(0).unwrap(), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(-1).unwrap(), "1969-12-31T23:59:59.999Z");
        assert!(rfc3339(i64::MAX).is_err() && rfc3339(i64::MIN).is_err());
    }

    #[test]
    fn newer_minor_versions_are_read_and_newer_major_ones_refused() {
        let mut body = serde_json::to_value(frame()).unwrap();
        body["schema"] = "1.7".into();
        body["brand_new"] = true.into();
        assert!(FrameMessage::decode(body.to_string().as_bytes()).is_ok());
        body["schema"] = "2.0".into();
        assert!(matches!(
            FrameMessage::decode(body.to_string().as_bytes()),
            Err(PayloadError::Schema { .. })
        ));
        assert!(matches!(FrameMessage::decode(b"{"), Err(PayloadError::Json(_))));
    }

    proptest! {
        #[test]
        fn a_frame_message_survives_the_round_trip(
            seq in any::<u64>(), milliseconds in 0i64..4_000_000_000_000, prompt in any::<String>(),
            score in 0f32..=1.0, bbox in any::<[u32; 4]>(), ring in prop::collection::vec(any::<[i32; 2]>(), 3..20),
        ) {
            let mut message = frame();
            (message.seq, message.timestamp) = (seq, rfc3339(milliseconds).unwrap());
            let detection = &mut message.detections[0];
            (detection.prompt, detection.score, detection.bbox, detection.polygon) = (prompt, score, bbox, Some(vec![ring]));
            let bytes = message.encode().unwrap();
            prop_assert_eq!(FrameMessage::decode(&bytes).unwrap(), message);
            let body = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(errors(FRAME_SCHEMA, &body), Vec::<String>::new());
        }
    }
}
