//! Bodies of `<p>/events`: what began, changed and ended, in the shape that Frigate's consumers know.
//!
//! Keys and meanings are Frigate's (`docs.frigate.video/integrations/mqtt`), so that filters such as `after.label`,
//! `after.score` or `after.current_zones` work. What Frigate has no word for is under `x_mask`. Times are capture times
//! in seconds since 1970 UTC, coordinates pixels of the camera frame.

use serde::{Deserialize, Serialize};

use super::payload::{PayloadError, SCHEMA, check_schema, finite};

/// JSON Schema of [`EventMessage`].
pub const EVENT_SCHEMA: &str = include_str!("schemas/event.json");

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A thing is there.
    New,
    /// It moved, stopped, entered or left a zone, was seen better, or is still there.
    Update,
    /// It is gone.
    End,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventMessage {
    /// [`SCHEMA`].
    pub schema: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The thing as the last event told of it; the same as `after` for a new one.
    pub before: TrackedThing,
    /// The thing now.
    pub after: TrackedThing,
}

/// A tracked thing at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackedThing {
    /// Id of the track; `track_id` in frame messages.
    pub id: String,
    /// Camera id.
    pub camera: String,
    /// Query id.
    pub label: String,
    /// Always null; Frigate's consumers expect the key.
    pub sub_label: Option<String>,
    /// Capture time of the frame it was last seen on.
    pub frame_time: f64,
    /// Capture time of the frame it was first seen on.
    pub start_time: f64,
    /// Capture time of the frame it was last seen on, once it is gone.
    pub end_time: Option<f64>,
    /// Always false: nothing is told of before it counts.
    pub false_positive: bool,
    /// Smoothed score, 0-1.
    pub score: f32,
    /// Best score, 0-1.
    pub top_score: f32,
    /// Left, top, right, bottom; right and bottom are exclusive.
    #[serde(rename = "box")]
    pub bbox: [u32; 4],
    /// Pixels of the mask.
    pub area: u64,
    /// Width of the box over its height.
    pub ratio: f32,
    /// Zones it is in.
    pub current_zones: Vec<String>,
    /// Zones it was in.
    pub entered_zones: Vec<String>,
    /// Whether it stayed in one place for a while.
    pub stationary: bool,
    /// Whether it is there and moves.
    pub active: bool,
    /// Whether a picture of it went to the snapshot topic.
    pub has_snapshot: bool,
    /// Always false: nothing is recorded.
    pub has_clip: bool,
    /// Its mask.
    pub x_mask: MaskOutline,
}

/// The outline of a mask and what it was found by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskOutline {
    /// Frame width and height in pixels.
    pub size: [u32; 2],
    /// The text that was looked for.
    pub prompt: String,
    /// Rings of pixel corners, as in frame messages.
    pub polygon: Vec<Vec<[i32; 2]>>,
}

impl EventMessage {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`PayloadError::NotFinite`] for scores that are no numbers.
    pub fn encode(&self) -> Result<Vec<u8>, PayloadError> {
        for (name, thing) in [("before", &self.before), ("after", &self.after)] {
            finite(thing.score, || format!("{name}.score"))?;
            finite(thing.top_score, || format!("{name}.top_score"))?;
            finite(thing.ratio, || format!("{name}.ratio"))?;
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

    /// An event of the present version.
    #[must_use]
    pub fn new(kind: EventKind, before: TrackedThing, after: TrackedThing) -> Self {
        Self {
            schema: SCHEMA.into(),
            kind,
            before,
            after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing() -> TrackedThing {
        TrackedThing {
            id: "1795467840.3-a1b2c3".into(),
            camera: "dock".into(),
            label: "blue-pallet".into(),
            sub_label: None,
            frame_time: 1_795_467_845.12,
            start_time: 1_795_467_840.3,
            end_time: None,
            false_positive: false,
            score: 0.83,
            top_score: 0.91,
            bbox: [410, 220, 700, 515],
            area: 52_110,
            ratio: 0.98,
            current_zones: vec!["bay-2".into()],
            entered_zones: vec!["bay-2".into()],
            stationary: true,
            active: false,
            has_snapshot: false,
            has_clip: false,
            x_mask: MaskOutline {
                size: [1280, 720],
                prompt: "a blue pallet".into(),
                polygon: vec![vec![[410, 230], [690, 221], [700, 510]]],
            },
        }
    }

    fn errors(body: &serde_json::Value) -> usize {
        let schema = serde_json::from_str(EVENT_SCHEMA).unwrap();
        jsonschema::draft202012::new(&schema).unwrap().iter_errors(body).count()
    }

    #[test]
    fn an_event_survives_the_round_trip_and_is_valid() {
        for kind in [EventKind::New, EventKind::Update, EventKind::End] {
            let mut after = thing();
            after.end_time = (kind == EventKind::End).then_some(1_795_467_846.5);
            let event = EventMessage::new(kind, thing(), after);
            let bytes = event.encode().unwrap();
            assert_eq!(EventMessage::decode(&bytes).unwrap(), event);
            let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(errors(&body), 0);
            assert_eq!(
                body["after"]["sub_label"],
                serde_json::Value::Null,
                "Frigate's consumers expect the key"
            );
        }
    }

    #[test]
    fn the_schema_refuses_what_is_no_event() {
        let good = serde_json::to_value(EventMessage::new(EventKind::New, thing(), thing())).unwrap();
        for (path, value) in [
            ("/type", "gone".into()),
            ("/after/score", 2.into()),
            ("/after/box", serde_json::json!([1])),
            ("/before", serde_json::json!({})),
            ("/after/x_mask/polygon", "…".into()),
        ] {
            let mut body = good.clone();
            *body.pointer_mut(path).unwrap() = value;
            assert!(errors(&body) > 0, "{path}");
        }
        let mut event = EventMessage::new(EventKind::New, thing(), thing());
        event.after.ratio = f32::INFINITY;
        assert_eq!(
            event.encode().unwrap_err().to_string(),
            "after.ratio is inf, expected a finite number"
        );
        assert!(EventMessage::decode(b"[]").is_err());
    }
}
