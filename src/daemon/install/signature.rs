//! Whether a bundle's manifest, and by its hashes every file, comes from whom the owner of the device trusts.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use minisign_verify::{PublicKey, Signature};

use crate::contract::{LARGEST_MANIFEST, MANIFEST_FILE};

/// Where the key of a device lies; if it is there, only bundles that it signed are installed.
pub const DEFAULT_KEY: &str = "/etc/samclip/model.pub";

/// Signature of the manifest, beside it in the bundle.
pub const SIGNATURE_FILE: &str = "manifest.toml.minisig";

/// Verifies the Ed25519 signature (minisign's format) of the manifest in `dir`.
///
/// # Errors
/// A key or signature that cannot be read, and a manifest that this key did not sign.
pub(super) fn check(dir: &Path, key: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(key).with_context(|| format!("cannot read the key {}", key.display()))?;
    let public = PublicKey::decode(text.trim())
        .map_err(|e| anyhow!("{}: {e}; expected minisign's public key, two lines", key.display()))?;
    let path = dir.join(SIGNATURE_FILE);
    let signature = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "the bundle holds no readable {SIGNATURE_FILE}; {} must have signed it: minisign -S -m {MANIFEST_FILE}",
            key.display()
        )
    })?;
    let signature = Signature::decode(signature.trim())
        .map_err(|e| anyhow!("{SIGNATURE_FILE}: {e}; expected the file that minisign -S writes"))?;
    let manifest =
        std::fs::read(dir.join(MANIFEST_FILE)).with_context(|| format!("the bundle holds no {MANIFEST_FILE}"))?;
    anyhow::ensure!(
        manifest.len() as u64 <= LARGEST_MANIFEST,
        "{MANIFEST_FILE} holds more than {LARGEST_MANIFEST} bytes"
    );
    public.verify(&manifest, &signature, false).map_err(|e| {
        anyhow!(
            "{MANIFEST_FILE} was not signed by {}, or changed afterwards: {e}",
            key.display()
        )
    })
}
