//! Unpacks a bundle's archive: plain files of plain names, all in one directory, bounded in number and size, and in the memory that
//! reading it takes.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Component, Path};

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;

use super::SIGNATURE_FILE;
use crate::contract::{LARGEST_MANIFEST, MANIFEST_FILE, check_file_name};

/// Most files of a bundle.
const MOST_FILES: usize = 64;

/// Most entries of an archive: directories and further headers are among them.
const MOST_ENTRIES: usize = 4 * MOST_FILES;

/// Most bytes of a bundle's files together, and of its archive: several precisions of a ViT-H fit.
pub(super) const MOST_BYTES: u64 = 8 << 30;

/// First bytes of gzip.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Unpacks a .tar or .tar.gz into `into`. Directories in it are ignored, so `nano/manifest.toml` is `manifest.toml`.
///
/// # Errors
/// An archive that is cut short, holds links, two files of one name, names that are not plain or longer than 100 bytes, too many
/// files or too many bytes; what the disk says.
pub(super) fn unpack(source: impl Read, into: &Path) -> anyhow::Result<()> {
    let mut source = BufReader::new(source);
    let compressed = source.fill_buf()?.starts_with(&GZIP);
    if compressed {
        entries(MultiGzDecoder::new(source), into)
    } else {
        entries(source, into)
    }
}

fn entries(source: impl Read, into: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(source.take(MOST_BYTES + (1 << 20)));
    let (mut files, mut left) = (0, MOST_BYTES);
    // Raw: else what an entry of a long name or of further headers holds is read into memory, however much that is.
    for (index, entry) in archive.entries()?.raw(true).enumerate() {
        let mut entry = entry.context("not a .tar or .tar.gz, or cut short")?;
        ensure!(index < MOST_ENTRIES, "more than {MOST_ENTRIES} entries");
        let kind = entry.header().entry_type();
        let long = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || (kind.is_pax_local_extensions() && has_path(&mut entry)?);
        ensure!(
            !long,
            "a path of more than 100 bytes; pack the files alone: tar -C BUNDLE -czf FILE ."
        );
        if kind.is_dir() || kind.is_pax_global_extensions() || kind.is_pax_local_extensions() {
            continue;
        }
        let name = plain_name(&entry.path()?)?;
        ensure!(kind.is_file(), "{name} is {kind:?}, expected a plain file");
        files += 1;
        ensure!(files <= MOST_FILES, "more than {MOST_FILES} files");
        let path = into.join(&name);
        let mut file =
            File::create_new(&path).with_context(|| format!("{name} cannot be written, or is there twice"))?;
        let most = if name == MANIFEST_FILE { LARGEST_MANIFEST } else { left };
        // One byte more than allowed, so that a file of exactly that size is told from a larger one.
        let written = io::copy(&mut (&mut entry).take(most + 1), &mut file);
        let written = written.with_context(|| format!("{name} cannot be read or written whole"))?;
        ensure!(written <= most, "{name} holds more than {most} bytes");
        ensure!(written == entry.size(), "{name} is cut short");
        left -= written.min(left);
    }
    if files == 0 {
        bail!("not a .tar or .tar.gz, or empty: no file found");
    }
    Ok(())
}

/// Most bytes of a further header that are looked at.
const MOST_OF_A_HEADER: u64 = 1 << 16;

/// Whether further headers (pax) give the path of the next entry, whose own is cut then.
fn has_path(headers: impl Read) -> io::Result<bool> {
    let mut text = Vec::new();
    headers.take(MOST_OF_A_HEADER).read_to_end(&mut text)?;
    Ok(text.windows(b" path=".len()).any(|part| part == b" path="))
}

/// The last part of a path that stays where it is.
fn plain_name(path: &Path) -> anyhow::Result<String> {
    let stays = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let known = name == MANIFEST_FILE || name == SIGNATURE_FILE || check_file_name(name).is_ok();
    ensure!(
        stays && known,
        "file {path:?}: expected a plain name of letters, digits, '.', '-', '_' in at most one directory"
    );
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            // `set_path` refuses what an attacker writes.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn refused(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let error = format!("{:#}", unpack(bytes, &inside).unwrap_err());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "something was written outside"
        );
        error
    }

    #[test]
    fn plain_and_compressed_archives_are_unpacked_without_their_directory() {
        let plain = tar(&[("nano/manifest.toml", b"m"), ("nano/a.onnx", b"abc")]);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [plain, gzip.finish().unwrap()] {
            let dir = tempfile::tempdir().unwrap();
            unpack(&bytes[..], dir.path()).unwrap();
            assert_eq!(std::fs::read(dir.path().join("a.onnx")).unwrap(), b"abc");
            assert_eq!(std::fs::read(dir.path().join("manifest.toml")).unwrap(), b"m");
        }
    }

    #[test]
    fn what_leaves_the_directory_or_is_no_plain_file_is_refused() {
        for name in ["../evil", "/evil", "a/../../evil", ".hidden", "a b", "manifest.toml/.."] {
            assert!(
                refused(&tar(&[(name, b"x")])).contains("expected a plain name"),
                "{name}"
            );
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "a.onnx", "/etc/passwd").unwrap();
        assert!(refused(&builder.into_inner().unwrap()).contains("expected a plain file"));
        assert!(refused(&tar(&[("a", b"1"), ("b/a", b"2")])).contains("there twice"));
    }

    #[test]
    fn too_many_files_and_too_large_a_manifest_are_refused() {
        let names: Vec<String> = (0..=MOST_FILES).map(|i| format!("f{i}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(refused(&tar(&files)).contains("more than 64 files"));
        let large = vec![b'#'; (LARGEST_MANIFEST + 1) as usize];
        assert!(refused(&tar(&[("manifest.toml", &large)])).contains("more than 1048576 bytes"));
    }

    #[test]
    fn further_headers_are_passed_over_and_long_names_refused_however_large_they_say_they_are() {
        let entry = |kind, name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_path(name).unwrap();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            let mut builder = tar::Builder::new(Vec::new());
            builder.append(&header, bytes).unwrap();
            builder.into_inner().unwrap()
        };
        // Without the two empty blocks at its end, an archive goes on.
        let goes_on = |archive: Vec<u8>| archive[..archive.len() - 1024].to_vec();
        let large = vec![b'x'; 3 << 20];
        let pax = goes_on(entry(tar::EntryType::XHeader, "further", &large));
        let bytes = [pax, tar(&[("a.onnx", b"abc")])].concat();
        let dir = tempfile::tempdir().unwrap();
        unpack(&bytes[..], dir.path()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a.onnx")).unwrap(), b"abc");
        let long = entry(tar::EntryType::GNULongName, "././@LongLink", &large);
        assert!(refused(&long).contains("a path of more than 100 bytes"));
        let path = goes_on(entry(tar::EntryType::XHeader, "further", b"20 path=encoder.onnx\n"));
        let cut = [path, tar(&[("encoder.on", b"abc")])].concat();
        assert!(refused(&cut).contains("a path of more than 100 bytes"));
        let directories = vec![goes_on(entry(tar::EntryType::Directory, "d", b"")); MOST_ENTRIES + 1].concat();
        assert!(refused(&directories).contains("more than 256 entries"));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_nothing_panics_and_nothing_is_written_outside(
            at in 0_usize..2048, value: u8, cut in 0_usize..2048
        ) {
            let mut bytes = tar(&[("nano/manifest.toml", b"m"), ("nano/a.onnx", b"abc")]);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - cut % length);
            let dir = tempfile::tempdir().unwrap();
            let inside = dir.path().join("inside");
            std::fs::create_dir(&inside).unwrap();
            let _ = unpack(&bytes[..], &inside);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
