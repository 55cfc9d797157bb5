//! `samclipd prepare` and `doctor` as a user meets them: right and wrong libraries, kills, missing things.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use samclip::publish::broker::Broker;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        tiny::write(&model);
        std::fs::create_dir(dir.path().join("frames")).unwrap();
        let picture = image::RgbImage::from_pixel(64, 48, image::Rgb([230, 20, 20]));
        picture.save(dir.path().join("frames/0.png")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A process that knows no cache, no library and no home but the bench's.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samclipd"));
        for name in [
            "CACHE_DIRECTORY",
            "XDG_CACHE_HOME",
            "ORT_DYLIB_PATH",
            "SAMCLIP_ORT_LIB",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().unwrap())
    }

    /// Writes a configuration: `runtime` and `rest` are TOML; the camera is a folder.
    fn config(&self, runtime: &str, rest: &str) -> String {
        let text = format!(
            "model = {:?}\n[runtime]\n{runtime}\n[[camera]]\nid = \"yard\"\nsource = \"dir://{}\"\n\
             [[query]]\nid = \"red\"\n{rest}\n",
            self.path("model"),
            self.path("frames").display()
        );
        let path = self.path("samclipd.toml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Compiles a library that pretends to be ONNX Runtime.
    fn library(&self, name: &str, source: &str) -> PathBuf {
        let (code, library) = (self.path(&format!("{name}.c")), self.path(&format!("{name}.so")));
        std::fs::write(&code, source).unwrap();
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &code])
            .status()
            .expect("this test needs a C compiler named cc, as building does");
        assert!(status.success());
        library
    }
}

struct Ran {
    code: Option<i32>,
    text: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("panicked"), "{text}");
        Self {
            code: output.status.code(),
            text,
        }
    }

    #[track_caller]
    fn says(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "{part:?} is missing in\n{}", self.text);
        }
    }
}

/// A library with the entry point: its version, and what it answers for the interface and its base.
fn pretender(version: &str, base: &str) -> String {
    format!(
        "static const char* version(void) {{ return \"{version}\"; }}\n\
         static const void* api(unsigned number) {{ return 0; }}\n\
         static struct {{ const void* (*api)(unsigned); const char* (*version)(void); }} base = {{ api, version }};\n\
         const void* OrtGetApiBase(void) {{ return {base}; }}\n"
    )
}

#[cfg(feature = "ort")]
#[test]
fn a_configured_library_that_is_wrong_is_one_clear_error() {
    let bench = Bench::new();
    let text = bench.path("text.so");
    std::fs::write(&text, "not a library").unwrap();
    for (library, reason) in [
        (
            bench.library("old", &pretender("1.16.3", "&base")),
            "version 1.16.3, 1.17 or newer is needed",
        ),
        (
            bench.library("hollow", &pretender("1.20.0", "&base")),
            "does not offer version 17 of its interface",
        ),
        (
            bench.library("empty", &pretender("1.20.0", "0")),
            "OrtGetApiBase returns nothing",
        ),
        (bench.library("odd", &pretender("eleven", "&base")), "version eleven"),
        (
            bench.library("other", "int answer(void) { return 42; }"),
            "exports no OrtGetApiBase",
        ),
        (text, "text.so: "),
        (bench.path("nowhere.so"), "nowhere.so"),
    ] {
        for engine in ["ort", "auto"] {
            let config = bench.config(&format!("engine = {engine:?}\nlibrary = {library:?}"), "");
            let path = library.display().to_string();
            bench
                .run(&["prepare", "--config", &config])
                .says(1, &["no usable ONNX Runtime library", &path, reason]);
        }
    }
}

#[cfg(feature = "ort")]
#[test]
fn a_wrong_library_in_the_environment_is_passed_over_and_told_of() {
    let bench = Bench::new();
    let library = bench.library("old", &pretender("1.16.3", "&base"));
    let model = bench.path("model").display().to_string();
    let ran = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        Ran::new(command.env("SAMCLIP_ORT_LIB", &library).output().unwrap())
    };
    ran(&["doctor", "--model", &model]).says(0, &["old.so: version 1.16.3, 1.17 or newer is needed"]);
    ran(&["prepare", "--model", &model]).says(0, &["old.so", "1.16.3"]);
    // A GPU that was named needs a library that works.
    let named = ran(&["prepare", "--model", &model, "--provider", "cuda"]);
    named.says(1, &["samclipd: "]);
}

#[cfg(feature = "ort")]
#[test]
fn onnx_runtime_leaves_nothing_of_its_own_in_the_users_home() {
    let bench = Bench::new();
    let library = std::env::var_os("SAMCLIP_ORT_LIB")
        .expect("this test needs ONNX Runtime: set SAMCLIP_ORT_LIB to libonnxruntime.so (tests/run does)");
    let model = bench.path("model").display().to_string();
    let mut command = bench.command(&["prepare", "--model", &model, "--runtime", "ort", "--provider", "cpu"]);
    let ran = Ran::new(command.env("SAMCLIP_ORT_LIB", library).output().unwrap());
    ran.says(0, &["provider ort-cpu", "1 computed"]);
    let caches = std::fs::read_dir(bench.path(".cache")).unwrap();
    let names: Vec<_> = caches.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["samclip"], "telemetry writes a device id beside it");
}

#[test]
fn prepare_does_it_once_and_says_so() {
    let bench = Bench::new();
    let config = bench.config("engine = \"tract\"", "");
    let first = bench.run(&["prepare", "--config", &config]);
    first.says(
        0,
        &[
            "provider tract-cpu, precision fp32",
            "2 computed, 0 were there",
            "ready; ",
        ],
    );
    assert!(bench.path(".cache/samclip/text").is_dir());
    let second = bench.run(&["prepare", "--config", &config]);
    second.says(0, &["0 computed, 2 were there already"]);
    // What was prepared from the configuration is there for the command line too.
    let model = bench.path("model").display().to_string();
    let third = bench.run(&[
        "prepare",
        "--model",
        &model,
        "--runtime",
        "tract",
        "--query",
        "red",
        "--query",
        "blue",
    ]);
    third.says(0, &["1 computed, 2 were there already"]);
}

#[test]
fn prepare_that_was_killed_goes_on_where_it_was() {
    let bench = Bench::new();
    let queries: Vec<String> = (0..300).map(|i| format!("red thing number {i}")).collect();
    let model = bench.path("model").display().to_string();
    let mut arguments = vec!["prepare", "--model", &model, "--runtime", "tract"];
    queries.iter().for_each(|q| arguments.extend(["--query", q]));
    let folder = || std::fs::read_dir(bench.path(".cache/samclip/text")).ok()?.next()?.ok();
    let entries = || {
        let files = folder().and_then(|f| std::fs::read_dir(f.path()).ok());
        let names = files.into_iter().flatten().flatten().map(|f| f.path());
        names.filter(|p| p.extension().is_some_and(|e| e == "emb")).count()
    };
    let mut child = bench
        .command(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while entries() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing was prepared");
        assert!(
            child.try_wait().unwrap().is_none_or(|status| status.success()),
            "it failed"
        );
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = entries();
    assert!((3..301).contains(&kept), "{kept}: it was done before it was killed");
    let ran = bench.run(&arguments);
    ran.says(0, &[&format!("{} computed, {kept} were there already", 301 - kept)]);
    assert_eq!(entries(), 301);
}

#[test]
fn prepare_fails_where_nothing_can_be_kept() {
    let bench = Bench::new();
    let model = bench.path("model").display().to_string();
    let file = bench.path("file");
    std::fs::write(&file, "").unwrap();
    let cache = file.join("cache").display().to_string();
    bench
        .run(&[
            "prepare",
            "--model",
            &model,
            "--runtime",
            "tract",
            "--cache-dir",
            &cache,
        ])
        .says(1, &["file/cache", "cannot be written"]);
    // The directory is good, but the place of the embeddings is taken.
    let cache = bench.path("cache");
    std::fs::create_dir(&cache).unwrap();
    std::fs::write(cache.join("text"), "").unwrap();
    let cache = cache.display().to_string();
    bench
        .run(&[
            "prepare",
            "--model",
            &model,
            "--runtime",
            "tract",
            "--cache-dir",
            &cache,
        ])
        .says(1, &["1 text embeddings could not be kept", "--cache-dir"]);
    let mut homeless = bench.command(&["prepare", "--model", &model]);
    Ran::new(homeless.env_remove("HOME").output().unwrap()).says(1, &["no cache directory", "--cache-dir"]);
}

#[test]
fn prepare_on_a_full_disk_fails_and_keeps_no_half_file() {
    let bench = Bench::new();
    let model = bench.path("model").display().to_string();
    // As on a full disk, what goes beyond so many bytes of a file is not written.
    let with_room_for = |bytes: u32| {
        let output = Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; exec prlimit --fsize=\"$0\" \"$@\"",
                &bytes.to_string(),
            ])
            .arg(env!("CARGO_BIN_EXE_samclipd"))
            .args(["prepare", "--runtime", "tract", "--model", &model, "--cache-dir"])
            .arg(bench.path("cache"))
            .output()
            .unwrap();
        Ran::new(output)
    };
    with_room_for(0).says(1, &["cannot be written", "File too large"]);
    // Room for what shows that the folder can be written, and for the beginning of an embedding.
    with_room_for(16).says(1, &["1 text embeddings could not be kept", "File too large"]);
    let mut folders = vec![bench.path("cache")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.is_dir(), "{} is left", path.display());
            folders.push(path);
        }
    }
    bench
        .run(&[
            "prepare",
            "--runtime",
            "tract",
            "--model",
            &model,
            "--cache-dir",
            &bench.path("cache").display().to_string(),
        ])
        .says(0, &["1 computed, 0 were there already"]);
}

fn mqtt(port: u16) -> String {
    format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}")
}

#[test]
fn doctor_finds_a_job_that_can_run() {
    let bench = Bench::new();
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let config = bench.config("engine = \"tract\"", &mqtt(broker.address().port()));
    bench.run(&["doctor", "--config", &config]).says(
        0,
        &[
            "1 cameras, 1 queries",
            "colours@",
            "provider tract-cpu",
            "/frames: 64x48",
            "accepts the connection",
            "the configured job can run",
        ],
    );
}

#[test]
fn doctor_names_everything_that_is_missing_with_a_remedy() {
    let bench = Bench::new();
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let config = bench.config("library = \"/nowhere/libonnxruntime.so\"", &mqtt(closed));
    std::fs::remove_dir_all(bench.path("frames")).unwrap();
    std::fs::remove_file(bench.path("model/encoder.onnx")).unwrap();
    let mut parts = vec![
        "encoder.onnx",
        "copy the bundle again",
        "No such file",
        "start the broker",
        "cannot run: ",
    ];
    if cfg!(feature = "ort") {
        parts.extend(["/nowhere/libonnxruntime.so: not there", "set SAMCLIP_ORT_LIB"]);
    }
    bench.run(&["doctor", "--config", &config]).says(1, &parts);
}

#[test]
fn doctor_looks_into_files_and_folders() {
    let bench = Bench::new();
    let config = bench.config("engine = \"tract\"", "");
    let frames = bench.path("frames");
    bench.run(&["doctor", "--config", &config]).says(0, &["/frames: 64x48"]);
    std::fs::write(frames.join("0.png"), "no picture").unwrap();
    bench
        .run(&["doctor", "--config", &config])
        .says(1, &["frames", "its files"]);
    std::fs::remove_file(frames.join("0.png")).unwrap();
    bench
        .run(&["doctor", "--config", &config])
        .says(1, &["frames", "its files"]);
}

#[cfg(feature = "http")]
#[test]
fn doctor_reads_the_page_s_token_as_the_daemon_will() {
    let bench = Bench::new();
    let token = bench.path("token");
    let table = format!("[http]\nlisten = \"0.0.0.0:8080\"\ntoken_file = {token:?}");
    let config = bench.config("engine = \"tract\"", &table);
    let doctor = || bench.run(&["doctor", "--config", &config]);
    doctor().says(1, &["token: ", "No such file", "correct the file or its permissions"]);
    std::fs::write(&token, "short").unwrap();
    doctor().says(1, &["expected a token of 16 to 256 letters"]);
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let page = "http://0.0.0.0:8080 for whoever has the token";
    doctor().says(0, &[page, "the configured job can run"]);
}

#[test]
fn doctor_on_a_named_gpu_that_is_not_there_says_no() {
    let bench = Bench::new();
    for provider in ["cuda", "tensorrt"] {
        let config = bench.config(&format!("provider = {provider:?}\nlibrary = \"/nowhere.so\""), "");
        let ran = bench.run(&["doctor", "--config", &config]);
        ran.says(1, &["libcudart.so", "libnvinfer.so", "cannot run"]);
    }
}

#[test]
fn doctor_reads_a_damaged_configuration_and_goes_on() {
    let bench = Bench::new();
    let config = bench.config("enigne = \"tract\"", "");
    let ran = bench.run(&["doctor", "--config", &config]);
    ran.says(
        1,
        &[
            "samclipd.toml:3: unknown field \"enigne\"",
            "check-config",
            "cache directory",
        ],
    );
    let nowhere = bench.path("nowhere.toml").display().to_string();
    bench.run(&["doctor", "--config", &nowhere]).says(1, &["nowhere.toml"]);
}

#[test]
fn doctor_makes_no_directory_and_leaves_no_probe() {
    let bench = Bench::new();
    let model = bench.path("model").display().to_string();
    let doctor = |cache: &Path| {
        let cache = cache.display().to_string();
        bench.run(&["doctor", "--model", &model, "--runtime", "tract", "--cache-dir", &cache])
    };
    let cache = bench.path("deep/cache");
    doctor(&cache).says(0, &["deep/cache: not there yet, can be made"]);
    assert!(!bench.path("deep").exists());
    std::fs::create_dir_all(&cache).unwrap();
    doctor(&cache).says(0, &["deep/cache: 0 files"]);
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
    std::fs::write(bench.path("file"), "").unwrap();
    doctor(&bench.path("file/cache")).says(0, &["file/cache cannot be written"]);
}

/// Starts a command whose model never gets opened, and sends it a signal once its library is being loaded.
#[cfg(feature = "ort")]
fn interrupted(bench: &Bench, arguments: &[&str], signal: &str) -> Option<i32> {
    let mark = bench.path("loading");
    let _ = std::fs::remove_file(&mark);
    let mut child = bench
        .command(arguments)
        .env("MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !mark.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it does not load the library"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if started.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("{arguments:?} goes on after {signal}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(feature = "ort")]
#[test]
fn a_signal_ends_prepare_and_run_while_the_model_is_being_opened() {
    let bench = Bench::new();
    // As long as an engine's build, which cannot be interrupted either.
    let slow = "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
                const void* OrtGetApiBase(void) { fclose(fopen(getenv(\"MARK\"), \"w\")); for (;;) pause(); }\n";
    let library = bench.library("slow", slow);
    let config = bench.config(&format!("engine = \"ort\"\nlibrary = {library:?}"), "");
    for signal in ["-INT", "-TERM"] {
        assert_eq!(
            interrupted(&bench, &["prepare", "--config", &config], signal),
            Some(130)
        );
        assert_eq!(interrupted(&bench, &["run", "--config", &config], signal), Some(0));
    }
}

#[test]
fn help_tells_where_the_library_is_looked_for() {
    let bench = Bench::new();
    for command in ["prepare", "doctor", "run", "demo", "segment"] {
        bench
            .run(&[command, "--help"])
            .says(0, &["SAMCLIP_ORT_LIB, $ORT_DYLIB_PATH", "beside the program"]);
    }
}

#[test]
fn tune_proposes_a_threshold_between_pictures_with_and_without() {
    let bench = Bench::new();
    let model = bench.path("model").display().to_string();
    let colours = [
        ("red-1", [230, 20, 20]),
        ("red-2", [200, 40, 40]),
        ("blue", [20, 20, 230]),
        ("yellow", [230, 230, 20]),
    ];
    let paths: Vec<String> = colours
        .iter()
        .map(|(name, colour)| {
            let path = bench.path(&format!("{name}.png"));
            image::RgbImage::from_pixel(64, 48, image::Rgb(*colour))
                .save(&path)
                .unwrap();
            path.display().to_string()
        })
        .collect();
    let mut arguments = vec![
        "tune",
        "--model",
        &model,
        "--runtime",
        "tract",
        "--query",
        "red",
        "--with",
        &paths[0],
        &paths[1],
    ];
    // What is asked at the same time competes: without it, blue would pass for red, since it is not yellow.
    arguments.extend(["--against", "blue", "--without", &paths[2], &paths[3]]);
    let ran = bench.run(&arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    for part in [
        "with it: 2 pictures",
        "without it: 2 pictures",
        "threshold = 0.",
        "found on 100 %",
        "false alarm on 0 %",
    ] {
        assert!(ran.text.contains(part), "{part} is missing in\n{}", ran.text);
    }
    let ran = bench.run(&["tune", "--model", &model, "--runtime", "tract", "--query", "red"]);
    assert!(
        ran.code != Some(0) && ran.text.contains("no pictures; give some with --with"),
        "{}",
        ran.text
    );
}
