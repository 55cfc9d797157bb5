//! Runs that stop before their end: what they say, what they leave, and how they go on.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use samclip::train::dataset::{Split, split};

use super::*;

/// What the run says as it ends with an error, which is none of its own.
fn refused(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A stage's curve as it is written; of lines with the same step and name the last one counts.
fn curve(out: &Path, stage: &str) -> BTreeMap<(u64, String), String> {
    let text = std::fs::read_to_string(out.join(format!("{stage}.curve.csv"))).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("step,name,value"));
    let line = |line: &str| {
        let [step, name, value] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("{line}: {text}")
        };
        ((step.parse().unwrap(), name.to_owned()), value.to_owned())
    };
    lines.map(line).collect()
}

#[test]
fn a_killed_run_goes_on_with_the_curve_and_the_weights_of_one_that_was_not_killed() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = changed(folder.path(), "watched.toml", |recipe| {
        recipe.distill.steps = 160;
        recipe.distill.watch = Some(Watch {
            every: 40,
            photos: 2,
            tolerance: 100.0,
        });
    });
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    let distill = |out: &Path| {
        let output = train(&on_scenes("distill", &recipe, out));
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    distill(&whole);

    let mut run = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(on_scenes("distill", &recipe, &stopped))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The checkpoint is of step 100; what comes behind it is done twice.
    let file = stopped.join("distill.curve.csv");
    let patience = Instant::now() + Duration::from_secs(240);
    while !std::fs::read_to_string(&file).is_ok_and(|curve| curve.contains("\n125,")) {
        assert!(Instant::now() < patience, "no step 125 after four minutes");
        assert!(run.try_wait().unwrap().is_none(), "ended before step 125");
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill().unwrap();
    assert_eq!(run.wait().unwrap().signal(), Some(9), "ended before it was killed");
    let checkpoint = |out: &Path| out.join("distill.safetensors");
    assert_eq!(weights::read_metadata(&checkpoint(&stopped)).unwrap()["step"], "100");
    // A full disk would have cut the last line.
    let written = std::fs::read(&file).unwrap();
    std::fs::write(&file, &written[..written.len() - 3]).unwrap();

    distill(&stopped);
    let (expected, found) = (curve(&whole, "distill"), curve(&stopped, "distill"));
    for step in [0, 25, 40, 100, 120, 125, 150, 160] {
        assert!(expected.keys().any(|(at, _)| *at == step), "step {step}: {expected:?}");
    }
    assert_eq!(found, expected);
    let read = |out: &Path| weights::read(&checkpoint(out)).unwrap();
    assert!(read(&stopped) == read(&whole), "weights and moments, to the bit");
}

#[test]
fn a_teacher_of_other_dimensions_is_refused_by_file_tensor_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    for (flag, file, expected) in [
        (
            "--sam",
            "sam_tiny.pth",
            "image_encoder.pos_embed has shape [1, 12, 12, 48], expected [1, 4, 4, 32]",
        ),
        (
            "--clip",
            "clip_tiny.safetensors",
            "visual.conv1.weight has shape [48, 3, 16, 16], expected [32, 3, 16, 16]",
        ),
    ] {
        let out = folder.path().join(file);
        let file = golden.join(file).display().to_string();
        let said = refused(&train(&[&on_scenes("run", &recipe, &out)[..], &[flag, &file]].concat()));
        assert!(said.contains(&format!("{file} does not fit the model")), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(
            !out.join("sam_teacher.safetensors").exists(),
            "said before a teacher is trained"
        );
        assert!(!out.join("probe.safetensors").exists() && !out.join("bundle").exists());
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_what_came_before_is_kept_for_a_lower_rate() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let wild = changed(folder.path(), "wild.toml", |recipe| {
        (recipe.probe.steps, recipe.probe.learning_rate) = (4, 1e30);
    });
    let said = refused(&train(&on_scenes("run", &wild, &out)));
    let checkpoint = out.join("probe.safetensors");
    assert!(
        said.contains("stage probe, step ") && said.contains("no finite number"),
        "{said}"
    );
    assert!(
        said.contains("lower the stage's learning_rate") && said.contains(checkpoint.to_str().unwrap()),
        "{said}"
    );
    assert!(!checkpoint.exists() && !out.join("bundle").exists());

    let teachers = ["sam_teacher", "clip_teacher"].map(|name| out.join(format!("{name}.safetensors")));
    let kept = teachers.each_ref().map(|path| std::fs::read(path).unwrap());
    let output = train(&on_scenes("probe", &tiny_recipe(folder.path()), &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(checkpoint.is_file());
    assert!(teachers.map(|path| std::fs::read(path).unwrap()) == kept);
}

/// Scenes drawn into a tar, and the keys of those that are learnt from.
fn drawn_scenes(folder: &Path) -> (PathBuf, Vec<String>) {
    let tar = folder.join("scenes.tar");
    let drawn = train(&["synth", "--out", tar.to_str().unwrap(), "--count", "6", "--side", "64"]);
    assert!(drawn.status.success(), "{}", text(&drawn.stderr));
    let keys = (0..6).map(|index| format!("synth_0_{index:06}"));
    (tar, keys.filter(|key| split(key) == Split::Train).collect())
}

#[test]
fn a_damaged_photo_is_named_with_its_tar_and_the_run_goes_on_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, keys) = drawn_scenes(folder.path());
    let mut bytes = std::fs::read(&tar).unwrap();
    let member = format!("{}.jpg", keys[1]);
    let header = bytes.windows(member.len()).position(|name| name == member.as_bytes());
    // Behind the member's header of 512 bytes lies the picture.
    bytes[header.unwrap() + 512..][..64].fill(0);
    std::fs::write(&tar, bytes).unwrap();
    // More pictures than there are, so that the turn comes to each.
    let recipe = changed(folder.path(), "photos.toml", |recipe| {
        recipe.synth_share = 0.0;
        recipe.teach_sam.as_mut().unwrap().steps = 8;
    });
    let out = folder.path().join("run");
    let arguments = [&on_scenes("run", &recipe, &out)[..], &["--data", tar.to_str().unwrap()]].concat();
    let output = train(&arguments);
    let said = text(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
    let named =
        |line: &str| line.contains(&keys[1]) && line.contains(tar.to_str().unwrap()) && line.contains("skipped");
    assert!(said.lines().any(named), "{said}");
    let in_all = "photos that could not be read gave way to others skipped=1";
    assert!(said.contains(in_all), "{said}");
    assert!(!said.contains(&keys[0]), "the others are whole: {said}");
    Manifest::read(&out.join("bundle")).unwrap();
}

#[test]
fn a_tar_that_ends_early_ends_the_run_by_name_and_the_run_goes_on_once_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, _) = drawn_scenes(folder.path());
    let whole = std::fs::read(&tar).unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let teachers = [
        &on_scenes("teachers", &recipe, &out)[..],
        &["--data", tar.to_str().unwrap()],
    ]
    .concat();
    let taught = || train(&teachers);
    assert!(taught().status.success());
    let kept = std::fs::read(out.join("sam_teacher.safetensors")).unwrap();

    let run = [
        &on_scenes("probe", &recipe, &out)[..],
        &["--data", tar.to_str().unwrap()],
    ]
    .concat();
    std::fs::write(&tar, &whole[..whole.len() / 2]).unwrap();
    let said = refused(&train(&run));
    assert!(
        said.contains(&format!("{}: tar ends early", tar.display())) && said.contains("copy the file again"),
        "{said}"
    );
    std::fs::write(&tar, &whole).unwrap();
    let output = train(&run);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::fs::read(out.join("sam_teacher.safetensors")).unwrap() == kept);
}
