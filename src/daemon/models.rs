//! Where model bundles are looked for when none is named.

use std::path::{Path, PathBuf};

use crate::contract::MANIFEST_FILE;

use super::install::default_store;

/// The bundle that comes with the program.
pub const DEFAULT_MODEL: &str = "nano";

/// No bundle in any of the usual places.
#[derive(Debug, thiserror::Error)]
#[error("no model bundle {name:?} (a directory with manifest.toml) in {places}; name one with --model DIR")]
pub struct NoModel {
    /// The name looked for.
    pub name: String,
    /// Where it was looked for.
    pub places: String,
}

/// Finds a bundle by name: below the working directory, the source tree, the program's own directories, and where
/// `samclipd model install` and packages put it.
///
/// # Errors
/// [`NoModel`], listing every place.
pub fn find_model(name: &str) -> Result<PathBuf, NoModel> {
    let mut roots = vec![PathBuf::from("models")];
    // Set by `cargo run`, whatever the working directory is.
    roots.extend(std::env::var_os("CARGO_MANIFEST_DIR").map(|dir| Path::new(&dir).join("models")));
    if let Ok(program) = std::env::current_exe() {
        let above = program.ancestors().skip(1).take(4);
        roots.extend(above.flat_map(|dir| [dir.join("models"), dir.join("share/samclip/models")]));
    }
    roots.extend(default_store());
    roots.extend(["/usr/local/share/samclip/models", "/usr/share/samclip/models"].map(PathBuf::from));
    let places: Vec<PathBuf> = roots.iter().map(|root| root.join(name)).collect();
    let found = places.iter().find(|place| place.join(MANIFEST_FILE).is_file());
    found.cloned().ok_or_else(|| NoModel {
        name: name.to_owned(),
        places: places
            .iter()
            .map(|p| p.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    })
}
