//! `samclipd query`: its arguments.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use samclip::daemon::config::BusAddress;
use samclip::daemon::query_command::{QueryAction, query};
use samclip::message::query::QueryMessage;

/// Which daemon, which cameras, and what.
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    #[command(subcommand)]
    what: What,
    /// Id of the camera; every camera if not given.
    #[arg(long, global = true, value_name = "ID")]
    camera: Option<String>,
    /// Bus that the daemon is on: system, session, or an address such as unix:path=/run/bus.
    #[arg(long, global = true, value_name = "BUS", default_value = "system")]
    bus: BusAddress,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the queries in force.
    List {
        /// As JSON: cameras, queries, and what `query/ID/state` says over MQTT.
        #[arg(long)]
        json: bool,
    },
    /// Ask a new query; it holds from the next frame on and across restarts.
    Add {
        /// Id: a-z, 0-9 and hyphen.
        #[arg(value_name = "QUERY")]
        id: String,
        #[command(flatten)]
        keys: Keys,
    },
    /// Change what is named of a query, and leave the rest of it.
    Set {
        /// Id of the query.
        #[arg(value_name = "QUERY")]
        id: String,
        #[command(flatten)]
        keys: Keys,
    },
    /// Ask a query no more.
    Remove {
        /// Id of the query.
        #[arg(value_name = "QUERY")]
        id: String,
    },
    /// Switch detection on or off.
    Detect {
        /// Whether frames are processed.
        switch: Switch,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// The keys of `[[query]]`.
#[derive(Debug, Args)]
struct Keys {
    /// A text that means it; may be given several times. Default: the id with spaces for hyphens.
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Option<Vec<String>>,
    /// Score from which on it is present, between 0 and 1.
    #[arg(long, value_name = "SCORE", value_parser = finite)]
    threshold: Option<f32>,
    /// Smallest mask in pixels.
    #[arg(long, value_name = "PIXELS")]
    min_area: Option<u64>,
    /// Largest mask in pixels.
    #[arg(long, value_name = "PIXELS")]
    max_area: Option<u64>,
    /// Colour in pictures, #rrggbb.
    #[arg(long, value_name = "COLOR")]
    color: Option<String>,
    /// Frames until a thing counts.
    #[arg(long, value_name = "FRAMES")]
    min_hits: Option<u32>,
    /// Seconds unseen until a thing is gone.
    #[arg(long, value_name = "SECONDS", value_parser = finite)]
    max_age: Option<f32>,
    /// Report only what is in this zone; may be given several times.
    #[arg(long = "zone", value_name = "ID")]
    zones: Option<Vec<String>>,
    /// Share of the mask that must be inside.
    #[arg(long, value_name = "SHARE", value_parser = finite)]
    zone_share: Option<f32>,
    /// Seconds inside until it counts.
    #[arg(long, value_name = "SECONDS", value_parser = finite)]
    loitering: Option<f32>,
}

/// A number; JSON has no others.
fn finite(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| "expected a number".to_owned())
}

impl From<Keys> for Box<QueryMessage> {
    fn from(keys: Keys) -> Self {
        Self::new(QueryMessage {
            schema: None,
            id: None,
            source: None,
            prompts: keys.prompts,
            threshold: keys.threshold,
            min_area: keys.min_area,
            max_area: keys.max_area,
            color: keys.color,
            min_hits: keys.min_hits,
            max_age: keys.max_age,
            zones: keys.zones,
            zone_share: keys.zone_share,
            loitering: keys.loitering,
        })
    }
}

impl From<What> for QueryAction {
    fn from(what: What) -> Self {
        match what {
            What::List { json } => Self::List { json },
            What::Add { id, keys } => Self::Add(id, keys.into()),
            What::Set { id, keys } => Self::Set(id, keys.into()),
            What::Remove { id } => Self::Remove(id),
            What::Detect { switch } => Self::Detect(switch == Switch::On),
        }
    }
}

/// Carries the command out.
pub(crate) fn run(arguments: QueryArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    query(arguments.bus, arguments.camera, &arguments.what.into(), out)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::prelude::*;

    use super::*;
    use crate::arguments::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Result<(QueryAction, Option<String>, BusAddress), clap::Error> {
        let cli = Cli::try_parse_from([&["samclipd", "query"], arguments].concat())?;
        let Command::Query(arguments) = cli.command else {
            panic!("another command");
        };
        Ok((arguments.what.into(), arguments.camera, arguments.bus))
    }

    #[test]
    fn camera_and_bus_may_stand_before_and_after() {
        let expected = (
            QueryAction::Remove("red".into()),
            Some("yard".to_owned()),
            BusAddress::Address("unix:path=/b".into()),
        );
        for arguments in [
            ["--camera", "yard", "--bus", "unix:path=/b", "remove", "red"],
            ["remove", "red", "--camera", "yard", "--bus", "unix:path=/b"],
        ] {
            assert_eq!(parsed(&arguments).unwrap(), expected);
        }
    }

    #[test]
    fn what_json_cannot_say_is_refused_here() {
        for bad in ["NaN", "inf", "-inf", "1e99", "", "high"] {
            let error = parsed(&["set", "red", &format!("--threshold={bad}")])
                .unwrap_err()
                .to_string();
            assert!(error.contains("expected a number"), "{error}");
        }
        assert!(
            parsed(&["list", "--bus", "nonsense"])
                .unwrap_err()
                .to_string()
                .contains("expected \"system\"")
        );
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_parser_panic(arguments in prop::collection::vec(
            prop_oneof![
                any::<String>(),
                prop::sample::select(vec!["list", "add", "set", "remove", "detect", "on", "--json", "--camera", "--bus",
                    "--prompt", "--threshold", "--min-area", "--zone", "--color", "session", "0.5", "-1", "--", "x"])
                    .prop_map(str::to_owned),
            ],
            0..8,
        )) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            if let Ok((QueryAction::Add(_, query) | QueryAction::Set(_, query), ..)) = parsed(&arguments) {
                // Whatever is accepted can be sent, and says the same at the other end.
                prop_assert_eq!(&QueryMessage::decode(&query.encode().unwrap()).unwrap(), query.as_ref());
            }
        }

        #[test]
        fn what_is_typed_is_what_is_sent(
            prompts in prop::collection::vec("[^-].{0,40}", 0..4),
            threshold in prop::option::of(-2.0f32..2.0),
            min_area in prop::option::of(any::<u64>()),
            color in prop::option::of("#[0-9a-f]{6}"),
        ) {
            let mut typed = vec!["add".to_owned(), "red".to_owned()];
            typed.extend(prompts.iter().map(|prompt| format!("--prompt={prompt}")));
            typed.extend(threshold.iter().map(|threshold| format!("--threshold={threshold}")));
            typed.extend(min_area.iter().map(|area| format!("--min-area={area}")));
            typed.extend(color.iter().map(|color| format!("--color={color}")));
            let typed: Vec<&str> = typed.iter().map(String::as_str).collect();
            let expected = QueryMessage {
                prompts: (!prompts.is_empty()).then_some(prompts),
                threshold,
                min_area,
                color,
                ..QueryMessage::default()
            };
            prop_assert_eq!(parsed(&typed).unwrap().0, QueryAction::Add("red".into(), Box::new(expected)));
        }
    }
}
