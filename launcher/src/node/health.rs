//! `GET /healthz` on the node's loopback address: 200 where machines can have what they need.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::Known;
use crate::{Error, Result};

const PORT: u16 = 22481;
/// Time for a request: it is answered one at a time.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await;
    listener.map_err(Error::io(
        "listen on 127.0.0.1:22481 (is another agent running on this node?)",
    ))
}

pub(super) async fn serve(listener: TcpListener, known: Arc<Known>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PATIENCE).await;
            continue;
        };
        let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            let answer = answer(request.uri().path(), &known);
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
            log::debug!("healthz: {error}");
        }
    }
}

fn answer(path: &str, known: &Known) -> Response<Full<Bytes>> {
    let (status, text) = match (path, known.missing()) {
        ("/healthz", None) => (StatusCode::OK, "ok\n".to_owned()),
        ("/healthz", Some(device)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the kubelet has no devices.kubevirt.io/{device} of us yet\n"),
        ),
        _ => (StatusCode::NOT_FOUND, "there is /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
