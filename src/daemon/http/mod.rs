//! The daemon over HTTP: a page to look at, the API it uses, metrics, health.
//!
//! `access` decides who may do what, [`api`] says and changes what there is, `picture` shows what a camera sees,
//! [`metrics`] and [`health`] are for machines, `page` for people. Everything that is read comes from the [`Board`] and
//! the [`View`], everything that is asked goes through the [`Door`]: nothing here waits for a frame or holds one up.
//! Connections, headers, bodies and waits are bounded, so that nobody who is slow or malicious costs more than his own
//! connection. An address that cannot be taken stops nothing: it is told once, and tried again with growing pauses.

mod access;
pub mod api;
pub mod health;
pub mod metrics;
mod page;
mod picture;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, info, warn};

use super::board::Board;
use super::commands::Door;
use super::config::Http;
use super::event_loop::EventLoop;
use super::view::View;
use crate::message::query::MAX_COMMAND_BYTES;
use access::Access;

/// Most connections at once; further ones wait until one ends.
const CONNECTIONS: usize = 64;

/// Most bytes of a request's line and headers.
const HEADER_BYTES: usize = 16 << 10;

/// Longest wait for a request's headers, on a connection that is kept open too.
const HEADERS: Duration = Duration::from_secs(10);

/// Longest wait for the other end to take something.
const WRITE: Duration = Duration::from_secs(10);

/// First and longest pause between two tries to listen; the pause doubles.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What every request sees.
struct Shared {
    board: Board,
    view: View,
    door: Door,
    access: Access,
}

/// The server; dropping it ends every connection.
#[derive(Debug)]
pub struct Server {
    _thread: EventLoop,
}

impl Server {
    /// Starts the server's thread; an address that cannot be taken is no error.
    ///
    /// # Errors
    /// A token file that cannot be used; or if the system gives no thread or no event loop.
    pub fn start(config: &Http, board: &Board, view: &View, door: Door) -> anyhow::Result<Self> {
        let listen = config.listen;
        let shared = Shared {
            board: board.clone(),
            view: view.clone(),
            door,
            access: Access::new(listen, config.read_token()?.as_deref()),
        };
        let _thread = EventLoop::start("http", async move || serve(listen, router(shared)).await)?;
        Ok(Self { _thread })
    }
}

fn router(shared: Shared) -> Router {
    let shared = Arc::new(shared);
    let guard = axum::middleware::from_fn_with_state(Arc::clone(&shared), access::guard);
    Router::new()
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::script))
        .route("/icon.svg", get(page::icon))
        .route("/api/state", get(api::state))
        .route("/api/reload", post(api::reload))
        .route("/api/cameras/{camera}/picture", get(picture::next))
        .route("/api/cameras/{camera}/detect", post(api::set_detect))
        .route("/api/cameras/{camera}/background", post(api::set_background))
        .route("/api/cameras/{camera}/queries/{query}", post(api::set_query))
        .route("/api/cameras/{camera}/queries/{query}/remove", post(api::remove_query))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(health::health))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "nothing is here; / is the page"))
        .method_not_allowed_fallback(async || {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "this address takes another method; the API is read with GET and changed with POST",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_COMMAND_BYTES))
        .layer(guard)
        .with_state(shared)
}

/// An answer in JSON.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An answer that says why something was not done.
fn refusal(status: StatusCode, text: &str) -> Response {
    json(status, &serde_json::json!({ "error": text }))
}

/// Listens for ever.
async fn serve(listen: SocketAddr, router: Router) {
    let listener = listener(listen).await;
    info!("page, metrics and health are at http://{listen}/");
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    // It is never closed.
    while let Ok(place) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, router).await {
                        debug!(%error, "connection ended");
                    }
                    drop(place);
                });
            }
            // Out of file descriptors, or the other end has gone already.
            Err(error) => {
                debug!(%error, "connection not accepted");
                tokio::time::sleep(RETRY.0).await;
            }
        }
    }
}

/// Takes the address, again until that succeeds.
async fn listener(listen: SocketAddr) -> TcpListener {
    let mut pause = RETRY.0;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return listener,
            Err(error) if pause == RETRY.0 => {
                warn!(%error, "cannot listen on {listen}; tried again until it is possible");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, router: Router) -> hyper::Result<()> {
    // Small answers at once; without it they are only later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_header_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
        .await
}
