//! The engine cache with builders that write what they are told: no GPU, no TensorRT.

use std::cell::{Cell, RefCell};
use std::process::Command;

use super::*;

fn key() -> EngineKey {
    EngineKey {
        bundle: "0123456789abcdef0123".into(),
        precision: "fp16-stored+fp16".into(),
        device: "NVIDIA H100 PCIe, driver 550.54.14".into(),
        onnx_runtime: "1.23.0 git-commit-id=26250ae".into(),
        tensorrt: "libnvinfer.so.10.3.0 1000".into(),
    }
}

/// Behaves like TensorRT's provider: loads an engine that is there, else builds and writes one, checking nothing.
struct Builder {
    builds: Cell<usize>,
    loads: Cell<usize>,
    /// Bytes that reach the disk; the provider does not notice that the rest is lost.
    room: Cell<usize>,
}

const ENGINE: &[u8] = b"an engine of some forty bytes, all of them needed";

impl Builder {
    fn new() -> Self {
        Self {
            builds: Cell::new(0),
            loads: Cell::new(0),
            room: Cell::new(usize::MAX),
        }
    }

    fn open(&self, folder: Option<&Path>) -> Result<&'static str, RuntimeError> {
        let Some(folder) = folder else {
            self.builds.set(self.builds.get() + 1);
            return Ok("in memory");
        };
        let path = folder.join("encoder.engine");
        match fs::read(&path) {
            Ok(bytes) if bytes == ENGINE => {
                self.loads.set(self.loads.get() + 1);
                Ok("loaded")
            }
            Ok(bytes) => Err(RuntimeError::Open {
                path,
                backend: "ort",
                message: format!("cannot deserialize {} bytes", bytes.len()),
            }),
            Err(_) => {
                self.builds.set(self.builds.get() + 1);
                let _ = fs::write(&path, &ENGINE[..ENGINE.len().min(self.room.get())]);
                let _ = fs::write(folder.join("kernels.timing"), "measured");
                Ok("built")
            }
        }
    }

    fn run(&self, root: &Path) -> Result<(&'static str, Lease), RuntimeError> {
        self.run_as(root, &key(), &Stages::default())
    }

    fn run_as(&self, root: &Path, key: &EngineKey, stages: &Stages) -> Result<(&'static str, Lease), RuntimeError> {
        with_engines(root, key, stages, &mut |folder| self.open(folder))
    }

    fn counts(&self) -> (usize, usize) {
        (self.builds.get(), self.loads.get())
    }
}

#[derive(Default)]
struct Stages {
    seen: RefCell<Vec<Stage>>,
    /// Runs when the lock of another process is met.
    waiting: Option<Box<dyn Fn()>>,
    cancelled: bool,
    look_only: bool,
}

impl Progress for Stages {
    fn stage(&self, stage: &Stage) {
        self.seen.borrow_mut().push(stage.clone());
        if let (Stage::WaitForBuild(_), Some(act)) = (stage, &self.waiting) {
            act();
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }

    fn may_build(&self) -> bool {
        !self.look_only
    }
}

/// A finished cache: its root, its only folder.
fn built() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let (_, lease) = Builder::new().run(root.path()).unwrap();
    let folder = lease.folder.clone().unwrap();
    (root, folder)
}

fn broken(folder: &Path) -> String {
    match examine(folder, &key()).unwrap() {
        Contents::Broken(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_engine_is_built_once_read_back_and_then_loaded() {
    let root = tempfile::tempdir().unwrap();
    let builder = Builder::new();
    let stages = Stages::default();
    let (opened, lease) = builder.run_as(root.path(), &key(), &stages).unwrap();
    assert_eq!((opened, lease.built, builder.counts()), ("loaded", true, (1, 1)));
    let folder = lease.folder.clone().unwrap();
    assert_eq!(
        *stages.seen.borrow(),
        [
            Stage::BuildEngine(Some(folder.clone())),
            Stage::VerifyEngine(folder.clone())
        ]
    );
    drop(lease);
    let (opened, lease) = builder.run(root.path()).unwrap();
    assert_eq!((opened, lease.built, builder.counts()), ("loaded", false, (1, 2)));
    assert_eq!(examine(&folder, &key()).unwrap(), Contents::Complete);
}

#[test]
fn every_part_of_the_key_makes_another_folder() {
    let change: [fn(&mut EngineKey); 5] = [
        |k| k.bundle.push('1'),
        |k| k.precision.push('1'),
        |k| k.device.push('1'),
        |k| k.onnx_runtime.push('1'),
        |k| k.tensorrt.push('1'),
    ];
    let mut names = vec![key().folder()];
    for change in change {
        let mut other = key();
        change(&mut other);
        names.push(other.folder());
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 6);
    assert!(names.iter().all(|name| name.starts_with("0123456789ab-")));
}

#[test]
fn damage_of_any_kind_is_noticed_removed_and_built_again() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 6] = [
        ("interrupted", |f| fs::remove_file(f.join(MARKER)).unwrap()),
        ("has 20 bytes", |f| {
            fs::write(f.join("encoder.engine"), &ENGINE[..20]).unwrap()
        }),
        ("another SHA-256", |f| {
            let mut bytes = ENGINE.to_vec();
            bytes[7] ^= 1;
            fs::write(f.join("encoder.engine"), bytes).unwrap();
        }),
        ("is missing", |f| fs::remove_file(f.join("encoder.engine")).unwrap()),
        ("is not in", |f| fs::write(f.join("decoder.engine"), "").unwrap()),
        (MARKER, |f| fs::write(f.join(MARKER), "format = ").unwrap()),
    ];
    for (reason, spoil) in cases {
        let (root, folder) = built();
        spoil(&folder);
        assert!(broken(&folder).contains(reason), "{reason}: {}", broken(&folder));
        let builder = Builder::new();
        let (opened, lease) = builder.run(root.path()).unwrap();
        assert_eq!(
            (opened, lease.built, builder.counts()),
            ("loaded", true, (1, 1)),
            "{reason}"
        );
        assert_eq!(examine(&folder, &key()).unwrap(), Contents::Complete);
        assert!(!folder.join("decoder.engine").exists());
    }
}

#[test]
fn a_marker_of_another_key_or_format_is_not_trusted() {
    let (_root, folder) = built();
    let mut other = key();
    other.tensorrt = "libnvinfer.so.8.6.2 1000".into();
    assert!(matches!(examine(&folder, &other).unwrap(), Contents::Broken(_)));
    let text = fs::read_to_string(folder.join(MARKER)).unwrap();
    fs::write(folder.join(MARKER), text.replace("format = 1", "format = 2")).unwrap();
    assert!(broken(&folder).contains("something else"));
}

#[test]
fn a_timing_cache_that_changes_later_breaks_nothing_and_helps_the_next_build() {
    let (root, folder) = built();
    fs::write(folder.join("kernels.timing"), "measured again").unwrap();
    assert_eq!(examine(&folder, &key()).unwrap(), Contents::Complete);
    let mut other = key();
    other.precision = "int8".into();
    let lent = RefCell::new(String::new());
    let builder = Builder::new();
    let mut open = |folder: Option<&Path>| {
        let found = fs::read_to_string(folder.unwrap().join("kernels.timing"));
        lent.borrow_mut().push_str(&found.unwrap_or_default());
        builder.open(folder)
    };
    with_engines(root.path(), &other, &Stages::default(), &mut open).unwrap();
    assert!(lent.borrow().starts_with("measured"), "{}", lent.borrow());
    // A damaged one would make the build fail: it is not lent.
    let kept = root.path().join("timing").join(key().timing()).join("kernels.timing");
    let mut bytes = fs::read(&kept).unwrap();
    bytes.pop();
    fs::write(&kept, bytes).unwrap();
    lend_timing(kept.parent().unwrap(), root.path());
    assert!(!root.path().join("kernels.timing").exists() && !kept.exists());
}

#[test]
fn an_engine_cut_short_by_a_full_disk_is_an_error_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let builder = Builder::new();
    for room in [0, 13, ENGINE.len() - 1] {
        builder.room.set(room);
        let error = builder.run(root.path()).unwrap_err().to_string();
        assert!(
            error.contains("not written completely") && error.contains("disk full"),
            "{error}"
        );
        assert!(!root.path().join(key().folder()).exists());
    }
    builder.room.set(usize::MAX);
    assert_eq!(builder.run(root.path()).unwrap().0, "loaded");
}

/// Run by the next test in a process that may not write more than one block into a file.
#[test]
#[ignore = "the next test runs it"]
fn child_with_a_small_file_limit() {
    let Some(root) = std::env::var_os("SAMCLIP_TEST_ROOT").map(PathBuf::from) else {
        return; // all ignored tests were asked for, without the limit
    };
    // Its marker is longer than the limit, its engine is not.
    let mut key = key();
    key.device = "a board with a long name ".repeat(100);
    let error = Builder::new().run_as(&root, &key, &Stages::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(MARKER) && error.contains("File too large"), "{error}");
    assert!(!root.join(key.folder()).exists(), "something was left");
}

#[test]
fn a_marker_that_does_not_fit_is_an_error_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    // As on a full disk, write() fails; the limit is one block, 512 or 1024 bytes.
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "runtime::engine_cache::tests::child_with_a_small_file_limit",
            "--ignored",
        ])
        .env("SAMCLIP_TEST_ROOT", root.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && output.contains("1 passed"), "{output}");
    assert_eq!(Builder::new().run(root.path()).unwrap().0, "loaded");
}

#[test]
fn a_build_that_fails_leaves_nothing_and_reports_its_own_error() {
    let root = tempfile::tempdir().unwrap();
    let mut open = |folder: Option<&Path>| -> Result<(), RuntimeError> {
        fs::write(folder.unwrap().join("half.engine"), "half").unwrap();
        Err(RuntimeError::NotBuilt)
    };
    let error = with_engines(root.path(), &key(), &Stages::default(), &mut open).unwrap_err();
    assert!(matches!(error, RuntimeError::NotBuilt), "{error}");
    assert!(!root.path().join(key().folder()).exists());
}

#[test]
fn a_provider_that_writes_no_engine_keeps_nothing() {
    let root = tempfile::tempdir().unwrap();
    let ((), lease) = with_engines(root.path(), &key(), &Stages::default(), &mut |_| Ok(())).unwrap();
    assert_eq!((lease.folder, lease.built), (None, true));
    assert!(!root.path().join(key().folder()).exists());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Builder::new().run(&file.join("engines")).unwrap_err().to_string();
    assert!(
        error.contains("file/engines") && error.contains("another cache directory"),
        "{error}"
    );
}

#[test]
fn while_another_process_builds_we_wait_and_then_load_its_engine() {
    let (root, folder) = built();
    // The other process: holds the lock alone and has not written its marker.
    let marker = fs::read(folder.join(MARKER)).unwrap();
    fs::remove_file(folder.join(MARKER)).unwrap();
    let other = File::create(root.path().join(format!("{}.lock", key().folder()))).unwrap();
    other.lock().unwrap();
    let finish = {
        let folder = folder.clone();
        move || {
            fs::write(folder.join(MARKER), &marker).unwrap();
            other.unlock().unwrap();
        }
    };
    let stages = Stages {
        waiting: Some(Box::new(finish)),
        ..Stages::default()
    };
    let builder = Builder::new();
    let (_, lease) = builder.run_as(root.path(), &key(), &stages).unwrap();
    assert_eq!((lease.built, builder.counts()), (false, (0, 1)));
    assert_eq!(
        *stages.seen.borrow(),
        [Stage::WaitForBuild(folder.clone()), Stage::LoadEngine(folder)]
    );
}

#[test]
fn waiting_ends_when_the_daemon_is_stopped() {
    let (root, folder) = built();
    let other = File::create(root.path().join(format!("{}.lock", key().folder()))).unwrap();
    other.lock().unwrap();
    let stages = Stages {
        cancelled: true,
        ..Stages::default()
    };
    let error = Builder::new().run_as(root.path(), &key(), &stages).unwrap_err();
    assert!(matches!(error, RuntimeError::Cancelled { path } if path == folder));
}

#[test]
fn broken_engines_in_use_elsewhere_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (_, lease) = Builder::new().run(root.path()).unwrap();
    let path = lease.folder.clone().unwrap().join("encoder.engine");
    fs::write(&path, "damaged").unwrap();
    let builder = Builder::new();
    let (opened, ours) = builder.run(root.path()).unwrap();
    assert_eq!((opened, ours.folder.as_deref()), ("in memory", None));
    assert_eq!(fs::read(&path).unwrap(), b"damaged");
    // Once nobody uses them any more they are built again.
    drop(lease);
    assert_eq!(builder.run(root.path()).unwrap().0, "loaded");
}

#[test]
fn engines_removed_by_hand_while_in_use_do_not_make_others_wait() {
    let root = tempfile::tempdir().unwrap();
    let (_, lease) = Builder::new().run(root.path()).unwrap();
    fs::remove_dir_all(lease.folder.as_ref().unwrap()).unwrap();
    assert_eq!(Builder::new().run(root.path()).unwrap().0, "in memory");
    drop(lease);
    assert_eq!(Builder::new().run(root.path()).unwrap().0, "loaded");
}

#[test]
fn two_processes_that_find_nothing_do_not_keep_each_other_from_building() {
    /// The other one looked at the same time; it is ready to build as soon as we wait.
    struct Other(File);
    impl Progress for Other {
        fn stage(&self, _: &Stage) {}

        fn cancelled(&self) -> bool {
            self.0.unlock().unwrap();
            assert!(self.0.try_lock().is_ok(), "the lock is held while waiting");
            self.0.unlock().unwrap();
            false
        }
    }
    let root = tempfile::tempdir().unwrap();
    let other = File::create(root.path().join(format!("{}.lock", key().folder()))).unwrap();
    other.lock_shared().unwrap();
    let builder = Builder::new();
    let mut open = |folder: Option<&Path>| builder.open(folder);
    let (opened, _lease) = with_engines(root.path(), &key(), &Other(other), &mut open).unwrap();
    assert_eq!(opened, "loaded");
}

#[test]
fn whoever_keeps_nothing_holds_no_lock() {
    let root = tempfile::tempdir().unwrap();
    let ((), _lease) = with_engines(root.path(), &key(), &Stages::default(), &mut |_| Ok(())).unwrap();
    let lock = File::open(root.path().join(format!("{}.lock", key().folder()))).unwrap();
    assert!(lock.try_lock().is_ok());
}

#[test]
fn looking_does_not_wait_for_a_build_and_makes_nothing() {
    let look = Stages {
        look_only: true,
        ..Stages::default()
    };
    let (root, _) = built();
    let other = File::create(root.path().join(format!("{}.lock", key().folder()))).unwrap();
    other.lock().unwrap();
    let error = Builder::new().run_as(root.path(), &key(), &look).unwrap_err();
    assert!(matches!(error, RuntimeError::EngineMissing { .. }), "{error}");
    let engines = root.path().join("new/engines");
    let error = Builder::new().run_as(&engines, &key(), &look).unwrap_err();
    assert!(matches!(error, RuntimeError::EngineMissing { .. }), "{error}");
    assert!(!root.path().join("new").exists());
}

#[test]
fn finished_engines_are_loaded_where_nothing_can_be_written() {
    for readable in [true, false] {
        let (root, folder) = built();
        // A lock that cannot be written, whoever runs the test: a folder, or a link to nowhere.
        let lock = root.path().join(format!("{}.lock", key().folder()));
        fs::remove_file(&lock).unwrap();
        if readable {
            fs::create_dir(&lock).unwrap();
        } else {
            std::os::unix::fs::symlink("/nowhere/lock", &lock).unwrap();
        }
        let builder = Builder::new();
        let (opened, lease) = builder.run(root.path()).unwrap();
        assert_eq!((opened, lease.built, builder.counts()), ("loaded", false, (0, 1)));
        let other = File::open(&lock);
        assert_eq!(other.is_ok_and(|other| other.try_lock().is_err()), readable);
        // What is not finished cannot be built there.
        fs::remove_file(folder.join(MARKER)).unwrap();
        let error = builder.run(root.path()).unwrap_err().to_string();
        assert!(error.contains(".lock: cannot be written"), "{error}");
        assert!(folder.join("encoder.engine").exists());
    }
}

#[test]
fn engines_built_for_another_gpu_under_the_same_key_are_sealed_too() {
    let (root, folder) = built();
    let builds = Cell::new(0);
    // As TensorRT's provider on another GPU: it finds no engine of its compute capability and builds one.
    let mut open = |folder: Option<&Path>| -> Result<(), RuntimeError> {
        let path = folder.unwrap().join("encoder_sm90.engine");
        if !path.exists() {
            builds.set(builds.get() + 1);
            fs::write(path, ENGINE).unwrap();
        }
        Ok(())
    };
    let stages = Stages::default();
    for built in [true, false] {
        let ((), lease) = with_engines(root.path(), &key(), &stages, &mut open).unwrap();
        assert_eq!((lease.built, builds.get()), (built, 1));
        assert_eq!(examine(&folder, &key()).unwrap(), Contents::Complete);
    }
    // The first GPU's engines are still good.
    assert_eq!(Builder::new().run(root.path()).unwrap().0, "loaded");
}

#[test]
fn looking_builds_nothing_and_removes_nothing() {
    let (root, folder) = built();
    let look = || Stages {
        look_only: true,
        ..Stages::default()
    };
    let builder = Builder::new();
    assert!(builder.run_as(root.path(), &key(), &look()).is_ok());
    fs::remove_file(folder.join(MARKER)).unwrap();
    let error = builder.run_as(root.path(), &key(), &look()).unwrap_err();
    assert!(error.to_string().contains("samclipd prepare"), "{error}");
    assert!(folder.join("encoder.engine").exists() && builder.counts() == (0, 1));
}

#[test]
fn only_the_newest_folders_are_kept_and_never_one_in_use() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let folders = |names: &[&str]| {
        let one = |(age, name): (usize, &&str)| ((*name).to_owned(), at(100 - age as u64));
        names.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    let newest_first = folders(&["a-1", "a-2", "b-1", "a-3", "b-2", "c-1", "d-1"]);
    assert_eq!(surplus(newest_first.clone(), "a-1", (2, 9)), ["a-3"]);
    assert_eq!(surplus(newest_first.clone(), "a-3", (3, 9)), Vec::<String>::new());
    assert_eq!(surplus(newest_first, "a-1", (3, 4)), ["b-2", "c-1", "d-1"]);

    let root = tempfile::tempdir().unwrap();
    let mut leases = Vec::new();
    let mut keys = Vec::new();
    for version in 0..6 {
        let mut key = key();
        key.tensorrt = format!("libnvinfer.so.{version}");
        let (_, lease) = Builder::new().run_as(root.path(), &key, &Stages::default()).unwrap();
        clean(root.path(), &key);
        let marker = File::options()
            .write(true)
            .open(lease.folder.as_ref().unwrap().join(MARKER))
            .unwrap();
        marker.set_modified(at(version)).unwrap();
        // The oldest stays in use.
        if version == 0 {
            leases.push(lease);
        }
        keys.push(key);
    }
    let there: Vec<bool> = keys.iter().map(|k| root.path().join(k.folder()).exists()).collect();
    assert_eq!(there, [true, false, false, true, true, true]);
}

#[test]
fn a_size_that_is_missing_is_built_and_the_others_are_loaded_however_old_they_are() {
    let root = tempfile::tempdir().unwrap();
    let keys = ["at 320", "at 224", "at 160", "int8 at 320"].map(|precision| EngineKey {
        precision: precision.into(),
        ..key()
    });
    let open = |builder: &Builder, key: &EngineKey| builder.run_as(root.path(), key, &Stages::default()).unwrap().1;
    for (age, key) in (1..).zip(&keys) {
        let folder = open(&Builder::new(), key).folder.unwrap();
        let marker = File::options().write(true).open(folder.join(MARKER)).unwrap();
        marker
            .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age))
            .unwrap();
    }
    // The engines of another variant are newer than those that go with the one that is gone.
    fs::remove_dir_all(root.path().join(keys[0].folder())).unwrap();
    let (builder, sizes) = (Builder::new(), &keys[..3]);
    let _leases: Vec<Lease> = sizes.iter().map(|key| open(&builder, key)).collect();
    clean(root.path(), &keys[0]);
    assert_eq!(builder.counts(), (1, 3));
    assert!(sizes.iter().all(|key| root.path().join(key.folder()).exists()));
}
