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

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{debug, info, warn};

use super::RuntimeError;
pub use super::engine_marker::{Contents, EngineKey, MARKER, examine};
use super::engine_marker::{Entry, TIMING, engines, seal, sealed, stamps};
use super::progress::{Progress, Stage};
use crate::contract::{sha256_hex, write_whole};

/// Folders kept of one bundle, and of all bundles together, the one in use included.
const KEPT: (usize, usize) = (3, 6);

/// Pause between two looks at a lock that another process holds.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 200 });

/// So many looks in a row must find engines in use that are not usable, until that is believed.
const LOOKS: u32 = 5;

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
        message: format!("{what}: {error}; free some space, make it writable or choose another cache directory"),
    }
}

/// Opens graphs with engines from `root`; builds, checks and keeps the engines if they are not there.
///
/// `open` gets the folder that the engines are in, or shall be written into; `None` means there is none. It is called
/// twice after a build: the second time what was written is read back. Engines that are complete are loaded from a
/// directory that cannot be written, too. Older engines are left to [`clean`].
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
    let lock_path = root.join(format!("{}.lock", key.folder()));
    let (lock, refused) = open_lock(root, &lock_path, progress.may_build());
    let (mut waiting, mut in_use) = (false, 0);
    loop {
        // Whoever has the engines open holds the lock shared; whoever builds or removes them holds it alone.
        let shared = match lock.as_ref().map(File::try_lock_shared) {
            None | Some(Ok(())) => true,
            Some(Err(TryLockError::WouldBlock)) => false,
            Some(Err(TryLockError::Error(error))) => return Err(failed(&lock_path, "cannot be locked")(error)),
        };
        if shared {
            let contents = examine(&folder, key).map_err(failed(&folder, "cannot be read"))?;
            if contents == Contents::Complete {
                let (opened, built) = load(&folder, key, progress, open)?;
                return Ok((opened, lease(Some(folder), built, lock)));
            }
            if let Some(why) = refused {
                return Err(why);
            }
            let (Some(held), true) = (&lock, progress.may_build()) else {
                return Err(RuntimeError::EngineMissing { path: folder });
            };
            held.unlock().map_err(failed(&lock_path, "cannot be unlocked"))?;
            match held.try_lock() {
                Ok(()) => match build(root, &folder, key, progress, open)? {
                    Some((opened, true)) => {
                        share(held).map_err(failed(&lock_path, "cannot be locked"))?;
                        return Ok((opened, lease(Some(folder), true, lock)));
                    }
                    Some((opened, false)) => return Ok((opened, lease(None, true, None))),
                    // Another process finished between our look and our lock.
                    None => {
                        held.unlock().map_err(failed(&lock_path, "cannot be unlocked"))?;
                        continue;
                    }
                },
                Err(TryLockError::Error(error)) => return Err(failed(&lock_path, "cannot be locked")(error)),
                // Others look as we do, or have just begun to build, or use engines that are broken or gone by now.
                // Only the last of these goes on like this, and those engines are left alone.
                Err(TryLockError::WouldBlock) => in_use += 1,
            }
            if in_use == LOOKS {
                warn!(folder = %folder.display(), ?contents, "engines are in use but not usable; building in memory");
                progress.stage(&Stage::BuildEngine(None));
                return Ok((open(None)?, lease(None, true, None)));
            }
        } else if !progress.may_build() {
            return Err(RuntimeError::EngineMissing { path: folder });
        } else {
            in_use = 0;
            if !std::mem::replace(&mut waiting, true) {
                progress.stage(&Stage::WaitForBuild(folder.clone()));
            }
        }
        if progress.cancelled() {
            return Err(RuntimeError::Cancelled { path: folder });
        }
        std::thread::sleep(PATIENCE);
    }
}

/// Opens the lock; where it cannot be written, for reading, with the reason why nothing can be built.
///
/// Without any lock complete engines may still be loaded: on a read-only file system nobody removes them.
fn open_lock(root: &Path, path: &Path, may_build: bool) -> (Option<File>, Option<RuntimeError>) {
    if !may_build {
        return (File::open(path).ok(), None);
    }
    let made = fs::create_dir_all(root)
        .map_err(failed(root, "cannot be made"))
        .and_then(|()| {
            let opened = File::options().create(true).truncate(false).write(true).open(path);
            opened.map_err(failed(path, "cannot be written"))
        });
    match made {
        Ok(lock) => (Some(lock), None),
        Err(why) => (File::open(path).ok(), Some(why)),
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

/// Opens with complete engines; whether any had to be built all the same.
///
/// TensorRT's provider names engines by the GPU's compute capability, which the key lacks where `/proc` names no GPU:
/// on another GPU it builds without a word and adds its files, which are then read back and sealed like a build.
fn load<T>(
    folder: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
) -> Result<(T, bool), RuntimeError> {
    let unreadable = failed(folder, "cannot be read");
    progress.stage(&Stage::LoadEngine(folder.to_owned()));
    let before = stamps(folder).map_err(&unreadable)?;
    let opened = open(Some(folder))?;
    if stamps(folder).map_err(&unreadable)? == before {
        return Ok((opened, false));
    }
    let written = engines(folder).map_err(&unreadable)?;
    if sealed(folder).is_some_and(|files| files == written) {
        return Ok((opened, false));
    }
    warn!(folder = %folder.display(), "the engines in the cache did not fit this GPU; others were built and are kept too");
    drop(opened);
    Ok((read_back_and_seal(folder, key, progress, open, &written)?, true))
}

/// Builds under the exclusive lock; with what was opened, whether it is kept. `None` if the engines are complete.
fn build<T>(
    root: &Path,
    folder: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
) -> Result<Option<(T, bool)>, RuntimeError> {
    match examine(folder, key).map_err(failed(folder, "cannot be read"))? {
        Contents::Complete => return Ok(None),
        Contents::Broken(reason) => {
            warn!(folder = %folder.display(), reason, "engine cache is not usable and is built again");
            fs::remove_dir_all(folder).map_err(failed(folder, "cannot be removed"))?;
        }
        Contents::Absent => {}
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
            }
            Ok(Some((opened, kept)))
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
    Ok((read_back_and_seal(folder, key, progress, open, &written)?, true))
}

/// Opens what was written, makes sure that it was read and not built once more, and writes the marker.
fn read_back_and_seal<T>(
    folder: &Path,
    key: &EngineKey,
    progress: &dyn Progress,
    open: &mut dyn FnMut(Option<&Path>) -> Result<T, RuntimeError>,
    written: &BTreeMap<String, Entry>,
) -> Result<T, RuntimeError> {
    progress.stage(&Stage::VerifyEngine(folder.to_owned()));
    let incomplete = |reason: String| RuntimeError::EngineCache {
        path: folder.to_owned(),
        message: format!("the engines were not written completely ({reason}); is the disk full?"),
    };
    let opened = open(Some(folder)).map_err(|error| incomplete(error.to_string()))?;
    let read = engines(folder).map_err(failed(folder, "cannot be read"))?;
    if let Some((name, _)) = read.iter().find(|(name, entry)| written.get(*name) != Some(entry)) {
        return Err(incomplete(format!("{name} was written again when it was read back")));
    }
    let files = read.len();
    seal(folder, key, read).map_err(failed(&folder.join(MARKER), "cannot be written"))?;
    info!(folder = %folder.display(), files, "engines built");
    Ok(opened)
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

/// Removes old folders that nobody uses; `key` is that of engines that were built just now.
///
/// Its place is after everything that belongs together is open: what is not open yet may be older than what nobody needs.
pub fn clean(root: &Path, key: &EngineKey) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|n| n != TIMING)?;
        let marker = fs::metadata(entry.path().join(MARKER)).and_then(|m| m.modified());
        let is_folder = entry.path().is_dir();
        is_folder.then(|| (name, marker.unwrap_or(SystemTime::UNIX_EPOCH)))
    });
    for name in surplus(folders.collect(), &key.folder(), KEPT) {
        let lock = File::create(root.join(format!("{name}.lock")));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok() && fs::remove_dir_all(root.join(&name)).is_ok()) {
            info!(folder = name, "old engines removed");
        }
    }
}

#[cfg(test)]
#[path = "engine_cache_tests.rs"]
mod tests;
