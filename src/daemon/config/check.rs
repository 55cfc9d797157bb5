//! From the file as written to a checked configuration; every refusal names its line.

use std::path::Path;
use std::str::FromStr as _;

use toml::Spanned;

use super::file::{CameraTable, ConfigFile, MqttTable, MqttVersion, RuntimeTable, TlsTable, ZoneTable, ZoneUnits};
use super::query::check_background;
use super::{Camera, Config, ConfigError, Dbus, Engine, Events, Mqtt, Output, Provider, TlsFiles};
use crate::capture::{ControlValue, SourceUri};
use crate::message::topic::{CameraId, MAX_ID, Topics};
use crate::publish::link::Version;
use crate::publish::spool::MIN_BYTES;
use crate::track::zone::{Units, Zone};

/// Source kinds that `source` may name.
const SCHEMES: [&str; 3] = ["v4l2", "file", "dir"];

/// Turns places in the text into lines.
pub(super) struct Checker<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

impl Checker<'_> {
    /// An error at a byte offset.
    pub(super) fn at(&self, offset: usize, problem: String) -> ConfigError {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        ConfigError::Line {
            path: self.path.into(),
            line,
            problem,
        }
    }

    /// Refuses a value unless `good`.
    pub(super) fn require<T>(
        &self,
        good: bool,
        value: &Spanned<T>,
        problem: impl FnOnce() -> String,
    ) -> Result<(), ConfigError> {
        if good {
            Ok(())
        } else {
            Err(self.at(value.span().start, problem()))
        }
    }

    /// Refuses the first value out of its range: key, value, least, most, and the unit with a space before it.
    pub(super) fn ranges<const N: usize>(
        &self,
        rows: [(&str, &Spanned<f32>, f32, f32, &str); N],
    ) -> Result<(), ConfigError> {
        for (key, value, least, most, unit) in rows {
            self.require((least..=most).contains(value.get_ref()), value, || {
                format!("{key} is {}, expected {least} to {most}{unit}", value.get_ref())
            })?;
        }
        Ok(())
    }

    pub(super) fn check(&self, file: ConfigFile) -> Result<Config, ConfigError> {
        self.require(!file.model.get_ref().as_os_str().is_empty(), &file.model, || {
            "model is empty, expected the folder of a model bundle".into()
        })?;
        if file.camera.is_empty() {
            return Err(self.at(self.text.len(), "no [[camera]] found, expected at least one".into()));
        }
        let cameras = file
            .camera
            .iter()
            .map(|table| self.camera(table.get_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        self.unique("camera", file.camera.iter().map(|table| &table.get_ref().id))?;
        self.different_devices(file.camera.iter().map(|table| &table.get_ref().source))?;
        let zones: Vec<String> = cameras
            .iter()
            .flat_map(|c| c.zones.iter().map(|z| z.id().to_owned()))
            .collect();
        let queries = file
            .query
            .iter()
            .map(|table| self.query(table.get_ref(), &zones))
            .collect::<Result<Vec<_>, _>>()?;
        self.unique("query", file.query.iter().map(|table| &table.get_ref().id))?;
        let tolerance = *file.output.tolerance.get_ref();
        self.require((0.0..=100.0).contains(&tolerance), &file.output.tolerance, || {
            format!("tolerance is {tolerance}, expected 0 to 100 pixels")
        })?;
        if let Some(rate) = &file.output.rate {
            self.require((0.01..=240.0).contains(rate.get_ref()), rate, || {
                format!("rate is {}, expected 0.01 to 240 messages per second", rate.get_ref())
            })?;
        }
        self.ranges([
            ("keep_alive", &file.events.keep_alive, 1.0, 86_400.0, " seconds"),
            ("stationary", &file.events.stationary, 0.0, 86_400.0, " seconds"),
        ])?;
        self.runtime(&file.runtime)?;
        if let Some(background) = &file.background {
            check_background(background.get_ref())
                .map_err(|fault| self.at(background.span().start, fault.to_string()))?;
        }
        if let Some(state) = &file.state {
            self.require(state.get_ref().is_absolute(), state, || {
                let found = state.get_ref().display().to_string();
                format!("state is {found:?}, expected an absolute path such as /var/lib/samclip")
            })?;
        }
        let bus = file.dbus.bus.get_ref().parse();
        let dbus = Dbus {
            enabled: file.dbus.enabled,
            bus: bus.map_err(|problem| self.at(file.dbus.bus.span().start, problem))?,
        };
        Ok(Config {
            dbus,
            http: file.http.map(|table| self.http(table)).transpose()?,
            model: file.model.into_inner(),
            engine: file.runtime.engine,
            provider: file.runtime.provider.into_inner(),
            library: file.runtime.library,
            precision: file.runtime.precision.map(Spanned::into_inner),
            cache: file.runtime.cache.map(Spanned::into_inner),
            state: file.state.map(Spanned::into_inner),
            cameras,
            queries,
            background: file.background.map(Spanned::into_inner),
            mqtt: file.mqtt.map(|table| self.mqtt(table)).transpose()?,
            output: Output {
                polygon: file.output.polygon,
                rle: file.output.rle,
                tolerance,
                snapshot: file.output.snapshot,
                mask: file.output.mask,
                rate: file.output.rate.map(Spanned::into_inner),
            },
            events: Events {
                keep_alive: file.events.keep_alive.into_inner(),
                stationary: file.events.stationary.into_inner(),
            },
        })
    }

    fn runtime(&self, table: &RuntimeTable) -> Result<(), ConfigError> {
        let gpu = matches!(table.provider.get_ref(), Provider::Cuda | Provider::TensorRt);
        self.require(table.engine != Engine::Tract || !gpu, &table.provider, || {
            "engine is \"tract\", which runs on the CPU only; expected provider \"auto\" or \"cpu\"".into()
        })?;
        if let Some(precision) = &table.precision {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let name = precision.get_ref();
            self.require(!name.is_empty() && name.chars().all(plain), precision, || {
                format!("precision is {name:?}, expected the name of a variant in the bundle's manifest")
            })?;
        }
        if let Some(cache) = &table.cache {
            self.require(cache.get_ref().is_absolute(), cache, || {
                let found = cache.get_ref().display().to_string();
                format!("cache is {found:?}, expected an absolute path such as /var/cache/samclip")
            })?;
        }
        Ok(())
    }

    fn unique<'a>(&self, kind: &str, ids: impl Iterator<Item = &'a Spanned<String>>) -> Result<(), ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for id in ids {
            self.require(seen.insert(id.get_ref()), id, || {
                format!("{kind} id {:?} occurs twice, expected unique ids", id.get_ref())
            })?;
        }
        Ok(())
    }

    /// A V4L2 device can be opened once.
    fn different_devices<'a>(&self, sources: impl Iterator<Item = &'a Spanned<String>>) -> Result<(), ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for source in sources.filter(|source| source.get_ref().starts_with("v4l2://")) {
            let device = source.get_ref().split('?').next().unwrap_or_default();
            self.require(seen.insert(device), source, || {
                format!("source {device:?} occurs twice, expected a device of its own for every camera")
            })?;
        }
        Ok(())
    }

    fn camera(&self, table: &CameraTable) -> Result<Camera, ConfigError> {
        let id = CameraId::new(table.id.get_ref()).map_err(|e| self.at(table.id.span().start, e.to_string()))?;
        let source = table.source.get_ref();
        let known = source
            .split_once("://")
            .is_some_and(|(scheme, rest)| SCHEMES.contains(&scheme) && !rest.is_empty());
        self.require(known, &table.source, || {
            format!("source is {source:?}, expected v4l2:///dev/video0, file:///clip.y4m or dir:///frames?fps=10&loop")
        })?;
        if let Some(fps) = &table.fps {
            self.require((0.01..=240.0).contains(fps.get_ref()), fps, || {
                format!("fps is {}, expected 0.01 to 240", fps.get_ref())
            })?;
        }
        let controls = table
            .controls
            .iter()
            .map(|(name, value)| self.control(source, name, value));
        let controls = controls.collect::<Result<_, _>>()?;
        let zones = table
            .zone
            .iter()
            .map(|zone| self.zone(zone.get_ref()))
            .collect::<Result<_, _>>()?;
        let timed = table.fps.is_some() || !SourceUri::from_str(source).is_ok_and(|uri| uri.waits());
        let needs_time = |key: &str| {
            format!(
                "{key} found for a source that is read as fast as it is processed, expected fps, or ?fps= in source"
            )
        };
        let motion = table.motion.as_ref().map(|motion| {
            self.require(timed, motion, || needs_time("motion"))?;
            self.motion(motion.get_ref())
        });
        let side = table.side.as_ref().map(|side| self.side("side", side)).transpose()?;
        let sizes = table.sizes.as_ref().map(|sizes| {
            self.require(timed, sizes, || needs_time("sizes"))?;
            self.sizes(sizes.get_ref(), side)
        });
        self.unique("zone", table.zone.iter().map(|zone| &zone.get_ref().id))?;
        Ok(Camera {
            id,
            source: source.clone(),
            fps: table.fps.as_ref().map(|fps| *fps.get_ref()),
            controls,
            zones,
            motion: motion.transpose()?,
            side,
            sizes: sizes.transpose()?,
        })
    }

    /// A control of a camera; whether the camera has it shows when it is opened.
    fn control(
        &self,
        source: &str,
        name: &str,
        value: &Spanned<toml::Value>,
    ) -> Result<(String, ControlValue), ConfigError> {
        self.require(source.starts_with("v4l2://"), value, || {
            format!("control {name} found for {source:?}, expected controls of v4l2:// sources only")
        })?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        self.require(!name.is_empty() && name.chars().all(plain), value, || {
            format!("control {name:?}, expected a name as `samclipd cameras` shows it, such as exposure_time_absolute")
        })?;
        let given = match value.get_ref() {
            toml::Value::Integer(number) => ControlValue::Number(*number),
            toml::Value::Boolean(on) => ControlValue::Number(i64::from(*on)),
            toml::Value::String(item) => ControlValue::Item(item.clone()),
            other => {
                let found = other.type_str();
                let problem =
                    format!("control {name} is of type {found}, expected an integer, true or false, or a text");
                return Err(self.at(value.span().start, problem));
            }
        };
        Ok((name.to_owned(), given))
    }

    fn zone(&self, table: &ZoneTable) -> Result<Zone, ConfigError> {
        let id = table.id.get_ref();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        self.require(
            (1..=MAX_ID).contains(&id.len()) && id.chars().all(plain),
            &table.id,
            || format!("zone id {id:?}: expected 1 to {MAX_ID} characters out of a-z, 0-9 and hyphen"),
        )?;
        let units = match table.units {
            ZoneUnits::Relative => Units::Relative,
            ZoneUnits::Pixel => Units::Pixel,
        };
        Zone::new(id, table.polygon.get_ref().clone(), units)
            .map_err(|error| self.at(table.polygon.span().start, error.to_string()))
    }

    fn tls(&self, table: TlsTable) -> Result<TlsFiles, ConfigError> {
        let client = match (table.certificate, table.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.into_inner(), key.into_inner())),
            (Some(alone), None) => {
                return Err(self.at(
                    alone.span().start,
                    "certificate found without key, expected both or none".into(),
                ));
            }
            (None, Some(alone)) => {
                return Err(self.at(
                    alone.span().start,
                    "key found without certificate, expected both or none".into(),
                ));
            }
        };
        Ok(TlsFiles { ca: table.ca, client })
    }

    fn mqtt(&self, table: MqttTable) -> Result<Mqtt, ConfigError> {
        let host = table.host.get_ref();
        let plain = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
        self.require(plain, &table.host, || {
            format!("host is {host:?}, expected a host name or an address")
        })?;
        if let Some(port) = &table.port {
            self.require(*port.get_ref() != 0, port, || "port is 0, expected 1 to 65535".into())?;
        }
        let bytes = &table.spool_bytes;
        self.require((MIN_BYTES..=1 << 40).contains(bytes.get_ref()), bytes, || {
            format!(
                "spool_bytes is {}, expected {MIN_BYTES} to {}",
                bytes.get_ref(),
                1u64 << 40
            )
        })?;
        let client_id = table.client_id.get_ref();
        let good = !client_id.is_empty() && client_id.len() <= 64 && !client_id.contains(char::is_control);
        self.require(good && !client_id.starts_with(' '), &table.client_id, || {
            format!("client_id is {client_id:?}, expected 1 to 64 bytes of text")
        })?;
        let topics = Topics::new(table.prefix.get_ref())
            .map_err(|error| self.at(table.prefix.span().start, error.to_string()))?;
        for prefix in table.homeassistant.iter().chain(&table.onvif) {
            Topics::new(prefix.get_ref()).map_err(|error| self.at(prefix.span().start, error.to_string()))?;
        }
        let port = if table.tls.is_some() { 8883 } else { 1883 };
        Ok(Mqtt {
            topics,
            host: table.host.into_inner(),
            port: table.port.map_or(port, Spanned::into_inner),
            version: match table.version {
                MqttVersion::V3 => Version::V3,
                MqttVersion::V5 => Version::V5,
            },
            tls: table.tls.map(|tls| self.tls(tls)).transpose()?,
            commands: table.commands,
            home_assistant: table.homeassistant.map(Spanned::into_inner),
            onvif: table.onvif.map(Spanned::into_inner),
            spool_bytes: table.spool_bytes.into_inner(),
            client_id: table.client_id.into_inner(),
            credentials: table.credentials,
        })
    }
}
