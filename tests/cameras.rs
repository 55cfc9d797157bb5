//! The daemon on the kernel's own camera drivers, with everything that goes wrong with cameras.
//!
//! Runs in the machine of `tests/vm` only (`tests/vm/cameras` starts it): it loads and unloads kernel modules, unplugs
//! cameras and sets the clock. Cameras: `vivid`, a virtual one that injects errors, and `uvcvideo` on a webcam made of
//! software. The model is the bundle that answers by colour, so that masks are known: vivid shows all red, the webcam a red,
//! a green and a blue column. Every test prints lines of one table: camera, format, fault, figures.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod camera_rig;
mod mosquitto;
mod tiny;
mod webcam;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use camera_rig::{Rig, Vivid, control, matrix, run, until_there};
use samclip::message::payload::FrameMessage;
use webcam::Webcam;

/// The stable name that udev gives the webcam.
const LINK: &str = "/dev/v4l/by-id/usb-samclip_Software_Webcam_0815-video-index0";

/// Plugs the webcam in and waits until it has its stable name.
fn plug_in(tables: bool) -> Webcam {
    let webcam = Webcam::plug_in("0815", tables);
    until_there(Path::new(LINK));
    webcam
}

/// All red, without text in it, ten pictures a second.
const RED: &str = "controls = { test_pattern = \"100% Red\", osd_text_mode = \"none\" }";

fn vivid_camera(id: &str, options: &str) -> String {
    format!("[[camera]]\nid = \"{id}\"\nsource = \"v4l2://card:vivid?timeout=4{options}\"\nfps = 10\n{RED}\n")
}

fn webcam_camera(id: &str, options: &str) -> String {
    format!("[[camera]]\nid = \"{id}\"\nsource = \"v4l2://serial:0815?timeout=2{options}\"\nfps = 10\n")
}

/// Where the things of one colour begin and end, in pixels from the left.
fn columns(frame: &FrameMessage, query: &str) -> Vec<[u32; 2]> {
    let found = frame.detections.iter().filter(|d| d.query == query);
    found.map(|d| [d.bbox[0], d.bbox[2]]).collect()
}

fn all_red(frame: &FrameMessage) -> bool {
    columns(frame, "red") == [[0, frame.size[0]]] && frame.detections.len() == 1
}

/// Whether every colour is found in its third of the picture, to half a patch.
fn three_columns(frame: &FrameMessage) -> bool {
    let width = frame.size[0];
    let near = |a: u32, b: u32| a.abs_diff(b) <= width / 10;
    let found = |(at, query): (u32, &str)| match columns(frame, query)[..] {
        [[from, to]] => near(from, at * width / 3) && near(to, (at + 1) * width / 3),
        _ => false,
    };
    [(0, "red"), (1, "green"), (2, "blue")].into_iter().all(found)
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t01_every_format_of_both_kernel_interfaces_gives_the_mask_of_its_colour() {
    for (interface, codes) in [
        (Vivid::SINGLE_PLANAR, &["YUYV", "UYVY", "NV12", "RGB3", "GREY"][..]),
        (Vivid::MULTI_PLANAR, &["NV12", "YUYV"]),
    ] {
        let _vivid = Vivid::load(interface);
        for code in codes {
            let mut rig = Rig::start(&vivid_camera("cam", &format!("&size=640x360&format={code}")));
            let frames = rig.frames("cam", 8);
            assert!(frames.iter().all(|f| f.size == [640, 360]), "{frames:?}");
            // Grey has no colour to find.
            let good = frames.iter().filter(|f| all_red(f) == (*code != "GREY")).count();
            assert_eq!(good, frames.len(), "{code}: {frames:?}");
            let found = if *code == "GREY" {
                "no colour in any frame"
            } else {
                "all red in every frame"
            };
            matrix(interface, code, "none", &rig.figures(found));
        }
    }
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t02_the_usb_webcam_gives_the_masks_of_its_columns() {
    for (format, tables) in [("MJPG", true), ("MJPG", false), ("YUYV", true)] {
        let _webcam = plug_in(tables);
        let mut rig = Rig::start(&webcam_camera("cam", &format!("&size=320x240&format={format}")));
        let frames = rig.frames("cam", 8);
        assert!(
            frames.iter().all(|f| f.size == [320, 240] && three_columns(f)),
            "{frames:?}"
        );
        let name = if tables {
            format.to_owned()
        } else {
            format!("{format} without tables")
        };
        matrix("uvcvideo", &name, "none", &rig.figures("three columns in every frame"));
    }
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t03_the_cheapest_format_is_chosen_and_what_is_not_there_is_said() {
    let _vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let _webcam = plug_in(true);
    // The model looks at 96 pixels: the smallest raw size of each.
    let mut rig = Rig::start(&(vivid_camera("red", "") + &webcam_camera("usb", "")));
    rig.until_log("YUYV 320x180, 10 frames per second");
    rig.until_log("YUYV 320x240, 10 frames per second");
    assert!(rig.frames("red", 3).iter().all(all_red) && rig.frames("usb", 3).iter().all(three_columns));
    drop(rig);
    let rig = Rig::start(&webcam_camera("usb", "&format=NV12"));
    rig.until_log("driver offers MJPG, YUYV; format=NV12 was asked for");
    drop(rig);
    let rig = Rig::start("[[camera]]\nid = \"usb\"\nsource = \"v4l2://serial:4711\"\ncontrols = { brightness = 9 }\n");
    rig.until_log("no camera is called \\\"serial:4711\\\"; found /dev/video0 (\\\"vivid");
    matrix(
        "both",
        "chosen",
        "none",
        "vivid YUYV 320x180, webcam YUYV 320x240, both at 10 fps",
    );
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t04_vivid_comes_back_however_it_goes() {
    let vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
    let mut reopened = 0;
    for fault in [
        "unbound",
        "disconnect",
        "inject_fatal_streaming_error",
        "inject_vidioc_qbuf_error",
    ] {
        rig.frames("cam", 3);
        let away = match fault {
            "unbound" => {
                vivid.unbind();
                rig.until_status("cam", "offline");
                vivid.bind();
                "until bound again"
            }
            button => {
                control("vivid", &format!("{button}=1"));
                rig.until_status("cam", "offline");
                "by itself"
            }
        };
        rig.until_status("cam", "online");
        let frames = rig.frames("cam", 3);
        // Whatever is set is set again.
        assert!(frames.iter().all(all_red), "{fault}: {frames:?}");
        reopened += 1;
        matrix(
            "vivid",
            "YUYV",
            fault,
            &rig.figures(&format!("offline {away}, then all red")),
        );
    }
    assert!(rig.stats("cam").reopened >= reopened, "{:?}", rig.stats("cam"));
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t05_a_camera_that_refuses_is_tried_again() {
    let vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    for button in ["inject_vidioc_reqbufs_error", "inject_vidioc_streamon_error"] {
        control("vivid", &format!("{button}=1"));
        let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
        rig.until_log("source failed; tried again until it works");
        rig.frames("cam", 3);
        matrix("vivid", "YUYV", button, &rig.figures("refused once, then frames"));
    }
    // Another program streams.
    let mut other = vivid.stream_elsewhere();
    let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
    rig.until_log("another program uses the camera; end it");
    other.kill().unwrap();
    other.wait().unwrap();
    rig.frames("cam", 3);
    matrix(
        "vivid",
        "YUYV",
        "busy",
        &rig.figures("EBUSY until the other program ended"),
    );
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t06_what_vivid_damages_drops_and_wraps_is_counted_and_does_no_harm() {
    let _vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
    rig.frames("cam", 2);
    control("vivid", "inject_v4l2_buf_flag_error=1");
    rig.frames("cam", 4);
    control("vivid", "percentage_of_dropped_buffers=50");
    rig.frames("cam", 10);
    control("vivid", "percentage_of_dropped_buffers=0");
    let stats = rig.stats("cam");
    assert!(
        stats.corrupt >= 1 && stats.lost >= 3 && stats.reopened == 0,
        "{stats:?}"
    );
    let figures = format!("{} corrupt, {} lost, no reopening", stats.corrupt, stats.lost);
    matrix("vivid", "YUYV", "marked and dropped buffers", &figures);
    drop(rig);
    // Frame numbers that start just below 2^32, time stamps that wrap around.
    for wrap in ["wrap_sequence_number=1", "wrap_timestamp=1", "wrap_timestamp=2"] {
        control("vivid", wrap);
        let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
        // vivid starts 128 frames below the end.
        rig.frames("cam", if wrap.starts_with("wrap_s") { 150 } else { 20 });
        let stats = rig.stats("cam");
        assert!(stats.lost < 100 && stats.reopened == 0, "{wrap}: {stats:?}");
        matrix("vivid", "YUYV", wrap, &rig.figures(&format!("{} lost", stats.lost)));
        control("vivid", "wrap_sequence_number=0");
        control("vivid", "wrap_timestamp=0");
    }
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t07_the_webcam_is_found_again_under_another_number() {
    let mut webcam = plug_in(true);
    let link = Path::new(LINK);
    let by_link = format!(
        "[[camera]]\nid = \"link\"\nsource = \"v4l2://{}?timeout=2\"\n",
        link.display()
    );
    for (name, config) in [
        ("serial", webcam_camera("cam", "")),
        ("by-id", by_link.replace("\"link\"", "\"cam\"")),
    ] {
        let mut rig = Rig::start(&(config + "controls = { brightness = 77, contrast = 5 }\n"));
        rig.frames("cam", 3);
        let before = link.canonicalize().unwrap();
        // A node that somebody holds open keeps its number.
        let held = std::fs::File::open(&before).unwrap();
        drop(webcam);
        rig.until_status("cam", "offline");
        rig.until_log("camera is gone (");
        webcam = plug_in(true);
        rig.until_status("cam", "online");
        assert!(rig.frames("cam", 3).iter().all(three_columns));
        let after = link.canonicalize().unwrap();
        assert_ne!(before, after);
        drop(held);
        let set = webcam.manner.controls.each_ref().map(|c| c.load(Ordering::Relaxed));
        assert_eq!(set, [77, 5], "controls are set again");
        let figures = format!("{} became {}, controls set again", before.display(), after.display());
        matrix(
            "uvcvideo",
            "YUYV",
            &format!("unplugged, by {name}"),
            &rig.figures(&figures),
        );
    }
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t08_a_webcam_that_stalls_or_sends_rubbish_is_noticed() {
    // At its own rate, and at one that leaves most of its pictures out.
    for (fps, least) in [(10, 4), (4, 2)] {
        let webcam = plug_in(true);
        let camera = webcam_camera("cam", "&format=MJPG&size=320x240");
        let mut rig = Rig::start(&camera.replace("fps = 10", &format!("fps = {fps}")));
        rig.frames("cam", 3);
        webcam.manner.cut_every.store(3, Ordering::Relaxed);
        assert!(rig.frames("cam", 12).iter().all(three_columns));
        let stats = rig.stats("cam");
        assert!(stats.corrupt >= least && stats.reopened == 0, "{stats:?}");
        matrix(
            "uvcvideo",
            "MJPG",
            &format!("every third picture cut, {fps} fps"),
            &format!("{} corrupt, none shown", stats.corrupt),
        );
        // Nothing but damage is as good as nothing.
        webcam.manner.cut_every.store(1, Ordering::Relaxed);
        rig.until_status("cam", "offline");
        rig.until_log("no good frame for");
        webcam.manner.cut_every.store(0, Ordering::Relaxed);
        rig.until_status("cam", "online");
        matrix(
            "uvcvideo",
            "MJPG",
            &format!("every picture cut, {fps} fps"),
            &rig.figures("offline, then online"),
        );
        webcam.manner.frames_left.store(2, Ordering::Relaxed);
        rig.until_status("cam", "offline");
        rig.until_log("the camera hangs");
        webcam.manner.frames_left.store(u32::MAX, Ordering::Relaxed);
        rig.until_status("cam", "online");
        assert!(rig.frames("cam", 3).iter().all(three_columns));
        matrix(
            "uvcvideo",
            "MJPG",
            &format!("stalled, {fps} fps"),
            &rig.figures("offline, then online"),
        );
    }
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t09_the_wall_clock_may_jump() {
    let _vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let mut rig = Rig::start(&vivid_camera("cam", "&size=320x180"));
    rig.frames("cam", 3);
    for jump in ["+1 day", "-2 days", "+1 day"] {
        run("date", &["-s", jump]);
        // Those on their way still tell the old time.
        rig.frames_of_any_time("cam", 4);
        rig.frames("cam", 5);
        matrix(
            "vivid",
            "YUYV",
            &format!("clock set by {jump}"),
            &rig.figures("time stamps follow"),
        );
    }
    assert_eq!(rig.stats("cam").reopened, 0);
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t10_one_camera_s_trouble_is_not_another_s() {
    let vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let webcam = plug_in(true);
    let mut rig = Rig::start(&(vivid_camera("red", "&size=320x180") + &webcam_camera("usb", "")));
    rig.until_status("usb", "online");
    rig.until_status("red", "online");
    vivid.unbind();
    rig.until_status("red", "offline");
    assert!(rig.frames("usb", 5).iter().all(three_columns));
    vivid.bind();
    rig.until_status("red", "online");
    webcam.manner.frames_left.store(0, Ordering::Relaxed);
    rig.until_status("usb", "offline");
    assert!(rig.frames("red", 5).iter().all(all_red));
    matrix("both", "YUYV", "one away at a time", &rig.figures("the other goes on"));
    // A daemon with a camera that hangs ends at once all the same.
    assert!(rig.stop() < Duration::from_secs(15));
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t11_commands_say_what_is_plugged_in() {
    let _vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let _webcam = plug_in(true);
    let list = run(env!("CARGO_BIN_EXE_samclipd"), &["cameras"]);
    for line in [
        "driver vivid, at platform:vivid-000",
        "source = \"v4l2://card:vivid\"",
        "source = \"v4l2:///dev/v4l/by-path/platform-vivid.0-video-index0\"",
        "source = \"v4l2://serial:0815\"",
        &format!("source = \"v4l2://{LINK}\""),
        "    1280x720     10, 15, 30 fps",
        "not read by samclip: YVYU",
        "brightness                   = 128      0 to 255, default 128",
        "7 \"100% Red\"",
    ] {
        assert!(list.contains(line), "{line} is not in\n{list}");
    }
    // The webcam's metadata node is no camera.
    assert_eq!(
        list.lines().filter(|l| l.starts_with("/dev/video")).count(),
        2,
        "{list}"
    );
    let rig = Rig::start(&(vivid_camera("red", "") + &webcam_camera("usb", "")));
    let (good, said) = rig.doctor();
    assert!(good && said.contains("ok       red: /dev/video0 vivid: YUYV"), "{said}");
    assert!(said.contains("ok       usb: /dev/video"), "{said}");
    drop(rig);
    for (source, says) in [
        (
            "v4l2://card:vivid\"\ncontrols = { gian = 7 }",
            "red: /dev/video0 vivid: control \"gian\" is not there, the camera has",
        ),
        (
            "v4l2://card:vivid\"\ncontrols = { gain = 700 }",
            "gain is 700, expected 0 to 255",
        ),
        (
            "v4l2://card:vivid?format=MJPG\"",
            "format=MJPG is asked for, it offers YUYV, UYVY, NV12, GREY, RGB3",
        ),
        ("v4l2://4711a\"", "no camera is called \"4711a\"; found /dev/video0"),
    ] {
        let rig = Rig::prepare(&format!("[[camera]]\nid = \"red\"\nsource = \"{source}\n"));
        let (good, said) = rig.doctor();
        assert!(!good && said.contains(says), "{says} is not in\n{said}");
    }
    matrix(
        "both",
        "",
        "none",
        "cameras and doctor say what is there and what is missing",
    );
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t12_many_unpluggings_leave_nothing_behind() {
    let rounds: u64 = std::env::var("SAMCLIP_REPLUGS").map_or(8, |n| n.parse().unwrap());
    let mut webcam = plug_in(true);
    let mut rig = Rig::start(&webcam_camera("cam", ""));
    let mut memory = Vec::new();
    for round in 0..rounds {
        rig.frames("cam", 2);
        if round == 2 || round + 1 == rounds {
            memory.push((rig.memory_kib(), rig.open_files()));
        }
        drop(webcam);
        rig.until_status("cam", "offline");
        webcam = plug_in(true);
        rig.until_status("cam", "online");
    }
    rig.frames("cam", 2);
    assert_eq!(rig.stats("cam").reopened, rounds);
    let [(before, files_before), (after, files_after)] = memory[..] else {
        panic!("{memory:?}")
    };
    assert!(after < before + 4096 && files_after <= files_before, "{memory:?}");
    let figures = format!(
        "{rounds} reconnects; {before} KiB and {files_before} files after 3, {after} KiB and {files_after} files at the end"
    );
    matrix("uvcvideo", "YUYV", "unplugged many times", &figures);
}

#[test]
#[ignore = "needs the machine of tests/vm"]
fn t13_the_bundled_model_finds_what_vivid_shows() {
    let _vivid = Vivid::load(Vivid::SINGLE_PLANAR);
    let cache =
        std::env::var("SAMCLIP_TEXTS").expect("SAMCLIP_TEXTS: a cache with the query's text, which takes long here");
    let camera = "[[camera]]\nid = \"cam\"\nsource = \"v4l2://card:vivid?format=NV12\"\nfps = 1\n\
         controls = { osd_text_mode = \"None\" }\n\
         [[query]]\nid = \"curtain\"\nthreshold = 0.02\n";
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    let mut rig = Rig::start_with(&bundle, camera, &format!("cache = {cache:?}\n"));
    let frames = rig.frames("cam", 2);
    assert!(
        frames.iter().all(|f| f.size == [320, 180] && !f.detections.is_empty()),
        "{frames:?}"
    );
    let found: Vec<_> = frames[0].detections.iter().map(|d| (d.score, d.bbox)).collect();
    matrix(
        "vivid",
        "NV12",
        "none",
        &rig.figures(&format!("nano: curtain {found:?}")),
    );
}
