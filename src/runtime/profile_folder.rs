//! A folder for one profile of ONNX Runtime; gone when dropped.
//!
//! A process that was killed leaves its folder behind, and in a container every process has the same id: so the name is
//! drawn, and a name that is taken is drawn again. The cache directory comes first, because it can be written where the
//! temporary files of a hardened service cannot.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Start of every name.
const PREFIX: &str = ".samclip-profile-";

/// Names tried in one place.
const DRAWS: usize = 100;

/// From this age on, a folder belongs to a process that was killed.
const ABANDONED: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub(super) struct ProfileFolder(PathBuf);

impl ProfileFolder {
    /// Makes a folder in `cache`, if there is one and it can be written, else among the temporary files.
    pub(super) fn new(cache: Option<&Path>) -> Result<Self, String> {
        let places = cache.map(Path::to_owned).into_iter().chain([std::env::temp_dir()]);
        Self::within(places, || {
            // Its keys are random, and differ between two calls.
            format!("{PREFIX}{:016x}", RandomState::new().build_hasher().finish())
        })
    }

    fn within(places: impl Iterator<Item = PathBuf>, mut draw: impl FnMut() -> String) -> Result<Self, String> {
        let mut refused = Vec::new();
        for place in places {
            remove_abandoned(&place);
            let mut outcome = Err(ErrorKind::AlreadyExists.into());
            for _ in 0..DRAWS {
                let path = place.join(draw());
                outcome = fs::create_dir(&path).map(|()| path);
                if !matches!(&outcome, Err(error) if error.kind() == ErrorKind::AlreadyExists) {
                    break;
                }
            }
            match outcome {
                Ok(path) => return Ok(Self(path)),
                Err(error) => refused.push(format!("{}: {error}", place.display())),
            }
        }
        Err(format!("no place for the profile: {}", refused.join(", ")))
    }

    /// ONNX Runtime adds the time and an ending.
    pub(super) fn start(&self) -> PathBuf {
        self.0.join("profile")
    }
}

impl Drop for ProfileFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What killed processes left; other users' folders stay.
fn remove_abandoned(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let changed = || entry.metadata().and_then(|m| m.modified()).ok();
        if ours && changed().is_some_and(|t| t.elapsed().is_ok_and(|age| age > ABANDONED)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_folder_left_by_a_killed_process_stops_nobody_and_is_removed_a_day_later() {
        let dir = tempfile::tempdir().unwrap();
        let place = || [dir.path().to_owned()].into_iter();
        // Killed: its folder is not dropped.
        std::mem::forget(ProfileFolder::within(place(), || format!("{PREFIX}1")).unwrap());
        let mut names = ["1", "2"].into_iter();
        let draw = || format!("{PREFIX}{}", names.next().unwrap());
        let second = ProfileFolder::within(place(), draw).unwrap();
        assert_eq!(second.start(), dir.path().join(format!("{PREFIX}2/profile")));
        drop(second);
        let left = dir.path().join(format!("{PREFIX}1"));
        assert!(left.exists() && !dir.path().join(format!("{PREFIX}2")).exists());
        fs::File::open(&left)
            .and_then(|f| f.set_modified(SystemTime::now() - 2 * ABANDONED))
            .unwrap();
        let third = ProfileFolder::new(Some(dir.path())).unwrap();
        assert!(!left.exists() && third.start().starts_with(dir.path()));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_passed_over_and_two_names_differ() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let first = ProfileFolder::new(Some(&missing)).unwrap();
        let second = ProfileFolder::new(Some(&missing)).unwrap();
        assert!(first.start().starts_with(std::env::temp_dir()) && first.start() != second.start());
        let error = ProfileFolder::within([missing].into_iter(), || "x".into()).unwrap_err();
        assert!(error.contains("missing: No such file"), "{error}");
    }
}
