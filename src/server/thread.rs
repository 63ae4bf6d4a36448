//! A server on its own thread and runtime, which responds even if the other runtimes are stuck.

use std::{io, thread};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Server;

/// Number of threads for slow work of the server, such as building the metrics page.
const BLOCKING_THREADS: usize = 2;

/// A server that runs on its own thread.
#[derive(Debug)]
pub struct OwnThread {
    name: &'static str,
    ended: oneshot::Receiver<()>,
}

/// The thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread of the {name} server: {source}")]
pub struct ThreadError {
    name: &'static str,
    source: io::Error,
}

impl OwnThread {
    /// Serves until told to stop.
    ///
    /// # Errors
    /// If the machine cannot start a thread.
    pub fn serve(server: Server, service: Router, stop: CancellationToken) -> Result<Self, ThreadError> {
        let name = server.name;
        let failed = |source| ThreadError { name, source };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(format!("weir-{name}-work"))
            .build()
            .map_err(failed)?;
        let (ending, ended) = oneshot::channel();
        thread::Builder::new()
            .name(format!("weir-{name}"))
            .spawn(move || {
                runtime.block_on(server.serve(service, stop));
                runtime.shutdown_background();
                // The receiver may be gone.
                let _ = ending.send(());
            })
            .map_err(failed)?;
        Ok(Self { name, ended })
    }

    /// Waits until it has stopped.
    pub async fn ended(self) {
        if self.ended.await.is_err() {
            tracing::warn!(listener = self.name, "the server failed");
        }
    }
}

/// Handles requests on the current runtime, for routes of a server that has its own.
pub fn on_main_runtime(routes: Router) -> Router {
    let handle = Handle::current();
    routes.layer(from_fn(move |request: Request, next: Next| {
        let answering = AbortOnDropHandle::new(handle.spawn(next.run(request)));
        async move { answering.await.unwrap_or_else(|_| broken()) }
    }))
}

/// Response if the task panicked or its runtime is shutting down.
fn broken() -> Response {
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "the request could not be answered\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, routing::get};
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn responds_while_the_main_runtime_is_stuck() {
        let main = Builder::new_current_thread().enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let (address, server) = main.block_on(async {
            let server = Server::bind("admin", "127.0.0.1:0".parse().unwrap())
                .await
                .unwrap();
            let routes = on_main_runtime(Router::new().route("/main", get(|| async { "main" })));
            let routes = routes.route("/own", get(|| async { "own" }));
            let address = server.address();
            (address, OwnThread::serve(server, routes, stop.clone()).unwrap())
        });
        let ask = move |path: &str| {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(if path == "/own" { 30 } else { 1 })))
                .unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        assert!(ask("/own").unwrap().ends_with("own"));
        assert!(ask("/main").is_err(), "it runs where nothing runs");
        let asking = main.block_on(async {
            let asking = tokio::task::spawn_blocking(move || ask("/main"));
            asking.await.unwrap()
        });
        assert!(asking.unwrap().ends_with("main"));
        stop.cancel();
        main.block_on(server.ended());
    }

    #[tokio::test]
    async fn panic_becomes_a_response() {
        let routes = on_main_runtime(Router::new().route(
            "/",
            get(|| async {
                if true {
                    panic!("as the test says");
                }
            }),
        ));
        let answer = routes.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
