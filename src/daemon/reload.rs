//! A new configuration for the running daemon: read, checked and prepared as a whole before anything changes.
//!
//! A reload ends in the state that a restart would end in: live changes go before the file, as always. What only a
//! restart can change is refused, and then nothing changes.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use crate::publish::mqtt::Settings;

use super::cameras::sources;
use super::config::Config;
use super::embedder::QueryEmbedder;
use super::live::LiveState;
use super::outlet::broker_settings;
use super::schedule;
use super::station::Prepared;
use super::texts::prepare_cameras;

/// What a reload starts from.
pub(super) struct Reload {
    /// The file to read; `None` if the configuration came from none.
    pub(super) file: Option<PathBuf>,
    /// The configuration in force.
    pub(super) current: Arc<Config>,
    /// What was changed live.
    pub(super) live: LiveState,
    /// Sides of the sizes that are open, pixels; the model's own first.
    pub(super) sides: Vec<usize>,
}

/// A configuration that can be put in force.
pub(super) struct Reloaded {
    pub(super) config: Config,
    /// How to reach its broker.
    pub(super) settings: Option<Settings>,
    /// What its cameras are asked, in their order.
    pub(super) prepared: Vec<Prepared>,
}

/// Whether anything may be changed while the daemon runs.
pub(super) fn takes_commands(config: &Config) -> bool {
    (cfg!(feature = "dbus") && config.dbus.enabled)
        || config.http.is_some()
        || config.mqtt.as_ref().is_some_and(|mqtt| mqtt.commands)
}

impl Reload {
    /// Reads, checks and prepares; changes nothing.
    ///
    /// # Errors
    /// What is wrong with the file, or what only a restart can change.
    pub(super) fn carry_out(mut self, embedder: &mut QueryEmbedder) -> anyhow::Result<Reloaded> {
        let file = self.file.as_deref();
        let file = file.context("there is no configuration file to read again; restart the daemon")?;
        let config = Config::read(file)?;
        sources(&config)?;
        if let Some(key) = fixed(&self.current, &config) {
            bail!(
                "{}: {key} differs from what the daemon was started with; a reload cannot change it, restart the daemon",
                file.display()
            );
        }
        schedule::check(&config, &self.sides).map_err(|fault| anyhow!("{}: {fault}", file.display()))?;
        let settings = broker_settings(&config)?;
        self.live.set_open(takes_commands(&config));
        let prepared = prepare_cameras(embedder, &config, &self.live)?;
        Ok(Reloaded {
            config,
            settings,
            prepared,
        })
    }
}

/// The first key that differs and that only a restart can change.
fn fixed(before: &Config, after: &Config) -> Option<&'static str> {
    let keys = [
        ("model", before.model != after.model),
        ("engine under [runtime]", before.engine != after.engine),
        ("provider under [runtime]", before.provider != after.provider),
        ("library under [runtime]", before.library != after.library),
        ("precision under [runtime]", before.precision != after.precision),
        ("cache under [runtime]", before.cache != after.cache),
        ("state", before.state != after.state),
        ("[dbus]", before.dbus != after.dbus),
        ("[http]", before.http != after.http),
    ];
    keys.into_iter().find(|(_, differs)| *differs).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_restart_can_change_is_named() {
        let config = |top: &str, rest: &str| {
            let text = format!("{top}\n[[camera]]\nid = \"yard\"\nsource = \"dir:///f\"\n{rest}");
            Config::parse(&text, "test.toml".as_ref()).unwrap()
        };
        let before = config("model = \"m\"", "");
        for (top, rest, key) in [
            ("model = \"m\"", "[[query]]\nid = \"cat\"\n[mqtt]\nport = 1884", None),
            ("model = \"n\"", "", Some("model")),
            ("model = \"m\"\nstate = \"/s\"", "", Some("state")),
            (
                "model = \"m\"",
                "[runtime]\nengine = \"tract\"",
                Some("engine under [runtime]"),
            ),
            (
                "model = \"m\"",
                "[runtime]\nprovider = \"cpu\"",
                Some("provider under [runtime]"),
            ),
            (
                "model = \"m\"",
                "[runtime]\nlibrary = \"/l\"",
                Some("library under [runtime]"),
            ),
            (
                "model = \"m\"",
                "[runtime]\nprecision = \"int8\"",
                Some("precision under [runtime]"),
            ),
            (
                "model = \"m\"",
                "[runtime]\ncache = \"/c\"",
                Some("cache under [runtime]"),
            ),
            ("model = \"m\"", "[dbus]\nenabled = false", Some("[dbus]")),
            #[cfg(feature = "http")]
            ("model = \"m\"", "[http]", Some("[http]")),
        ] {
            assert_eq!(fixed(&before, &config(top, rest)), key, "{top} {rest}");
        }
    }
}
