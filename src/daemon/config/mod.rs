//! The configuration file, `/etc/samclip/samclipd.toml`.
//!
//! [`file::ConfigFile`] is the file as written, with defaults filled in; [`Config`] is the same after every check.
//! Nothing is opened here except the file itself and, when asked, the broker's credential file: a whole valid file comes
//! before any camera, model or socket. Each error is one line with file, line number, what was found and what is
//! allowed.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::capture::ControlValue;
use crate::message::topic::{CameraId, Topics};
use crate::publish::link::{TlsTexts, Version};
use crate::publish::mqtt::Settings;
use crate::track::zone::Zone;

mod check;
pub mod file;
mod http;
mod motion;
mod query;
mod sizes;

pub use http::{Http, HttpTable};
pub use motion::{Motion, MotionTable};
pub use query::{Query, QueryFault, QueryTable, check_background};
pub use sizes::{Sizes, SizesTable};

use check::Checker;
use file::ConfigFile;

/// Where the daemon looks without `--config`.
pub const DEFAULT_PATH: &str = "/etc/samclip/samclipd.toml";

/// Largest accepted file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer, or what the file is instead.
        reason: String,
    },
    /// A line says something else than allowed.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was found and what is allowed.
        problem: String,
    },
}

/// Which library runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Engine {
    /// ONNX Runtime if its library is found, else tract.
    #[default]
    Auto,
    /// tract; always there, CPU only.
    Tract,
    /// ONNX Runtime.
    Ort,
}

/// Which device ONNX Runtime uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Provider {
    /// The fastest that works.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by CUDA.
    Cuda,
    /// An NVIDIA GPU by TensorRT.
    TensorRt,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Folder of the model bundle.
    pub model: PathBuf,
    /// Which library runs the model.
    pub engine: Engine,
    /// Which device it uses.
    pub provider: Provider,
    /// Path of the ONNX Runtime library, if given.
    pub library: Option<PathBuf>,
    /// Variant of the graphs, if given.
    pub precision: Option<String>,
    /// Directory for engines and text embeddings, if given.
    pub cache: Option<PathBuf>,
    /// Directory for events that wait and live queries, if given.
    pub state: Option<PathBuf>,
    /// At least one, ids unique.
    pub cameras: Vec<Camera>,
    /// Ids unique; may be empty.
    pub queries: Vec<Query>,
    /// Texts that queries compete with, if not the bundle's own.
    pub background: Option<Vec<String>>,
    /// The broker, if any.
    pub mqtt: Option<Mqtt>,
    /// What messages carry.
    pub output: Output,
    /// When things are told of.
    pub events: Events,
    /// Control over D-Bus.
    pub dbus: Dbus,
    /// The HTTP server, if any.
    pub http: Option<Http>,
}

/// One camera.
#[derive(Debug, Clone, PartialEq)]
pub struct Camera {
    /// Topic level.
    pub id: CameraId,
    /// Source URI with a known scheme.
    pub source: String,
    /// Most frames per second to process.
    pub fps: Option<f64>,
    /// Controls to set at every opening, by name.
    pub controls: Vec<(String, ControlValue)>,
    /// Named parts of its picture; ids unique.
    pub zones: Vec<Zone>,
    /// Which of its frames are processed, if not all.
    pub motion: Option<Motion>,
    /// Side in pixels of the model's size that its frames go through, if not the model's own.
    pub side: Option<usize>,
    /// When they go through a smaller one, if ever.
    pub sizes: Option<Sizes>,
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Topic names.
    pub topics: Topics,
    /// Name among the broker's clients.
    pub client_id: String,
    /// Credential file.
    pub credentials: Option<PathBuf>,
    /// Version of the protocol.
    pub version: Version,
    /// Certificate files, if the connection is encrypted.
    pub tls: Option<TlsFiles>,
    /// Whether queries and detection can be changed over MQTT.
    pub commands: bool,
    /// Discovery prefix of Home Assistant, if it is to be told.
    pub home_assistant: Option<String>,
    /// Prefix of ONVIF metadata, if frames are to go out as such too.
    pub onvif: Option<String>,
    /// Most bytes of events on disk.
    pub spool_bytes: u64,
}

/// Paths of PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities; `None` for the system's.
    pub ca: Option<PathBuf>,
    /// Own certificate chain and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What messages carry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Output {
    /// Polygons.
    pub polygon: bool,
    /// COCO run-length codes.
    pub rle: bool,
    /// Largest distance of a polygon from its mask in pixels.
    pub tolerance: f32,
    /// Pictures of new things.
    pub snapshot: bool,
    /// Masks as pictures.
    pub mask: bool,
    /// Most frame and mask messages per second and camera, if bounded.
    pub rate: Option<f32>,
}

/// When things are told of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Events {
    /// Seconds until a thing that does not change is told of again.
    pub keep_alive: f32,
    /// Seconds in one place until a thing is stationary.
    pub stationary: f32,
}

/// Control over D-Bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dbus {
    /// Whether the daemon is on a bus.
    pub enabled: bool,
    /// Which.
    pub bus: BusAddress,
}

/// A message bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusAddress {
    /// The machine's.
    System,
    /// The user's.
    Session,
    /// The one at an address, such as `unix:path=/run/bus`.
    Address(String),
}

impl std::str::FromStr for BusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "system" => Ok(Self::System),
            "session" => Ok(Self::Session),
            _ if ["unix:", "tcp:"].iter().any(|kind| text.starts_with(kind)) => Ok(Self::Address(text.to_owned())),
            _ => Err(format!(
                "bus is {text:?}, expected \"system\", \"session\" or an address such as \"unix:path=/run/bus\""
            )),
        }
    }
}

impl std::fmt::Display for BusAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("the system bus"),
            Self::Session => f.write_str("the session bus"),
            Self::Address(address) => write!(f, "the bus at {address}"),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line, what was found and what is allowed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_small(path)?, path)
    }

    /// Checks the text of a file; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let checker = Checker { text, path };
        let file: ConfigFile = toml::from_str(text).map_err(|error| {
            let problem = error
                .message()
                .lines()
                .collect::<Vec<_>>()
                .join(", ")
                .replace('`', "\"");
            checker.at(error.span().map_or(0, |span| span.start), problem)
        })?;
        checker.check(file)
    }
}

impl Mqtt {
    /// How to reach the broker: reads the credential file and the certificates.
    ///
    /// # Errors
    /// [`ConfigError`] if a file cannot be read or the credential file has no two lines; no message holds its content.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings::new(&self.host, self.port, &self.client_id, self.topics.available());
        settings.version = self.version;
        settings.credentials = self.read_credentials()?;
        let text = |path: &PathBuf| read_small(path).map(String::into_bytes);
        if let Some(files) = &self.tls {
            let client = files.client.as_ref();
            settings.tls = Some(TlsTexts {
                authorities: files.ca.as_ref().map(text).transpose()?,
                client: client.map(|(chain, key)| Ok((text(chain)?, text(key)?))).transpose()?,
            });
        }
        Ok(settings)
    }

    /// Reads the credential file, if one is set: user on the first line, password on the second.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or has no two lines; the message never holds its content.
    pub fn read_credentials(&self) -> Result<Option<(String, String)>, ConfigError> {
        let Some(path) = &self.credentials else { return Ok(None) };
        let text = read_small(path)?;
        let mut lines = text.lines();
        match (lines.next(), lines.next()) {
            (Some(user), Some(password)) if !user.is_empty() => Ok(Some((user.into(), password.into()))),
            _ => {
                let problem = "expected the user on line 1 and the password on line 2".into();
                Err(ConfigError::Line {
                    path: path.clone(),
                    line: 1,
                    problem,
                })
            }
        }
    }
}

/// Reads a text file of bounded size.
fn read_small(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| ConfigError::Read {
        path: path.into(),
        reason: error.to_string(),
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(failed)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("is larger than {MAX_FILE_BYTES} bytes, expected a short text file");
        return Err(ConfigError::Read {
            path: path.into(),
            reason,
        });
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::Read {
        path: path.into(),
        reason: "is not UTF-8 text".into(),
    })
}

/// Reads `#rrggbb`.
pub(super) fn parse_color(text: &str) -> Option<[u8; 3]> {
    let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6)?;
    let value = digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())??;
    let [_, red, green, blue] = value.to_be_bytes();
    Some([red, green, blue])
}

/// The text that [`parse_color`] reads.
pub(super) fn color_text([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

#[cfg(test)]
mod tests;
