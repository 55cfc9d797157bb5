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
    /// A file that cannot be understood is set aside under another name, with a warning: the configuration alone holds. One that
    /// cannot be read stays as it is: it may be good, and changes of this run end with it.
    pub(super) fn read(dir: Option<&Path>) -> Self {
        let mut path = dir.map(|dir| dir.join("live.json"));
        let mut cameras = BTreeMap::new();
        match path.as_deref().map(read_file) {
            None => {}
            Some(Ok(file)) => cameras = file.cameras,
            Some(Err(Unread::System(error))) if error.kind() == io::ErrorKind::NotFound => {}
            Some(Err(Unread::System(error))) => {
                let file = path.take().unwrap_or_default();
                warn!(path = %file.display(), %error, "live queries are not read, and what is changed now ends with the program");
            }
            Some(Err(Unread::Refused(reason))) => {
                let file = path.clone().unwrap_or_default();
                let kept = std::fs::rename(&file, file.with_extension("json.refused")).is_ok();
                warn!(path = %file.display(), reason, kept, "live queries are not read; set aside as live.json.refused");
            }
        }
        Self {
            path,
            cameras,
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

    /// Keeps a change of a camera, beside what was kept before.
    ///
    /// # Errors
    /// What the system says, or more than a file may have; it holds until the program ends all the same.
    pub(super) fn keep(&mut self, id: &str, change: impl FnOnce(&mut LiveCamera)) -> io::Result<()> {
        change(self.cameras.entry(id.to_owned()).or_default());
        let Some(path) = &self.path else { return Ok(()) };
        let file = LiveFile {
            version: VERSION,
            cameras: self.cameras.clone(),
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let bytes = serde_json::to_vec_pretty(&file)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let found = bytes.len();
            return Err(io::Error::other(format!(
                "{found} bytes found, expected at most {MAX_FILE_BYTES}"
            )));
        }
        write_whole(path, &bytes)
    }
}

/// Why a file is not there for the program.
enum Unread {
    /// The system does not give it.
    System(io::Error),
    /// It is none of ours.
    Refused(String),
}

fn read_file(path: &Path) -> Result<LiveFile, Unread> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(Unread::System)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Unread::Refused(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let file: LiveFile = serde_json::from_slice(&bytes).map_err(|error| Unread::Refused(error.to_string()))?;
    if file.version != VERSION {
        let text = format!("version {} found, expected {VERSION}", file.version);
        return Err(Unread::Refused(text));
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
        live.keep("yard", |kept| *kept = changed()).unwrap();
        let live = LiveState::read(Some(&state));
        assert_eq!((live.camera("yard"), live.camera("gate").detect), (changed(), true));
    }

    #[test]
    fn where_nothing_may_be_changed_what_was_changed_does_not_hold() {
        let mut live = LiveState::read(None);
        live.keep("yard", |kept| *kept = changed()).unwrap();
        live.set_open(false);
        assert_eq!(live.camera("yard"), LiveCamera::default());
        // Nor is it lost to a change that was on its way.
        live.keep("yard", |kept| kept.detect = true).unwrap();
        live.set_open(true);
        let both = LiveCamera {
            detect: true,
            ..changed()
        };
        assert_eq!(live.camera("yard"), both);
    }

    #[test]
    fn without_a_directory_changes_hold_until_the_end() {
        let mut live = LiveState::read(None);
        live.keep("yard", |kept| *kept = changed()).unwrap();
        assert_eq!(live.camera("yard"), changed());
    }

    #[test]
    fn a_file_that_cannot_be_read_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        // As an error of the disk, reading a folder is one of the system.
        std::fs::create_dir(dir.path().join("live.json")).unwrap();
        let mut live = LiveState::read(Some(dir.path()));
        live.keep("a", |kept| *kept = changed()).unwrap();
        assert_eq!(live.camera("a"), changed());
        let left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["live.json"]);
    }

    #[test]
    fn more_than_can_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut live = LiveState::read(Some(dir.path()));
        live.keep("yard", |kept| *kept = changed()).unwrap();
        let background = Some(vec!["x".repeat(9 << 20)]);
        let refused = live.keep("gate", |kept| kept.background = background).unwrap_err();
        assert!(refused.to_string().ends_with("expected at most 8388608"), "{refused}");
        assert_eq!(LiveState::read(Some(dir.path())).camera("yard"), changed());
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
            live.keep("a", |kept| *kept = changed()).unwrap();
        }
    }
}
