//! Commands from the broker: queries, what they compete with, and detection on and off; kept across restarts.
//!
//! A command that is refused changes nothing; its error goes to the log and, as text, to the command's topic with `error`
//! for `set`. A retained command is refused: it would come again after every connect, whatever was said since.

use tracing::{info, warn};

use crate::message::query::{QueryMessage, decode_switch, decode_texts};
use crate::message::topic::{Asked, QueryId, Topics};
use crate::publish::mqtt::Incoming;

use super::config::{Query, check_background, parse_color};
use super::live::{LiveCamera, LiveState};
use super::outlet::Outlet;
use super::pipeline::Pipeline;
use super::station::Station;

/// Longest text in an error.
const MAX_TEXT: usize = 400;

/// The query that a message describes, with the configuration's defaults for what it leaves out.
pub(super) fn query_of(id: &str, message: &QueryMessage) -> Result<Query, String> {
    let mut query = Query::new(QueryId::new(id).map_err(|e| e.to_string())?);
    if let Some(text) = &message.color {
        let color = parse_color(text);
        query.color = Some(color.ok_or_else(|| format!("color is {text:?}, expected #rrggbb such as #ff8800"))?);
    }
    query.threshold = message.threshold;
    query.max_area = message.max_area;
    take(&mut query.prompts, &message.prompts);
    take(&mut query.min_area, &message.min_area);
    take(&mut query.min_hits, &message.min_hits);
    take(&mut query.max_age, &message.max_age);
    take(&mut query.zones, &message.zones);
    take(&mut query.zone_share, &message.zone_share);
    take(&mut query.loitering, &message.loitering);
    query.check().map_err(|fault| fault.to_string())?;
    Ok(query)
}

fn take<T: Clone>(target: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        target.clone_from(value);
    }
}

/// Carries out what a message asks for; anything that is no command is ignored.
pub(super) fn carry_out(
    message: &Incoming,
    topics: &Topics,
    stations: &mut [Station],
    pipeline: &mut Pipeline,
    live: &mut LiveState,
    outlet: &Outlet,
) {
    let Some(command) = topics.command(&message.topic) else {
        return;
    };
    let done = if message.retained {
        Err("the command is retained, expected one that is not".to_owned())
    } else {
        match stations.iter_mut().find(|s| s.id().as_str() == command.camera) {
            None => Err(format!("no camera {:?}", command.camera)),
            Some(station) => {
                let changed = change(command.what, &message.payload, station, pipeline, live, outlet);
                station.say_queries(outlet);
                changed
            }
        }
    };
    match done {
        Ok(()) => info!(topic = message.topic, "command carried out"),
        Err(error) => {
            let error: String = error.chars().take(MAX_TEXT).collect();
            warn!(topic = message.topic, error, "command refused");
            outlet.refuse(&message.topic, error);
        }
    }
}

/// Changes a station and keeps the change.
fn change(
    what: Asked<'_>,
    body: &[u8],
    station: &mut Station,
    pipeline: &mut Pipeline,
    live: &mut LiveState,
    outlet: &Outlet,
) -> Result<(), String> {
    let id = station.id().to_string();
    let mut kept: LiveCamera = live.camera(&id);
    match what {
        Asked::Detect => {
            kept.detect = decode_switch(body).map_err(|e| e.to_string())?;
            station.detect(kept.detect, outlet);
        }
        Asked::Background => {
            let texts = if body.is_empty() {
                None
            } else {
                Some(decode_texts(body).map_err(|e| e.to_string())?)
            };
            texts
                .as_deref()
                .map_or(Ok(()), check_background)
                .map_err(|fault| fault.to_string())?;
            // Without texts of its own, those of the configuration hold again.
            station.set_background(texts.clone(), pipeline)?;
            kept.background = texts;
        }
        Asked::Query(query) if body.is_empty() => {
            station.delete_query(query, pipeline, outlet)?;
            if station.is_configured(query) {
                kept.queries.insert(query.to_owned(), None);
            } else {
                kept.queries.remove(query);
            }
        }
        Asked::Query(query) => {
            let message = QueryMessage::decode(body).map_err(|e| e.to_string())?;
            station.set_query(query_of(query, &message)?, pipeline, outlet)?;
            kept.queries.insert(query.to_owned(), Some(message));
        }
    }
    let unkept = |error| warn!(camera = id, %error, "the change holds until the daemon ends: it cannot be kept");
    live.keep(&id, kept).unwrap_or_else(unkept);
    Ok(())
}

/// Applies what was kept from the last run; what cannot hold any more is told and left out.
pub(super) fn restore(station: &mut Station, pipeline: &mut Pipeline, live: &LiveState, outlet: &Outlet) {
    let kept = live.camera(station.id().as_str());
    for (id, message) in &kept.queries {
        let done = match message {
            None => station.delete_query(id, pipeline, outlet),
            Some(message) => query_of(id, message).and_then(|query| station.set_query(query, pipeline, outlet)),
        };
        if let Err(error) = done {
            warn!(camera = %station.id(), query = id, error, "a live query of the last run is left out");
        }
    }
    if let Some(texts) = kept.background
        && let Err(error) = station.set_background(Some(texts), pipeline)
    {
        warn!(camera = %station.id(), error, "the background of the last run is left out");
    }
    station.detect(kept.detect, outlet);
    station.say_queries(outlet);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_a_query_with_the_file_s_defaults() {
        let message = QueryMessage::decode(br##"{"prompts":["a cat"],"color":"#102030","max_age":1.5}"##).unwrap();
        let query = query_of("cat", &message).unwrap();
        assert_eq!(
            (query.prompts.as_slice(), query.color, query.max_age),
            (&["a cat".to_owned()][..], Some([16, 32, 48]), 1.5)
        );
        assert_eq!(
            query_of("blue-pallet", &QueryMessage::default()).unwrap().prompts,
            ["blue pallet"]
        );
    }

    #[test]
    fn impossible_values_are_refused_as_in_the_file() {
        for (id, body, expected) in [
            ("Cat", "{}", "query id \"Cat\": expected 1 to 64 characters"),
            ("frame", "{}", "query id \"frame\" is reserved"),
            ("cat", r#"{"color":"red"}"#, "color is \"red\", expected #rrggbb"),
            ("cat", r#"{"prompts":[]}"#, "0 prompts found, expected 1 to 16"),
            ("cat", r#"{"prompts":[" "]}"#, "prompt of 1 characters found"),
            (
                "cat",
                r#"{"threshold":1}"#,
                "threshold is 1, expected a number between 0 and 1",
            ),
            ("cat", r#"{"max_age":1e30}"#, "max_age is 1e30"),
            (
                "cat",
                r#"{"min_area":9,"max_area":8}"#,
                "max_area is 8, expected at least min_area",
            ),
        ] {
            let error = query_of(id, &QueryMessage::decode(body.as_bytes()).unwrap()).unwrap_err();
            assert!(error.starts_with(expected) || error.contains("max_age is 1"), "{error}");
        }
    }
}
