//! `samclipd model`: what is verified before a bundle is used, and what stays when it is refused.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::io::{Cursor, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use minisign::KeyPair;
use samclip::contract::{Bundle, Manifest};

/// A folder with a bundle to install and an empty store.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.version(0.5);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the bundle anew with a threshold of its own, and so another id.
    fn version(&self, threshold: f32) -> Bundle {
        let bundle = self.path("bundle");
        std::fs::create_dir_all(&bundle).unwrap();
        let mut manifest = tiny::write(&bundle).manifest;
        manifest.calibration.threshold = threshold;
        manifest.write(&bundle).unwrap()
    }

    fn model(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_samclipd"))
            .arg("model")
            .args(arguments)
            .arg("--store")
            .arg(self.path("store"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    fn install(&self, arguments: &[&str]) -> Output {
        self.model(&[&["install", "--runtime", "tract"], arguments].concat())
    }

    /// Ids of the installed versions, the one in use first.
    fn installed(&self) -> Vec<String> {
        let listed = said(&self.model(&["list"]));
        let (used, others): (Vec<_>, Vec<_>) = listed.lines().partition(|line| line.starts_with('*'));
        let id = |line: &str| line.split('@').nth(1).map(str::to_owned);
        used.into_iter().chain(others).filter_map(id).collect()
    }

    fn in_use(&self) -> String {
        Manifest::read(&self.path("store/colours")).unwrap().id().to_owned()
    }

    /// Everything below the store.
    fn stored(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                into.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), into);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path("store"), &mut found);
        found.sort();
        found
    }

    fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all("tiny", self.path("bundle")).unwrap();
        builder.into_inner().unwrap()
    }
}

fn said(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{error}");
    out.into_owned()
}

fn refused(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("samclipd: ") && !error.contains("panicked"),
        "{error}"
    );
    error
}

fn sign(bench: &Bench, key: &KeyPair) {
    let manifest = std::fs::read(bench.path("bundle/manifest.toml")).unwrap();
    let signature = minisign::sign(Some(&key.pk), &key.sk, Cursor::new(manifest), None, None).unwrap();
    std::fs::write(bench.path("bundle/manifest.toml.minisig"), signature.into_string()).unwrap();
}

fn key(bench: &Bench) -> KeyPair {
    let key = KeyPair::generate_unencrypted_keypair().unwrap();
    std::fs::write(bench.path("model.pub"), key.pk.to_box().unwrap().to_string()).unwrap();
    key
}

#[test]
fn a_bundle_is_installed_updated_listed_and_taken_back() {
    let bench = Bench::new();
    let first = bench.version(0.5);
    let text = said(&bench.install(&["bundle"]));
    assert!(
        text.contains("hashes good") && text.contains("test: good, on tract-cpu"),
        "{text}"
    );
    assert!(text.contains("signature: not checked"), "{text}");
    assert_eq!(bench.installed(), [first.id()]);
    assert!(said(&bench.install(&["bundle"])).contains("is in use already"));
    let refusal = refused(&bench.model(&["rollback", "colours"]));
    assert!(refusal.contains("has no version before it"), "{refusal}");

    let second = bench.version(0.6);
    said(&bench.install(&["bundle"]));
    assert_eq!((bench.in_use(), bench.installed().len()), (second.id().to_owned(), 2));
    said(&bench.model(&["rollback", "colours"]));
    assert_eq!(bench.in_use(), first.id());
    said(&bench.model(&["rollback", "colours"]));
    assert_eq!(bench.in_use(), second.id());

    let third = bench.version(0.7);
    said(&bench.install(&["bundle"]));
    assert_eq!(
        bench.installed(),
        [third.id(), second.id()],
        "only the version before is kept"
    );
    let refusal = refused(&bench.model(&["rollback", "../store"]));
    assert!(refusal.contains("expected a plain name"), "{refusal}");
}

#[test]
fn the_files_come_from_an_archive_or_a_server_just_as_well() {
    let bench = Bench::new();
    let id = bench.version(0.5).id().to_owned();
    std::fs::write(bench.path("tiny.tar"), bench.archive()).unwrap();
    said(&bench.install(&["tiny.tar"]));
    assert_eq!(bench.in_use(), id);

    let second = bench.version(0.6).id().to_owned();
    sign(&bench, &key(&bench));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/tiny.tar", listener.local_addr().unwrap());
    let refusal = refused(&bench.install(&[&address]));
    assert!(refusal.contains("plain HTTP"), "{refusal}");
    let body = bench.archive();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = peer.read(&mut request).unwrap();
        write!(peer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        peer.write_all(&body).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    said(&bench.install(&[&address, "--key", "model.pub"]));
    assert!(server.join().unwrap().starts_with("GET /tiny.tar "));
    assert_eq!(bench.in_use(), second);
}

#[test]
fn with_a_key_only_what_it_signed_is_installed() {
    let bench = Bench::new();
    let pair = key(&bench);
    let install = || bench.install(&["bundle", "--key", "model.pub"]);
    assert!(refused(&install()).contains("no readable manifest.toml.minisig"));

    sign(&bench, &KeyPair::generate_unencrypted_keypair().unwrap());
    assert!(refused(&install()).contains("was not signed by model.pub"));

    sign(&bench, &pair);
    bench.version(0.6);
    assert!(
        refused(&install()).contains("or changed afterwards"),
        "the manifest of another version"
    );

    std::fs::write(bench.path("bundle/manifest.toml.minisig"), "nonsense").unwrap();
    assert!(refused(&install()).contains("expected the file that minisign -S writes"));

    sign(&bench, &pair);
    assert!(said(&install()).contains("signature: good"));
    std::fs::write(bench.path("model.pub"), "nonsense").unwrap();
    assert!(refused(&install()).contains("expected minisign's public key"));
}

#[test]
fn a_refused_bundle_leaves_the_store_as_it_was() {
    let bench = Bench::new();
    let id = bench.version(0.5).id().to_owned();
    said(&bench.install(&["bundle"]));
    let before = bench.stored();
    let unchanged = |what: &str| {
        assert_eq!((bench.in_use(), bench.stored()), (id.clone(), before.clone()), "{what}");
    };

    bench.version(0.6);
    let encoder = bench.path("bundle/encoder.onnx");
    let mut bytes = std::fs::read(&encoder).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&encoder, &bytes).unwrap();
    let refusal = refused(&bench.install(&["bundle"]));
    assert!(refusal.contains("encoder.onnx: SHA-256 is"), "{refusal}");
    unchanged("a flipped bit");

    // Hashes are right, the graph is not.
    let manifest = bench.version(0.6).manifest;
    std::fs::copy(bench.path("bundle/mask_decoder.onnx"), &encoder).unwrap();
    manifest.write(&bench.path("bundle")).unwrap();
    let refusal = refused(&bench.install(&["bundle"]));
    assert!(refusal.contains("failed its test and is not installed"), "{refusal}");
    unchanged("a graph that cannot be opened");

    bench.version(0.6);
    let archive = bench.archive();
    for length in [0, 100, 512, 1500, archive.len() / 2] {
        std::fs::write(bench.path("cut.tar"), &archive[..length]).unwrap();
        refused(&bench.install(&["cut.tar"]));
        unchanged("a cut archive");
    }
    assert!(refused(&bench.install(&["nowhere"])).contains("cannot read nowhere"));
    unchanged("a missing source");

    // Files may have 1,024 bytes at most, which stands for a full disk.
    let full = Command::new("bash")
        .args([
            "-c",
            "ulimit -f 1; trap '' XFSZ; exec \"$0\" model install bundle --runtime tract --store store",
        ])
        .arg(env!("CARGO_BIN_EXE_samclipd"))
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    assert!(refused(&full).contains("File too large"));
    unchanged("a full disk");
}

#[test]
fn a_killed_installation_is_cleared_and_a_second_one_at_a_time_is_refused() {
    let bench = Bench::new();
    let left = bench.path("store/.versions/.incoming-old");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("encoder.onnx"), "half").unwrap();
    said(&bench.install(&["bundle"]));
    assert!(!left.exists());

    let lock = std::fs::File::create(bench.path("store/.versions/.lock")).unwrap();
    lock.lock().unwrap();
    bench.version(0.6);
    assert!(refused(&bench.install(&["bundle"])).contains("another installation is going on"));
    drop(lock);
    said(&bench.install(&["bundle"]));
}

#[test]
fn what_is_installed_is_readable_by_the_service_whatever_the_umask() {
    let bench = Bench::new();
    let installed = Command::new("sh")
        .args(["-c", "umask 077 && exec \"$@\"", "-", env!("CARGO_BIN_EXE_samclipd")])
        .args([
            "model",
            "install",
            "--runtime",
            "tract",
            "bundle",
            "--store",
            "deep/store",
        ])
        .env("XDG_CACHE_HOME", bench.path("cache"))
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    said(&installed);
    for dir in [
        "deep",
        "deep/store",
        "deep/store/.versions",
        "deep/store/.versions/colours",
        "deep/store/colours",
    ] {
        let mode = std::fs::metadata(bench.path(dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{dir}");
    }
}

#[test]
fn a_damaged_version_in_use_is_repaired_and_a_folder_made_by_hand_is_not_replaced() {
    let bench = Bench::new();
    let before = bench.version(0.4);
    said(&bench.install(&["bundle"]));
    let damaged = bench.version(0.5);
    said(&bench.install(&["bundle"]));
    std::fs::write(bench.path("store/colours/encoder.onnx"), "damaged").unwrap();
    said(&bench.install(&["bundle"]));
    assert_eq!(bench.in_use(), damaged.id());
    assert_eq!(
        bench.installed(),
        [damaged.id(), before.id()],
        "the version before the damaged one is kept"
    );
    said(&bench.model(&["rollback", "colours"]));
    assert_eq!(bench.in_use(), before.id());

    std::fs::remove_file(bench.path("store/colours")).unwrap();
    std::fs::create_dir(bench.path("store/colours")).unwrap();
    let refusal = refused(&bench.install(&["bundle"]));
    assert!(refusal.contains("was not made by samclipd model install"), "{refusal}");
}
