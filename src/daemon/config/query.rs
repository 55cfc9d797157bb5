//! `[[query]]`: one thing to look for, as written and as checked. What arrives over MQTT goes through the same checks.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::check::Checker;
use super::{ConfigError, parse_color};
use crate::message::topic::QueryId;
use crate::track::scene::ThingRules;
use crate::track::tracker::TrackRules;

/// Longest prompt in characters; the tokenizer's limit.
const MAX_PROMPT: usize = 1_000;

/// Most prompts of one query.
const MAX_PROMPTS: usize = 16;

/// Most zones of one query.
const MAX_ZONES: usize = 64;

/// Most texts that queries compete with.
const MAX_BACKGROUND: usize = 256;

/// Longest `max_age` and `loitering` in seconds: a day.
const LONGEST: f32 = 86_400.0;

/// `[[query]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryTable {
    /// Topic level, as a camera's. Required, unique.
    pub id: Spanned<String>,
    /// Texts that mean the same thing; 1 to 16 of at most 1,000 characters. Default: the id with spaces for hyphens.
    pub prompts: Option<Spanned<Vec<String>>>,
    /// Calibrated score from which on the query counts as present, between 0 and 1; default: the bundle's.
    pub threshold: Option<Spanned<f32>>,
    /// Smallest mask in pixels of the frame; default 64.
    pub min_area: Option<Spanned<u64>>,
    /// Largest mask in pixels of the frame; default: any.
    pub max_area: Option<Spanned<u64>>,
    /// Colour in pictures, `#rrggbb`; default: chosen by position.
    pub color: Option<Spanned<String>>,
    /// Masks until a thing counts, 1 to 1,000; default 2.
    pub min_hits: Option<Spanned<u32>>,
    /// Seconds without a mask until a thing is gone, 0 to 86,400; default 3.
    pub max_age: Option<Spanned<f32>>,
    /// Zones of which a thing must be in one to be reported; a camera without any of them reports none. Default: anywhere.
    pub zones: Option<Spanned<Vec<String>>>,
    /// Share of a mask that must lie inside a zone, above 0 to 1; default 0.5.
    pub zone_share: Option<Spanned<f32>>,
    /// Seconds inside a zone until it counts, 0 to 86,400; default 0.
    pub loitering: Option<Spanned<f32>>,
}

/// One thing to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Topic level.
    pub id: QueryId,
    /// Texts that mean the same thing; at least one, none empty.
    pub prompts: Vec<String>,
    /// Score from which on it counts as present, in (0, 1), if not the bundle's.
    pub threshold: Option<f32>,
    /// Smallest mask in pixels.
    pub min_area: u64,
    /// Largest mask in pixels, if bounded.
    pub max_area: Option<u64>,
    /// Red, green, blue, if chosen.
    pub color: Option<[u8; 3]>,
    /// Masks until a thing counts.
    pub min_hits: u32,
    /// Seconds without a mask until a thing is gone.
    pub max_age: f32,
    /// Zones of which a thing must be in one; empty: anywhere.
    pub zones: Vec<String>,
    /// Share of a mask that must lie inside a zone, in (0, 1].
    pub zone_share: f32,
    /// Seconds inside a zone until it counts.
    pub loitering: f32,
}

/// What is wrong with a query: which key, and what was found and is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct QueryFault {
    /// Key of the table.
    pub key: &'static str,
    /// What was found and what is allowed.
    pub problem: String,
}

/// Refuses texts that no query can compete with.
///
/// # Errors
/// [`QueryFault`] for none or too many, and for an empty or too long one.
pub fn check_background(texts: &[String]) -> Result<(), QueryFault> {
    let fault = |problem| {
        let key = "background";
        Err(QueryFault { key, problem })
    };
    let count = texts.len();
    if !(1..=MAX_BACKGROUND).contains(&count) {
        return fault(format!("{count} texts found, expected 1 to {MAX_BACKGROUND}"));
    }
    for text in texts {
        let length = text.chars().count();
        if text.trim().is_empty() || length > MAX_PROMPT {
            let problem = format!("text of {length} characters found, expected words of at most {MAX_PROMPT}");
            return fault(problem);
        }
    }
    Ok(())
}

impl Query {
    /// A query with the defaults, whose prompt is its id with spaces for hyphens.
    #[must_use]
    pub fn new(id: QueryId) -> Self {
        let ThingRules { track, zone_share, .. } = ThingRules::default();
        let TrackRules { min_hits, max_age, .. } = track;
        Self {
            prompts: vec![id.as_str().replace('-', " ").trim().to_owned()],
            id,
            threshold: None,
            min_area: 64,
            max_area: None,
            color: None,
            min_hits,
            max_age: max_age.as_secs_f32(),
            zones: Vec::new(),
            zone_share,
            loitering: 0.0,
        }
    }

    /// Refuses impossible values.
    ///
    /// # Errors
    /// [`QueryFault`] for the first key whose value no query can have.
    pub fn check(&self) -> Result<(), QueryFault> {
        let fault = |key, problem| Err(QueryFault { key, problem });
        let count = self.prompts.len();
        if !(1..=MAX_PROMPTS).contains(&count) {
            return fault("prompts", format!("{count} prompts found, expected 1 to {MAX_PROMPTS}"));
        }
        for prompt in &self.prompts {
            let length = prompt.chars().count();
            if prompt.trim().is_empty() || length > MAX_PROMPT {
                let problem = format!("prompt of {length} characters found, expected words of at most {MAX_PROMPT}");
                return fault("prompts", problem);
            }
        }
        if let Some(found) = self.threshold
            && !(found > 0.0 && found < 1.0)
        {
            return fault(
                "threshold",
                format!("threshold is {found}, expected a number between 0 and 1"),
            );
        }
        if let Some(most) = self.max_area
            && most < self.min_area
        {
            let problem = format!(
                "max_area is {most}, expected at least min_area, which is {}",
                self.min_area
            );
            return fault("max_area", problem);
        }
        if !(1..=1_000).contains(&self.min_hits) {
            return fault("min_hits", format!("min_hits is {}, expected 1 to 1000", self.min_hits));
        }
        for (key, found) in [("max_age", self.max_age), ("loitering", self.loitering)] {
            if !(0.0..=LONGEST).contains(&found) {
                return fault(key, format!("{key} is {found}, expected 0 to {LONGEST} seconds"));
            }
        }
        if self.zones.len() > MAX_ZONES {
            return fault(
                "zones",
                format!("{} zones found, expected at most {MAX_ZONES}", self.zones.len()),
            );
        }
        if !(self.zone_share > 0.0 && self.zone_share <= 1.0) {
            let problem = format!("zone_share is {}, expected a number above 0 up to 1", self.zone_share);
            return fault("zone_share", problem);
        }
        Ok(())
    }

    /// How its things are tracked and reported.
    #[must_use]
    pub fn rules(&self) -> ThingRules {
        ThingRules {
            track: TrackRules {
                min_hits: self.min_hits,
                max_age: Duration::from_secs_f32(self.max_age),
                ..TrackRules::default()
            },
            zones: self.zones.clone(),
            zone_share: self.zone_share,
            loitering: Duration::from_secs_f32(self.loitering),
        }
    }
}

impl Checker<'_> {
    /// Checks one table; `zones` are those of all cameras.
    pub(super) fn query(&self, table: &QueryTable, zones: &[String]) -> Result<Query, ConfigError> {
        let id = QueryId::new(table.id.get_ref()).map_err(|e| self.at(table.id.span().start, e.to_string()))?;
        let mut query = Query::new(id);
        if let Some(text) = &table.color {
            query.color = parse_color(text.get_ref());
            self.require(query.color.is_some(), text, || {
                format!("color is {:?}, expected #rrggbb such as #ff8800", text.get_ref())
            })?;
        }
        let QueryTable {
            id: _,
            prompts,
            threshold,
            min_area,
            max_area,
            color: _,
            min_hits,
            max_age,
            zones: own_zones,
            zone_share,
            loitering,
        } = table;
        take(&mut query.prompts, prompts.as_ref());
        query.threshold = threshold.as_ref().map(|v| *v.get_ref());
        take(&mut query.min_area, min_area.as_ref());
        query.max_area = max_area.as_ref().map(|v| *v.get_ref());
        take(&mut query.min_hits, min_hits.as_ref());
        take(&mut query.max_age, max_age.as_ref());
        take(&mut query.zones, own_zones.as_ref());
        take(&mut query.zone_share, zone_share.as_ref());
        take(&mut query.loitering, loitering.as_ref());
        query.check().map_err(|fault| {
            let place = match fault.key {
                "prompts" => prompts.as_ref().map(Spanned::span),
                "threshold" => threshold.as_ref().map(Spanned::span),
                "max_area" => max_area.as_ref().map(Spanned::span),
                "min_hits" => min_hits.as_ref().map(Spanned::span),
                "max_age" => max_age.as_ref().map(Spanned::span),
                "loitering" => loitering.as_ref().map(Spanned::span),
                "zones" => own_zones.as_ref().map(Spanned::span),
                _ => zone_share.as_ref().map(Spanned::span),
            };
            self.at(place.unwrap_or(table.id.span()).start, fault.problem)
        })?;
        if let (Some(unknown), Some(place)) = (query.zones.iter().find(|z| !zones.contains(z)), own_zones) {
            let known = if zones.is_empty() {
                "none".into()
            } else {
                zones.join(", ")
            };
            let problem = format!("zone {unknown:?} found, expected one of some camera; there are: {known}");
            return Err(self.at(place.span().start, problem));
        }
        Ok(query)
    }
}

/// Takes over a value that is written.
fn take<T: Clone>(target: &mut T, written: Option<&Spanned<T>>) {
    if let Some(value) = written {
        target.clone_from(value.get_ref());
    }
}
