//! `samclipd demo`: the built-in frames through the whole program, broker included; nothing needs to be installed.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::clock::Clock;
use crate::message::payload::DetectStatus;
use crate::message::topic::{CameraId, QueryId, RESERVED_QUERIES, Topics};
use crate::publish::broker::Broker;
use crate::publish::mqtt::{Publisher, Settings};
use crate::vision::frame::CaptureTime;

use super::pictures::write_annotated;
use super::pipeline::{Detections, Pipeline};
use super::report::{MaskOutput, TABLE_HEADER, frame_message, table_rows};
use super::sample_frames::sample_frames;
use super::segment::specs;

/// The standard MQTT port; the next free one is used if it is taken.
const PORT: u16 = 1883;

/// How long the demo waits for its own broker.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Texts to look for.
    pub queries: Vec<String>,
    /// Directory for the annotated pictures; made if it is missing.
    pub out: PathBuf,
    /// Frames of the pan-and-zoom clip.
    pub clip_frames: usize,
    /// Play again until interrupted.
    pub looped: bool,
}

impl Default for DemoOptions {
    fn default() -> Self {
        // Names that the bundled model knows well enough to show.
        let queries = ["person", "sky", "grass", "road"];
        Self {
            queries: queries.map(str::to_owned).to_vec(),
            out: std::env::temp_dir().join("samclip-demo"),
            clip_frames: 24,
            looped: false,
        }
    }
}

struct Outlet {
    publisher: Publisher,
    topics: Topics,
    camera: CameraId,
    queries: Vec<QueryId>,
}

impl Outlet {
    fn connect(broker: &Broker, pipeline: &Pipeline) -> anyhow::Result<Self> {
        let topics = Topics::new(Topics::DEFAULT_PREFIX)?;
        let camera = CameraId::new("demo")?;
        let queries = pipeline
            .queries()
            .iter()
            .map(|q| QueryId::new(&q.id))
            .collect::<Result<_, _>>()?;
        let address = broker.address();
        let settings = Settings::new(
            &address.ip().to_string(),
            address.port(),
            "samclipd-demo",
            topics.available(),
        );
        Ok(Self {
            publisher: Publisher::start(settings)?,
            topics,
            camera,
            queries,
        })
    }

    fn send(&self, pipeline: &Pipeline, found: &Detections, clock: &dyn Clock) -> anyhow::Result<()> {
        let message = frame_message(
            self.camera.as_str(),
            pipeline,
            found,
            clock.now(),
            MaskOutput::default(),
            &[],
        )?;
        self.publisher
            .publish(self.topics.frame(&self.camera), message.encode()?);
        for (index, query) in self.queries.iter().enumerate() {
            let count = found.masks.iter().filter(|m| m.query == index).count();
            self.publisher
                .publish(self.topics.count(&self.camera, query), count.to_string().into_bytes());
        }
        Ok(())
    }

    fn status(&self, status: DetectStatus) {
        self.publisher
            .publish(self.topics.detect_status(&self.camera), status.as_str().into());
    }
}

/// Shows every built-in frame: prints its detections, publishes them, writes the annotated picture.
///
/// # Errors
/// A result that cannot be written, a model that cannot be run, no free port for the broker.
pub fn demo(
    pipeline: &mut Pipeline,
    options: &DemoOptions,
    clock: &dyn Clock,
    stop: &AtomicBool,
    table: &mut dyn Write,
) -> anyhow::Result<()> {
    let specs = specs(&options.queries, None, &RESERVED_QUERIES);
    pipeline.set_queries(&specs)?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let broker = Broker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))?;
    let outlet = Outlet::connect(&broker, pipeline)?;
    writeln!(table, "model {}, provider {}", pipeline.model(), pipeline.provider())?;
    for note in pipeline.notes() {
        writeln!(table, "  {note}")?;
    }
    let address = broker.address();
    writeln!(table, "looking for: {}", options.queries.join(", "))?;
    let port = if address.port() == PORT {
        String::new()
    } else {
        format!(" -p {}", address.port())
    };
    writeln!(
        table,
        "built-in broker on {address}; in another terminal: mosquitto_sub{port} -t 'samclip/#' -v\n"
    )?;
    if !outlet.publisher.wait_connected(PATIENCE) {
        writeln!(
            table,
            "the built-in broker does not answer; frames are shown but not published"
        )?;
    }
    outlet.status(DetectStatus::Online);
    writeln!(table, "{TABLE_HEADER}")?;
    let started = clock.now();
    let frames = play(pipeline, options, clock, stop, &outlet, table)?;
    let seconds = clock.now().since(started).as_secs_f64();
    outlet.status(DetectStatus::Offline);
    let sent = outlet.publisher.wait_sent(PATIENCE);
    let published = outlet.publisher.stats().sent;
    let stopped = outlet.publisher.stop(PATIENCE);
    writeln!(
        table,
        "\n{frames} frames in {seconds:.1} s: {:.1} frames per second",
        frames as f64 / seconds.max(1e-6)
    )?;
    let complete = if sent && stopped {
        ""
    } else {
        ", not all of them acknowledged"
    };
    writeln!(table, "{published} messages published{complete}")?;
    writeln!(table, "annotated pictures are in {}", display(&options.out))?;
    Ok(())
}

fn play(
    pipeline: &mut Pipeline,
    options: &DemoOptions,
    clock: &dyn Clock,
    stop: &AtomicBool,
    outlet: &Outlet,
    table: &mut dyn Write,
) -> anyhow::Result<u64> {
    let mut shown = 0;
    loop {
        for mut sample in sample_frames(options.clip_frames)? {
            if stop.load(Ordering::Relaxed) {
                return Ok(shown);
            }
            let now = clock.now();
            sample.frame.captured = CaptureTime {
                monotonic: now.monotonic,
                unix_micros: now.unix_micros,
            };
            sample.frame.sequence.0 = shown;
            let found = pipeline.run(&sample.frame)?;
            outlet.send(pipeline, &found, clock)?;
            write!(table, "{}", table_rows(&sample.name, pipeline, &found))?;
            write_annotated(&options.out.join(format!("{}.png", sample.name)), pipeline, &found)?;
            shown += 1;
        }
        if !options.looped {
            return Ok(shown);
        }
    }
}

fn display(path: &Path) -> String {
    path.canonicalize()
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}
