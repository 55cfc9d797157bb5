//! Chooses a bundle's score threshold: as low as silence about absent things allows.
//!
//! The photos are those of the training split, so that the validation split still says what the choice is worth. Of the
//! thresholds of [`SWEEP`] the lowest one is taken at which ten absent queries, each asked alone, raise at
//! most the wanted number of false alarms. A query can still have a threshold of its own.
//!
//! [`SWEEP`]: super::presence::SWEEP

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::presence::{Presence, PresenceRow, presence};
use crate::contract::Manifest;
use crate::runtime::{self, RuntimeOptions};
use crate::train::dataset::{Purpose, Split};
use crate::train::run::open_data;

/// What `train calibrate` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bundle folder; its manifest is rewritten.
    #[arg(long)]
    pub bundle: PathBuf,
    /// Side in pixels of the bundle's size whose threshold is chosen; the bundle's own if not given.
    #[arg(long, value_name = "PIXELS")]
    pub side: Option<usize>,
    /// WebDataset tars or globs of them, with class masks.
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// False alarms of ten absent queries, each asked alone, that one photo may raise on average.
    #[arg(long, default_value_t = 0.5)]
    pub alarms: f64,
    /// At most this many training photos.
    #[arg(long, default_value_t = 300)]
    pub photos: usize,
}

/// Measures, chooses and writes; returns the threshold and the sweep as Markdown.
///
/// # Errors
/// What cannot be read, run or written; no labelled training photo; a model that is not silent enough at any threshold.
pub fn run(options: &Options) -> Result<(f32, String)> {
    let bundle = Manifest::read(&options.bundle)?;
    let dataset = open_data(&options.data, None, Purpose::Learning)?;
    let side = options.side.unwrap_or(bundle.manifest.encoder.side);
    let sized = bundle.at(side)?;
    let mut engine = runtime::open(&sized, &RuntimeOptions::default())?;
    let found = presence(&mut engine, &sized, &dataset, Split::Train, options.photos)?;
    ensure!(
        found.photos > 0,
        "{:?}: no training photo with a class mask",
        options.data
    );
    let threshold = choose(&found, options.alarms)?;
    let mut manifest = bundle.manifest.clone();
    manifest.calibration_at(side)?.threshold = threshold;
    manifest.write(&options.bundle)?;
    let protocol = format!(
        "{} training photos at {side} px; at most {} alarms asked for",
        found.photos, options.alarms
    );
    Ok((threshold, found.section(&bundle.manifest.name, &protocol).markdown()))
}

/// The lowest threshold of the sweep with at most `alarms` false alarms of ten absent queries.
fn choose(presence: &Presence, alarms: f64) -> Result<f32> {
    ensure!(
        presence.rows.iter().any(|row| row.alone.absent.of > 0),
        "none of {} training photos says what it certainly lacks, so no alarm is known to be false; name what was looked for \
         in `vocab` of each KEY.json (docs/training.md, Data)",
        presence.photos
    );
    let raised = |row: &PresenceRow| 10.0 * row.alone.absent.value();
    let quiet = presence.rows.iter().find(|row| raised(row) <= alarms);
    let least = presence.rows.iter().map(raised).fold(f64::MAX, f64::min);
    let quiet = quiet.ok_or_else(|| {
        anyhow::anyhow!("at no threshold fewer than {least:.2} alarms of ten absent queries, {alarms} asked for; ask for more (--alarms), or train longer")
    })?;
    Ok(quiet.threshold)
}

#[cfg(test)]
mod tests {
    use super::super::presence::{Published, Share};
    use super::*;

    #[test]
    fn the_lowest_quiet_threshold_is_chosen_and_none_is_an_error() {
        let row = |threshold, count| PresenceRow {
            threshold,
            together: Published::default(),
            alone: Published {
                absent: Share { count, of: 100 },
                ..Published::default()
            },
        };
        let presence = Presence {
            photos: 10,
            bundle_threshold: 0.5,
            rows: vec![row(0.3, 20), row(0.4, 5), row(0.5, 2)],
        };
        assert_eq!(choose(&presence, 0.5).unwrap(), 0.4);
        assert_eq!(choose(&presence, 2.0).unwrap(), 0.3);
        let refused = choose(&presence, 0.1).unwrap_err().to_string();
        assert!(refused.contains("fewer than 0.20 alarms"), "{refused}");
    }

    #[test]
    fn photos_that_lack_nothing_for_certain_choose_no_threshold() {
        let row = |threshold| PresenceRow {
            threshold,
            together: Published::default(),
            alone: Published::default(),
        };
        let presence = Presence {
            photos: 10,
            bundle_threshold: 0.5,
            rows: vec![row(0.3), row(0.4)],
        };
        let refused = choose(&presence, 0.5).unwrap_err().to_string();
        assert!(
            refused.contains("none of 10 training photos") && refused.contains("vocab"),
            "{refused}"
        );
    }
}
