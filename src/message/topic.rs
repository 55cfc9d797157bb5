//! Topic names of the native tree, below a prefix (default `samclip`).
//!
//! The tree follows Frigate's (`docs.frigate.video/integrations/mqtt`), so that its consumers work with another prefix.
//! Free text never enters a topic: cameras and queries have ids of lower-case letters, digits and hyphens, as Homie 5
//! demands.

use std::fmt;

/// Longest id in characters.
pub const MAX_ID: usize = 64;

/// Longest prefix in bytes.
pub const MAX_PREFIX: usize = 128;

/// Second levels below a camera that are not queries, and words kept for later use.
pub(crate) const RESERVED_QUERIES: [&str; 6] = ["frame", "status", "detect", "query", "background", "all"];

/// First levels below the prefix that are not cameras, and words kept for later use.
const RESERVED_CAMERAS: [&str; 4] = ["available", "events", "stats", "all"];

/// Why an id or a prefix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Characters or length.
    #[error("{kind} id {found:?}: expected 1 to {MAX_ID} characters out of a-z, 0-9 and hyphen")]
    Id {
        /// `camera` or `query`.
        kind: &'static str,
        /// The text, cut after 80 characters.
        found: String,
    },
    /// A word that names a topic level of its own.
    #[error("{kind} id {found:?} is reserved; choose another than {reserved}")]
    Reserved {
        /// `camera` or `query`.
        kind: &'static str,
        /// The word.
        found: String,
        /// All reserved words.
        reserved: String,
    },
    /// A prefix that cannot start a topic.
    #[error(
        "topic prefix {found:?}: expected 1 to {MAX_PREFIX} bytes without +, #, control characters, a leading $, \
         or a slash at either end"
    )]
    Prefix {
        /// The text, cut after 80 characters.
        found: String,
    },
}

/// Checks an id of a camera or a query.
fn check_id(kind: &'static str, text: &str, reserved: &[&str]) -> Result<String, TopicError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > MAX_ID || !text.bytes().all(allowed) {
        return Err(TopicError::Id {
            kind,
            found: text.chars().take(80).collect(),
        });
    }
    if reserved.contains(&text) {
        return Err(TopicError::Reserved {
            kind,
            found: text.into(),
            reserved: reserved.join(", "),
        });
    }
    Ok(text.into())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $reserved:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes an id.
            ///
            /// # Errors
            /// [`TopicError`] for other characters, a wrong length or a reserved word.
            pub fn new(text: &str) -> Result<Self, TopicError> {
                check_id($kind, text, &$reserved).map(Self)
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Id of a camera; the topic level below the prefix.
    CameraId,
    "camera",
    RESERVED_CAMERAS
);
id!(
    /// Id of a query; the topic level below a camera.
    QueryId,
    "query",
    RESERVED_QUERIES
);

/// MQTT quality of service; the daemon never uses 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// 0: may be lost.
    AtMostOnce,
    /// 1: acknowledged, may come twice.
    AtLeastOnce,
}

/// Where a message goes and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Full name.
    pub name: String,
    /// Quality of service.
    pub qos: Qos,
    /// Whether the broker keeps the last message for later subscribers.
    pub retained: bool,
}

/// What a command topic asks for; ids are as they came, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// Camera level.
    pub camera: &'a str,
    /// What is to be changed.
    pub what: Asked<'a>,
}

/// What a command changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The query of this id.
    Query(&'a str),
    /// Whether frames are processed.
    Detect,
    /// What queries compete with.
    Background,
}

/// All topics below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

impl Topics {
    /// The prefix of a configuration that names none.
    pub const DEFAULT_PREFIX: &str = "samclip";

    /// Topics below `prefix`.
    ///
    /// # Errors
    /// [`TopicError::Prefix`] if it cannot start a topic name.
    pub fn new(prefix: &str) -> Result<Self, TopicError> {
        let bad = prefix.is_empty()
            || prefix.len() > MAX_PREFIX
            || prefix.starts_with(['/', '$'])
            || prefix.ends_with('/')
            || prefix.contains(['+', '#'])
            || prefix.contains(char::is_control);
        if bad {
            return Err(TopicError::Prefix {
                found: prefix.chars().take(80).collect(),
            });
        }
        Ok(Self { prefix: prefix.into() })
    }

    fn topic(&self, rest: fmt::Arguments<'_>, qos: Qos, retained: bool) -> Topic {
        Topic {
            name: format!("{}/{rest}", self.prefix),
            qos,
            retained,
        }
    }

    /// `<p>/available`: [`super::payload::Availability`]; also the last will.
    #[must_use]
    pub fn available(&self) -> Topic {
        self.topic(format_args!("available"), Qos::AtLeastOnce, true)
    }

    /// `<p>/stats`: [`super::payload::StatsMessage`].
    #[must_use]
    pub fn stats(&self) -> Topic {
        self.topic(format_args!("stats"), Qos::AtMostOnce, false)
    }

    /// `<p>/events`: beginnings, changes and ends of tracked things.
    #[must_use]
    pub fn events(&self) -> Topic {
        self.topic(format_args!("events"), Qos::AtLeastOnce, false)
    }

    /// `<p>/<cam>/status/detect`: [`super::payload::DetectStatus`].
    #[must_use]
    pub fn detect_status(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/status/detect"), Qos::AtLeastOnce, true)
    }

    /// `<p>/<cam>/frame`: [`super::payload::FrameMessage`].
    #[must_use]
    pub fn frame(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/frame"), Qos::AtMostOnce, false)
    }

    /// `<p>/<cam>/<query>`: number of things found, as decimal text.
    #[must_use]
    pub fn count(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/{query}"), Qos::AtLeastOnce, true)
    }

    /// `<p>/<cam>/<query>/active`: number of moving things, as decimal text.
    #[must_use]
    pub fn active(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/{query}/active"), Qos::AtLeastOnce, true)
    }

    /// `<p>/<cam>/<query>/snapshot`: JPEG bytes.
    #[must_use]
    pub fn snapshot(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/{query}/snapshot"), Qos::AtMostOnce, true)
    }

    /// `<p>/<cam>/<query>/mask`: 1-bit PNG of the frame's size.
    #[must_use]
    pub fn mask(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/{query}/mask"), Qos::AtMostOnce, false)
    }

    /// `<p>/<cam>/query/<id>/set`: a query as JSON, or empty to delete it.
    #[must_use]
    pub fn query_set(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/query/{query}/set"), Qos::AtLeastOnce, false)
    }

    /// `<p>/<cam>/query/<id>/state`: the query as it is in force.
    #[must_use]
    pub fn query_state(&self, camera: &CameraId, query: &QueryId) -> Topic {
        self.topic(format_args!("{camera}/query/{query}/state"), Qos::AtLeastOnce, true)
    }

    /// `<p>/<cam>/background/set`: a JSON list of the texts that queries compete with, or empty for the configuration's.
    #[must_use]
    pub fn background_set(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/background/set"), Qos::AtLeastOnce, false)
    }

    /// `<p>/<cam>/background/state`: the texts in force.
    #[must_use]
    pub fn background_state(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/background/state"), Qos::AtLeastOnce, true)
    }

    /// Where the refusal of a command goes: its topic with `error` for `set`.
    #[must_use]
    pub fn error_of(&self, command: &str) -> Topic {
        let stem = command.strip_suffix("/set").unwrap_or(command);
        Topic {
            name: format!("{stem}/error"),
            qos: Qos::AtLeastOnce,
            retained: false,
        }
    }

    /// Filters of all command topics.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        ["query/+", "detect", "background"]
            .map(|what| format!("{}/+/{what}/set", self.prefix))
            .into()
    }

    /// What a command topic asks for; `None` for any other topic.
    #[must_use]
    pub fn command<'a>(&self, name: &'a str) -> Option<Command<'a>> {
        let rest = name.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let levels: Vec<&str> = rest.split('/').collect();
        let (camera, what) = match levels[..] {
            [camera, "query", id, "set"] => (camera, Asked::Query(id)),
            [camera, "detect", "set"] => (camera, Asked::Detect),
            [camera, "background", "set"] => (camera, Asked::Background),
            _ => return None,
        };
        Some(Command { camera, what })
    }

    /// `<p>/<cam>/detect/set`: `ON` or `OFF`.
    #[must_use]
    pub fn detect_set(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/detect/set"), Qos::AtLeastOnce, false)
    }

    /// `<p>/<cam>/detect/state`: `ON` or `OFF`.
    #[must_use]
    pub fn detect_state(&self, camera: &CameraId) -> Topic {
        self.topic(format_args!("{camera}/detect/state"), Qos::AtLeastOnce, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn topics_carry_their_qos_and_retain_flag() {
        let topics = Topics::new("site-3/samclip").unwrap();
        let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("blue-pallet").unwrap());
        let table = [
            (topics.available(), "available", Qos::AtLeastOnce, true),
            (topics.stats(), "stats", Qos::AtMostOnce, false),
            (topics.events(), "events", Qos::AtLeastOnce, false),
            (
                topics.detect_status(&camera),
                "dock/status/detect",
                Qos::AtLeastOnce,
                true,
            ),
            (topics.frame(&camera), "dock/frame", Qos::AtMostOnce, false),
            (
                topics.count(&camera, &query),
                "dock/blue-pallet",
                Qos::AtLeastOnce,
                true,
            ),
            (
                topics.active(&camera, &query),
                "dock/blue-pallet/active",
                Qos::AtLeastOnce,
                true,
            ),
            (
                topics.snapshot(&camera, &query),
                "dock/blue-pallet/snapshot",
                Qos::AtMostOnce,
                true,
            ),
            (
                topics.mask(&camera, &query),
                "dock/blue-pallet/mask",
                Qos::AtMostOnce,
                false,
            ),
            (
                topics.query_set(&camera, &query),
                "dock/query/blue-pallet/set",
                Qos::AtLeastOnce,
                false,
            ),
            (
                topics.query_state(&camera, &query),
                "dock/query/blue-pallet/state",
                Qos::AtLeastOnce,
                true,
            ),
            (topics.detect_set(&camera), "dock/detect/set", Qos::AtLeastOnce, false),
            (
                topics.detect_state(&camera),
                "dock/detect/state",
                Qos::AtLeastOnce,
                true,
            ),
        ];
        for (topic, rest, qos, retained) in table {
            assert_eq!(
                topic,
                Topic {
                    name: format!("site-3/samclip/{rest}"),
                    qos,
                    retained
                }
            );
        }
    }

    #[test]
    fn ids_outside_the_alphabet_are_refused() {
        assert_eq!(QueryId::new("blue-pallet-2").unwrap().as_str(), "blue-pallet-2");
        for bad in ["", "Blue", "a b", "a/b", "+", "#", "ä", &"x".repeat(65)] {
            assert!(
                matches!(QueryId::new(bad), Err(TopicError::Id { kind: "query", .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn reserved_words_are_refused_where_they_would_collide() {
        for word in RESERVED_QUERIES {
            assert!(matches!(QueryId::new(word), Err(TopicError::Reserved { .. })), "{word}");
        }
        assert!(QueryId::new("stats").is_ok() && CameraId::new("frame").is_ok());
        let error = CameraId::new("stats").unwrap_err().to_string();
        assert_eq!(
            error,
            "camera id \"stats\" is reserved; choose another than available, events, stats, all"
        );
    }

    #[test]
    fn command_topics_are_recognised_and_nothing_else_is() {
        let topics = Topics::new("site-3/samclip").unwrap();
        let (camera, query) = (CameraId::new("dock").unwrap(), QueryId::new("person").unwrap());
        let command = |what| Some(Command { camera: "dock", what });
        assert_eq!(
            topics.command(&topics.query_set(&camera, &query).name),
            command(Asked::Query("person"))
        );
        assert_eq!(topics.command(&topics.detect_set(&camera).name), command(Asked::Detect));
        assert_eq!(
            topics.command(&topics.background_set(&camera).name),
            command(Asked::Background)
        );
        for other in [
            "site-3/samclip/dock/person",
            "site-3/samclip",
            "samclip/dock/detect/set",
            "site-3/samclipx/d/detect/set",
            "",
        ] {
            assert_eq!(topics.command(other), None, "{other}");
        }
        assert_eq!(topics.commands()[0], "site-3/samclip/+/query/+/set");
        assert_eq!(
            topics.error_of("samclip/dock/query/Ä/set").name,
            "samclip/dock/query/Ä/error"
        );
    }

    #[test]
    fn prefixes_that_cannot_start_a_topic_are_refused() {
        for bad in ["", "/a", "a/", "$SYS", "a/+/b", "a#", "a\nb", &"x".repeat(129)] {
            assert!(Topics::new(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_accepted_id_adds_a_topic_level(text in any::<String>()) {
            if let Ok(id) = QueryId::new(&text) {
                prop_assert!(!id.as_str().contains(['/', '+', '#', '\0']));
            }
        }
    }
}
