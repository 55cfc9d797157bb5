//! `train study` and `train calibrate` as commands, from drawn scenes to what they write.

use super::*;

/// The tiny recipe as a study asks for it: the paper's steps and losses, nothing behind stage 2.
fn study_recipe(folder: &Path) -> PathBuf {
    let mut recipe = Recipe::read(&tiny_recipe(folder)).unwrap();
    let size = |side, batch| BatchSize { side, batch };
    let clip = vec![size(32, 2), size(48, 1)];
    recipe.probe.separate = Some(Separate {
        clip: clip.clone(),
        sam_batch: 0,
    });
    recipe.distill.separate = Some(Separate { clip, sam_batch: 1 });
    recipe.distill.watch = Some(Watch {
        every: 1,
        photos: 2,
        tolerance: 100.0,
    });
    (recipe.adapt, recipe.words, recipe.synth_share) = (None, None, 0.0);
    recipe.export.sizes.clear();
    let losses = &mut recipe.losses;
    (losses.clip, losses.sam, losses.labelled, losses.region_text) = (1.0, 10.0, 0.0, 0.0);
    let path = folder.join("study.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

#[test]
fn a_study_ends_with_verdicts_figures_plots_and_pictures_and_takes_up_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (study_recipe(folder.path()), folder.path().join("study"));
    let arguments = [
        &on_scenes("study", &recipe, &out)[..],
        &["--scenes", "24", "--photos", "2"],
    ]
    .concat();
    let study = || {
        let output = train(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report = out.join("report.md");
        assert_eq!(text(&output.stdout).trim(), report.to_str().unwrap());
        let figures = std::fs::read(out.join("figures.json")).unwrap();
        let figures: serde_json::Value = serde_json::from_slice(&figures).unwrap();
        (std::fs::read_to_string(report).unwrap(), figures[0].clone())
    };
    let (report, figures) = study();
    for claim in 'a'..='i' {
        let row = report.lines().find(|line| line.starts_with(&format!("| ({claim}) ")));
        let row = row.unwrap_or_else(|| panic!("claim {claim}: {report}"));
        let outcome = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        assert!(["reproduced", "not shown", "contradicted"].contains(&outcome), "{row}");
        let found = report.lines().find(|line| line.starts_with(&format!("**({claim}) ")));
        assert!(found.unwrap().contains(&format!("**: {outcome}. Rule: ")), "{report}");
    }
    assert_eq!(
        (figures["source"].as_str(), figures["samples"].as_u64()),
        (Some("drawn"), Some(24))
    );
    let variants = figures["variants"].as_array().unwrap();
    let names: Vec<&str> = variants.iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 11);
    assert_eq!(
        names[..5],
        ["untrained", "probed", "two-stage", "repeat", "second repeat"]
    );
    for variant in variants {
        let name = variant["name"].as_str().unwrap();
        assert!(report.contains(&format!("| {name} | ")), "{name}: {report}");
        for figure in ["understanding", "boxes", "clip_head_low", "clip_head", "both_heads"] {
            let percent = variant["figures"][figure].as_f64().unwrap();
            assert!((0.0..=100.0).contains(&percent), "{name}, {figure}: {percent}");
        }
        let curve = variant["curve"].as_array().unwrap();
        let looks = curve.iter().filter(|point| point[1] == "box mask IoU").count();
        let steps = match name {
            "untrained" | "probed" => None,
            "unprobed" => Some(4),
            _ => Some(2),
        };
        assert_eq!(
            looks,
            steps.map_or(0, |steps| steps + 1),
            "{name}: a look before and one after each step"
        );
    }
    let places = |list: &str, key: &str| -> Vec<u64> {
        let list = figures[list].as_array().unwrap().iter();
        list.map(|entry| entry[key].as_u64().unwrap()).collect()
    };
    let sides = [32, 32, 48, 64, 64, 80, 96];
    assert_eq!(places("sizes", "side"), [sides, sides].concat());
    assert_eq!(figures["interpolated"].as_array().unwrap().len(), 11);
    assert_eq!(figures["comparison"]["probes"].as_array().unwrap().len(), 8);
    let [none, one, two] = [0, 1, 2].map(|i| figures["comparison"]["peak_mib"][i].as_f64().unwrap());
    assert!(none > 1.0 && one > none && two > none, "{none} {one} {two}");
    assert!(report.contains("| peak memory above the "), "{report}");
    for plot in ["forgetting", "loss", "wise_ft", "sizes"] {
        let name = format!("drawn_{plot}.svg");
        let svg = std::fs::read_to_string(out.join(&name)).unwrap();
        assert!(svg.contains("<svg") && report.contains(&name), "{name}");
    }
    let masks = image::open(out.join("masks.png")).unwrap();
    assert_eq!(masks.width(), 4 * 68, "the scene and three models beside it");

    // A full disk cut a curve, and the run stood one variant before its end.
    let curve = out.join("drawn/two-stage/distill.curve.csv");
    let written = std::fs::read_to_string(&curve).unwrap();
    std::fs::write(&curve, format!("{written}2,cl")).unwrap();
    std::fs::remove_dir_all(out.join("drawn/all-sizes")).unwrap();
    let (_, again) = study();
    for part in ["variants", "interpolated", "sizes"] {
        assert_eq!(again[part], figures[part], "{part}");
    }
}

#[test]
fn calibration_chooses_the_lowest_threshold_that_is_quiet_enough_and_writes_it_for_one_size() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let output = train(&on_scenes("run", &recipe, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (bundle, tar) = (out.join("bundle"), folder.path().join("scenes.tar"));
    let [bundle_path, tar] = [&bundle, &tar].map(|path| path.to_str().unwrap());
    let drawn = train(&["synth", "--out", tar, "--count", "12", "--side", "64"]);
    assert!(drawn.status.success(), "{}", text(&drawn.stderr));
    let calibrate = |further: &[&str]| {
        let arguments = ["calibrate", "--bundle", bundle_path, "--data", tar, "--photos", "6"];
        train(&[&arguments[..], further].concat())
    };
    let done = |further: &[&str]| {
        let output = calibrate(further);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let written = |side: usize| {
        let bundle = Manifest::read(&bundle).unwrap();
        bundle.at(side).unwrap().manifest.calibration.threshold
    };

    let printed = done(&["--alarms", "10"]);
    assert_eq!(written(96), 0.05, "ten of ten may be alarms: {printed}");
    // Thresholds and the alarms of ten absent queries, each asked alone.
    let rows = printed.lines().filter_map(|line| line.strip_prefix("| threshold "));
    let rows: Vec<(f32, f32)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[0].parse().unwrap(), cells[5].parse().unwrap())
        })
        .collect();
    assert_eq!(rows.len(), 19, "{printed}");
    assert!(
        printed.contains("6 training photos at 96 px; at most 10 alarms"),
        "{printed}"
    );
    let (most, least) = (rows[0].1, rows[rows.len() - 1].1);
    assert!(most > least, "{printed}");
    // Between two rows, which are printed with two digits.
    let wanted = (most + least) / 2.0 + 0.01;
    let (expected, _) = rows.iter().find(|(_, alarms)| *alarms <= wanted).unwrap();
    let printed = done(&["--alarms", &wanted.to_string()]);
    let said = format!("threshold {expected:.2} written to {bundle_path}");
    assert!(printed.contains(&said), "{said}: {printed}");
    assert_eq!(written(96), *expected);

    // One size of the bundle has its own.
    done(&["--alarms", "10", "--side", "64"]);
    assert_eq!((written(96), written(64)), (*expected, 0.05));

    let refused = calibrate(&["--alarms=-1"]);
    let said = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("at no threshold fewer than"),
        "{said}"
    );
    assert_eq!((written(96), written(64)), (*expected, 0.05), "nothing is written");
}
