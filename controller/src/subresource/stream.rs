//! A WebSocket of protocol `plain.kubevirt.io`: bytes both ways, in binary frames.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use hyper::upgrade::{OnUpgrade, on};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::time::{interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Refusal;
use super::launcher::Connection;

/// The protocol.
const PROTOCOL: &str = "plain.kubevirt.io";
/// Bytes that are passed on at once.
const BUFFER: usize = 10 << 10;
/// A client is asked so often whether it is still there,
const PING: Duration = Duration::from_secs(10);
/// and has gone when it has said nothing for so long.
const SILENCE: Duration = Duration::from_secs(60);

/// Makes a WebSocket of the request and connects it.
pub(super) fn bridge(mut request: Request, to: Connection) -> Result<Response, Refusal> {
    let key = wanted(request.headers())?;
    let accept = derive_accept_key(key.as_bytes());
    let offered = request
        .headers()
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok());
    let plain = offered.is_some_and(|list| list.split(',').any(|name| name.trim() == PROTOCOL));
    let upgrade = on(&mut request);
    tokio::spawn(async move {
        if let Err(error) = run(upgrade, to).await {
            log::debug!("a stream ended: {error:#}");
        }
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if plain {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    }
    response
        .body(Body::empty())
        .map_err(|error| Refusal::internal(error.to_string()))
}

/// The key of a request that asks for a WebSocket.
fn wanted(headers: &HeaderMap) -> Result<String, Refusal> {
    let has = |name, value: &str| {
        headers
            .get(name)
            .and_then(|header| header.to_str().ok())
            .is_some_and(|header: &str| {
                header
                    .split(',')
                    .any(|word| word.trim().eq_ignore_ascii_case(value))
            })
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    match key {
        Some(key)
            if has(UPGRADE, "websocket")
                && has(CONNECTION, "upgrade")
                && has(SEC_WEBSOCKET_VERSION, "13") =>
        {
            Ok(key.to_owned())
        }
        _ => Err(Refusal::bad_request(
            "this is a stream: the request must ask for a WebSocket",
        )),
    }
}

async fn run(upgrade: OnUpgrade, to: Connection) -> anyhow::Result<()> {
    let client = TokioIo::new(upgrade.await?);
    let limits = WebSocketConfig::default()
        .max_message_size(Some(1 << 20))
        .max_frame_size(Some(1 << 20));
    let client = WebSocketStream::from_raw_socket(client, Role::Server, Some(limits)).await;
    let (mut to_client, mut from_client) = client.split();
    let Connection { stream, _forward } = to;
    let (mut from_guest, mut to_guest) = split(stream);
    let up = async {
        loop {
            // Pings are answered: a client that is there is heard.
            match timeout(SILENCE, from_client.next()).await? {
                Some(Ok(Message::Binary(bytes))) => to_guest.write_all(&bytes).await?,
                Some(Ok(Message::Text(text))) => to_guest.write_all(text.as_bytes()).await?,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return anyhow::Ok(()),
                Some(Ok(_)) => {}
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; BUFFER];
        let mut ping = interval(PING);
        loop {
            let message = tokio::select! {
                read = from_guest.read(&mut buffer) => match read? {
                    0 => return anyhow::Ok(()),
                    count => Message::Binary(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default())),
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            timeout(SILENCE, to_client.send(message)).await??;
        }
    };
    // Neither direction waits for the other, and the end of one is the end.
    let done = tokio::select! {
        done = up => done,
        done = down => done,
    };
    // Who has gone already is not waited for.
    let end = CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    };
    let _ = timeout(PING, to_client.send(Message::Close(Some(end)))).await;
    let _ = timeout(PING, to_guest.shutdown()).await;
    done
}
