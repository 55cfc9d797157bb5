//! `.safetensors`: the header first, then one tensor at a time, so that a file of gigabytes is never held twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use super::{Stored, Values, Weights, WeightsError, damaged, io};

/// A longer header is none (safetensors' own limit).
const LARGEST_HEADER: u64 = 100_000_000;

/// A file whose header was read and agrees with its length.
struct Opened {
    file: File,
    /// Where the values begin.
    start: u64,
    metadata: Metadata,
}

fn open(path: &Path) -> Result<Opened, WeightsError> {
    let mut file = File::open(path).map_err(io(path))?;
    let length = file.metadata().map_err(io(path))?.len();
    let mut size = [0; 8];
    if length < 8 {
        return Err(damaged(path, format!("{length} bytes, too short for a header")));
    }
    file.read_exact(&mut size).map_err(io(path))?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size > length - 8 {
        return Err(damaged(path, format!("a header of {size} bytes in a file of {length}")));
    }
    let mut header = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact(&mut header).map_err(io(path))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(path, format!("header: {e}")))?;
    // The header's parser has checked that the tensors fill their values without gaps.
    let (start, values, named) = (8 + size, length - 8 - size, metadata.data_len() as u64);
    if named != values {
        return Err(damaged(
            path,
            format!("{values} bytes of values, the header names {named}"),
        ));
    }
    Ok(Opened { file, start, metadata })
}

pub(super) fn read(path: &Path) -> Result<Weights, WeightsError> {
    let mut opened = open(path)?;
    let tensors: Vec<(String, TensorInfo)> = opened
        .metadata
        .tensors()
        .into_iter()
        .map(|(n, i)| (n, i.clone()))
        .collect();
    let mut weights = Weights::new();
    for (name, info) in tensors {
        let values = opened.values(path, &name, &info)?;
        weights.insert(name, values);
    }
    Ok(weights)
}

impl Opened {
    fn values(&mut self, path: &Path, name: &str, info: &TensorInfo) -> Result<Values, WeightsError> {
        let stored = match info.dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::Bf16,
            Dtype::F64 => Stored::F64,
            other => {
                return Err(WeightsError::Type {
                    path: path.into(),
                    name: name.into(),
                    found: format!("{other:?}"),
                });
            }
        };
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let at = SeekFrom::Start(self.start + from as u64);
        self.file
            .seek(at)
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(io(path))?;
        Ok(Values {
            shape: info.shape.clone(),
            data: stored.decode(&bytes),
        })
    }
}

pub(super) fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let metadata = open(path)?.metadata.metadata().clone();
    Ok(metadata.unwrap_or_default().into_iter().collect())
}

/// One weight as safetensors writes it: its bytes exist only while they are written.
struct Written<'a>(&'a Values);

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.data.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.0.data.len()
    }
}

pub(super) fn write(path: &Path, weights: &Weights, metadata: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    let views = weights.iter().map(|(name, values)| (name.as_str(), Written(values)));
    let metadata = Some(metadata.clone().into_iter().collect());
    let partial = path.with_extension("partial");
    let written = safetensors::serialize_to_file(views, metadata, &partial)
        .map_err(|e| std::io::Error::other(e.to_string()))
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // Gigabytes of half a file would keep a full disk full.
        let _ = std::fs::remove_file(&partial);
        WeightsError::Io {
            path: path.into(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, values: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + values, 0);
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        super::read(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_header_that_promises_what_is_not_there_is_one_clear_error() {
        let tensor =
            |shape: &str, end: usize| format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
        for (bytes, expected) in [
            (file(&tensor("[2]", 8), 4), "4 bytes of values, the header names 8"),
            (file(&tensor("[2]", 8), 9), "9 bytes of values, the header names 8"),
            (file(&tensor("[3]", 8), 8), "header: invalid shape"),
            (file(&tensor("[4611686018427387904,4]", 8), 8), "header:"),
            (u64::MAX.to_le_bytes().to_vec(), "header of 18446744073709551615 bytes"),
            (file("{", 0), "header:"),
            (vec![1, 2], "2 bytes"),
        ] {
            let found = error(&bytes);
            assert!(found.contains(expected) && found.contains("x.safetensors"), "{found}");
        }
        let whole = r#"{"w":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
        assert!(error(&file(whole, 8)).contains("has type I64"));
    }

    #[test]
    fn what_is_written_is_read_back_with_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let values = |shape: &[usize], data: &[f32]| Values {
            shape: shape.to_vec(),
            data: data.to_vec(),
        };
        let weights = Weights::from([
            ("a".to_owned(), values(&[], &[2.5])),
            ("b".to_owned(), values(&[2, 1], &[-1.0, f32::MIN_POSITIVE])),
        ]);
        let metadata = BTreeMap::from([("step".to_owned(), "7".to_owned())]);
        write(&path, &weights, &metadata).unwrap();
        assert_eq!(
            (read(&path).unwrap(), read_metadata(&path).unwrap()),
            (weights, metadata)
        );
    }
}
