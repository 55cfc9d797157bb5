//! A bundle on disk: reads the manifest, compares every file with its hash, writes both.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{FORMAT_VERSION, GraphKind, Manifest, write_whole};

/// Name of the manifest in a bundle's directory.
pub const MANIFEST_FILE: &str = "manifest.toml";

/// Most bytes of a manifest; a larger one is none.
pub const LARGEST_MANIFEST: u64 = 1 << 20;

/// A bundle whose manifest is valid and whose files have the promised content.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Directory of the files, without links: a link to it may be pointed at another version at any time.
    pub dir: PathBuf,
    /// The parsed manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes, and so of everything the bundle holds; 64 hex digits.
    pub hash: String,
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The manifest is not TOML of the expected form.
    #[error("{path}: {message}", path = path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, what was found and what is allowed.
        message: String,
    },
    /// The manifest was written for another program version.
    #[error("manifest format_version is {found}, this program reads {FORMAT_VERSION}; export the model again")]
    FormatVersion {
        /// The version in the file.
        found: i64,
    },
    /// A value is impossible.
    #[error("manifest {field}: found {found}, expected {expected}")]
    Value {
        /// Dotted name of the field.
        field: String,
        /// What the file says.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// The bundle lacks a size.
    #[error("the bundle has no size of {side} pixels, it has {known}; `train export` makes those under [export] sizes")]
    NoSize {
        /// The side asked for.
        side: usize,
        /// The sides that there are.
        known: String,
    },
    /// A file name would leave the bundle's directory or is not plain.
    #[error(
        "manifest names file {found:?}; expected a plain name of letters, digits, '.', '-', '_' in the bundle itself"
    )]
    FileName {
        /// The name in the manifest.
        found: String,
    },
    /// A graph or vocabulary has no hash.
    #[error("manifest names file {name:?} but [files] holds no hash for it; export the model again")]
    NoHash {
        /// The file's name.
        name: String,
    },
    /// A file differs from the manifest.
    #[error("{path}: SHA-256 is {found}, manifest says {expected}; the file is damaged or from another export, copy the bundle again", path = path.display())]
    Hash {
        /// Which file.
        path: PathBuf,
        /// Hash of the file on disk.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: Option<i64>,
}

impl Manifest {
    /// Reads and checks `dir/manifest.toml` and compares every file with its hash.
    ///
    /// # Errors
    /// [`BundleError`], naming the file or value that differs.
    pub fn read(dir: &Path) -> Result<Bundle, BundleError> {
        // What is missing is named below.
        let dir = &dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let path = dir.join(MANIFEST_FILE);
        let io = |source| BundleError::Io {
            path: path.clone(),
            source,
        };
        let mut text = String::new();
        File::open(&path)
            .map_err(io)?
            .take(LARGEST_MANIFEST)
            .read_to_string(&mut text)
            .map_err(io)?;
        let manifest = Self::parse(&text).map_err(|e| match e {
            BundleError::Syntax { message, .. } => BundleError::Syntax {
                path: path.clone(),
                message,
            },
            other => other,
        })?;
        for name in manifest.referenced_files() {
            let file = dir.join(&name);
            let expected = manifest.files.get(&name).ok_or(BundleError::NoHash { name })?;
            let found = hash_file(&file)?;
            if found != *expected {
                return Err(BundleError::Hash {
                    path: file,
                    found,
                    expected: expected.clone(),
                });
            }
        }
        Ok(Bundle {
            dir: dir.to_owned(),
            manifest,
            hash: sha256_hex(text.as_bytes()),
        })
    }

    /// Parses and validates the text of a manifest, without looking at files.
    ///
    /// # Errors
    /// [`BundleError::FormatVersion`] before anything else, so that a newer format is named as such.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let syntax = |e: toml::de::Error| BundleError::Syntax {
            path: MANIFEST_FILE.into(),
            message: e.to_string().trim_end().to_owned(),
        };
        let version: VersionOnly = toml::from_str(text).map_err(syntax)?;
        match version.format_version {
            Some(v) if v != i64::from(FORMAT_VERSION) => return Err(BundleError::FormatVersion { found: v }),
            _ => {}
        }
        let manifest: Self = toml::from_str(text).map_err(syntax)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Writes `dir/manifest.toml` for graphs that already lie in `dir`, with their hashes.
    ///
    /// Files already named in `files` (a model card, for instance) are hashed anew; the old hashes are ignored.
    ///
    /// # Errors
    /// [`BundleError`] if a value is impossible or a file is missing.
    pub fn write(mut self, dir: &Path) -> Result<Bundle, BundleError> {
        self.validate()?;
        for name in self.referenced_files() {
            let hash = hash_file(&dir.join(&name))?;
            self.files.insert(name, hash);
        }
        let path = dir.join(MANIFEST_FILE);
        let text = toml::to_string_pretty(&self).map_err(|e| BundleError::Syntax {
            path: path.clone(),
            message: e.to_string(),
        })?;
        write_whole(&path, text.as_bytes()).map_err(|source| BundleError::Io { path, source })?;
        Ok(Bundle {
            dir: dir.to_owned(),
            manifest: self,
            hash: sha256_hex(text.as_bytes()),
        })
    }
}

impl Bundle {
    /// First 12 hex digits of the hash: names the model in messages and caches.
    #[must_use]
    pub fn id(&self) -> &str {
        self.hash.get(..12).unwrap_or(&self.hash)
    }

    /// Path of one graph in the named precision (`None`: the default one).
    ///
    /// # Errors
    /// [`BundleError::Value`] if no variant has that name.
    pub fn graph_path(&self, graph: GraphKind, precision: Option<&str>) -> Result<PathBuf, BundleError> {
        Ok(self.dir.join(self.manifest.precision(precision)?.file(graph)))
    }
}

/// SHA-256 of bytes as 64 lower-case hex digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file as 64 lower-case hex digits.
///
/// # Errors
/// [`BundleError::Io`] if it cannot be read.
pub fn hash_file(path: &Path) -> Result<String, BundleError> {
    let io = |source| BundleError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::contract::{Calibration, Compute, DecoderSpec, EncoderSpec, Measured, Precision, Source, TextSpec};

    fn manifest() -> Manifest {
        let encoder = EncoderSpec {
            side: 96,
            stride: 16,
            neck_channels: 5,
            embed_dim: 7,
            patch_grid: 3,
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
        };
        let decoder = DecoderSpec { prompts: 2, points: 3 };
        let text = TextSpec {
            batch: 4,
            context: 77,
            vocabulary: "merges.txt".into(),
            merges: Some(9),
        };
        Manifest {
            format_version: FORMAT_VERSION,
            name: "tiny".into(),
            logit_scale: 14.285,
            background: vec!["background".into()],
            graph: Manifest::standard_graphs(&encoder, &decoder, &text),
            encoder,
            decoder,
            text,
            calibration: Calibration::default(),
            precision: vec![Precision {
                name: "fp16-stored".into(),
                compute: Compute::Fp32,
                encoder: "encoder.onnx".into(),
                mask_decoder: "mask_decoder.onnx".into(),
                text_encoder: "text_encoder.onnx".into(),
                relative_error: BTreeMap::from([("patch_embeddings".into(), 0.0004)]),
                mean_iou_change: None,
                size: Vec::new(),
                measured: None,
            }],
            size: Vec::new(),
            source: vec![Source {
                name: "drawn scenes".into(),
                licence: "none needed".into(),
                url: None,
            }],
            files: BTreeMap::new(),
        }
    }

    fn written() -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        for (i, name) in ["encoder.onnx", "mask_decoder.onnx", "text_encoder.onnx", "merges.txt"]
            .iter()
            .enumerate()
        {
            std::fs::write(dir.path().join(name), vec![i as u8; 70_001]).unwrap();
        }
        let bundle = manifest().write(dir.path()).unwrap();
        (dir, bundle)
    }

    #[test]
    fn what_was_written_is_read_back_with_the_same_hash() {
        let (dir, written) = written();
        let read = Manifest::read(dir.path()).unwrap();
        assert_eq!(read.manifest, written.manifest);
        assert_eq!((read.hash.as_str(), read.id().len()), (written.hash.as_str(), 12));
        assert_eq!(read.manifest.encoder.mean, [123.675, 116.28, 103.53]);
    }

    #[test]
    fn one_flipped_byte_names_the_file_and_both_hashes() {
        let (dir, bundle) = written();
        let path = dir.path().join("mask_decoder.onnx");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[35_000] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let text = Manifest::read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("mask_decoder.onnx"), "{text}");
        assert!(text.contains(&bundle.manifest.files["mask_decoder.onnx"]), "{text}");
        assert!(text.contains(&sha256_hex(&bytes)), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let (dir, _) = written();
        std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
        assert!(
            Manifest::read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("merges.txt")
        );
    }

    #[test]
    fn a_file_without_a_hash_is_refused() {
        let (dir, bundle) = written();
        let path = dir.path().join(MANIFEST_FILE);
        let line = format!("\"encoder.onnx\" = \"{}\"", bundle.manifest.files["encoder.onnx"]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&line), "{text}");
        std::fs::write(&path, text.replace(&line, "")).unwrap();
        assert!(matches!(Manifest::read(dir.path()), Err(BundleError::NoHash { name }) if name == "encoder.onnx"));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in [
            "../x",
            "/etc/passwd",
            "a/b",
            "",
            "..",
            ".hidden",
            "manifest.toml",
            "a\\b",
            "a\0",
        ] {
            let mut m = manifest();
            m.precision[0].encoder = name.into();
            assert!(matches!(m.validate(), Err(BundleError::FileName { .. })), "{name:?}");
        }
    }

    #[test]
    fn another_format_version_is_named_even_if_the_rest_is_unknown() {
        let error = Manifest::parse("format_version = 2\nsomething_new = true\n").unwrap_err();
        assert!(matches!(error, BundleError::FormatVersion { found: 2 }), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let (dir, _) = written();
        let text = std::fs::read_to_string(dir.path().join(MANIFEST_FILE)).unwrap();
        let error = Manifest::parse(&format!("colour = 3\n{text}")).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn a_tensor_table_that_disagrees_with_the_sizes_is_refused() {
        let mut m = manifest();
        m.graph[1].outputs[0].shape[1] = 3;
        let error = m.validate().unwrap_err().to_string();
        assert!(
            error.contains("mask_decoder") && error.contains("low_res_logits"),
            "{error}"
        );
        m.graph.remove(1);
        assert!(m.validate().unwrap_err().to_string().contains("0 tables"));
    }

    fn measured() -> Measured {
        Measured {
            reference: "fp32".into(),
            photos: 289,
            mask_agreement: 0.97,
            ranking_changed: 0.0,
            size_ratio: 0.28,
            calibration: Some("encoder entropy, 64 photos".into()),
            float_layers: vec!["encoder: neck.0".into()],
            forced: true,
        }
    }

    #[test]
    fn what_was_measured_of_a_variant_is_read_back_and_may_be_absent() {
        let (dir, _) = written();
        let mut m = manifest();
        let int8 = Precision {
            name: "int8".into(),
            compute: Compute::Int8,
            mean_iou_change: Some(-0.004),
            measured: Some(measured()),
            ..m.precision[0].clone()
        };
        m.precision.push(int8);
        m.write(dir.path()).unwrap();
        let read = Manifest::read(dir.path()).unwrap().manifest;
        assert_eq!(read.precision[0].measured, None);
        assert_eq!(read.precision[1].measured, Some(measured()));
        let text = std::fs::read_to_string(dir.path().join(MANIFEST_FILE)).unwrap();
        let unknown = text.replace("mask_agreement = ", "mask_aggreement = ");
        assert!(
            Manifest::parse(&unknown)
                .unwrap_err()
                .to_string()
                .contains("mask_aggreement")
        );
        let plain = text.replace("forced = true\n", "");
        assert!(
            !Manifest::parse(&plain).unwrap().precision[1]
                .measured
                .as_ref()
                .unwrap()
                .forced
        );
    }

    #[test]
    fn impossible_measurements_and_doubled_variants_are_refused_by_field() {
        type Spoil = fn(&mut Precision, &mut Measured);
        let cases: [(&str, Spoil); 5] = [
            ("measured.photos", |_, m| m.photos = 0),
            ("measured.mask_agreement", |_, m| m.mask_agreement = 1.5),
            ("measured.ranking_changed", |_, m| m.ranking_changed = f64::NAN),
            ("measured.size_ratio", |_, m| m.size_ratio = 0.0),
            ("relative_error", |p, _| {
                p.relative_error.insert("patch_embeddings".into(), -1.0);
            }),
        ];
        for (field, spoil) in cases {
            let (mut m, mut measured) = (manifest(), measured());
            spoil(&mut m.precision[0], &mut measured);
            m.precision[0].measured = Some(measured);
            let error = m.validate().unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("fp16-stored"), "{error}");
        }
        let mut m = manifest();
        m.precision.push(m.precision[0].clone());
        assert!(m.validate().unwrap_err().to_string().contains("a name used once"));
    }

    #[test]
    fn impossible_values_are_refused_by_field() {
        type Spoil = fn(&mut Manifest);
        let cases: [(&str, Spoil); 7] = [
            ("encoder.side", |m| m.encoder.side = 100),
            ("encoder.stride", |m| m.encoder.stride = 0),
            ("encoder.patch_grid", |m| m.encoder.patch_grid = 7),
            ("encoder.std", |m| m.encoder.std[1] = 0.0),
            ("calibration.threshold", |m| m.calibration.threshold = f32::NAN),
            ("background", |m| m.background.clear()),
            ("decoder.points", |m| m.decoder.points = usize::MAX),
        ];
        for (field, spoil) in cases {
            let mut m = manifest();
            spoil(&mut m);
            let error = m.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
