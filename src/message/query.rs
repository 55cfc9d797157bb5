//! Bodies of `<p>/<cam>/query/<id>/set` and `…/state`, and of the other command topics. Foreign bytes: bounded, checked.

use serde::{Deserialize, Serialize};

use super::payload::{PayloadError, check_schema};

/// JSON Schema of [`QueryMessage`].
pub const QUERY_SCHEMA: &str = include_str!("schemas/query.json");

/// Longest body of a command in bytes.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A body that no command has.
    #[error("body of {found} bytes, expected at most {MAX_COMMAND_BYTES}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not JSON, an unknown key, or a value of the wrong type.
    #[error("body: {0}")]
    Json(#[from] serde_json::Error),
    /// Another major version.
    #[error(transparent)]
    Schema(#[from] PayloadError),
    /// Neither `ON` nor `OFF`.
    #[error("body {found:?}, expected ON or OFF")]
    Switch {
        /// The text, cut after 80 characters.
        found: String,
    },
}

/// Where a query comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuerySource {
    /// The configuration file.
    Config,
    /// A command.
    Live,
}

/// A query: what to set, or what is in force. What is left out has its key's default, whatever the configuration file says
/// of a query of this id; a state can be sent back as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryMessage {
    /// [`super::payload::SCHEMA`]; in states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Query id; in states. The topic says which query is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where it comes from; in states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<QuerySource>,
    /// Texts that mean the same thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// Score from which on it counts as present, between 0 and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Smallest mask in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_area: Option<u64>,
    /// Largest mask in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_area: Option<u64>,
    /// `#rrggbb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// Masks until a thing counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_hits: Option<u32>,
    /// Seconds without a mask until a thing is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<f32>,
    /// Zones of which a thing must be in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<String>>,
    /// Share of a mask that must lie inside a zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_share: Option<f32>,
    /// Seconds inside a zone until it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loitering: Option<f32>,
}

fn bounded(body: &[u8]) -> Result<&[u8], CommandError> {
    if body.len() > MAX_COMMAND_BYTES {
        return Err(CommandError::TooLong { found: body.len() });
    }
    Ok(body)
}

impl QueryMessage {
    /// Reads a body; its values are checked where the query is set.
    ///
    /// # Errors
    /// [`CommandError`] if it is too long, no such message, or of another major version.
    pub fn decode(body: &[u8]) -> Result<Self, CommandError> {
        let message: Self = serde_json::from_slice(bounded(body)?)?;
        if let Some(schema) = &message.schema {
            check_schema(schema)?;
        }
        Ok(message)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`CommandError::Json`], which only numbers without a JSON form can cause.
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        Ok(serde_json::to_vec(self)?)
    }
}

/// Reads the body of `<p>/<cam>/background/set`: a JSON list of texts.
///
/// # Errors
/// [`CommandError`] if it is too long or no such list.
pub fn decode_texts(body: &[u8]) -> Result<Vec<String>, CommandError> {
    Ok(serde_json::from_slice(bounded(body)?)?)
}

/// Reads the body of `<p>/<cam>/detect/set`.
///
/// # Errors
/// [`CommandError::Switch`] for anything but `ON` and `OFF`.
pub fn decode_switch(body: &[u8]) -> Result<bool, CommandError> {
    match body {
        b"ON" => Ok(true),
        b"OFF" => Ok(false),
        other => Err(CommandError::Switch {
            found: String::from_utf8_lossy(other).chars().take(80).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = r##"{"schema":"1.0","id":"person","source":"live","prompts":["person","a man"],"threshold":0.6,
        "min_area":64,"max_area":9000,"color":"#ff8800","min_hits":2,"max_age":3.0,"zones":["bay-2"],"zone_share":0.5,
        "loitering":0.0}"##;

    fn errors(body: &serde_json::Value) -> usize {
        let schema = serde_json::from_str(QUERY_SCHEMA).unwrap();
        jsonschema::draft202012::new(&schema).unwrap().iter_errors(body).count()
    }

    #[test]
    fn a_state_can_be_sent_back_and_is_valid() {
        for body in [FULL, "{}", r#"{"prompts":["a blue pallet"]}"#] {
            let message = QueryMessage::decode(body.as_bytes()).unwrap();
            let again = message.encode().unwrap();
            assert_eq!(QueryMessage::decode(&again).unwrap(), message);
            assert_eq!(errors(&serde_json::from_slice(&again).unwrap()), 0, "{body}");
        }
    }

    #[test]
    fn the_schema_and_the_reader_refuse_the_same() {
        for (body, expected) in [
            (r#"{"prompt":["x"]}"#, "body: unknown field `prompt`"),
            (r#"{"threshold":"high"}"#, "body: invalid type: string \"high\""),
            (r#"{"min_area":-1}"#, "body: invalid value: integer `-1`"),
            (
                r#"{"schema":"2.0"}"#,
                "message schema \"2.0\", expected a version of 1.0's major",
            ),
            ("[1]", "body: "),
        ] {
            let error = QueryMessage::decode(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(errors(&serde_json::from_str(body).unwrap()) > 0, "{body}");
        }
    }

    #[test]
    fn long_bodies_are_refused_before_they_are_read() {
        let long = vec![b' '; MAX_COMMAND_BYTES + 1];
        let error = QueryMessage::decode(&long).unwrap_err().to_string();
        assert_eq!(error, "body of 65537 bytes, expected at most 65536");
        assert!(matches!(decode_texts(&long), Err(CommandError::TooLong { .. })));
    }

    #[test]
    fn switches_and_lists_of_texts() {
        assert!(decode_switch(b"ON").unwrap() && !decode_switch(b"OFF").unwrap());
        for bad in [&b"on"[..], b"", b"\xff", b"1"] {
            assert!(decode_switch(bad).is_err());
        }
        assert_eq!(decode_texts(br#"["wall","sky"]"#).unwrap(), ["wall", "sky"]);
        assert!(decode_texts(br#"{"a":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (QueryMessage::decode(&bytes), decode_texts(&bytes), decode_switch(&bytes));
        }

        #[test]
        fn no_change_of_a_good_body_makes_the_reader_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
            let mut bytes = FULL.as_bytes().to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length - cut % length);
            let _ = QueryMessage::decode(&bytes);
        }
    }
}
