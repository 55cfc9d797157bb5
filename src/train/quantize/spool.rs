//! Reference outputs on disk: photos go in once, every variant reads them again.
//!
//! A full-size photo leaves 15 MB behind, and two full-size encoders do not fit memory side by side; so the reference
//! runs first and its outputs wait in a file that has no name any more, and is gone with the process however it ends.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::QuantizeError;

/// Arrays in the order in which they were written.
pub struct Spool {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Spool {
    /// An empty spool on the disk of `folder`.
    ///
    /// # Errors
    /// [`QuantizeError::Io`] if the folder cannot be written.
    pub fn new(folder: &Path, name: &str) -> Result<Self, QuantizeError> {
        let path = folder.join(format!(".{name}.partial"));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(QuantizeError::io(&path))?;
        std::fs::remove_file(&path).map_err(QuantizeError::io(&path))?;
        Ok(Self {
            file: BufWriter::new(file),
            path,
        })
    }

    /// Appends one array.
    ///
    /// # Errors
    /// [`QuantizeError::Io`], for a full disk for instance.
    pub fn push(&mut self, values: &[f32]) -> Result<(), QuantizeError> {
        let mut write = |bytes: &[u8]| self.file.write_all(bytes);
        let result = write(&(values.len() as u64).to_le_bytes())
            .and_then(|()| values.iter().try_for_each(|v| write(&v.to_le_bytes())));
        result.map_err(QuantizeError::io(&self.path))
    }

    /// A reader from the first array on.
    ///
    /// # Errors
    /// [`QuantizeError::Io`], for a full disk for instance.
    pub fn read(&mut self) -> Result<SpoolReader<'_>, QuantizeError> {
        let rewound = self.file.flush().and_then(|()| self.file.get_ref().try_clone());
        let mut file = rewound.map_err(QuantizeError::io(&self.path))?;
        file.seek(SeekFrom::Start(0)).map_err(QuantizeError::io(&self.path))?;
        Ok(SpoolReader {
            file: BufReader::new(file),
            path: &self.path,
        })
    }
}

/// Reads a [`Spool`] once, in order.
pub struct SpoolReader<'a> {
    file: BufReader<File>,
    path: &'a Path,
}

impl SpoolReader<'_> {
    /// The next array.
    ///
    /// # Errors
    /// [`QuantizeError::Io`] past the end.
    pub fn next_array(&mut self) -> Result<Vec<f32>, QuantizeError> {
        let mut length = [0; 8];
        self.file
            .read_exact(&mut length)
            .map_err(QuantizeError::io(self.path))?;
        let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap_or(0) * 4];
        self.file.read_exact(&mut bytes).map_err(QuantizeError::io(self.path))?;
        let (chunks, _) = bytes.as_chunks::<4>();
        Ok(chunks.iter().map(|&c| f32::from_le_bytes(c)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_in_order_twice_and_the_folder_stays_empty() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path(), "reference").unwrap();
        spool.push(&[1.0, -2.5]).unwrap();
        spool.push(&[]).unwrap();
        spool.push(&[f32::MAX; 3]).unwrap();
        for _ in 0..2 {
            let mut reader = spool.read().unwrap();
            assert_eq!(reader.next_array().unwrap(), [1.0, -2.5]);
            assert!(reader.next_array().unwrap().is_empty());
            assert_eq!(reader.next_array().unwrap(), [f32::MAX; 3]);
            assert!(reader.next_array().is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
