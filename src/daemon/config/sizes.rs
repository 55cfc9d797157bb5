//! `[camera.sizes]`: frames are looked at at a small input size while nothing is found.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;
use super::check::Checker;

/// Sides that a model's input may have, pixels.
const SIDES: std::ops::RangeInclusive<usize> = 16..=16_384;

/// `[camera.sizes]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizesTable {
    /// Side in pixels of the model's size that frames go through while nothing is found. Required; smaller than the camera's
    /// `side`.
    pub calm: Spanned<usize>,
    /// Share of a query's threshold from which on a score at the small size calls for a look at the full one, 0 to 1;
    /// default 0.5.
    #[serde(default = "hint")]
    pub hint: Spanned<f32>,
    /// Seconds after which a frame is looked at at the full size although nothing was found, 0.1 to 86,400; default 10.
    #[serde(default = "refresh")]
    pub refresh: Spanned<f32>,
    /// Seconds for which frames are looked at at the full size after the last thing or hint, 0 to 3,600; default 2.
    #[serde(default = "hold")]
    pub hold: Spanned<f32>,
}

fn hint() -> Spanned<f32> {
    Spanned::new(0..0, 0.5)
}

fn refresh() -> Spanned<f32> {
    Spanned::new(0..0, 10.0)
}

fn hold() -> Spanned<f32> {
    Spanned::new(0..0, 2.0)
}

/// When a camera's frames are looked at at which size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Side of the size for frames on which nothing is expected, pixels.
    pub calm: usize,
    /// Share of a query's threshold from which on a score at that size calls for a look at the full one, 0 to 1.
    pub hint: f32,
    /// Longest time between two looks at the full size.
    pub refresh: Duration,
    /// How long frames are looked at at the full size after the last thing or hint.
    pub hold: Duration,
}

impl Checker<'_> {
    pub(super) fn side(&self, key: &str, side: &Spanned<usize>) -> Result<usize, ConfigError> {
        let (found, least, most) = (*side.get_ref(), SIDES.start(), SIDES.end());
        self.require(SIDES.contains(&found), side, || {
            format!("{key} is {found}, expected {least} to {most} pixels: the side of a size of the model")
        })?;
        Ok(found)
    }

    /// Checks the table of a camera whose frames go through `full`, if that is written.
    pub(super) fn sizes(&self, table: &SizesTable, full: Option<usize>) -> Result<Sizes, ConfigError> {
        let calm = self.side("calm", &table.calm)?;
        self.require(full.is_none_or(|full| calm < full), &table.calm, || {
            let full = full.unwrap_or_default();
            format!("calm is {calm}, expected less than side, which is {full}")
        })?;
        self.ranges([
            ("hint", &table.hint, 0.0, 1.0, " of a query's threshold"),
            ("refresh", &table.refresh, 0.1, 86_400.0, " seconds"),
            ("hold", &table.hold, 0.0, 3_600.0, " seconds"),
        ])?;
        let seconds = |value: &Spanned<f32>| Duration::from_secs_f32(*value.get_ref());
        Ok(Sizes {
            calm,
            hint: *table.hint.get_ref(),
            refresh: seconds(&table.refresh),
            hold: seconds(&table.hold),
        })
    }
}
