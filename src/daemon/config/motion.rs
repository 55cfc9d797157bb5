//! `[camera.motion]`: frames on which nothing moves are left out.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;
use super::check::Checker;
use crate::vision::motion::MotionRules;

/// `[camera.motion]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MotionTable {
    /// Share of the picture that must change until something moves, 0.0001 to 0.5; default 0.002.
    pub area: Spanned<f32>,
    /// By how much the brightness of a place must change, 1 to 255 on a scale of 255; default 8.
    pub change: Spanned<f32>,
    /// Seconds after which a frame is processed although nothing moves, 0.1 to 86,400; default 10.
    pub refresh: Spanned<f32>,
    /// Seconds for which frames are processed after something moved, 0 to 3,600; default 2.
    pub hold: Spanned<f32>,
}

impl Default for MotionTable {
    fn default() -> Self {
        let unwritten = |value| Spanned::new(0..0, value);
        Self {
            area: unwritten(0.002),
            change: unwritten(8.0),
            refresh: unwritten(10.0),
            hold: unwritten(2.0),
        }
    }
}

/// Which frames of a camera are processed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Motion {
    /// What counts as motion.
    pub motion: MotionRules,
    /// Longest time between two frames that are processed.
    pub refresh: Duration,
    /// How long frames are processed after something moved.
    pub hold: Duration,
}

impl MotionTable {
    /// What counts as motion.
    pub(in crate::daemon) fn rules(&self) -> MotionRules {
        MotionRules {
            area: *self.area.get_ref(),
            change: *self.change.get_ref(),
        }
    }
}

impl Checker<'_> {
    pub(super) fn motion(&self, table: &MotionTable) -> Result<Motion, ConfigError> {
        self.ranges([
            ("area", &table.area, 0.0001, 0.5, " of the picture"),
            ("change", &table.change, 1.0, 255.0, ""),
            ("refresh", &table.refresh, 0.1, 86_400.0, " seconds"),
            ("hold", &table.hold, 0.0, 3_600.0, " seconds"),
        ])?;
        let seconds = |value: &Spanned<f32>| Duration::from_secs_f32(*value.get_ref());
        Ok(Motion {
            motion: table.rules(),
            refresh: seconds(&table.refresh),
            hold: seconds(&table.hold),
        })
    }
}
