//! The API: the daemon's state as JSON, and commands through the same queue as those of MQTT and D-Bus.
//!
//! A command that is refused changes nothing; the answer is `{"error": TEXT}`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::{Shared, json, refusal};
use crate::daemon::annotate::colour;
use crate::daemon::board::{CameraState, DaemonState};
use crate::daemon::commands::{Change, Command, Refusal};
use crate::daemon::config::color_text;
use crate::daemon::health::resident_bytes;
use crate::daemon::view::{CameraSeen, Glance, Seen};
use crate::message::payload::SCHEMA;
use crate::message::query::{MAX_COMMAND_BYTES, QueryMessage};

/// Longest wait for a command's body.
const BODY: Duration = Duration::from_secs(10);

/// Longest wait for a command: for the embedding of new texts on the slowest board.
const COMMAND: Duration = Duration::from_secs(120);

/// All that the page shows.
#[derive(Debug, Serialize)]
struct StateMessage {
    schema: &'static str,
    version: &'static str,
    /// What the daemon does, as on D-Bus.
    state: &'static str,
    model: String,
    provider: String,
    uptime_s: u64,
    memory_bytes: Option<u64>,
    /// Whether the last frame could not be processed.
    failing: bool,
    mqtt: Option<MqttShown>,
    cameras: BTreeMap<String, CameraShown>,
}

/// The connection to the broker.
#[derive(Debug, Serialize)]
struct MqttShown {
    connected: bool,
    sent: u64,
    dropped: u64,
    /// Events on disk that the broker has not acknowledged; absent without a spool.
    spooled: Option<u64>,
}

#[derive(Debug, Serialize)]
struct CameraShown {
    source: String,
    detect: bool,
    status: Option<&'static str>,
    frames: u64,
    /// Looks by side of the model's input.
    looks: BTreeMap<usize, u64>,
    failed: u64,
    skipped: u64,
    still: u64,
    lost: u64,
    corrupt: u64,
    opened: u64,
    background: Vec<String>,
    queries: BTreeMap<String, QueryShown>,
    frame: Option<FrameShown>,
}

/// The last frame that was processed.
#[derive(Debug, Serialize)]
struct FrameShown {
    seq: u64,
    size: [usize; 2],
    /// Side of the model's input that it went through.
    input_side: usize,
    age_ms: f64,
    stage_ms: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct QueryShown {
    /// As it is in force; can be sent back.
    query: QueryMessage,
    /// Best score anywhere on the last frame, 0-1.
    score: Option<f32>,
    /// Score from which on it is present, its own or the model's.
    threshold: Option<f32>,
    /// Colour in pictures, `#rrggbb`.
    color: Option<String>,
    /// Things of it that are there, and those of them that move.
    there: u32,
    active: u32,
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn query_shown(id: &str, query: &QueryMessage, camera: &CameraState, glance: Option<&Glance>) -> QueryShown {
    let place = |glance: &Glance| glance.asked.specs().iter().position(|spec| spec.id == id);
    let index = glance.and_then(place);
    let (there, active) = camera.detections.get(id).copied().unwrap_or_default();
    let own = query.color.clone();
    let of = |values: fn(&Glance) -> &[f32]| glance.zip(index).and_then(|(g, i)| values(g).get(i).copied());
    QueryShown {
        score: of(|glance| &glance.best),
        threshold: query.threshold.or(of(|glance| &glance.thresholds)),
        color: own.or_else(|| index.map(|index| color_text(colour(index)))),
        query: query.clone(),
        there,
        active,
    }
}

fn camera_shown(state: &CameraState, seen: Option<&CameraSeen>) -> CameraShown {
    let glance = seen.and_then(|seen| seen.glance.as_ref());
    let (frames, failed) = seen.map_or((0, 0), |seen| (seen.frames, seen.failed));
    let source = seen.map(|seen| seen.source).unwrap_or_default();
    let queries = state.queries.iter();
    CameraShown {
        source: state.source.clone(),
        detect: state.detect,
        status: state.status.map(|status| status.as_str()),
        frames,
        looks: seen.map(|seen| seen.looks.clone()).unwrap_or_default(),
        failed,
        skipped: source.skipped,
        still: source.still,
        lost: source.lost,
        corrupt: source.corrupt,
        opened: source.opened,
        background: state.background.to_vec(),
        queries: queries
            .map(|(id, query)| (id.clone(), query_shown(id, query, state, glance)))
            .collect(),
        frame: glance.map(|glance| FrameShown {
            seq: glance.sequence.0,
            size: [glance.size.width(), glance.size.height()],
            input_side: glance.side,
            age_ms: milliseconds(glance.age),
            stage_ms: glance
                .times
                .by_name()
                .map(|(name, time)| (name, milliseconds(time)))
                .into(),
        }),
    }
}

fn message(state: &DaemonState, seen: &Seen) -> StateMessage {
    let cameras = state.cameras.iter();
    StateMessage {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        state: state.phase.as_str(),
        model: state.model.clone(),
        provider: state.provider.clone(),
        uptime_s: Instant::now().saturating_duration_since(seen.started).as_secs(),
        memory_bytes: None,
        failing: seen.failing,
        mqtt: seen.publisher.map(|stats| MqttShown {
            connected: stats.connected,
            sent: stats.sent,
            dropped: stats.dropped,
            spooled: stats.spool.map(|spool| spool.waiting as u64),
        }),
        cameras: cameras
            .map(|(id, camera)| (id.clone(), camera_shown(camera, seen.cameras.get(id))))
            .collect(),
    }
}

pub(super) async fn state(State(shared): State<Arc<Shared>>) -> Response {
    let state = shared.board.now();
    let mut message = shared.view.look(|seen| message(&state, seen));
    message.memory_bytes = resident_bytes();
    json(StatusCode::OK, &message)
}

/// Reads a body of bounded size in bounded time.
async fn read(request: Request) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY, Bytes::from_request(request, &())).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let text = format!("the body is longer than {MAX_COMMAND_BYTES} bytes, which is the most");
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, &text))
        }
        Ok(Err(error)) => Err(refusal(
            StatusCode::BAD_REQUEST,
            &format!("the body cannot be read: {error}"),
        )),
        Err(_) => {
            let text = format!("no whole body within {} s", BODY.as_secs());
            Err(refusal(StatusCode::REQUEST_TIMEOUT, &text))
        }
    }
}

/// Reads a body and understands it.
async fn read_json<T: for<'de> Deserialize<'de>>(request: Request) -> Result<T, Response> {
    let bytes = read(request).await?;
    serde_json::from_slice(&bytes).map_err(|error| refusal(StatusCode::BAD_REQUEST, &format!("body: {error}")))
}

/// Hands a command in and answers with what became of it.
async fn ask(shared: &Shared, camera: Option<&str>, command: Command) -> Response {
    let state = shared.board.now();
    if let Some(Err(text)) = camera.map(|camera| state.camera(camera)) {
        return refusal(StatusCode::NOT_FOUND, &text);
    }
    if let Err(text) = state.takes_commands() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, &text);
    }
    match tokio::time::timeout(COMMAND, shared.door.ask(command)).await {
        Ok(Ok(_)) => json(StatusCode::OK, &serde_json::json!({ "done": true })),
        Ok(Err(refused)) => refusal(status_of(&refused), &refused.short()),
        Err(_) => {
            let text = format!("not done within {} s; it is still being worked on", COMMAND.as_secs());
            refusal(StatusCode::GATEWAY_TIMEOUT, &text)
        }
    }
}

fn status_of(refused: &Refusal) -> StatusCode {
    match refused {
        Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
        Refusal::Failed(_) => StatusCode::CONFLICT,
        Refusal::Busy | Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Asks something else of a camera.
async fn change(shared: &Shared, camera: String, change: Change) -> Response {
    let command = Command::Ask {
        camera: camera.clone(),
        change,
    };
    ask(shared, Some(&camera), command).await
}

type Ids = Path<(String, String)>;

/// `{…}`: sets or replaces a query, as `query/ID/set` over MQTT.
pub(super) async fn set_query(
    State(shared): State<Arc<Shared>>,
    Path((camera, id)): Ids,
    request: Request,
) -> Result<Response, Response> {
    let query = QueryMessage::decode(&read(request).await?);
    let query = query.map_err(|error| refusal(StatusCode::BAD_REQUEST, &error.to_string()))?;
    let query = Box::new(query);
    Ok(change(&shared, camera, Change::Query { id, query }).await)
}

/// `{}`: removes a query.
pub(super) async fn remove_query(
    State(shared): State<Arc<Shared>>,
    Path((camera, id)): Ids,
    request: Request,
) -> Result<Response, Response> {
    let Nothing {} = read_json(request).await?;
    Ok(change(&shared, camera, Change::NoQuery { id }).await)
}

/// The body of a command that needs none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    on: bool,
}

/// `{"on": true}`: switches detection.
pub(super) async fn set_detect(
    State(shared): State<Arc<Shared>>,
    Path(camera): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    let Switch { on } = read_json(request).await?;
    let command = Command::SetDetect {
        camera: camera.clone(),
        on,
    };
    Ok(ask(&shared, Some(&camera), command).await)
}

/// `["a wall"]`: what queries compete with; `null` for the configuration's.
pub(super) async fn set_background(
    State(shared): State<Arc<Shared>>,
    Path(camera): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    let texts = read_json(request).await?;
    Ok(change(&shared, camera, Change::Background(texts)).await)
}

/// `{}`: reads the configuration file again.
pub(super) async fn reload(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Response> {
    let Nothing {} = read_json(request).await?;
    Ok(ask(&shared, None, Command::Reload).await)
}
