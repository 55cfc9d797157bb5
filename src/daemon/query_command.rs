//! `samclipd query`: looks at the queries of the running daemon and changes them.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, bail};

use crate::message::query::{QueryMessage, QuerySource};

use super::config::BusAddress;
use super::dbus::client::Client;

/// What to do with the queries of one camera, or of all.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryAction {
    /// Print them.
    List {
        /// As JSON instead of a table.
        json: bool,
    },
    /// Ask a new one; what it leaves out has the defaults.
    Add(String, Box<QueryMessage>),
    /// Change what is named of one that is asked.
    Set(String, Box<QueryMessage>),
    /// Ask it no more.
    Remove(String),
    /// Switch detection on or off.
    Detect(bool),
}

/// Carries an action out on `camera`, or on every camera.
///
/// # Errors
/// No bus, no daemon, one that is not running yet, no cameras (all are being replaced), no permission, or what the daemon says;
/// earlier cameras keep what was done, and the error names the one that it happened at.
pub fn query(bus: BusAddress, camera: Option<String>, action: &QueryAction, out: &mut dyn Write) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect(bus).await?;
        let cameras = match camera {
            Some(camera) => vec![camera],
            None => client.cameras().await?,
        };
        if cameras.is_empty() {
            let state = client.state().await?;
            bail!("the daemon has no cameras, its state is {state}; expected running: wait until it is ready, and ask again");
        }
        let mut listed = BTreeMap::new();
        for camera in cameras {
            match action {
                QueryAction::List { .. } => drop(listed.insert(camera.clone(), client.queries(&camera).await?)),
                action => {
                    let done = change(&client, &camera, action).await;
                    let said = done.with_context(|| format!("camera {camera}"))?;
                    writeln!(out, "{camera}: {said}")?;
                }
            }
        }
        match action {
            QueryAction::List { json: true } => write_json(&listed, out),
            QueryAction::List { json: false } => Ok(out.write_all(table(&listed).as_bytes())?),
            _ => Ok(()),
        }
    })
}

/// Changes one camera; what to say of it.
async fn change(client: &Client, camera: &str, action: &QueryAction) -> anyhow::Result<String> {
    match action {
        QueryAction::List { .. } => bail!("listing changes nothing"),
        QueryAction::Add(id, query) => {
            if client.queries(camera).await?.contains_key(id) {
                bail!("query {id:?} is asked already; change it with samclipd query set");
            }
            client.set_query(camera, id, query).await?;
            Ok(format!("query {id} added"))
        }
        QueryAction::Set(id, wanted) => {
            let present = client.queries(camera).await?.remove(id);
            let present = present.with_context(|| format!("no query {id:?}; add it with samclipd query add"))?;
            client.set_query(camera, id, &changed(present, wanted)).await?;
            Ok(format!("query {id} changed"))
        }
        QueryAction::Remove(id) => {
            client.remove_query(camera, id).await?;
            Ok(format!("query {id} removed"))
        }
        QueryAction::Detect(on) => {
            client.set_detect(camera, *on).await?;
            Ok(format!("detection {}", if *on { "on" } else { "off" }))
        }
    }
}

/// A query with what is `wanted` of it in place of what it is.
fn changed(present: QueryMessage, wanted: &QueryMessage) -> QueryMessage {
    let wanted = wanted.clone();
    QueryMessage {
        schema: None,
        id: None,
        source: None,
        prompts: wanted.prompts.or(present.prompts),
        threshold: wanted.threshold.or(present.threshold),
        min_area: wanted.min_area.or(present.min_area),
        max_area: wanted.max_area.or(present.max_area),
        color: wanted.color.or(present.color),
        min_hits: wanted.min_hits.or(present.min_hits),
        max_age: wanted.max_age.or(present.max_age),
        zones: wanted.zones.or(present.zones),
        zone_share: wanted.zone_share.or(present.zone_share),
        loitering: wanted.loitering.or(present.loitering),
    }
}

type Listed = BTreeMap<String, BTreeMap<String, QueryMessage>>;

fn write_json(listed: &Listed, out: &mut dyn Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, listed)?;
    writeln!(out)?;
    Ok(())
}

/// One line per query.
fn table(listed: &Listed) -> String {
    let mut rows = vec![["camera", "query", "from", "threshold", "prompts"].map(str::to_owned)];
    for (camera, queries) in listed {
        for (id, query) in queries {
            let source = match query.source {
                Some(QuerySource::Config) => "config",
                Some(QuerySource::Live) => "live",
                None => "-",
            };
            let threshold = query.threshold.map_or("default".to_owned(), |t| t.to_string());
            let prompts = query.prompts.as_deref().unwrap_or_default();
            // A prompt may hold anything; a terminal is to show text alone.
            let prompts: String = prompts.join(" | ").chars().filter(|c| !c.is_control()).collect();
            rows.push([camera.clone(), id.clone(), source.into(), threshold, prompts]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: String = widths
            .iter()
            .zip(row)
            .map(|(width, cell)| format!("{cell:<width$}  "))
            .collect();
        format!("{cells}{}\n", row[4])
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_one_thing_leaves_the_others() {
        let present = QueryMessage {
            id: Some("red".into()),
            source: Some(QuerySource::Config),
            prompts: Some(vec!["a red box".into()]),
            threshold: Some(0.4),
            ..QueryMessage::default()
        };
        let wanted = QueryMessage {
            threshold: Some(0.7),
            ..QueryMessage::default()
        };
        let expected = QueryMessage {
            prompts: Some(vec!["a red box".into()]),
            threshold: Some(0.7),
            ..QueryMessage::default()
        };
        assert_eq!(changed(present, &wanted), expected);
    }

    #[test]
    fn the_table_is_aligned_and_holds_no_control_characters() {
        let query = |prompt: &str| QueryMessage {
            source: Some(QuerySource::Live),
            prompts: Some(vec![prompt.to_owned(), "b".into()]),
            threshold: Some(0.5),
            ..QueryMessage::default()
        };
        let queries = [
            ("forklift".to_owned(), query("a\u{1b}[2J")),
            ("x".into(), QueryMessage::default()),
        ];
        let text = table(&[("dock".to_owned(), queries.into())].into());
        assert_eq!(
            text,
            "camera  query     from  threshold  prompts\n\
             dock    forklift  live  0.5        a[2J | b\n\
             dock    x         -     default    \n"
        );
    }
}
