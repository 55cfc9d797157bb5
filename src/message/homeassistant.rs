//! Home Assistant's device discovery: one device per camera, with entities for its queries, detection and health.
//!
//! `<prefix>/device/<id>/config`, retained, as `home-assistant.io/integrations/mqtt` describes it (2024.11 or newer).
//! Every entity reads a topic that the daemon publishes anyway; nothing is published for Home Assistant alone.

use serde_json::{Map, Value, json};

use super::topic::{CameraId, Qos, QueryId, Topic, Topics};

/// What to tell Home Assistant of one camera.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// Discovery prefix, usually `homeassistant`.
    pub prefix: &'a str,
    /// Tells daemons of one broker apart: the client id.
    pub node: &'a str,
    /// The camera.
    pub camera: &'a CameraId,
    /// Its queries.
    pub queries: &'a [&'a QueryId],
    /// Queries it had: their entities are withdrawn.
    pub removed: &'a [&'a QueryId],
    /// Whether snapshots are published.
    pub snapshots: bool,
    /// Whether detection can be switched.
    pub commands: bool,
}

/// Topic on which Home Assistant says `online` when it has started.
#[must_use]
pub fn birth_topic(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// A component that names its platform alone is removed.
fn gone(platform: &str) -> Value {
    json!({"platform": platform})
}

/// Adds a component of device `id`.
fn insert(entities: &mut Map<String, Value>, id: &str, name: &str, mut entity: Value) {
    if entity.as_object().is_some_and(|keys| keys.len() > 1) {
        entity["unique_id"] = format!("{id}-{name}").into();
    }
    entities.insert(format!("{id}-{name}"), entity);
}

impl Device<'_> {
    /// Id of the device: letters, digits and hyphens.
    fn id(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        format!("{}-{}", self.node.chars().map(plain).collect::<String>(), self.camera)
    }

    /// Where the description goes.
    #[must_use]
    pub fn topic(&self) -> Topic {
        Topic {
            name: format!("{}/device/{}/config", self.prefix, self.id()),
            qos: Qos::AtLeastOnce,
            retained: true,
        }
    }

    /// The description.
    #[must_use]
    pub fn body(&self, topics: &Topics) -> Vec<u8> {
        let id = self.id();
        let mut entities = Map::new();
        let mut add = |name: &str, entity: Value| insert(&mut entities, &id, name, entity);
        for query in self.queries {
            let words = query.as_str().replace('-', " ");
            let count = topics.count(self.camera, query).name;
            add(
                &format!("{query}-count"),
                json!({"platform": "sensor", "name": format!("{words} count"), "state_topic": count,
                       "state_class": "measurement"}),
            );
            add(
                &format!("{query}-present"),
                json!({"platform": "binary_sensor", "name": words, "state_topic": count, "device_class": "occupancy",
                       "value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}"}),
            );
            add(
                &format!("{query}-active"),
                json!({"platform": "sensor", "name": format!("{words} active"), "state_class": "measurement",
                       "state_topic": topics.active(self.camera, query).name}),
            );
            if self.snapshots {
                add(
                    &format!("{query}-snapshot"),
                    json!({"platform": "image", "name": format!("{words} snapshot"), "content_type": "image/jpeg",
                           "image_topic": topics.snapshot(self.camera, query).name}),
                );
            } else {
                add(&format!("{query}-snapshot"), gone("image"));
            }
        }
        for query in self.removed {
            for (entity, platform) in [
                ("count", "sensor"),
                ("present", "binary_sensor"),
                ("active", "sensor"),
                ("snapshot", "image"),
            ] {
                add(&format!("{query}-{entity}"), gone(platform));
            }
        }
        self.add_camera(topics, &id, &mut entities);
        json!({
            "device": {"identifiers": [id], "name": format!("samclip {}", self.camera), "manufacturer": "samclip",
                       "sw_version": env!("CARGO_PKG_VERSION")},
            "origin": {"name": "samclip", "sw_version": env!("CARGO_PKG_VERSION")},
            "availability": [{"topic": topics.available().name,
                              "value_template": "{{ 'online' if value == 'online' else 'offline' }}"}],
            "components": entities,
            "qos": 1,
        })
        .to_string()
        .into_bytes()
    }

    /// Entities of the camera itself.
    fn add_camera(&self, topics: &Topics, id: &str, entities: &mut Map<String, Value>) {
        let mut add = |name: &str, entity: Value| insert(entities, id, name, entity);
        if self.commands {
            add(
                "detect",
                json!({"platform": "switch", "name": "detection", "state_topic": topics.detect_state(self.camera).name,
                       "command_topic": topics.detect_set(self.camera).name}),
            );
        } else {
            add("detect", gone("switch"));
        }
        add(
            "status",
            json!({"platform": "sensor", "name": "status", "entity_category": "diagnostic",
                   "state_topic": topics.detect_status(self.camera).name}),
        );
        let stats = topics.stats().name;
        let value = |path: String| format!("{{{{ value_json{path} }}}}");
        add(
            "fps",
            json!({"platform": "sensor", "name": "frames per second", "entity_category": "diagnostic",
                   "state_topic": stats, "state_class": "measurement",
                   "value_template": value(format!("['cameras']['{}']['fps'] | round(1)", self.camera))}),
        );
        add(
            "provider",
            json!({"platform": "sensor", "name": "provider", "entity_category": "diagnostic", "state_topic": stats,
                   "value_template": value("['provider']".into())}),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entity_has_an_id_of_its_own_and_removed_ones_their_platform_alone() {
        let (camera, cat, dog) = (
            CameraId::new("yard").unwrap(),
            QueryId::new("cat").unwrap(),
            QueryId::new("dog").unwrap(),
        );
        let device = Device {
            prefix: "homeassistant",
            node: "samclipd 1",
            camera: &camera,
            queries: &[&cat],
            removed: &[&dog],
            snapshots: true,
            commands: true,
        };
        assert_eq!(device.topic().name, "homeassistant/device/samclipd-1-yard/config");
        let body: Value = serde_json::from_slice(&device.body(&Topics::new("samclip").unwrap())).unwrap();
        let entities = body["components"].as_object().unwrap();
        assert_eq!(entities.len(), 4 + 4 + 4);
        for (key, entity) in entities {
            if key.contains("dog") {
                assert_eq!(entity.as_object().unwrap().len(), 1, "{key}");
            } else {
                assert_eq!(entity["unique_id"], *key);
            }
        }
        let quiet = Device {
            snapshots: false,
            commands: false,
            ..device
        };
        let body: Value = serde_json::from_slice(&quiet.body(&Topics::new("samclip").unwrap())).unwrap();
        // What there may have been before is removed.
        let entities = body["components"].as_object().unwrap();
        let (left, gone): (Vec<_>, Vec<_>) = entities.iter().partition(|(_, e)| e.get("unique_id").is_some());
        assert_eq!(left.len(), 3 + 3);
        let gone: Vec<&str> = gone
            .into_iter()
            .map(|(key, _)| key.trim_start_matches("samclipd-1-yard-"))
            .collect();
        let expected = [
            "cat-snapshot",
            "detect",
            "dog-active",
            "dog-count",
            "dog-present",
            "dog-snapshot",
        ];
        assert_eq!(gone, expected);
        assert!(!body.to_string().contains("/set"));
    }
}
