//! Engines on disk: built once per bundle, device and library version, and never trusted half-written.
//!
//! ```text
//! <cache>/engines/<bundle>-<key>.lock     shared while engines are in use, exclusive while they are built
//! <cache>/engines/<bundle>-<key>/         what TensorRT writes
//! <cache>/engines/<bundle>-<key>/complete.toml   the marker: key, size and SHA-256 of every engine
//! <cache>/engines/timing/                 measured kernel times, which make the next build shorter
//! ```
//!
//! TensorRT's provider neither checks what it writes nor what it reads: a build cut short, or written onto a full disk,
//! leaves files that look like engines. So the marker comes last, after the engines were read back, and a folder whose
//! marker is missing or differs from its files is removed. Nothing here knows TensorRT: the caller opens the graphs.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{debug, info, warn};

use super::RuntimeError;
pub use super::engine_marker::{Contents, EngineKey, MARKER, examine};
use super::engine_marker::{TIMING, engines, seal};
use super::progress::{Progress, Stage};
use super::whole_file::write_whole;
use crate::contract::sha256_hex;

/// Folders kept of one bundle, and of all bundles together, the one in use included.
const KEPT: (usize, usize) = (3, 6);

/// Pause between two looks at a lock that a building process holds.
const PATIENCE: Duration = Duration::from_millis(200);

/// Keeps engines from being removed while they are in use.
#[derive(Debug)]
pub struct Lease {
    /// The folder; `None` if the engines are in memory only.
    pub folder: Option<PathBuf>,
    /// Whether they were built just now.
    pub built: bool,
    _lock: Option<File>,
}

fn failed(path: &Path, what: &str) -> impl Fn(io::Error) -> RuntimeError {
    let (path, what) = (path.to_owned(), what.to_owned());
    move |error| RuntimeError::EngineCache {
        path: path.clone(),
        message: format!("{what}: {error}; free some space or choose another cache directory"),
    }
}

/// Opens graphs with engines from `root`; builds, checks and keeps the engines if they are not there.
///
/// `open` gets the folder that the engines are in, or shall be written into; `None` means there is none. It is called
/// twice after a build: the second time what was written is read back.
///
/// # Errors
/// The first error of `open`; [`RuntimeError::EngineCache`] if the engines cannot be kept, with nothing left behind.
pub fn with_engines<T>(
    root: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
) -> Result<(T, Lease), RuntimeError> {
    let folder = root.join(key.folder());
    fs::create_dir_all(root).map_err(failed(root, "cannot be made"))?;
    let lock_path = root.join(format!("{}.lock", key.folder()));
    let lock = File::create(&lock_path).map_err(failed(&lock_path, "cannot be opened"))?;
    let examine = || examine(&folder, key).map_err(failed(&folder, "cannot be read"));
    let mut waiting = false;
    loop {
        // Whoever has the engines open holds the lock shared; whoever builds or removes them holds it alone.
        match lock.try_lock_shared() {
            Ok(()) => {
                let contents = examine()?;
                if contents == Contents::Complete {
                    progress.stage(&Stage::LoadEngine(folder.clone()));
                    let opened = open(Some(&folder))?;
                    return Ok((opened, lease(Some(folder), false, Some(lock))));
                }
                lock.unlock().map_err(failed(&lock_path, "cannot be unlocked"))?;
                match lock.try_lock() {
                    Ok(()) => return build(root, &folder, key, progress, open, lock),
                    Err(TryLockError::Error(error)) => return Err(failed(&lock_path, "cannot be locked")(error)),
                    // Somebody builds: wait. Somebody uses engines that are broken by now: leave them alone.
                    Err(TryLockError::WouldBlock) => {
                        if lock.try_lock_shared().is_ok()
                            && let Contents::Broken(reason) = examine()?
                        {
                            if !progress.may_build() {
                                return Err(RuntimeError::EngineMissing { path: folder });
                            }
                            warn!(folder = %folder.display(), reason, "engines are broken but in use; building in memory");
                            progress.stage(&Stage::BuildEngine(None));
                            return Ok((open(None)?, lease(None, true, None)));
                        }
                    }
                }
            }
            Err(TryLockError::Error(error)) => return Err(failed(&lock_path, "cannot be locked")(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if progress.cancelled() {
            return Err(RuntimeError::Cancelled { path: folder });
        }
        if !std::mem::replace(&mut waiting, true) {
            progress.stage(&Stage::WaitForBuild(folder.clone()));
        }
        std::thread::sleep(PATIENCE);
    }
}

/// Turns an exclusive lock into a shared one.
fn share(lock: &File) -> io::Result<()> {
    lock.unlock()?;
    lock.lock_shared()
}

fn lease(folder: Option<PathBuf>, built: bool, lock: Option<File>) -> Lease {
    Lease {
        folder,
        built,
        _lock: lock,
    }
}

/// Builds under the exclusive lock, which becomes a shared one.
fn build<T>(
    root: &Path,
    folder: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
    lock: File,
) -> Result<(T, Lease), RuntimeError> {
    // Another process may have finished between our look and our lock.
    match examine(folder, key).map_err(failed(folder, "cannot be read"))? {
        Contents::Complete => {
            share(&lock).map_err(failed(folder, "cannot be locked"))?;
            progress.stage(&Stage::LoadEngine(folder.to_owned()));
            let opened = open(Some(folder))?;
            return Ok((opened, lease(Some(folder.to_owned()), false, Some(lock))));
        }
        Contents::Broken(reason) if progress.may_build() => {
            warn!(folder = %folder.display(), reason, "engine cache is not usable and is built again");
            fs::remove_dir_all(folder).map_err(failed(folder, "cannot be removed"))?;
        }
        Contents::Broken(_) | Contents::Absent => {}
    }
    if !progress.may_build() {
        return Err(RuntimeError::EngineMissing {
            path: folder.to_owned(),
        });
    }
    let timing = root.join(TIMING).join(key.timing());
    let opened = fs::create_dir_all(folder)
        .map_err(failed(folder, "cannot be made"))
        .and_then(|()| {
            lend_timing(&timing, folder);
            progress.stage(&Stage::BuildEngine(Some(folder.to_owned())));
            build_and_seal(folder, key, progress, open)
        });
    match opened {
        Ok((opened, kept)) => {
            if kept {
                keep_timing(folder, &timing);
                clean(root, key, KEPT);
            }
            share(&lock).map_err(failed(folder, "cannot be locked"))?;
            Ok((opened, lease(kept.then(|| folder.to_owned()), true, Some(lock))))
        }
        Err(error) => {
            if let Err(left) = fs::remove_dir_all(folder) {
                debug!(folder = %folder.display(), error = %left, "unfinished engines stay; without a marker nobody trusts them");
            }
            Err(error)
        }
    }
}

/// Builds, reads back, compares, and only then writes the marker; whether there was anything to keep.
fn build_and_seal<T>(
    folder: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
) -> Result<(T, bool), RuntimeError> {
    let unreadable = failed(folder, "cannot be read");
    let built = open(Some(folder))?;
    let written = engines(folder).map_err(&unreadable)?;
    if written.is_empty() {
        debug!(folder = %folder.display(), "no engine was written, nothing is kept");
        fs::remove_dir_all(folder).map_err(&unreadable)?;
        return Ok((built, false));
    }
    drop(built);
    progress.stage(&Stage::VerifyEngine(folder.to_owned()));
    let incomplete = |reason: String| RuntimeError::EngineCache {
        path: folder.to_owned(),
        message: format!("the engines were not written completely ({reason}); is the disk full?"),
    };
    let opened = open(Some(folder)).map_err(|error| incomplete(error.to_string()))?;
    let read = engines(folder).map_err(&unreadable)?;
    if let Some((name, _)) = read.iter().find(|(name, entry)| written.get(*name) != Some(entry)) {
        return Err(incomplete(format!("{name} was written again when it was read back")));
    }
    let files = read.len();
    seal(folder, key, read).map_err(failed(&folder.join(MARKER), "cannot be written"))?;
    info!(folder = %folder.display(), files, "engines built");
    Ok((opened, true))
}

/// Copies kept timing caches into a folder where a build starts; they only save time, so no failure matters.
fn lend_timing(timing: &Path, folder: &Path) {
    for path in fs::read_dir(timing).into_iter().flatten().flatten().map(|e| e.path()) {
        let (Ok(bytes), Some(name)) = (fs::read(&path), path.file_name()) else {
            continue;
        };
        // A damaged timing cache makes a build fail, so each carries its hash in front.
        let Some((hash, body)) = bytes.split_at_checked(64) else {
            continue;
        };
        if hash == sha256_hex(body).as_bytes() {
            let _ = fs::write(folder.join(name), body);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

fn keep_timing(folder: &Path, timing: &Path) {
    let _ = fs::create_dir_all(timing);
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != TIMING) {
            continue;
        }
        if let (Ok(body), Some(name)) = (fs::read(&path), path.file_name()) {
            let bytes = [sha256_hex(&body).as_bytes(), &body].concat();
            if let Err(error) = write_whole(&timing.join(name), &bytes) {
                debug!(%error, "timing cache is not kept");
            }
        }
    }
}

/// Which folders are too many: beyond the newest `kept.0` of `own`'s bundle and the newest `kept.1` of all.
fn surplus(mut folders: Vec<(String, SystemTime)>, own: &str, kept: (usize, usize)) -> Vec<String> {
    let bundle = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    folders.retain(|(name, _)| name != own);
    folders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let (mut same, mut all, mut gone) = (1, 1, Vec::new());
    for (name, _) in folders {
        let of_bundle = bundle(&name) == bundle(own);
        if all >= kept.1 || (of_bundle && same >= kept.0) {
            gone.push(name);
            continue;
        }
        all += 1;
        same += usize::from(of_bundle);
    }
    gone
}

/// Removes old folders that nobody uses.
fn clean(root: &Path, key: &EngineKey, kept: (usize, usize)) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|n| n != TIMING)?;
        let marker = fs::metadata(entry.path().join(MARKER)).and_then(|m| m.modified());
        let is_folder = entry.path().is_dir();
        is_folder.then(|| (name, marker.unwrap_or(SystemTime::UNIX_EPOCH)))
    });
    for name in surplus(folders.collect(), &key.folder(), kept) {
        let lock = File::create(root.join(format!("{name}.lock")));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok() && fs::remove_dir_all(root.join(&name)).is_ok()) {
            info!(folder = name, "old engines removed");
        }
    }
}

#[cfg(test)]
#[path = "engine_cache_tests.rs"]
mod tests;
