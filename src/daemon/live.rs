//! What was changed while the daemon ran, kept in `<state>/live.json` so that it still holds after a restart.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::contract::write_whole;
use crate::message::query::QueryMessage;

/// Largest accepted file in bytes.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Version of the file.
const VERSION: u32 = 1;

/// Changes of one camera.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LiveCamera {
    /// Whether its frames are processed.
    #[serde(default = "on")]
    pub(super) detect: bool,
    /// What its queries compete with, if not the model's own texts.
    #[serde(default)]
    pub(super) background: Option<Vec<String>>,
    /// Queries that were set, and those of the configuration that were deleted.
    #[serde(default)]
    pub(super) queries: BTreeMap<String, Option<QueryMessage>>,
}

fn on() -> bool {
    true
}

impl Default for LiveCamera {
    fn default() -> Self {
        Self {
            detect: true,
            background: None,
            queries: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LiveFile {
    version: u32,
    cameras: BTreeMap<String, LiveCamera>,
}

/// The changes of all cameras and the file they are kept in.
#[derive(Debug, Clone)]
pub(super) struct LiveState {
    path: Option<PathBuf>,
    cameras: BTreeMap<String, LiveCamera>,
    /// Whether anything may be changed live; if not, what is kept does not hold.
    open: bool,
}

impl LiveState {
    /// Reads what is kept below the state directory; without one, changes end with the program.
    ///
    /// A file that cannot be understood is set aside under another name, with a warning: the configuration alone holds.
    pub(super) fn read(dir: Option<&Path>) -> Self {
        let path = dir.map(|dir| dir.join("live.json"));
        let cameras = path.as_deref().and_then(|path| match read_file(path) {
            Ok(file) => Some(file.cameras),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let aside = path.with_extension("json.refused");
                let kept = std::fs::rename(path, &aside).is_ok();
                warn!(path = %path.display(), %error, kept, "live queries are not read; set aside as live.json.refused");
                None
            }
        });
        Self {
            path,
            cameras: cameras.unwrap_or_default(),
            open: true,
        }
    }

    /// Sets whether anything may be changed live. Where nothing may, what was changed before is kept but does not hold:
    /// nobody could take it back.
    pub(super) fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Changes of a camera.
    pub(super) fn camera(&self, id: &str) -> LiveCamera {
        let kept = self.cameras.get(id).filter(|_| self.open);
        kept.cloned().unwrap_or_default()
    }

    /// Keeps the changes of a camera.
    ///
    /// # Errors
    /// What the system says; they hold until the program ends all the same.
    pub(super) fn keep(&mut self, id: &str, camera: LiveCamera) -> io::Result<()> {
        self.cameras.insert(id.to_owned(), camera);
        let Some(path) = &self.path else { return Ok(()) };
        let file = LiveFile {
            version: VERSION,
            cameras: self.cameras.clone(),
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        write_whole(path, &serde_json::to_vec_pretty(&file)?)
    }
}

fn read_file(path: &Path) -> io::Result<LiveFile> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let file: LiveFile = serde_json::from_slice(&bytes)?;
    if file.version != VERSION {
        let text = format!("version {} found, expected {VERSION}", file.version);
        return Err(io::Error::other(text));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed() -> LiveCamera {
        LiveCamera {
            detect: false,
            background: Some(vec!["wall".into()]),
            queries: [
                ("cat".to_owned(), None),
                ("dog".to_owned(), Some(QueryMessage::default())),
            ]
            .into(),
        }
    }

    #[test]
    fn changes_are_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let mut live = LiveState::read(Some(&state));
        assert_eq!(live.camera("yard"), LiveCamera::default());
        live.keep("yard", changed()).unwrap();
        let live = LiveState::read(Some(&state));
        assert_eq!((live.camera("yard"), live.camera("gate").detect), (changed(), true));
    }

    #[test]
    fn where_nothing_may_be_changed_what_was_changed_does_not_hold() {
        let mut live = LiveState::read(None);
        live.keep("yard", changed()).unwrap();
        live.set_open(false);
        assert_eq!(live.camera("yard"), LiveCamera::default());
        live.set_open(true);
        assert_eq!(live.camera("yard"), changed());
    }

    #[test]
    fn without_a_directory_changes_hold_until_the_end() {
        let mut live = LiveState::read(None);
        live.keep("yard", changed()).unwrap();
        assert_eq!(live.camera("yard"), changed());
    }

    #[test]
    fn a_file_that_is_not_understood_is_set_aside() {
        for bad in [
            "{",
            "{\"version\":2,\"cameras\":{}}",
            "{\"version\":1,\"cameras\":{\"a\":{\"detect\":1}}}",
            "\u{0}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("live.json"), bad).unwrap();
            let mut live = LiveState::read(Some(dir.path()));
            assert_eq!(live.camera("a"), LiveCamera::default(), "{bad}");
            assert_eq!(
                std::fs::read_to_string(dir.path().join("live.json.refused")).unwrap(),
                bad
            );
            live.keep("a", changed()).unwrap();
        }
    }
}
