//! The curve of a stage: `<stage>.curve.csv` beside its checkpoint, with the columns step, name and value.
//!
//! A run that goes on after a kill repeats the steps since its checkpoint, so the last line of a step and name counts. A last
//! line without its end was cut by a kill or a full disk: it counts as nothing, and what is written next takes its place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// The first line.
const HEADER: &str = "step,name,value\n";

/// Why a curve cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CurveError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line in the middle that is none.
    #[error("{path}: found {line:?}, expected step, name and value; delete the file, on which no weight depends")]
    Line {
        /// The file.
        path: PathBuf,
        /// What the line says.
        line: String,
    },
}

/// Adds the values of `step` to the curve `path`, behind the last line that is whole.
///
/// # Errors
/// The file cannot be read or written.
pub fn append<'a>(path: &Path, step: u64, values: impl Iterator<Item = (&'a str, f32)>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    let whole = whole_lines(&mut file)?;
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    let mut text = String::from(if whole == 0 { HEADER } else { "" });
    text.extend(values.map(|(name, value)| format!("{step},{name},{value}\n")));
    file.write_all(text.as_bytes())
}

/// Bytes of `file` up to the end of its last whole line.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    if last == [b'\n'] {
        return Ok(length);
    }
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(end_of_lines(&bytes) as u64)
}

/// Length of the whole lines at the beginning of `bytes`.
fn end_of_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1)
}

/// Steps, names and values of the curve `path`, in order; none if there is no file.
///
/// # Errors
/// [`CurveError`] if the file cannot be read, or a line before its last one is none.
pub fn read(path: &Path) -> Result<Vec<(u64, String, f32)>, CurveError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|source| CurveError::Io {
            path: path.into(),
            source,
        })?,
    };
    let text = String::from_utf8_lossy(&bytes[..end_of_lines(&bytes)]);
    let mut points = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (step, name, value) = point(line).ok_or_else(|| CurveError::Line {
            path: path.into(),
            line: line.into(),
        })?;
        points.insert((step, name), value);
    }
    let points = points.into_iter();
    Ok(points.map(|((step, name), value)| (step, name.into(), value)).collect())
}

/// Step, name and value of one line.
fn point(line: &str) -> Option<(u64, &str, f32)> {
    let (step, rest) = line.split_once(',')?;
    let (name, value) = rest.rsplit_once(',')?;
    Some((step.parse().ok()?, name, value.parse().ok()?)).filter(|_| !name.contains(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distill.curve.csv");
        (folder, path)
    }

    fn points(points: &[(u64, &str, f32)]) -> Vec<(u64, String, f32)> {
        let owned = points.iter().map(|&(step, name, value)| (step, name.into(), value));
        owned.collect()
    }

    #[test]
    fn the_last_line_of_a_step_and_name_counts() {
        let (_folder, path) = folder();
        assert!(read(&path).unwrap().is_empty(), "no file");
        for (step, value) in [(25, 1.5), (50, 1.0), (50, 0.5)] {
            append(&path, step, [("clip", value), ("sam", 2.0)].into_iter()).unwrap();
        }
        let expected = [(25, "clip", 1.5), (25, "sam", 2.0), (50, "clip", 0.5), (50, "sam", 2.0)];
        assert_eq!(read(&path).unwrap(), points(&expected));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("step,name,value\n25,clip,1.5\n"), "{text}");
        assert_eq!(text.lines().count(), 7);
    }

    #[test]
    fn a_curve_that_was_cut_anywhere_is_read_and_goes_on_with_whole_lines() {
        let whole = "step,name,value\n25,clip,1.5\n50,clip,1.25\n";
        for length in 0..=whole.len() {
            let (_folder, path) = folder();
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut expected = points(&[(25, "clip", 1.5), (50, "clip", 1.25)]);
            expected.truncate(whole[..length].matches('\n').count().saturating_sub(1));
            assert_eq!(read(&path).unwrap(), expected, "cut after {length} bytes");
            append(&path, 75, [("clip", 0.75)].into_iter()).unwrap();
            expected.push((75, "clip".into(), 0.75));
            assert_eq!(read(&path).unwrap(), expected, "cut after {length} bytes");
        }
    }

    #[test]
    fn a_line_in_the_middle_that_is_none_is_named() {
        let (_folder, path) = folder();
        for line in ["25,clip", "25,cl50,clip,1", "x,clip,1", "25,clip,y"] {
            std::fs::write(&path, format!("step,name,value\n{line}\n50,clip,1\n")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("found {line:?}")), "{error}");
        }
    }
}
