//! Puts new variants into a bundle so that whoever stops this halfway leaves a valid bundle behind.
//!
//! New graphs are written under hidden names and synced; only when all are there they get their names, which no variant
//! of the present manifest uses, and the manifest follows last, by rename. Whatever stops before leaves the old manifest
//! with the old files. Files that the new manifest no longer names are removed after it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::QuantizeError;
use crate::contract::{Bundle, MANIFEST_FILE, Manifest, Precision};

/// End of the names of files that are not finished.
const PARTIAL: &str = ".partial";

/// The folder that the bundle is written to.
pub struct Staging {
    folder: PathBuf,
}

impl Staging {
    /// Opens `out`: the bundle's own folder, or another one without a bundle, to which the bundle's files are copied.
    ///
    /// # Errors
    /// [`QuantizeError::OtherBundle`] if another bundle lies there; [`QuantizeError::Io`] if it cannot be written.
    pub fn open(bundle: &Bundle, out: &Path) -> Result<Self, QuantizeError> {
        fs::create_dir_all(out).map_err(QuantizeError::io(out))?;
        let staging = Self { folder: out.into() };
        staging.remove_partial();
        let same = |p: &Path| fs::canonicalize(p).map_err(QuantizeError::io(p));
        if same(&bundle.dir)? == same(out)? {
            return Ok(staging);
        }
        if out.join(MANIFEST_FILE).exists() {
            return Err(QuantizeError::OtherBundle { out: out.into() });
        }
        let cards = ["MODEL_CARD.md", "recipe.toml"].map(String::from);
        let beside = cards.into_iter().filter(|c| bundle.dir.join(c).is_file());
        for name in bundle.manifest.referenced_files().into_iter().chain(beside) {
            let (from, to) = (bundle.dir.join(&name), out.join(&name));
            fs::copy(&from, &to).map_err(QuantizeError::io(&to))?;
        }
        // A whole bundle from the start, whatever becomes of the new variants.
        bundle.manifest.clone().write(out)?;
        Ok(staging)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes an unfinished file and returns its path.
    ///
    /// # Errors
    /// [`QuantizeError::Io`], for a full disk for instance; the incomplete file is removed.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, QuantizeError> {
        let path = self.folder.join(format!(".{name}{PARTIAL}"));
        let written = File::create(&path).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
        written.map_err(|source| {
            self.remove(&path);
            QuantizeError::io(&path)(source)
        })?;
        Ok(path)
    }

    /// Removes an unfinished file; one that is gone already is fine.
    pub fn remove(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "unfinished file not removed");
        }
    }

    /// Removes what a run that was killed left behind.
    fn remove_partial(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(PARTIAL) {
                self.remove(&entry.path());
            }
        }
    }

    /// A file name for a graph of a variant that `manifest` does not use: `encoder.int8.onnx`, then `encoder.int8-2.onnx`.
    #[must_use]
    pub fn free_name(manifest: &Manifest, graph: &str, variant: &str) -> String {
        let used = manifest.referenced_files();
        let numbered = |n: usize| match n {
            1 => format!("{graph}.{variant}.onnx"),
            n => format!("{graph}.{variant}-{n}.onnx"),
        };
        let mut names = (1..).map(numbered);
        names.find(|n| !used.contains(n)).unwrap_or_else(|| numbered(1))
    }

    /// Gives `files` (unfinished path, name) their names and writes the manifest with `precision` in place of the
    /// variant of its name, or behind the others.
    ///
    /// # Errors
    /// [`QuantizeError`] if a file cannot be renamed or the manifest not be written; the old bundle is then still valid.
    pub fn publish(
        &self,
        mut manifest: Manifest,
        precision: Precision,
        files: &[(PathBuf, String)],
    ) -> Result<Bundle, QuantizeError> {
        let before = manifest.referenced_files();
        match manifest.precision.iter_mut().find(|p| p.name == precision.name) {
            Some(old) => {
                for stale in [&old.encoder, &old.mask_decoder, &old.text_encoder] {
                    manifest.files.remove(stale);
                }
                // Its graphs at further sizes are of the same weights and stay.
                let size = std::mem::take(&mut old.size);
                *old = Precision { size, ..precision };
            }
            None => manifest.precision.push(precision),
        }
        for (path, name) in files {
            let to = self.folder.join(name);
            fs::rename(path, &to).map_err(QuantizeError::io(&to))?;
        }
        let folder = File::open(&self.folder).and_then(|f| f.sync_all());
        folder.map_err(QuantizeError::io(&self.folder))?;
        let bundle = manifest.write(&self.folder)?;
        let after = bundle.manifest.referenced_files();
        for stale in before.difference(&after) {
            self.remove(&self.folder.join(stale));
        }
        Ok(bundle)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.remove_partial();
    }
}
