//! Frame messages as ONVIF metadata: `<prefix>/onvif-mj/VideoAnalytics/<camera>/samclip`.
//!
//! JSON over MQTT as in ONVIF's Analytics Service Specification ("JSON over MQTT") with the mapping of the Core
//! Specification's Annex E: attributes become `@name`. Coordinates stay pixels; the transformation maps them to ONVIF's
//! range −1 to 1 with y upwards. Of a mask only the largest ring is passed on: ONVIF's polygon is one, without holes.

use serde_json::{Value, json};

use super::payload::{Detection, FrameMessage};
use super::topic::{CameraId, Qos, Topic};
use crate::vision::polygon::doubled_area;

/// Where metadata of a camera go.
#[must_use]
pub fn topic(prefix: &str, camera: &CameraId) -> Topic {
    Topic {
        name: format!("{prefix}/onvif-mj/VideoAnalytics/{camera}/samclip"),
        qos: Qos::AtMostOnce,
        retained: false,
    }
}

/// ONVIF numbers objects: the digits that end a track's id.
fn object_id(track: &str) -> Option<u32> {
    u32::from_str_radix(track.rsplit('-').next()?, 16).ok()
}

fn object(detection: &Detection) -> Value {
    let [left, top, right, bottom] = detection.bbox;
    let middle = |a: u32, b: u32| (f64::from(a) + f64::from(b)) / 2.0;
    let mut shape = json!({
        "BoundingBox": {"@left": left, "@top": top, "@right": right, "@bottom": bottom},
        "CenterOfGravity": {"@x": middle(left, right), "@y": middle(top, bottom)},
    });
    let rings = detection.polygon.iter().flatten();
    if let Some(ring) = rings.max_by_key(|ring| doubled_area(ring)) {
        let points: Vec<Value> = ring.iter().map(|[x, y]| json!({"@x": x, "@y": y})).collect();
        shape["Polygon"] = json!({"Point": points});
    }
    let mut object = json!({
        "Appearance": {
            "Shape": shape,
            "Class": {"Type": [{"@Likelihood": detection.score, "#text": detection.prompt}]},
        },
    });
    if let Some(id) = detection.track_id.as_deref().and_then(object_id) {
        object["@ObjectId"] = id.into();
    }
    object
}

/// A frame message as ONVIF metadata.
#[must_use]
pub fn body(message: &FrameMessage) -> Vec<u8> {
    let [width, height] = message.size.map(|side| f64::from(side.max(1)));
    let objects: Vec<Value> = message.detections.iter().map(object).collect();
    json!({"Frame": [{
        "@UtcTime": message.timestamp,
        "@Source": "samclip",
        "Transformation": {
            "Translate": {"@x": -1.0, "@y": 1.0},
            "Scale": {"@x": 2.0 / width, "@y": -2.0 / height},
        },
        "Object": objects,
    }]})
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::payload::SCHEMA;

    fn message() -> FrameMessage {
        let detection = |track: Option<&str>, polygon| Detection {
            track_id: track.map(str::to_owned),
            query: "blue-pallet".into(),
            prompt: "blue pallet".into(),
            score: 0.5,
            threshold: 0.25,
            bbox: [410, 220, 700, 515],
            area: 9,
            zones: vec![],
            polygon,
            rle: None,
        };
        let speck = vec![[600, 220], [610, 220], [610, 225]];
        let ring = vec![[410, 230], [690, 221], [700, 510]];
        FrameMessage {
            schema: SCHEMA.into(),
            camera: "dock".into(),
            seq: 1,
            timestamp: "2026-11-23T21:04:05.120Z".into(),
            age_ms: 5,
            size: [1280, 720],
            input_side: None,
            model: "m".into(),
            provider: "p".into(),
            detections: vec![
                detection(Some("1795467840.3-0000ff"), Some(vec![speck, ring])),
                detection(None, None),
            ],
        }
    }

    #[test]
    fn the_corners_of_the_frame_are_the_corners_of_onvif_s_range() {
        let body: Value = serde_json::from_slice(&body(&message())).unwrap();
        let frame = &body["Frame"][0];
        let mapped = |axis: &str, pixel: f64| {
            let t = &frame["Transformation"];
            pixel * t["Scale"][axis].as_f64().unwrap() + t["Translate"][axis].as_f64().unwrap()
        };
        assert_eq!((mapped("@x", 0.0), mapped("@y", 0.0)), (-1.0, 1.0));
        assert!((mapped("@x", 1280.0) - 1.0).abs() < 1e-9 && (mapped("@y", 720.0) + 1.0).abs() < 1e-9);
        assert_eq!(frame["@UtcTime"], "2026-11-23T21:04:05.120Z");
    }

    #[test]
    fn an_object_has_the_track_s_number_box_polygon_and_class() {
        let body: Value = serde_json::from_slice(&body(&message())).unwrap();
        let objects = body["Frame"][0]["Object"].as_array().unwrap();
        assert_eq!(objects[0]["@ObjectId"], 255);
        let shape = &objects[0]["Appearance"]["Shape"];
        assert_eq!(shape["CenterOfGravity"], json!({"@x": 555.0, "@y": 367.5}));
        assert_eq!(shape["Polygon"]["Point"][1], json!({"@x": 690, "@y": 221}));
        let class = &objects[0]["Appearance"]["Class"]["Type"][0];
        assert_eq!(*class, json!({"@Likelihood": 0.5, "#text": "blue pallet"}));
        assert!(objects[1].get("@ObjectId").is_none() && objects[1]["Appearance"]["Shape"].get("Polygon").is_none());
        assert_eq!(
            topic("onvif", &CameraId::new("dock").unwrap()).name,
            "onvif/onvif-mj/VideoAnalytics/dock/samclip"
        );
    }
}
