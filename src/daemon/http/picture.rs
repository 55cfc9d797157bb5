//! What a camera sees, with masks and labels, as one JPEG per request.
//!
//! Whoever wants to see more asks again: a connection that breaks, a daemon that restarts and a browser that sleeps need no
//! special care.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};

use super::{Shared, refusal};

/// Longest wait for a frame.
const PATIENCE: Duration = Duration::from_secs(10);

/// The camera's next frame.
pub(super) async fn next(State(shared): State<Arc<Shared>>, Path(camera): Path<String>) -> Response {
    let state = shared.board.now();
    let shown = match state.camera(&camera) {
        Ok(shown) => shown,
        Err(text) => return refusal(StatusCode::NOT_FOUND, &text),
    };
    if !shown.detect {
        return refusal(
            StatusCode::CONFLICT,
            "no picture: detection of this camera is off; switch it on first",
        );
    }
    let Some(mut pictures) = shared.view.pictures(&camera) else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "no picture: the daemon does not process frames yet",
        );
    };
    let changed = tokio::time::timeout(PATIENCE, pictures.changed()).await;
    let picture = pictures.borrow_and_update().clone();
    let (Ok(Ok(())), Some(picture)) = (changed, picture) else {
        let text = format!("no picture: no frame for {} s", PATIENCE.as_secs());
        return refusal(StatusCode::SERVICE_UNAVAILABLE, &text);
    };
    match tokio::task::spawn_blocking(move || picture.jpeg()).await {
        Ok(Ok(bytes)) => ([(CONTENT_TYPE, "image/jpeg")], bytes).into_response(),
        Ok(Err(error)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("no picture: {error}")),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("no picture: {error}")),
    }
}
