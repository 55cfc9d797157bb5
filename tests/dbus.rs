//! The daemon on a message bus of the test's own: what it exports, every method, who may call them, and a bus that goes away.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod tiny;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{Daemon, PATIENCE, PrivateBus, config_text, until, write_model_and_frames};
use samclip::daemon::board::Phase;
use samclip::daemon::commands::{Command as Asked, Reply};
use samclip::message::query::QueryMessage;
use zbus::export::futures_core::Stream;
use zbus::zvariant::{DynamicType, OwnedObjectPath, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream, connection};

const NAME: &str = "org.samclip.Daemon1";
const PATH: &str = "/org/samclip/Daemon1";
const CAMERA: &str = "/org/samclip/Daemon1/camera/yard";
const CAMERA_INTERFACE: &str = "org.samclip.Daemon1.Camera";

async fn client(bus: &PrivateBus) -> Connection {
    let address = bus.address();
    connection::Builder::address(address.as_str())
        .unwrap()
        .build()
        .await
        .unwrap()
}

async fn call<B: serde::Serialize + DynamicType>(
    client: &Connection,
    method: &str,
    body: &B,
) -> Result<zbus::Message, String> {
    let done = client.call_method(Some(NAME), PATH, Some(NAME), method, body).await;
    done.map_err(|error| error.to_string())
}

async fn property<T: TryFrom<OwnedValue>>(client: &Connection, path: &str, interface: &str, name: &str) -> T {
    let interface_of_properties = Some("org.freedesktop.DBus.Properties");
    let body = &(interface, name);
    let reply = client
        .call_method(Some(NAME), path, interface_of_properties, "Get", body)
        .await
        .unwrap();
    let value: OwnedValue = reply.body().deserialize().unwrap();
    T::try_from(value).ok().unwrap()
}

/// Waits until the daemon is on the bus and processes frames.
async fn on_bus(client: &Connection, daemon: &Daemon) {
    let start = Instant::now();
    let dbus = zbus::fdo::DBusProxy::new(client).await.unwrap();
    while daemon.board.now().phase != Phase::Running || !dbus.name_has_owner(NAME.try_into().unwrap()).await.unwrap() {
        assert!(start.elapsed() < PATIENCE, "the daemon does not come onto the bus");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn on_dbus(bus: &PrivateBus) -> String {
    format!("[dbus]\nbus = {:?}\n", bus.address())
}

/// A private bus with a daemon on it, and a client.
struct Scene {
    daemon: Daemon,
    bus: PrivateBus,
    client: Connection,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model_and_frames(dir.path());
        let bus = PrivateBus::start(dir.path());
        let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &on_dbus(&bus)));
        let client = client(&bus).await;
        on_bus(&client, &daemon).await;
        Self {
            daemon,
            bus,
            client,
            _dir: dir,
        }
    }
}

/// The text of one interface, without white space that means nothing.
fn interface(xml: &str, name: &str) -> Vec<String> {
    let begin = format!("<interface name=\"{name}\">");
    let start = xml.find(&begin).unwrap_or_else(|| panic!("{name} is not in\n{xml}"));
    let end = xml[start..].find("</interface>").unwrap();
    let lines = xml[start..start + end].lines().map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_describes_exactly_what_is_exported() {
    let scene = Scene::new().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dbus/org.samclip.Daemon1.xml");
    let described = std::fs::read_to_string(file).unwrap();
    for (path, name) in [(PATH, NAME), (CAMERA, CAMERA_INTERFACE)] {
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        let reply = scene
            .client
            .call_method(Some(NAME), path, introspectable, "Introspect", &())
            .await;
        let exported: String = reply.unwrap().body().deserialize().unwrap();
        assert_eq!(
            interface(&described, name),
            interface(&exported, name),
            "exported:\n{exported}"
        );
    }
    assert_eq!(described.matches("<interface ").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_property_can_be_read_and_every_method_does_what_it_says() {
    let scene = Scene::new().await;
    let client = &scene.client;
    assert_eq!(
        property::<String>(client, PATH, NAME, "Version").await,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(property::<String>(client, PATH, NAME, "State").await, "running");
    assert!(
        property::<String>(client, PATH, NAME, "Model")
            .await
            .starts_with("colours@")
    );
    assert_eq!(property::<String>(client, PATH, NAME, "Provider").await, "tract-cpu");
    let reply = client.call_method(
        Some(NAME),
        PATH,
        Some("org.freedesktop.DBus.Properties"),
        "Get",
        &(NAME, "Cameras"),
    );
    let cameras: OwnedValue = reply.await.unwrap().body().deserialize().unwrap();
    let cameras: Vec<OwnedObjectPath> = cameras.try_into().unwrap();
    assert_eq!(cameras.iter().map(|path| path.as_str()).collect::<Vec<_>>(), [CAMERA]);
    assert_eq!(property::<String>(client, CAMERA, CAMERA_INTERFACE, "Id").await, "yard");
    let source = property::<String>(client, CAMERA, CAMERA_INTERFACE, "Source").await;
    assert!(source.starts_with("dir://"), "{source}");
    assert!(property::<f64>(client, CAMERA, CAMERA_INTERFACE, "Fps").await >= 0.0);

    // A signal for a query that is new, with all queries in it.
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .interface(CAMERA_INTERFACE)
        .unwrap()
        .member("DetectionsChanged")
        .unwrap()
        .build();
    let mut signals = MessageStream::for_match_rule(rule, client, None).await.unwrap();
    let blue = r#"{"prompts":["blue"],"min_hits":1}"#;
    call(client, "AddQuery", &("yard", "sea", blue)).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let next = std::future::poll_fn(|context| std::pin::Pin::new(&mut signals).poll_next(context)).await;
            let signal = next.unwrap().unwrap();
            assert_eq!(signal.header().path().unwrap().as_str(), CAMERA);
            let counts: HashMap<String, (u32, u32)> = signal.body().deserialize().unwrap();
            if counts.get("sea").is_some_and(|count| count.0 == 1) {
                return counts;
            }
        }
    });
    assert_eq!(told.await.unwrap()["red"].0, 1);
    let queries: Vec<String> = property(client, CAMERA, CAMERA_INTERFACE, "Queries").await;
    assert_eq!(queries, ["red", "sea"]);

    let reply = call(client, "ListQueries", &("yard",)).await.unwrap();
    let listed: HashMap<String, String> = reply.body().deserialize().unwrap();
    let sea = QueryMessage::decode(listed["sea"].as_bytes()).unwrap();
    assert_eq!((listed.len(), sea.prompts.unwrap()), (2, vec!["blue".to_owned()]));

    let reply = call(client, "Snapshot", &("yard",)).await.unwrap();
    let jpeg: Vec<u8> = reply.body().deserialize().unwrap();
    let picture = image::load_from_memory_with_format(&jpeg, image::ImageFormat::Jpeg)
        .unwrap()
        .into_rgb8();
    // Nothing is drawn on it: red is as red as on the picture.
    let red = picture.get_pixel(20, 40).0;
    assert!(
        picture.dimensions() == (131, 97) && red[0] > 210 && red[1] < 50,
        "{red:?}"
    );

    call(client, "RemoveQuery", &("yard", "sea")).await.unwrap();
    let queries: Vec<String> = property(client, CAMERA, CAMERA_INTERFACE, "Queries").await;
    assert_eq!(queries, ["red"]);

    call(client, "SetDetect", &("yard", false)).await.unwrap();
    assert!(!property::<bool>(client, CAMERA, CAMERA_INTERFACE, "Detect").await);
    assert_eq!(
        property::<String>(client, CAMERA, CAMERA_INTERFACE, "Status").await,
        "disabled"
    );
    let error = call(client, "Snapshot", &("yard",)).await.unwrap_err();
    assert!(
        error.contains("detection of this camera is off; switch it on first"),
        "{error}"
    );
    call(client, "SetDetect", &("yard", true)).await.unwrap();
    eventually("status online", async || {
        let status = property::<String>(client, CAMERA, CAMERA_INTERFACE, "Status").await;
        (status == "online").then_some(())
    })
    .await;

    call(client, "Reload", &()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_answered_and_cameras_come_and_go_as_objects() {
    let scene = Scene::new().await;
    let (client, daemon) = (&scene.client, &scene.daemon);
    let good = std::fs::read_to_string(&daemon.file).unwrap();
    daemon.write(&format!("{good}[[query]]\nid = \"red\"\n"));
    let error = call(client, "Reload", &()).await.unwrap_err();
    assert!(
        error.contains("samclipd.toml:") && error.contains("\"red\" occurs twice"),
        "{error}"
    );
    daemon.write(&good.replace("engine = \"tract\"", "engine = \"auto\""));
    let error = call(client, "Reload", &()).await.unwrap_err();
    assert!(
        error.contains("engine under [runtime] differs") && error.contains("restart the daemon"),
        "{error}"
    );
    assert_eq!(property::<String>(client, PATH, NAME, "State").await, "running");
    let gate = good.replace("id = \"yard\"", "id = \"gate-2\"");
    daemon.write(&gate);
    call(client, "Reload", &()).await.unwrap();
    let path = "/org/samclip/Daemon1/camera/gate_2";
    eventually("the new camera is there", async || {
        let body = &(CAMERA_INTERFACE, "Status");
        let get = client.call_method(Some(NAME), path, Some("org.freedesktop.DBus.Properties"), "Get", body);
        let status: String = get
            .await
            .ok()?
            .body()
            .deserialize::<OwnedValue>()
            .unwrap()
            .try_into()
            .unwrap();
        (status == "online").then_some(())
    })
    .await;
    let gone = client.call_method(
        Some(NAME),
        CAMERA,
        Some("org.freedesktop.DBus.Properties"),
        "GetAll",
        &(CAMERA_INTERFACE,),
    );
    assert!(gone.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_arguments_get_one_short_error_and_change_nothing() {
    let scene = Scene::new().await;
    let client = &scene.client;
    let long = format!(r#"{{"prompts":["{}"]}}"#, "x".repeat(10_000));
    let longer = format!(r#"{{"color":"{}"}}"#, "x".repeat(60_000));
    let huge = format!(r#"{{"prompts":["{}"]}}"#, "x".repeat(1 << 20));
    let key = format!(r#"{{"{}":1}}"#, "k".repeat(60_000));
    let deep = "[".repeat(60_000);
    let id = "i".repeat(100_000);
    for (camera, query, body, expected) in [
        ("yard", "red", long.as_str(), "prompt of 10000 characters found"),
        ("yard", "red", &longer, "color is \"xxx"),
        ("yard", "red", &huge, "body of 1048592 bytes, expected at most 65536"),
        ("yard", "red", &key, "body: unknown field"),
        ("yard", "red", &deep, "body: "),
        ("yard", "red", "", "body: EOF"),
        ("yard", "red", "{", "body: EOF"),
        ("yard", "red", r#"{"threshold":1e999}"#, "body: "),
        ("yard", "red", r#"{"threshold":-1}"#, "threshold is -1"),
        ("yard", "red", r#"{"schema":"9.0"}"#, "message schema \"9.0\""),
        ("yard", "red", r#"{"zones":["moon"]}"#, "zone \"moon\" found"),
        ("yard", "", "{}", "query id \"\""),
        ("yard", "../red", "{}", "query id \"../red\""),
        ("yard", &id, "{}", "query id \"iii"),
        ("moon", "red", "{}", "no camera \"moon\", expected one of: yard"),
        ("", "red", "{}", "no camera \"\""),
        (&id, "red", "{}", "no camera \"iii"),
    ] {
        let error = call(client, "AddQuery", &(camera, query, body)).await.unwrap_err();
        assert!(
            error.contains("InvalidArgs") && error.contains(expected) && error.len() < 600,
            "{expected}: {error}"
        );
    }
    for (method, body) in [
        ("RemoveQuery", ("yard", "nothing")),
        ("RemoveQuery", ("moon", "red")),
        ("RemoveQuery", ("yard", id.as_str())),
    ] {
        let error = call(client, method, &body).await.unwrap_err();
        assert!(error.contains("InvalidArgs"), "{error}");
    }
    for method in ["ListQueries", "Snapshot"] {
        let error = call(client, method, &("moon",)).await.unwrap_err();
        assert!(error.contains("no camera \"moon\", expected one of: yard"), "{error}");
    }
    // Other types than the method has.
    assert!(call(client, "SetDetect", &("yard", "yes")).await.is_err());
    assert!(call(client, "AddQuery", &()).await.is_err());
    let reply = call(client, "ListQueries", &("yard",)).await.unwrap();
    let listed: HashMap<String, String> = reply.body().deserialize().unwrap();
    assert!(
        listed.len() == 1 && listed["red"].contains(r#""source":"config""#),
        "{listed:?}"
    );
}

/// What the stand-in of polkit was asked, and what it answers.
#[derive(Default)]
struct Polkit {
    allows: bool,
    asked: Vec<(String, String, u32)>,
}

struct Authority(Arc<Mutex<Polkit>>);

type Subject = (String, HashMap<String, OwnedValue>);

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    fn check_authorization(
        &self,
        subject: Subject,
        action_id: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation_id: String,
    ) -> ((bool, bool, HashMap<String, String>),) {
        assert!(details.is_empty() && cancellation_id.is_empty());
        assert_eq!(subject.0, "system-bus-name");
        let name: String = subject.1["name"].try_clone().unwrap().try_into().unwrap();
        let mut polkit = self.0.lock().unwrap();
        polkit.asked.push((name, action_id, flags));
        ((polkit.allows, false, HashMap::new()),)
    }
}

/// Runs a client as another user, who is in no group of the daemon's; whether it succeeded, and what it printed.
fn as_nobody(program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
    let output = command
        .args(arguments)
        .output()
        .expect("this test needs setpriv (util-linux)");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_may_read_and_changes_only_what_polkit_allows() {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root to be another user"
        );
        eprintln!("SKIPPED: another_user_may_read_and_changes_only_what_polkit_allows needs root to be another user");
        return;
    }
    let scene = Scene::new().await;
    let bus = format!("--bus={}", scene.bus.address());
    // Unlike busctl, it prints the text of an error.
    let send = |method: &str, arguments: &[&str]| {
        let method = format!("{NAME}.{method}");
        let fixed = [
            bus.as_str(),
            "--print-reply",
            "--dest=org.samclip.Daemon1",
            PATH,
            &method,
        ];
        as_nobody("dbus-send", &[&fixed, arguments].concat())
    };
    let address = format!("--address={}", scene.bus.address());
    let set = |interactive: &str, on: &str| {
        let flag = format!("--allow-interactive-authorization={interactive}");
        as_nobody(
            "busctl",
            &[&address, &flag, "call", NAME, PATH, NAME, "SetDetect", "sb", "yard", on],
        )
    };
    let off = ["string:yard", "boolean:false"];
    let detects = || scene.daemon.board.now().cameras["yard"].detect;
    let state = as_nobody("busctl", &[&address, "get-property", NAME, PATH, NAME, "State"]);
    assert_eq!(state, (true, "s \"running\"\n".into()));
    let (done, text) = send("ListQueries", &["string:yard"]);
    assert!(done && text.contains("\"red\""), "{text}");

    // There is no polkit.
    for (method, arguments) in [
        ("SetDetect", &off[..]),
        ("AddQuery", &["string:yard", "string:sea", "string:{}"]),
        ("RemoveQuery", &["string:yard", "string:red"]),
        ("Reload", &[]),
        ("Snapshot", &["string:yard"]),
    ] {
        let (done, text) = send(method, arguments);
        let expected = "Error.AccessDenied: the caller is not allowed to, and polkit cannot be asked; become a member of \
                        group samclip";
        assert!(!done && text.contains(expected), "{method}: {text}");
    }
    let polkit = Arc::new(Mutex::new(Polkit::default()));
    let _authority = connection::Builder::address(scene.bus.address().as_str())
        .unwrap()
        .serve_at("/org/freedesktop/PolicyKit1/Authority", Authority(Arc::clone(&polkit)))
        .unwrap()
        .name("org.freedesktop.PolicyKit1")
        .unwrap()
        .build()
        .await
        .unwrap();
    let (done, text) = send("SetDetect", &off);
    assert!(
        !done && text.contains("polkit does not allow it") && detects(),
        "{text}"
    );
    polkit.lock().unwrap().allows = true;
    let (done, text) = set("yes", "false");
    assert!(done && !detects(), "{text}");
    let (done, text) = set("no", "true");
    assert!(done && detects(), "{text}");
    eventually("status online", async || {
        let online = scene.daemon.board.now().cameras["yard"].status.map(|s| s.as_str()) == Some("online");
        online.then_some(())
    })
    .await;
    let (done, text) = send("Snapshot", &["string:yard"]);
    assert!(done && text.contains("array of bytes"), "{text}");
    let asked = std::mem::take(&mut polkit.lock().unwrap().asked);
    assert!(asked.iter().all(|(name, ..)| name.starts_with(':')), "{asked:?}");
    let asked: Vec<_> = asked
        .iter()
        .map(|(_, action, flags)| (action.as_str(), *flags))
        .collect();
    let configure = "org.samclip.configure";
    let expected = [
        (configure, 0),
        (configure, 1),
        (configure, 0),
        ("org.samclip.snapshot", 0),
    ];
    assert_eq!(asked, expected);

    // Nobody else takes the daemon's name, whatever the daemon does.
    let name = "org.freedesktop.DBus";
    let take = [
        &address,
        "call",
        name,
        "/org/freedesktop/DBus",
        name,
        "RequestName",
        "su",
        NAME,
        "7",
    ];
    assert!(!as_nobody("busctl", &take).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_on_while_the_bus_is_away_and_the_daemon_comes_back_onto_it() {
    let mut scene = Scene::new().await;
    scene.bus.kill();
    // Each needs a frame that was taken after it was asked for.
    for _ in 0..3 {
        let picture = scene.daemon.door.ask(Asked::Snapshot { camera: "yard".into() }).await;
        assert!(matches!(picture, Ok(Reply::Picture(_))), "{picture:?}");
    }
    scene.bus.restart();
    let client = client(&scene.bus).await;
    on_bus(&client, &scene.daemon).await;
    assert_eq!(
        property::<String>(&client, CAMERA, CAMERA_INTERFACE, "Status").await,
        "online"
    );
    call(&client, "SetDetect", &("yard", false)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_waited_for_and_no_bus_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_model_and_frames(dir.path());
    let mut bus = PrivateBus::start(dir.path());
    let other = client(&bus).await;
    other.request_name(NAME).await.unwrap();
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &on_dbus(&bus)));
    until("red is seen", || daemon.count("yard", "red") == Some(1));
    other.release_name(NAME).await.unwrap();
    let client = client(&bus).await;
    on_bus(&client, &daemon).await;
    drop((daemon, client, other));
    bus.kill();
    let daemon = Daemon::start(dir.path(), &config_text(dir.path(), &on_dbus(&bus)));
    until("red is seen without a bus", || daemon.count("yard", "red") == Some(1));
}

/// `samclipd query` with this bus.
fn query(bus: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
    let output = command.args(["query", "--bus", bus]).args(arguments).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn samclipd_query_lists_adds_sets_and_removes() {
    let scene = Scene::new().await;
    let address = scene.bus.address();
    let run = |arguments: &[&str]| query(&address, arguments);
    let listed = "camera  query  from    threshold  prompts\nyard    red    config  default    red\n";
    assert_eq!(run(&["list"]), (Some(0), listed.into()));
    let (code, text) = run(&[
        "add",
        "sea",
        "--prompt",
        "blue",
        "--prompt",
        "deep blue",
        "--min-hits",
        "1",
    ]);
    assert_eq!((code, text.as_str()), (Some(0), "yard: query sea added\n"));
    let (code, text) = run(&["add", "sea"]);
    assert!(
        code == Some(1) && text.contains("query \"sea\" is asked already"),
        "{text}"
    );
    let (code, text) = run(&["set", "sea", "--threshold", "0.25", "--camera", "yard"]);
    assert_eq!((code, text.as_str()), (Some(0), "yard: query sea changed\n"));
    let (_, text) = run(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sea = &json["yard"]["sea"];
    assert_eq!(
        (&sea["threshold"], &sea["min_hits"], &sea["source"]),
        (&0.25.into(), &1.into(), &"live".into())
    );
    assert_eq!(sea["prompts"], serde_json::json!(["blue", "deep blue"]));
    let (_, text) = run(&["list", "--camera", "yard"]);
    assert!(
        text.contains("yard    sea    live    0.25       blue | deep blue\n"),
        "{text}"
    );
    assert_eq!(run(&["remove", "sea"]).1, "yard: query sea removed\n");
    assert_eq!(run(&["detect", "off"]).1, "yard: detection off\n");
    assert!(!scene.daemon.board.now().cameras["yard"].detect);
    for (arguments, expected) in [
        (
            &["remove", "sea"][..],
            "samclipd: camera yard: no query \"sea\" to delete",
        ),
        (
            &["set", "sea", "--threshold", "1"],
            "no query \"sea\"; add it with samclipd query add",
        ),
        (&["add", "Sea"], "query id \"Sea\": expected 1 to 64 characters"),
        (
            &["list", "--camera", "moon"],
            "no camera \"moon\", expected one of: yard",
        ),
        (
            &["set", "red", "--threshold", "2"],
            "threshold is 2, expected a number between 0 and 1",
        ),
    ] {
        let (code, text) = run(arguments);
        assert!(
            code == Some(1) && text.contains(expected) && text.lines().count() == 1,
            "{expected}: {text}"
        );
    }
}

#[test]
fn samclipd_query_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let bus = PrivateBus::start(dir.path());
    let (code, text) = query(&bus.address(), &["list"]);
    assert!(
        code == Some(1) && text.contains("no samclipd is on the bus at unix:path="),
        "{text}"
    );
    assert!(text.contains("systemctl start samclipd"), "{text}");
    let (code, text) = query("unix:path=/nonexistent/bus", &["list"]);
    assert!(
        code == Some(1) && text.contains("the bus at unix:path=/nonexistent/bus cannot be reached"),
        "{text}"
    );
}
