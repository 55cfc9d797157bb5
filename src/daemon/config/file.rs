//! The configuration file as written: one struct per table, defaults filled in, nothing checked but types and names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::http::HttpTable;
use super::motion::MotionTable;
use super::query::QueryTable;
use super::sizes::SizesTable;
use super::{Engine, Provider};

/// The file as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Folder of the model bundle. Required.
    pub model: Spanned<PathBuf>,
    /// What runs the model.
    #[serde(default)]
    pub runtime: RuntimeTable,
    /// Cameras, at least one.
    #[serde(default)]
    pub camera: Vec<Spanned<CameraTable>>,
    /// What to look for in every camera; may be empty.
    #[serde(default)]
    pub query: Vec<Spanned<QueryTable>>,
    /// Texts that queries compete with, 1 to 256; default: the bundle's own.
    pub background: Option<Spanned<Vec<String>>>,
    /// The broker; without the table nothing is published.
    pub mqtt: Option<MqttTable>,
    /// What messages carry.
    #[serde(default)]
    pub output: OutputTable,
    /// When things are told of.
    #[serde(default)]
    pub events: EventsTable,
    /// Control over D-Bus.
    #[serde(default)]
    pub dbus: DbusTable,
    /// The page, its API and metrics over HTTP; without the table there is no server.
    pub http: Option<Spanned<HttpTable>>,
    /// Absolute path of the directory for events that wait for the broker and for live queries; default:
    /// `$STATE_DIRECTORY`, `$XDG_STATE_HOME/samclip`, `~/.local/state/samclip`.
    pub state: Option<Spanned<PathBuf>>,
}

/// `[runtime]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeTable {
    /// `auto` (default: ONNX Runtime if its library is found, else tract), `tract` or `ort`.
    pub engine: Engine,
    /// `auto` (default: the fastest that works), `cpu`, `cuda` or `tensorrt`; what is named must do the work.
    pub provider: Spanned<Provider>,
    /// Path of the ONNX Runtime library, and no other; default: the usual places.
    pub library: Option<PathBuf>,
    /// Variant of the bundle's graphs; default: the best for the provider.
    pub precision: Option<Spanned<String>>,
    /// Absolute path of the directory for engines and text embeddings; default: `$CACHE_DIRECTORY`,
    /// `$XDG_CACHE_HOME/samclip`, `~/.cache/samclip`.
    pub cache: Option<Spanned<PathBuf>>,
}

impl Default for RuntimeTable {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            provider: Spanned::new(0..0, Provider::Auto),
            library: None,
            precision: None,
            cache: None,
        }
    }
}

/// `[[camera]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraTable {
    /// Topic level: 1 to 64 of a-z, 0-9 and hyphen. Required, unique.
    pub id: Spanned<String>,
    /// `v4l2:///dev/video0`, `file:///clip.y4m`, `dir:///frames?fps=10&loop`. Required. A camera is named by its node, its
    /// link below `/dev/v4l`, its serial number or its card name; it takes `size=WxH`, `format=MJPG`, `timeout=SECONDS`.
    pub source: Spanned<String>,
    /// Most frames per second to process, 0.01 to 240; default: as many as the model can.
    pub fps: Option<Spanned<f64>>,
    /// What the camera's controls are set to whenever it is opened, by the names that `samclipd cameras` shows: a number,
    /// true or false, or the item of a menu; default: they stay as they are. Cameras only.
    #[serde(default)]
    pub controls: BTreeMap<String, Spanned<toml::Value>>,
    /// Named parts of its picture; may be empty.
    #[serde(default)]
    pub zone: Vec<Spanned<ZoneTable>>,
    /// With the table, frames on which nothing moves are left out.
    pub motion: Option<Spanned<MotionTable>>,
    /// Side in pixels of the model's size that its frames go through; default: the model's own.
    pub side: Option<Spanned<usize>>,
    /// With the table, frames go through a smaller size while nothing is found.
    pub sizes: Option<Spanned<SizesTable>>,
}

/// `[[camera.zone]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneTable {
    /// Name in messages: as a camera's id. Required, unique within the camera.
    pub id: Spanned<String>,
    /// Corners `[x, y]`, 3 to 256 of them; required. Shares of width and height, or pixels.
    pub polygon: Spanned<Vec<[f32; 2]>>,
    /// What the corners mean: `relative` (default) or `pixel`.
    #[serde(default)]
    pub units: ZoneUnits,
}

/// What the corners of a zone mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZoneUnits {
    /// Shares of the frame's width and height, 0 to 1.
    #[default]
    Relative,
    /// Pixels of the frame.
    Pixel,
}

/// `[mqtt]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttTable {
    /// Host name or address; default `localhost`.
    pub host: Spanned<String>,
    /// TCP port, 1 to 65535; default 1883, with TLS 8883.
    pub port: Option<Spanned<u16>>,
    /// First levels of every topic; default `samclip`.
    pub prefix: Spanned<String>,
    /// Name among the broker's clients; default `samclipd`.
    pub client_id: Spanned<String>,
    /// File with the user on its first line and the password on its second; default: no password.
    pub credentials: Option<PathBuf>,
    /// Version of the protocol: `3.1.1` (default) or `5`.
    pub version: MqttVersion,
    /// With the table, the connection is encrypted.
    pub tls: Option<TlsTable>,
    /// Whether queries and detection can be changed over MQTT; default true.
    pub commands: bool,
    /// Discovery prefix of Home Assistant, usually `homeassistant`; default: it is not told.
    pub homeassistant: Option<Spanned<String>>,
    /// Prefix below which frames go out as ONVIF metadata too; default: they do not.
    pub onvif: Option<Spanned<String>>,
    /// Most bytes of events on disk while the broker is away, 65,536 to 2^40; default 16 MiB.
    pub spool_bytes: Spanned<u64>,
}

/// `[mqtt.tls]`: paths of PEM files.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsTable {
    /// Authorities that may have signed the broker's certificate; default: the system's.
    pub ca: Option<PathBuf>,
    /// Own certificate chain; with `key`.
    pub certificate: Option<Spanned<PathBuf>>,
    /// Its key; with `certificate`.
    pub key: Option<Spanned<PathBuf>>,
}

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum MqttVersion {
    /// MQTT 3.1.1.
    #[default]
    #[serde(rename = "3.1.1")]
    V3,
    /// MQTT 5.
    #[serde(rename = "5")]
    V5,
}

impl Default for MqttTable {
    fn default() -> Self {
        let unwritten = |text: &str| Spanned::new(0..0, text.to_owned());
        Self {
            host: unwritten("localhost"),
            port: None,
            prefix: unwritten(crate::message::topic::Topics::DEFAULT_PREFIX),
            client_id: unwritten("samclipd"),
            credentials: None,
            version: MqttVersion::V3,
            tls: None,
            commands: true,
            homeassistant: None,
            onvif: None,
            spool_bytes: Spanned::new(0..0, 16 << 20),
        }
    }
}

/// `[output]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputTable {
    /// Whether detections carry polygons; default true.
    pub polygon: bool,
    /// Whether detections carry the exact mask as COCO run-length code; default false.
    pub rle: bool,
    /// Largest distance of a polygon from its mask in pixels, 0 to 100; default 1.
    pub tolerance: Spanned<f32>,
    /// Whether a JPEG of every new thing goes out, and one whenever it is seen better; default true.
    pub snapshot: bool,
    /// Whether the mask of every query goes out as 1-bit PNG with every frame message; default false.
    pub mask: bool,
    /// Most frame and mask messages per second and camera, 0.01 to 240; default: one per frame.
    pub rate: Option<Spanned<f32>>,
}

/// `[events]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsTable {
    /// Seconds until a thing that does not change is told of again, 1 to 86,400; default 60.
    pub keep_alive: Spanned<f32>,
    /// Seconds in one place until a thing is stationary, 0 to 86,400; default 10.
    pub stationary: Spanned<f32>,
}

/// `[dbus]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DbusTable {
    /// Whether the daemon is on D-Bus, as `org.samclip.Daemon1`; default true. A bus that is not there stops nothing.
    pub enabled: bool,
    /// Which bus: `system` (default), `session`, or an address such as `unix:path=/run/bus`.
    pub bus: Spanned<String>,
}

impl Default for DbusTable {
    fn default() -> Self {
        Self {
            enabled: true,
            bus: Spanned::new(0..0, "system".to_owned()),
        }
    }
}

impl Default for EventsTable {
    fn default() -> Self {
        Self {
            keep_alive: Spanned::new(0..0, 60.0),
            stationary: Spanned::new(0..0, 10.0),
        }
    }
}

impl Default for OutputTable {
    fn default() -> Self {
        Self {
            polygon: true,
            rle: false,
            tolerance: Spanned::new(0..0, 1.0),
            snapshot: true,
            mask: false,
            rate: None,
        }
    }
}
