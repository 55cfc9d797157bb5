//! The configuration file, `/etc/samclip/samclipd.toml`.
//!
//! [`ConfigFile`] is the file as written, with defaults filled in; [`Config`] is the same after every check. Nothing is
//! opened here except the file itself and, when asked, the broker's credential file: a whole valid file comes
//! before any camera, model or socket. Each error is one line with file, line number, what was found and what is
//! allowed.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::message::topic::{CameraId, QueryId, Topics};

/// Where the daemon looks without `--config`.
pub const DEFAULT_PATH: &str = "/etc/samclip/samclipd.toml";

/// Largest accepted file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Longest prompt in characters; the tokenizer's limit.
const MAX_PROMPT: usize = 1_000;

/// Most prompts of one query.
const MAX_PROMPTS: usize = 16;

/// Source kinds that `source` may name.
const SCHEMES: [&str; 3] = ["v4l2", "file", "dir"];

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
    /// The broker; without the table nothing is published.
    pub mqtt: Option<MqttTable>,
    /// What messages carry.
    #[serde(default)]
    pub output: OutputTable,
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
    /// `v4l2:///dev/video0`, `file:///clip.y4m`, `dir:///frames?fps=10&loop`. Required.
    pub source: Spanned<String>,
    /// Most frames per second to process, 0.01 to 240; default: as many as the model can.
    pub fps: Option<Spanned<f64>>,
}

/// `[[query]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryTable {
    /// Topic level, as a camera's. Required, unique.
    pub id: Spanned<String>,
    /// Texts that mean the same thing; 1 to 16 of at most 1,000 characters. Default: the id with spaces for hyphens.
    pub prompts: Option<Spanned<Vec<String>>>,
    /// Calibrated score from which on the query counts as present, 0-1; default: the bundle's.
    pub threshold: Option<Spanned<f32>>,
    /// Smallest mask in pixels of the frame; default 64.
    #[serde(default = "default_min_area")]
    pub min_area: u64,
    /// Colour in pictures, `#rrggbb`; default: chosen by position.
    pub color: Option<Spanned<String>>,
}

fn default_min_area() -> u64 {
    64
}

/// `[mqtt]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttTable {
    /// Host name or address; default `localhost`.
    pub host: Spanned<String>,
    /// TCP port, 1 to 65535; default 1883.
    pub port: Spanned<u16>,
    /// First levels of every topic; default `samclip`.
    pub prefix: Spanned<String>,
    /// Name among the broker's clients; default `samclipd`.
    pub client_id: Spanned<String>,
    /// File with the user on its first line and the password on its second; default: no password.
    pub credentials: Option<PathBuf>,
}

impl Default for MqttTable {
    fn default() -> Self {
        let unwritten = |text: &str| Spanned::new(0..0, text.to_owned());
        Self {
            host: unwritten("localhost"),
            port: Spanned::new(0..0, 1883),
            prefix: unwritten(Topics::DEFAULT_PREFIX),
            client_id: unwritten("samclipd"),
            credentials: None,
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
}

impl Default for OutputTable {
    fn default() -> Self {
        Self {
            polygon: true,
            rle: false,
            tolerance: Spanned::new(0..0, 1.0),
        }
    }
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
    /// At least one, ids unique.
    pub cameras: Vec<Camera>,
    /// Ids unique; may be empty.
    pub queries: Vec<Query>,
    /// The broker, if any.
    pub mqtt: Option<Mqtt>,
    /// What messages carry.
    pub output: Output,
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
}

/// One thing to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Topic level.
    pub id: QueryId,
    /// Texts that mean the same thing; at least one, none empty.
    pub prompts: Vec<String>,
    /// Score from which on it counts as present, 0-1, if not the bundle's.
    pub threshold: Option<f32>,
    /// Smallest mask in pixels.
    pub min_area: u64,
    /// Red, green, blue, if chosen.
    pub color: Option<[u8; 3]>,
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

/// Turns places in the text into lines.
struct Checker<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Checker<'_> {
    /// An error at a byte offset.
    fn at(&self, offset: usize, problem: String) -> ConfigError {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        ConfigError::Line {
            path: self.path.into(),
            line,
            problem,
        }
    }

    /// Refuses a value unless `good`.
    fn require<T>(&self, good: bool, value: &Spanned<T>, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
        if good {
            Ok(())
        } else {
            Err(self.at(value.span().start, problem()))
        }
    }

    fn check(&self, file: ConfigFile) -> Result<Config, ConfigError> {
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
        let queries = file
            .query
            .iter()
            .map(|table| self.query(table.get_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        self.unique("query", file.query.iter().map(|table| &table.get_ref().id))?;
        let tolerance = *file.output.tolerance.get_ref();
        self.require((0.0..=100.0).contains(&tolerance), &file.output.tolerance, || {
            format!("tolerance is {tolerance}, expected 0 to 100 pixels")
        })?;
        self.runtime(&file.runtime)?;
        Ok(Config {
            model: file.model.into_inner(),
            engine: file.runtime.engine,
            provider: file.runtime.provider.into_inner(),
            library: file.runtime.library,
            precision: file.runtime.precision.map(Spanned::into_inner),
            cache: file.runtime.cache.map(Spanned::into_inner),
            cameras,
            queries,
            mqtt: file.mqtt.map(|table| self.mqtt(table)).transpose()?,
            output: Output {
                polygon: file.output.polygon,
                rle: file.output.rle,
                tolerance,
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
        Ok(Camera {
            id,
            source: source.clone(),
            fps: table.fps.as_ref().map(|fps| *fps.get_ref()),
        })
    }

    fn query(&self, table: &QueryTable) -> Result<Query, ConfigError> {
        let id = QueryId::new(table.id.get_ref()).map_err(|e| self.at(table.id.span().start, e.to_string()))?;
        let prompts = match &table.prompts {
            None => vec![id.as_str().replace('-', " ").trim().to_owned()],
            Some(prompts) => prompts.get_ref().clone(),
        };
        let place = table.prompts.as_ref().map_or(table.id.span(), Spanned::span).start;
        if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
            return Err(self.at(
                place,
                format!("{} prompts found, expected 1 to {MAX_PROMPTS}", prompts.len()),
            ));
        }
        for prompt in &prompts {
            let length = prompt.chars().count();
            if prompt.trim().is_empty() || length > MAX_PROMPT {
                let problem = format!("prompt of {length} characters found, expected words of at most {MAX_PROMPT}");
                return Err(self.at(place, problem));
            }
        }
        if let Some(threshold) = &table.threshold {
            self.require((0.0..=1.0).contains(threshold.get_ref()), threshold, || {
                format!("threshold is {}, expected 0 to 1", threshold.get_ref())
            })?;
        }
        let color = match &table.color {
            None => None,
            Some(text) => {
                let color = parse_color(text.get_ref());
                self.require(color.is_some(), text, || {
                    format!("color is {:?}, expected #rrggbb such as #ff8800", text.get_ref())
                })?;
                color
            }
        };
        let threshold = table.threshold.as_ref().map(|threshold| *threshold.get_ref());
        Ok(Query {
            id,
            prompts,
            threshold,
            min_area: table.min_area,
            color,
        })
    }

    fn mqtt(&self, table: MqttTable) -> Result<Mqtt, ConfigError> {
        let host = table.host.get_ref();
        let plain = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
        self.require(plain, &table.host, || {
            format!("host is {host:?}, expected a host name or an address")
        })?;
        self.require(*table.port.get_ref() != 0, &table.port, || {
            "port is 0, expected 1 to 65535".into()
        })?;
        let client_id = table.client_id.get_ref();
        let good = !client_id.is_empty() && client_id.len() <= 64 && !client_id.contains(char::is_control);
        self.require(good && !client_id.starts_with(' '), &table.client_id, || {
            format!("client_id is {client_id:?}, expected 1 to 64 bytes of text")
        })?;
        let topics = Topics::new(table.prefix.get_ref())
            .map_err(|error| self.at(table.prefix.span().start, error.to_string()))?;
        Ok(Mqtt {
            topics,
            host: table.host.into_inner(),
            port: table.port.into_inner(),
            client_id: table.client_id.into_inner(),
            credentials: table.credentials,
        })
    }
}

/// Reads `#rrggbb`.
fn parse_color(text: &str) -> Option<[u8; 3]> {
    let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6)?;
    let value = digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())??;
    let [_, red, green, blue] = value.to_be_bytes();
    Some([red, green, blue])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = r##"
model = "/usr/share/samclip/models/nano"

[runtime]
engine = "ort"
provider = "tensorrt"
library = "/opt/libonnxruntime.so"

[[camera]]
id = "dock"
source = "v4l2:///dev/video0"
fps = 5

[[query]]
id = "blue-pallet"
prompts = ["a blue pallet", "blue plastic pallet"]
threshold = 0.6
min_area = 400
color = "#2040ff"

[[query]]
id = "hard-hat"

[mqtt]
host = "broker.lan"
prefix = "site-3/samclip"

[output]
rle = true
tolerance = 2.5
"##;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("samclipd.toml"))
    }

    fn refused(from: &str, to: &str) -> String {
        assert!(FULL.contains(from), "{from}");
        parse(&FULL.replacen(from, to, 1)).unwrap_err().to_string()
    }

    #[test]
    fn a_full_file_becomes_a_checked_configuration() {
        let config = parse(FULL).unwrap();
        assert_eq!(config.model, Path::new("/usr/share/samclip/models/nano"));
        assert_eq!((config.engine, config.provider), (Engine::Ort, Provider::TensorRt));
        assert_eq!(
            (config.cameras[0].id.as_str(), config.cameras[0].fps),
            ("dock", Some(5.0))
        );
        let query = &config.queries[0];
        assert_eq!(
            (query.prompts.len(), query.threshold, query.min_area),
            (2, Some(0.6), 400)
        );
        assert_eq!(query.color, Some([0x20, 0x40, 0xff]));
        let query = &config.queries[1];
        assert_eq!(
            (query.prompts.as_slice(), query.threshold, query.min_area),
            (&["hard hat".to_owned()][..], None, 64)
        );
        let mqtt = config.mqtt.unwrap();
        assert_eq!(
            (mqtt.host.as_str(), mqtt.port, mqtt.client_id.as_str()),
            ("broker.lan", 1883, "samclipd")
        );
        assert_eq!(mqtt.topics.available().name, "site-3/samclip/available");
        assert_eq!(
            config.output,
            Output {
                polygon: true,
                rle: true,
                tolerance: 2.5
            }
        );
    }

    #[test]
    fn the_shortest_file_gets_the_documented_defaults() {
        let config = parse("model = \"m\"\n[[camera]]\nid = \"a\"\nsource = \"dir:///frames\"\n").unwrap();
        assert_eq!(
            (config.engine, config.provider, config.mqtt),
            (Engine::Auto, Provider::Auto, None)
        );
        assert!(config.queries.is_empty());
        assert_eq!(
            config.output,
            Output {
                polygon: true,
                rle: false,
                tolerance: 1.0
            }
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
        assert_eq!(
            refused("fps = 5", "fsp = 5"),
            "samclipd.toml:12: unknown field \"fsp\", expected one of \"id\", \"source\", \"fps\""
        );
        assert!(refused("[output]", "[outputs]").starts_with("samclipd.toml:28: unknown field \"outputs\""));
    }

    #[test]
    fn wrong_types_and_words_are_refused_with_their_line() {
        assert!(refused("fps = 5", "fps = \"five\"").starts_with("samclipd.toml:12: invalid type: string \"five\""));
        let error = refused("\"ort\"", "\"onnx\"");
        assert_eq!(
            error,
            "samclipd.toml:5: unknown variant \"onnx\", expected one of \"auto\", \"tract\", \"ort\""
        );
        assert!(refused("host = \"broker.lan\"", "port = 70000").starts_with("samclipd.toml:25: invalid value"));
        assert!(refused("[mqtt]", "[mqtt").starts_with("samclipd.toml:24: "));
    }

    #[test]
    fn impossible_values_are_refused_with_what_is_allowed() {
        for (from, to, expected) in [
            ("fps = 5", "fps = 0", "12: fps is 0, expected 0.01 to 240"),
            (
                "threshold = 0.6",
                "threshold = 1.2",
                "17: threshold is 1.2, expected 0 to 1",
            ),
            (
                "threshold = 0.6",
                "threshold = nan",
                "17: threshold is NaN, expected 0 to 1",
            ),
            (
                "#2040ff",
                "blue",
                "19: color is \"blue\", expected #rrggbb such as #ff8800",
            ),
            (
                "tolerance = 2.5",
                "tolerance = -1",
                "30: tolerance is -1, expected 0 to 100 pixels",
            ),
            (
                "\"hard-hat\"",
                "\"blue-pallet\"",
                "22: query id \"blue-pallet\" occurs twice, expected unique ids",
            ),
            ("\"hard-hat\"", "\"frame\"", "22: query id \"frame\" is reserved"),
            (
                "\"dock\"",
                "\"Dock\"",
                "10: camera id \"Dock\": expected 1 to 64 characters",
            ),
            (
                "v4l2:///dev/video0",
                "/dev/video0",
                "11: source is \"/dev/video0\", expected v4l2:///dev/video0",
            ),
            (
                "[\"a blue pallet\", \"blue plastic pallet\"]",
                "[]",
                "16: 0 prompts found, expected 1 to 16",
            ),
            (
                "\"a blue pallet\"",
                "\" \"",
                "16: prompt of 1 characters found, expected words of at most 1000",
            ),
            ("site-3/samclip", "site/#", "26: topic prefix \"site/#\""),
            ("broker.lan", "mqtt://broker", "25: host is \"mqtt://broker\""),
            ("/usr/share/samclip/models/nano", "", "2: model is empty"),
        ] {
            let error = refused(from, to);
            assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
        }
        let long = "x".repeat(10_000);
        assert!(refused("a blue pallet", &long).contains("prompt of 10000 characters"));
        assert_eq!(
            parse("model = \"m\"\n").unwrap_err().to_string(),
            "samclipd.toml:2: no [[camera]] found, expected at least one"
        );
    }

    #[test]
    fn the_runtime_table_is_checked_before_anything_is_opened() {
        let with = |runtime: &str| parse(&FULL.replacen("provider = \"tensorrt\"", runtime, 1));
        let config = with("provider = \"cuda\"\nprecision = \"fp16.v2\"\ncache = \"/var/cache/samclip\"").unwrap();
        assert_eq!(
            (config.provider, config.precision.as_deref()),
            (Provider::Cuda, Some("fp16.v2"))
        );
        assert_eq!(config.cache.as_deref(), Some(Path::new("/var/cache/samclip")));
        for (runtime, expected) in [
            (
                "precision = \"\"",
                "6: precision is \"\", expected the name of a variant",
            ),
            ("precision = \"../fp16\"", "6: precision is \"../fp16\""),
            ("precision = 16", "6: invalid type: integer"),
            (
                "cache = \"caches\"",
                "6: cache is \"caches\", expected an absolute path",
            ),
            ("cash = \"/var\"", "6: unknown field \"cash\""),
        ] {
            let error = with(runtime).unwrap_err().to_string();
            assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
        }
        let error = refused("\"ort\"", "\"tract\"");
        assert_eq!(
            error,
            "samclipd.toml:6: engine is \"tract\", which runs on the CPU only; expected provider \"auto\" or \"cpu\""
        );
    }

    #[test]
    fn files_that_are_no_short_texts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samclipd.toml");
        assert!(matches!(Config::read(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(
            Config::read(&path)
                .unwrap_err()
                .to_string()
                .ends_with("is not UTF-8 text")
        );
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(
            Config::read(&path)
                .unwrap_err()
                .to_string()
                .contains("larger than 1048576 bytes")
        );
        std::fs::write(&path, FULL).unwrap();
        assert_eq!(Config::read(&path), parse(FULL));
    }

    #[test]
    fn credentials_come_from_a_file_and_never_enter_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mqtt");
        let mut mqtt = parse(FULL).unwrap().mqtt.unwrap();
        assert_eq!(mqtt.read_credentials().unwrap(), None);
        mqtt.credentials = Some(path.clone());
        assert!(matches!(mqtt.read_credentials(), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "camera\ns3cret\n").unwrap();
        assert_eq!(
            mqtt.read_credentials().unwrap(),
            Some(("camera".into(), "s3cret".into()))
        );
        std::fs::write(&path, "s3cret").unwrap();
        assert!(!mqtt.read_credentials().unwrap_err().to_string().contains("s3cret"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail_otherwise_than_by_an_error(text in "\\PC{0,80}", cut in 0usize..600) {
            let _ = parse(&text);
            let mut part = FULL.to_owned();
            part.truncate(FULL.floor_char_boundary(cut));
            part.push_str(&text);
            if let Err(ConfigError::Line { line, .. }) = parse(&part) {
                prop_assert!(line >= 1 && line <= part.lines().count() + 1);
            }
        }
    }
}
