//! Installed models: versions beside each other, a link to the one in use, a link to the one before.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::contract::{Manifest, check_file_name};
use crate::daemon::directories::state_dir;

/// Directory of the service's state.
const SERVICE_STATE: &str = "/var/lib/samclip";

/// Below the store: versions, and what is being installed.
const VERSIONS: &str = ".versions";
const INCOMING: &str = ".incoming-";

/// Link to the version before, beside the versions of a model.
const PREVIOUS: &str = "previous";

/// One installed version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The model's name.
    pub name: String,
    /// First 12 digits of the manifest's hash.
    pub id: String,
    /// Whether it is the version in use.
    pub in_use: bool,
}

/// Where models are installed if nothing is said: below the service's state, if there is such a service, else below the
/// user's.
#[must_use]
pub fn default_store() -> Option<PathBuf> {
    let service = Path::new(SERVICE_STATE);
    let state = if service.is_dir() {
        Some(service.to_owned())
    } else {
        state_dir(None)
    };
    state.map(|dir| dir.join("models"))
}

/// All installed versions, by name.
///
/// # Errors
/// A store that cannot be read.
pub fn list(store: &Path) -> anyhow::Result<Vec<Version>> {
    let mut found = Vec::new();
    for name in names(&store.join(VERSIONS))? {
        let current = target(&store.join(&name))?;
        for id in names(&store.join(VERSIONS).join(&name))? {
            let in_use = current.as_ref() == Some(&id);
            let name = name.clone();
            found.push(Version { name, id, in_use });
        }
    }
    Ok(found)
}

/// Makes the version before the one in use again; the one in use becomes the version before.
///
/// # Errors
/// A model that is not installed or has no version before, or whose files were changed since.
pub fn roll_back(store: &Path, name: &str) -> anyhow::Result<Version> {
    let store = Store::open(store)?;
    let current = store.current(name)?;
    let current = current.with_context(|| format!("no model {name:?} is installed in {}", store.dir.display()))?;
    let versions = store.versions(name);
    let before = target(&versions.join(PREVIOUS))?;
    let before = before.with_context(|| format!("{name}@{} has no version before it", current.id))?;
    Manifest::read(&versions.join(&before)).with_context(|| format!("{name}@{before} cannot be used again"))?;
    store.point(name, &before, Some(&current.id))?;
    let (name, id) = (name.to_owned(), before);
    Ok(Version { name, id, in_use: true })
}

/// A store that nobody else changes meanwhile.
pub(super) struct Store {
    dir: PathBuf,
    /// Holds the lock until it is closed, however the program ends.
    _lock: File,
}

impl Store {
    /// Opens a store, makes it if it is missing, and clears what an installation that was killed left behind.
    ///
    /// # Errors
    /// A directory that cannot be written, and another installation that is going on.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let versions = dir.join(VERSIONS);
        make(&versions)?;
        let path = versions.join(".lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}: another installation is going on", dir.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        for entry in fs::read_dir(&versions)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    fn versions(&self, name: &str) -> PathBuf {
        self.dir.join(VERSIONS).join(name)
    }

    /// A directory for files on their way, removed again unless [`Self::switch`] takes it.
    pub(super) fn incoming(&self) -> anyhow::Result<TempDir> {
        let versions = self.dir.join(VERSIONS);
        tempfile::Builder::new()
            .prefix(INCOMING)
            .tempdir_in(&versions)
            .with_context(|| format!("cannot write into {}", versions.display()))
    }

    /// The version in use.
    ///
    /// # Errors
    /// A name that cannot be a directory's, and a model there that was not installed by this program.
    pub(super) fn current(&self, name: &str) -> anyhow::Result<Option<Version>> {
        check_file_name(name).with_context(|| format!("model name {name:?}"))?;
        let found = target(&self.dir.join(name))?.map(|id| Version {
            name: name.to_owned(),
            id,
            in_use: true,
        });
        Ok(found)
    }

    /// Makes `incoming` the version in use, and returns its link; of the others, the one that was in use before it stays.
    ///
    /// # Errors
    /// What the system says; the version in use is then what it was.
    pub(super) fn switch(&self, name: &str, id: &str, incoming: TempDir) -> anyhow::Result<PathBuf> {
        let before = self.current(name)?;
        let versions = self.versions(name);
        make(&versions)?;
        settle(incoming.path())?;
        let place = versions.join(id);
        if place.exists() {
            // The same version once more; what lies there may have been changed.
            fs::remove_dir_all(&place)?;
        }
        let from = incoming.keep();
        fs::rename(&from, &place)
            .inspect_err(|_| drop(fs::remove_dir_all(&from)))
            .with_context(|| format!("cannot make {}", place.display()))?;
        let link = self.point(name, id, before.as_ref().map(|version| version.id.as_str()))?;
        let kept = target(&versions.join(PREVIOUS))?;
        for other in names(&versions)? {
            if other != id && kept.as_ref() != Some(&other) {
                fs::remove_dir_all(versions.join(other))?;
            }
        }
        Ok(link)
    }

    /// Points the links at a version and, first, at the one before it.
    fn point(&self, name: &str, id: &str, before: Option<&str>) -> anyhow::Result<PathBuf> {
        if let Some(before) = before.filter(|before| *before != id) {
            replace_link(Path::new(before), &self.versions(name).join(PREVIOUS))?;
        }
        let link = self.dir.join(name);
        replace_link(&Path::new(VERSIONS).join(name).join(id), &link)?;
        Ok(link)
    }
}

/// Makes a directory and those above it that are missing, readable by the service whatever the umask.
fn make(dir: &Path) -> anyhow::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        make(above)?;
    }
    fs::create_dir(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// Makes files readable by the service, whoever installs them, and writes them out before anything points at them.
fn settle(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = File::open(entry?.path())?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.sync_all()?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// Replaces a link at once.
fn replace_link(target: &Path, link: &Path) -> anyhow::Result<()> {
    let next = link.with_file_name(".next");
    let _ = fs::remove_file(&next);
    symlink(target, &next)
        .and_then(|()| fs::rename(&next, link))
        .with_context(|| format!("cannot point {} at {}", link.display(), target.display()))?;
    if let Some(parent) = link.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Last part of what a link points at; none if there is no link.
fn target(link: &Path) -> anyhow::Result<Option<String>> {
    match fs::symlink_metadata(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", link.display())),
        Ok(kind) => ensure!(
            kind.is_symlink(),
            "{} is no link: it was not made by samclipd model install; move it away",
            link.display()
        ),
    }
    let target = fs::read_link(link)?;
    Ok(target.file_name().and_then(|id| id.to_str()).map(str::to_owned))
}

/// Sorted names of the directories in `dir` that are neither hidden nor links; none if it is missing.
fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
