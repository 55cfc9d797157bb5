//! Good and bad files, and the text of every refusal.

use super::*;
use crate::publish::link::Version;
use proptest::prelude::*;

const FULL: &str = r##"
model = "/usr/share/samclip/models/nano"

[runtime]
engine = "ort"
provider = "tensorrt"
library = "/opt/libonnxruntime.so"

[[camera]]
id = "dock"
source = "v4l2:///dev/video0"
fps = 5

[[query]]
id = "blue-pallet"
prompts = ["a blue pallet", "blue plastic pallet"]
threshold = 0.6
min_area = 400
color = "#2040ff"

[[query]]
id = "hard-hat"

[mqtt]
host = "broker.lan"
prefix = "site-3/samclip"

[output]
rle = true
tolerance = 2.5
"##;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("samclipd.toml"))
}

fn refused(from: &str, to: &str) -> String {
    assert!(FULL.contains(from), "{from}");
    parse(&FULL.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn a_full_file_becomes_a_checked_configuration() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.model, Path::new("/usr/share/samclip/models/nano"));
    assert_eq!((config.engine, config.provider), (Engine::Ort, Provider::TensorRt));
    assert_eq!(
        (config.cameras[0].id.as_str(), config.cameras[0].fps),
        ("dock", Some(5.0))
    );
    let query = &config.queries[0];
    assert_eq!(
        (query.prompts.len(), query.threshold, query.min_area),
        (2, Some(0.6), 400)
    );
    assert_eq!(query.color, Some([0x20, 0x40, 0xff]));
    let query = &config.queries[1];
    assert_eq!(
        (query.prompts.as_slice(), query.threshold, query.min_area),
        (&["hard hat".to_owned()][..], None, 64)
    );
    let mqtt = config.mqtt.unwrap();
    assert_eq!(
        (mqtt.host.as_str(), mqtt.port, mqtt.client_id.as_str()),
        ("broker.lan", 1883, "samclipd")
    );
    assert_eq!(mqtt.topics.available().name, "site-3/samclip/available");
    assert_eq!(
        config.output,
        Output {
            polygon: true,
            rle: true,
            tolerance: 2.5,
            snapshot: true,
            mask: false,
            rate: None,
        }
    );
}

#[test]
fn the_bus_is_the_system_s_unless_another_is_named() {
    let bus = |lines: &str| parse(&format!("{FULL}\n{lines}")).map(|config| config.dbus);
    let expected = |enabled, bus| Ok(Dbus { enabled, bus });
    assert_eq!(bus(""), expected(true, BusAddress::System));
    assert_eq!(bus("[dbus]\nenabled = false"), expected(false, BusAddress::System));
    assert_eq!(bus("[dbus]\nbus = \"session\""), expected(true, BusAddress::Session));
    let address = "unix:path=/run/bus";
    assert_eq!(
        bus(&format!("[dbus]\nbus = {address:?}")),
        expected(true, BusAddress::Address(address.to_owned()))
    );
    let line = FULL.lines().count() + 3;
    let error = bus("[dbus]\nbus = \"sytem\"").unwrap_err().to_string();
    let text = "bus is \"sytem\", expected \"system\", \"session\" or an address such as \"unix:path=/run/bus\"";
    assert_eq!(error, format!("samclipd.toml:{line}: {text}"));
}

#[test]
fn the_shortest_file_gets_the_documented_defaults() {
    let config = parse("model = \"m\"\n[[camera]]\nid = \"a\"\nsource = \"dir:///frames\"\n").unwrap();
    assert_eq!(
        (config.engine, config.provider, config.mqtt),
        (Engine::Auto, Provider::Auto, None)
    );
    assert!(config.queries.is_empty());
    assert_eq!(
        config.output,
        Output {
            polygon: true,
            rle: false,
            tolerance: 1.0,
            snapshot: true,
            mask: false,
            rate: None,
        }
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
    assert_eq!(
        refused("fps = 5", "fsp = 5"),
        "samclipd.toml:12: unknown field \"fsp\", expected one of \"id\", \"source\", \"fps\", \"controls\", \"zone\", \"motion\", \"side\", \"sizes\""
    );
    assert!(refused("[output]", "[outputs]").starts_with("samclipd.toml:28: unknown field \"outputs\""));
}

#[test]
fn wrong_types_and_words_are_refused_with_their_line() {
    assert!(refused("fps = 5", "fps = \"five\"").starts_with("samclipd.toml:12: invalid type: string \"five\""));
    let error = refused("\"ort\"", "\"onnx\"");
    assert_eq!(
        error,
        "samclipd.toml:5: unknown variant \"onnx\", expected one of \"auto\", \"tract\", \"ort\""
    );
    assert!(refused("host = \"broker.lan\"", "port = 70000").starts_with("samclipd.toml:25: invalid value"));
    assert!(refused("[mqtt]", "[mqtt").starts_with("samclipd.toml:24: "));
}

#[test]
fn impossible_values_are_refused_with_what_is_allowed() {
    for (from, to, expected) in [
        ("fps = 5", "fps = 0", "12: fps is 0, expected 0.01 to 240"),
        (
            "threshold = 0.6",
            "threshold = 1.2",
            "17: threshold is 1.2, expected a number between 0 and 1",
        ),
        (
            "threshold = 0.6",
            "threshold = nan",
            "17: threshold is NaN, expected a number between 0 and 1",
        ),
        (
            "#2040ff",
            "blue",
            "19: color is \"blue\", expected #rrggbb such as #ff8800",
        ),
        (
            "tolerance = 2.5",
            "tolerance = -1",
            "30: tolerance is -1, expected 0 to 100 pixels",
        ),
        (
            "\"hard-hat\"",
            "\"blue-pallet\"",
            "22: query id \"blue-pallet\" occurs twice, expected unique ids",
        ),
        ("\"hard-hat\"", "\"frame\"", "22: query id \"frame\" is reserved"),
        (
            "[[query]]\nid = \"blue-pallet\"",
            "[[camera]]\nid = \"gate\"\nsource = \"v4l2:///dev/video0?size=640x480\"\n[[query]]\nid = \"blue-pallet\"",
            "16: source \"v4l2:///dev/video0\" occurs twice, expected a device of its own for every camera",
        ),
        (
            "\"dock\"",
            "\"Dock\"",
            "10: camera id \"Dock\": expected 1 to 64 characters",
        ),
        (
            "v4l2:///dev/video0",
            "/dev/video0",
            "11: source is \"/dev/video0\", expected v4l2:///dev/video0",
        ),
        (
            "[\"a blue pallet\", \"blue plastic pallet\"]",
            "[]",
            "16: 0 prompts found, expected 1 to 16",
        ),
        (
            "\"a blue pallet\"",
            "\" \"",
            "16: prompt of 1 characters found, expected words of at most 1000",
        ),
        ("site-3/samclip", "site/#", "26: topic prefix \"site/#\""),
        ("broker.lan", "mqtt://broker", "25: host is \"mqtt://broker\""),
        ("/usr/share/samclip/models/nano", "", "2: model is empty"),
    ] {
        let error = refused(from, to);
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
    let long = "x".repeat(10_000);
    assert!(refused("a blue pallet", &long).contains("prompt of 10000 characters"));
    assert_eq!(
        parse("model = \"m\"\n").unwrap_err().to_string(),
        "samclipd.toml:2: no [[camera]] found, expected at least one"
    );
}

#[test]
fn the_runtime_table_is_checked_before_anything_is_opened() {
    let with = |runtime: &str| parse(&FULL.replacen("provider = \"tensorrt\"", runtime, 1));
    let config = with("provider = \"cuda\"\nprecision = \"fp16.v2\"\ncache = \"/var/cache/samclip\"").unwrap();
    assert_eq!(
        (config.provider, config.precision.as_deref()),
        (Provider::Cuda, Some("fp16.v2"))
    );
    assert_eq!(config.cache.as_deref(), Some(Path::new("/var/cache/samclip")));
    for (runtime, expected) in [
        (
            "precision = \"\"",
            "6: precision is \"\", expected the name of a variant",
        ),
        ("precision = \"../fp16\"", "6: precision is \"../fp16\""),
        ("precision = 16", "6: invalid type: integer"),
        (
            "cache = \"caches\"",
            "6: cache is \"caches\", expected an absolute path",
        ),
        ("cash = \"/var\"", "6: unknown field \"cash\""),
    ] {
        let error = with(runtime).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
    let error = refused("\"ort\"", "\"tract\"");
    assert_eq!(
        error,
        "samclipd.toml:6: engine is \"tract\", which runs on the CPU only; expected provider \"auto\" or \"cpu\""
    );
}

#[test]
fn the_motion_gate_has_defaults_and_is_refused_where_time_means_nothing() {
    let with = |table: &str| parse(&FULL.replacen("fps = 5", &format!("motion = {{ {table} }}"), 1));
    assert_eq!(parse(FULL).unwrap().cameras[0].motion, None);
    let motion = with("").unwrap().cameras[0].motion.unwrap();
    assert_eq!((motion.motion.area, motion.motion.change), (0.002, 8.0));
    assert_eq!((motion.refresh.as_secs(), motion.hold.as_secs()), (10, 2));
    let motion = with("area = 0.01, change = 20, refresh = 3600, hold = 0.5")
        .unwrap()
        .cameras[0]
        .motion
        .unwrap();
    assert_eq!((motion.motion.area, motion.motion.change), (0.01, 20.0));
    assert_eq!((motion.refresh.as_secs(), motion.hold.as_millis()), (3600, 500));
    for (table, expected) in [
        ("area = 0", "area is 0, expected 0.0001 to 0.5 of the picture"),
        ("change = 300", "change is 300, expected 1 to 255"),
        ("refresh = nan", "refresh is NaN, expected 0.1 to 86400 seconds"),
        ("hold = -1", "hold is -1, expected 0 to 3600 seconds"),
        ("hole = 1", "unknown field \"hole\""),
    ] {
        let error = with(table).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:12: {expected}")), "{error}");
    }
    let from = |source: &str, fps: &str| {
        let text = FULL.replacen("v4l2:///dev/video0", source, 1);
        parse(&text.replacen("fps = 5", &format!("{fps}motion = {{}}"), 1))
    };
    let error = from("dir:///frames?loop", "").unwrap_err().to_string();
    let text = "motion found for a source that is read as fast as it is processed, expected fps, or ?fps= in source";
    assert_eq!(error, format!("samclipd.toml:12: {text}"));
    assert!(from("dir:///frames?fps=2", "").is_ok() && from("file:///clip.y4m", "fps = 5\n").is_ok());
}

#[test]
fn sizes_have_defaults_and_are_refused_by_line_where_they_are_impossible() {
    let with = |keys: &str| parse(&FULL.replacen("fps = 5", keys, 1));
    let plain = parse(FULL).unwrap();
    assert_eq!((plain.cameras[0].side, plain.cameras[0].sizes), (None, None));
    let sizes = with("sizes = { calm = 224 }").unwrap().cameras[0].sizes.unwrap();
    assert_eq!((sizes.calm, sizes.hint), (224, 0.5));
    assert_eq!((sizes.refresh.as_secs(), sizes.hold.as_secs()), (10, 2));
    let camera = with("side = 448\nsizes = { calm = 224, hint = 0.8, refresh = 60, hold = 0.5 }");
    let camera = camera.unwrap().cameras[0].clone();
    let sizes = camera.sizes.unwrap();
    assert_eq!((camera.side, sizes.calm, sizes.hint), (Some(448), 224, 0.8));
    assert_eq!((sizes.refresh.as_secs(), sizes.hold.as_millis()), (60, 500));
    for (keys, expected) in [
        ("side = 8", "12: side is 8, expected 16 to 16384 pixels"),
        ("side = \"224\"", "12: invalid type: string \"224\""),
        ("sizes = {}", "12: missing field \"calm\""),
        (
            "sizes = { calm = 20000 }",
            "12: calm is 20000, expected 16 to 16384 pixels",
        ),
        (
            "side = 224\nsizes = { calm = 224 }",
            "13: calm is 224, expected less than side, which is 224",
        ),
        (
            "sizes = { calm = 224, hint = 1.5 }",
            "12: hint is 1.5, expected 0 to 1 of a query's threshold",
        ),
        (
            "sizes = { calm = 224, refresh = 0 }",
            "12: refresh is 0, expected 0.1 to 86400 seconds",
        ),
        (
            "sizes = { calm = 224, hold = nan }",
            "12: hold is NaN, expected 0 to 3600 seconds",
        ),
        ("sizes = { calm = 224, hodl = 1 }", "12: unknown field \"hodl\""),
    ] {
        let error = with(keys).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
    let folder = FULL.replacen("v4l2:///dev/video0", "dir:///frames?loop", 1);
    let error = parse(&folder.replacen("fps = 5", "sizes = { calm = 224 }", 1)).unwrap_err();
    let text = "sizes found for a source that is read as fast as it is processed, expected fps, or ?fps= in source";
    assert_eq!(error.to_string(), format!("samclipd.toml:12: {text}"));
}

#[test]
fn controls_of_cameras_are_read_and_checked() {
    let with = |controls: &str| parse(&FULL.replacen("fps = 5", &format!("controls = {{ {controls} }}"), 1));
    let config = with("gain = -3, auto_exposure = \"Manual Mode\", hflip = true").unwrap();
    let number = |name: &str, value| (name.to_owned(), ControlValue::Number(value));
    let mode = ("auto_exposure".to_owned(), ControlValue::Item("Manual Mode".into()));
    assert_eq!(
        config.cameras[0].controls,
        [mode, number("gain", -3), number("hflip", 1)]
    );
    for (controls, expected) in [
        ("gain = 0.5", "12: control gain is of type float, expected an integer"),
        (
            "\"Gain\" = 1",
            "12: control \"Gain\", expected a name as `samclipd cameras` shows it",
        ),
        ("\"\" = 1", "12: control \"\", expected a name"),
    ] {
        let error = with(controls).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
    let file = FULL.replacen("v4l2:///dev/video0", "file:///clip.y4m", 1);
    let error = parse(&file.replacen("fps = 5", "controls = { gain = 1 }", 1))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "samclipd.toml:12: control gain found for \"file:///clip.y4m\", expected controls of v4l2:// sources only"
    );
}

#[test]
fn tracking_zones_and_events_are_read_and_checked() {
    let text = FULL
        .replacen(
            "fps = 5",
            "[[camera.zone]]\nid = \"bay-2\"\npolygon = [[0, 0], [0.5, 0], [0.5, 1]]",
            1,
        )
        .replacen(
            "min_area = 400",
            "min_hits = 4\nmax_age = 1.5\nzones = [\"bay-2\"]\nzone_share = 0.3\nloitering = 8",
            1,
        )
        .replacen(
            "[output]",
            "[events]\nkeep_alive = 30\n[output]\nmask = true\nrate = 2\nsnapshot = false",
            1,
        );
    let config = parse(&text).unwrap();
    assert_eq!(config.cameras[0].zones[0].id(), "bay-2");
    let query = &config.queries[0];
    assert_eq!(
        (query.min_hits, query.max_age, query.loitering, query.zone_share),
        (4, 1.5, 8.0, 0.3)
    );
    assert_eq!(query.rules().zones, ["bay-2"]);
    assert_eq!((config.events.keep_alive, config.events.stationary), (30.0, 10.0));
    assert_eq!(
        (config.output.mask, config.output.rate, config.output.snapshot),
        (true, Some(2.0), false)
    );
    for (from, to, expected) in [
        (
            "[0.5, 1]",
            "[0.5, 7]",
            "14: zone corner [0.5, 7] found, expected shares",
        ),
        (
            ", [0.5, 0], [0.5, 1]",
            "",
            "14: zone of 1 corners found, expected 3 to 256",
        ),
        ("[0.5, 1]", "[0.5]", "14: invalid length 1"),
        (
            "id = \"bay-2\"",
            "id = \"Bay 2\"",
            "13: zone id \"Bay 2\": expected 1 to 64",
        ),
        (
            "zones = [\"bay-2\"]",
            "zones = [\"yard\"]",
            "22: zone \"yard\" found, expected one of some camera; there are: bay-2",
        ),
        ("min_hits = 4", "min_hits = 0", "20: min_hits is 0, expected 1 to 1000"),
        (
            "max_age = 1.5",
            "max_age = -1",
            "21: max_age is -1, expected 0 to 86400 seconds",
        ),
        (
            "zone_share = 0.3",
            "zone_share = 0",
            "23: zone_share is 0, expected a number above 0 up to 1",
        ),
        (
            "loitering = 8",
            "loitering = inf",
            "24: loitering is inf, expected 0 to 86400 seconds",
        ),
        (
            "min_hits = 4",
            "max_area = 3",
            "20: max_area is 3, expected at least min_area, which is 64",
        ),
        (
            "keep_alive = 30",
            "keep_alive = 0",
            "35: keep_alive is 0, expected 1 to 86400 seconds",
        ),
        (
            "rate = 2",
            "rate = 0",
            "38: rate is 0, expected 0.01 to 240 messages per second",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let error = parse(&text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
}

#[test]
fn the_broker_s_keys_are_read_and_checked() {
    let broker = "host = \"broker.lan\"";
    let with = |lines: &str| parse(&FULL.replacen(broker, &format!("{broker}\n{lines}"), 1));
    let mqtt = with("version = \"5\"\ncommands = false\nhomeassistant = \"ha\"\nspool_bytes = 65536")
        .unwrap()
        .mqtt
        .unwrap();
    assert_eq!(
        (mqtt.version, mqtt.commands, mqtt.spool_bytes, mqtt.port),
        (Version::V5, false, 65_536, 1_883)
    );
    assert_eq!((mqtt.home_assistant.as_deref(), mqtt.tls), (Some("ha"), None));
    let tls = FULL.replacen("[output]", "[mqtt.tls]\nca = \"/ca.pem\"\n[output]", 1);
    let mqtt = parse(&tls).unwrap().mqtt.unwrap();
    assert_eq!((mqtt.port, mqtt.tls.unwrap().client), (8_883, None));
    for (lines, expected) in [
        (
            "version = \"4\"",
            "26: unknown variant \"4\", expected \"3.1.1\" or \"5\"",
        ),
        (
            "spool_bytes = 1000",
            "26: spool_bytes is 1000, expected 65536 to 1099511627776",
        ),
        ("homeassistant = \"a/#\"", "26: topic prefix \"a/#\""),
        (
            "tls = { certificate = \"/c.pem\" }",
            "26: certificate found without key, expected both or none",
        ),
        (
            "tls = { key = \"/c.key\" }",
            "26: key found without certificate, expected both or none",
        ),
        (
            "tls = { insecure = true }",
            "26: unknown field \"insecure\", expected one of \"ca\"",
        ),
    ] {
        let error = with(lines).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
    let error = parse(&format!("state = \"var\"\n{FULL}")).unwrap_err().to_string();
    assert_eq!(
        error,
        "samclipd.toml:1: state is \"var\", expected an absolute path such as /var/lib/samclip"
    );
}

#[test]
fn a_background_is_some_short_texts() {
    let with = |texts: &str| parse(&format!("background = {texts}\n{FULL}"));
    assert_eq!(
        with("[\"wall\", \"sky\"]").unwrap().background.unwrap(),
        ["wall", "sky"]
    );
    for (texts, expected) in [
        ("[]".to_owned(), "1: 0 texts found, expected 1 to 256"),
        (
            "[\" \"]".to_owned(),
            "1: text of 1 characters found, expected words of at most 1000",
        ),
        (
            format!("[\"{}\"]", "x".repeat(1_001)),
            "1: text of 1001 characters found",
        ),
    ] {
        let error = with(&texts).unwrap_err().to_string();
        assert!(error.starts_with(&format!("samclipd.toml:{expected}")), "{error}");
    }
}

#[test]
fn files_that_are_no_short_texts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samclipd.toml");
    assert!(matches!(Config::read(&path), Err(ConfigError::Read { .. })));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(
        Config::read(&path)
            .unwrap_err()
            .to_string()
            .ends_with("is not UTF-8 text")
    );
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(
        Config::read(&path)
            .unwrap_err()
            .to_string()
            .contains("larger than 1048576 bytes")
    );
    std::fs::write(&path, FULL).unwrap();
    assert_eq!(Config::read(&path), parse(FULL));
}

#[test]
fn credentials_come_from_a_file_and_never_enter_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt");
    let mut mqtt = parse(FULL).unwrap().mqtt.unwrap();
    assert_eq!(mqtt.read_credentials().unwrap(), None);
    mqtt.credentials = Some(path.clone());
    assert!(matches!(mqtt.read_credentials(), Err(ConfigError::Read { .. })));
    std::fs::write(&path, "camera\ns3cret\n").unwrap();
    assert_eq!(
        mqtt.read_credentials().unwrap(),
        Some(("camera".into(), "s3cret".into()))
    );
    std::fs::write(&path, "s3cret").unwrap();
    assert!(!mqtt.read_credentials().unwrap_err().to_string().contains("s3cret"));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_fail_otherwise_than_by_an_error(text in "\\PC{0,80}", cut in 0usize..600) {
        let _ = parse(&text);
        let mut part = FULL.to_owned();
        part.truncate(FULL.floor_char_boundary(cut));
        part.push_str(&text);
        if let Err(ConfigError::Line { line, .. }) = parse(&part) {
            prop_assert!(line >= 1 && line <= part.lines().count() + 1);
        }
    }
}
