//! `/healthz`: whether the daemon does its work, for whatever watches over it. Says nothing that is secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Shared, json};
use crate::daemon::board::{DaemonState, Phase};
use crate::daemon::view::Seen;
use crate::message::payload::DetectStatus;

/// How long all cameras may be gone.
const GONE: Duration = Duration::from_secs(60);

/// How long one frame may take; the service manager's watchdog has the same patience.
const HANGS: Duration = Duration::from_secs(300);

/// What the frame loop did last.
#[derive(Debug, Clone, Copy)]
struct Turns {
    failing: bool,
    /// Time since a camera gave a frame.
    quiet: Duration,
    /// Time since the loop turned.
    stuck: Duration,
}

impl Turns {
    fn of(seen: &Seen, now: Instant) -> Self {
        Self {
            failing: seen.failing,
            quiet: now.saturating_duration_since(seen.delivered),
            stuck: now.saturating_duration_since(seen.turned),
        }
    }
}

/// What the daemon does, or why it does not do its work.
fn verdict(state: &DaemonState, turns: Turns) -> Result<&'static str, &'static str> {
    match state.phase {
        Phase::Opening | Phase::BuildingEngine => return Ok(state.phase.as_str()),
        Phase::Stopping => return Err("the daemon is stopping"),
        Phase::Running | Phase::Reloading => {}
    }
    let mut wanted = state.cameras.values().filter(|camera| camera.detect).peekable();
    if turns.stuck > HANGS {
        Err("a frame hangs")
    } else if wanted.peek().is_none() {
        Ok("disabled")
    } else if turns.failing {
        Err("frames cannot be processed; the log says why")
    } else if turns.quiet > GONE && wanted.all(|camera| camera.status != Some(DetectStatus::Online)) {
        Err("no camera gives frames")
    } else {
        Ok(state.phase.as_str())
    }
}

pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let turns = shared.view.look(|seen| Turns::of(seen, Instant::now()));
    match verdict(&shared.board.now(), turns) {
        Ok(status) => json(
            StatusCode::OK,
            &serde_json::json!({ "healthy": true, "status": status }),
        ),
        Err(reason) => {
            let body = serde_json::json!({ "healthy": false, "reason": reason });
            json(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::board::CameraState;

    fn state(phase: Phase, cameras: &[(bool, Option<DetectStatus>)]) -> DaemonState {
        let camera = |(index, &(detect, status)): (usize, &(bool, Option<DetectStatus>))| {
            let state = CameraState {
                detect,
                status,
                ..CameraState::default()
            };
            (format!("c{index}"), state)
        };
        DaemonState {
            phase,
            cameras: cameras.iter().enumerate().map(camera).collect(),
            ..DaemonState::default()
        }
    }

    #[test]
    fn health_follows_frames_and_not_the_lack_of_what_nobody_expects() {
        let turns = |failing, quiet, stuck| Turns {
            failing,
            quiet: Duration::from_secs(quiet),
            stuck: Duration::from_secs(stuck),
        };
        let (good, quiet) = (turns(false, 1, 0), turns(false, 61, 0));
        let online = (true, Some(DetectStatus::Online));
        let (offline, silent) = ((true, Some(DetectStatus::Offline)), (true, None));
        let disabled = (false, Some(DetectStatus::Disabled));
        for (phase, cameras, turns, expected) in [
            (Phase::Running, &[online][..], good, Ok("running")),
            (Phase::Reloading, &[online], good, Ok("reloading")),
            // A camera of one frame in two minutes is no camera that is gone.
            (Phase::Running, &[online, offline], quiet, Ok("running")),
            (Phase::Running, &[offline, silent], good, Ok("running")),
            (
                Phase::Running,
                &[offline, silent, disabled],
                quiet,
                Err("no camera gives frames"),
            ),
            (Phase::Running, &[disabled], quiet, Ok("disabled")),
            (Phase::Opening, &[silent], turns(false, 999, 999), Ok("opening")),
            (
                Phase::BuildingEngine,
                &[silent],
                turns(false, 999, 999),
                Ok("building_engine"),
            ),
            (
                Phase::Running,
                &[online],
                turns(true, 0, 0),
                Err("frames cannot be processed; the log says why"),
            ),
            (Phase::Running, &[disabled], turns(true, 0, 0), Ok("disabled")),
            (Phase::Running, &[online], turns(false, 301, 301), Err("a frame hangs")),
            (Phase::Stopping, &[online], good, Err("the daemon is stopping")),
        ] {
            assert_eq!(
                verdict(&state(phase, cameras), turns),
                expected,
                "{phase:?} {cameras:?} {turns:?}"
            );
        }
    }
}
