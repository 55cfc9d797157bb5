//! What a camera is asked: its queries, and what they compete with. Pure: from the configuration and live changes to both.

use tracing::warn;

use crate::message::payload::SCHEMA;
use crate::message::query::{QueryMessage, QuerySource};
use crate::message::topic::QueryId;

use super::config::{self, Config, Query, check_background, color_text, parse_color};
use super::live::LiveCamera;
use super::pipeline::QuerySpec;

/// Most queries of one camera.
const MAX_QUERIES: usize = 256;

/// Queries and what they compete with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asking {
    /// Ids unique.
    pub(super) queries: Vec<Query>,
    /// `None` for the model's own texts.
    pub(super) background: Option<Vec<String>>,
}

impl Asking {
    /// What the configuration file asks every camera.
    pub(super) fn configured(config: &Config) -> Self {
        Self {
            queries: config.queries.clone(),
            background: config.background.clone(),
        }
    }

    /// What the configuration file asks a camera, with the changes that were made while the daemon ran.
    ///
    /// A change that cannot hold any more is told and left out.
    pub(super) fn of_camera(camera: &config::Camera, config: &Config, live: &LiveCamera) -> Self {
        Self::merged(camera, config, live, |what, error| {
            warn!(camera = %camera.id, what, error, "a live change is left out");
        })
    }

    /// As [`Self::of_camera`]; `left_out` hears of a change that cannot hold any more: what, and why.
    pub(super) fn merged(
        camera: &config::Camera,
        config: &Config,
        live: &LiveCamera,
        left_out: impl Fn(&str, String),
    ) -> Self {
        let mut asking = Self::configured(config);
        for (id, message) in &live.queries {
            let changed = match message {
                None => asking.without(id),
                Some(message) => query_of(id, message).and_then(|query| asking.with(query, camera)),
            };
            match changed {
                Ok(changed) => asking = changed,
                Err(error) => left_out(id, error),
            }
        }
        match live.background.as_deref().map_or(Ok(()), check_background) {
            Ok(()) => asking.background = live.background.clone().or(asking.background),
            Err(fault) => left_out("background", fault.to_string()),
        }
        asking
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.queries.iter().position(|query| query.id.as_str() == id)
    }

    /// The query of this id.
    pub(super) fn query(&self, id: &str) -> Option<&Query> {
        self.queries.iter().find(|query| query.id.as_str() == id)
    }

    /// The same with a query set or replaced. Its zones are this camera's, or those that it has already: a query of the file
    /// may name zones of another camera.
    pub(super) fn with(&self, query: Query, camera: &config::Camera) -> Result<Self, String> {
        let zones: Vec<&str> = camera.zones.iter().map(|zone| zone.id()).collect();
        let before = self.query(query.id.as_str()).map_or(&[][..], |query| &query.zones);
        let is_known = |zone: &String| zones.contains(&zone.as_str()) || before.contains(zone);
        if let Some(unknown) = query.zones.iter().find(|zone| !is_known(zone)) {
            let known = if zones.is_empty() {
                "none".into()
            } else {
                zones.join(", ")
            };
            return Err(format!(
                "zone {unknown:?} found, expected one of this camera's: {known}"
            ));
        }
        let mut asking = self.clone();
        match self.position(query.id.as_str()) {
            Some(index) => asking.queries[index] = query,
            None if asking.queries.len() >= MAX_QUERIES => {
                return Err(format!(
                    "the camera has {MAX_QUERIES} queries, which is the most; delete one first"
                ));
            }
            None => asking.queries.push(query),
        }
        Ok(asking)
    }

    /// The same without a query.
    pub(super) fn without(&self, id: &str) -> Result<Self, String> {
        let index = self.position(id).ok_or_else(|| format!("no query {id:?} to delete"))?;
        let mut asking = self.clone();
        asking.queries.remove(index);
        Ok(asking)
    }

    /// Its queries as the model is asked them.
    pub(super) fn specs(&self) -> Vec<QuerySpec> {
        query_specs(&self.queries)
    }
}

/// Queries as the pipeline knows them.
#[must_use]
pub fn query_specs(queries: &[Query]) -> Vec<QuerySpec> {
    let spec = |q: &Query| QuerySpec {
        id: q.id.to_string(),
        prompts: q.prompts.clone(),
        threshold: q.threshold,
        min_area: usize::try_from(q.min_area).unwrap_or(usize::MAX),
        max_area: q.max_area.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        color: q.color,
    };
    queries.iter().map(spec).collect()
}

/// The query that a message describes, with the keys' defaults for what it leaves out.
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

/// A query as its state says it.
pub(super) fn state_of(query: &Query, source: QuerySource) -> QueryMessage {
    QueryMessage {
        schema: Some(SCHEMA.into()),
        id: Some(query.id.to_string()),
        source: Some(source),
        prompts: Some(query.prompts.clone()),
        threshold: query.threshold,
        min_area: Some(query.min_area),
        max_area: query.max_area,
        color: query.color.map(color_text),
        min_hits: Some(query.min_hits),
        max_age: Some(query.max_age),
        zones: Some(query.zones.clone()),
        zone_share: Some(query.zone_share),
        loitering: Some(query.loitering),
    }
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

    fn config() -> Config {
        let text = "model = \"m\"\n[[camera]]\nid = \"yard\"\nsource = \"dir:///f\"\n[[camera.zone]]\nid = \"bay\"\n\
                    polygon = [[0, 0], [1, 0], [1, 1]]\n[[query]]\nid = \"red\"\n";
        Config::parse(text, "test.toml".as_ref()).unwrap()
    }

    #[test]
    fn live_changes_go_before_the_file_and_one_that_cannot_hold_is_left_out() {
        let config = config();
        let query = |zone: &str| QueryMessage {
            zones: Some(vec![zone.into()]),
            ..QueryMessage::default()
        };
        let live = LiveCamera {
            background: Some(vec!["wall".into()]),
            queries: [
                ("red".to_owned(), None),
                ("blue".to_owned(), Some(query("bay"))),
                ("green".to_owned(), Some(query("a zone of the last file"))),
                ("gone".to_owned(), None),
            ]
            .into(),
            ..LiveCamera::default()
        };
        let asking = Asking::of_camera(&config.cameras[0], &config, &live);
        let ids: Vec<&str> = asking.queries.iter().map(|q| q.id.as_str()).collect();
        assert_eq!((ids, asking.background), (vec!["blue"], Some(vec!["wall".to_owned()])));
    }

    #[test]
    fn a_query_keeps_zones_of_another_camera_that_it_has_from_the_file() {
        let mut config = config();
        config.queries[0].zones = vec!["dock".into()];
        let camera = &config.cameras[0];
        let asking = Asking::configured(&config);
        let mut stricter = asking.queries[0].clone();
        stricter.threshold = Some(0.7);
        let asking = asking.with(stricter.clone(), camera).unwrap();
        assert_eq!(asking.queries[0].threshold, Some(0.7));
        stricter.zones.push("quay".into());
        let refused = asking.with(stricter, camera).unwrap_err();
        assert_eq!(refused, "zone \"quay\" found, expected one of this camera's: bay");
    }

    #[test]
    fn the_number_of_queries_is_bounded() {
        let config = config();
        let mut asking = Asking::default();
        let query = |i: usize| Query::new(QueryId::new(&format!("q{i}")).unwrap());
        for i in 0..MAX_QUERIES {
            asking = asking.with(query(i), &config.cameras[0]).unwrap();
        }
        let error = asking.with(query(MAX_QUERIES), &config.cameras[0]).unwrap_err();
        assert!(error.starts_with("the camera has 256 queries"), "{error}");
        assert!(
            asking.with(query(3), &config.cameras[0]).is_ok(),
            "replacing one adds none"
        );
    }
}
