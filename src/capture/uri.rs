//! Source URIs: `v4l2:///dev/video0`, `file:///clip.y4m`, `dir:///frames?fps=10&loop`; the prefix may be left out.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::CaptureError;

/// What kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A camera.
    V4l2,
    /// A clip or a single picture.
    File,
    /// A directory of pictures, in the order of their names.
    Dir,
}

/// What a control of a camera is to be set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlValue {
    /// A number; 0 and 1 for a switch, the index for a menu.
    Number(i64),
    /// An item of a menu by its name.
    Item(String),
}

impl std::fmt::Display for ControlValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Item(name) => write!(f, "{name:?}"),
        }
    }
}

/// A parsed source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceUri {
    /// The text as given.
    pub text: String,
    /// What kind of source.
    pub scheme: Scheme,
    /// Path of the file or directory; for cameras a path, number, link below `/dev/v4l`, serial number or card name.
    pub path: PathBuf,
    /// Frames per second; `None` means as fast as possible (files; a Y4M clip at most at the rate of its header) or what the driver
    /// does (cameras).
    pub fps: Option<f32>,
    /// Start again at the end.
    pub looped: bool,
    /// Wanted frame size of a camera, `(width, height)`.
    pub size: Option<(u32, u32)>,
    /// Wanted format of a camera, a four-cc code.
    pub format: Option<[u8; 4]>,
    /// How long a camera may be silent.
    pub timeout: Option<Duration>,
    /// Longest side that the model looks at, pixels; not part of the text. Chooses a camera's size where none is wanted.
    pub side: Option<u32>,
    /// What a camera's controls are to be set to; not part of the text.
    pub controls: Vec<(String, ControlValue)>,
}

impl SourceUri {
    /// Whether its frames wait to be taken: a file without a rate is read as fast as it is processed, everything else is live.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.scheme != Scheme::V4l2 && self.fps.is_none()
    }
}

impl FromStr for SourceUri {
    type Err = CaptureError;

    fn from_str(text: &str) -> Result<Self, CaptureError> {
        let wrong = |message: String| CaptureError::Uri {
            uri: text.to_owned(),
            message,
        };
        let (scheme, rest) = match text.split_once("://") {
            Some(("v4l2", rest)) => (Some(Scheme::V4l2), rest),
            Some(("file", rest)) => (Some(Scheme::File), rest),
            Some(("dir", rest)) => (Some(Scheme::Dir), rest),
            Some((other, _)) => return Err(wrong(format!("scheme {other:?}, expected v4l2, file or dir"))),
            None => (None, text),
        };
        // Without a prefix a '?' may belong to the file's name.
        let (path, options) = match (scheme, rest.split_once('?')) {
            (Some(_), Some((path, options))) => (path, options),
            _ => (rest, ""),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(wrong(
                "empty path, expected for instance v4l2:///dev/video0 or file:///clip.y4m".into(),
            ));
        }
        let path = PathBuf::from(path);
        let scheme = scheme.unwrap_or_else(|| {
            if path.starts_with("/dev") {
                Scheme::V4l2
            } else if path.is_dir() {
                Scheme::Dir
            } else {
                Scheme::File
            }
        });
        let mut uri = Self {
            text: text.to_owned(),
            scheme,
            path,
            fps: None,
            looped: false,
            size: None,
            format: None,
            timeout: None,
            side: None,
            controls: Vec::new(),
        };
        for option in options.split('&').filter(|o| !o.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "fps" => {
                    let fps = value.parse::<f32>().ok().filter(|f| (0.01..=1000.0).contains(f));
                    uri.fps = Some(fps.ok_or_else(|| wrong(format!("fps={value}, expected 0.01 to 1000")))?);
                }
                "loop" if matches!(value, "" | "1" | "true") => uri.looped = true,
                "loop" if matches!(value, "0" | "false") => uri.looped = false,
                "size" => {
                    let sides = value
                        .split_once('x')
                        .and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
                    let valid = sides.filter(|s| (1..=32_768).contains(&s.0) && (1..=32_768).contains(&s.1));
                    uri.size = Some(valid.ok_or_else(|| wrong(format!("size={value}, expected like 1280x720")))?);
                }
                "format" => {
                    let code = <[u8; 4]>::try_from(value.as_bytes()).ok().filter(|c| c.is_ascii());
                    uri.format =
                        Some(code.ok_or_else(|| wrong(format!("format={value}, expected like YUYV or MJPG")))?);
                }
                "timeout" => {
                    let seconds = value.parse::<f32>().ok().filter(|s| (0.1..=3600.0).contains(s));
                    let seconds = seconds.ok_or_else(|| wrong(format!("timeout={value}, expected 0.1 to 3600 s")))?;
                    uri.timeout = Some(Duration::from_secs_f32(seconds));
                }
                _ => {
                    let expected = "fps=…, loop, size=WxH, format=… or timeout=…";
                    return Err(wrong(format!("option {option:?}, expected {expected}")));
                }
            }
        }
        Ok(uri)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_part_of_a_uri_is_read() {
        let uri: SourceUri = "dir:///frames/a b?fps=2.5&loop".parse().unwrap();
        assert_eq!((uri.scheme, uri.fps, uri.looped), (Scheme::Dir, Some(2.5), true));
        assert_eq!(uri.path, PathBuf::from("/frames/a b"));
        let uri: SourceUri = "v4l2:///dev/video0?size=641x359&format=MJPG&timeout=2.5"
            .parse()
            .unwrap();
        assert_eq!((uri.scheme, uri.size), (Scheme::V4l2, Some((641, 359))));
        assert_eq!(
            (uri.format, uri.timeout),
            (Some(*b"MJPG"), Some(Duration::from_millis(2500)))
        );
    }

    #[test]
    fn the_prefix_may_be_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let scheme = |text: &str| text.parse::<SourceUri>().unwrap().scheme;
        assert_eq!(scheme("/dev/video3"), Scheme::V4l2);
        assert_eq!(scheme("what is this?.png"), Scheme::File);
        assert_eq!(scheme(dir.path().to_str().unwrap()), Scheme::Dir);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("rtsp://host/1", "rtsp"),
            ("file://", "empty path"),
            ("dir:///x?fps=0", "fps=0"),
            ("dir:///x?fps=nan", "fps=nan"),
            ("dir:///x?speed=2", "speed=2"),
            ("v4l2:///dev/video0?size=0x3", "size=0x3"),
            ("v4l2:///dev/video0?format=JPG", "format=JPG"),
            ("v4l2:///dev/video0?timeout=0", "timeout=0"),
        ] {
            let error = text.parse::<SourceUri>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn foreign_text_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<SourceUri>();
        }
    }
}
