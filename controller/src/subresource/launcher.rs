//! The way to a launcher: its pod's port-forward, to the HTTP API on the pod's loopback (`docs/pod.md`).

use std::time::Duration;

use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Portforwarder;
use kube::{Api, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Refusal;
use crate::context::Context;
use crate::vmi::moving::in_charge;

/// The port of the launcher's API.
const PORT: u16 = 22480;
/// The port on which an attachment pod says its word, and bytes that this may be long.
const WORD_PORT: u16 = 22483;
const WORD_LIMIT: u64 = 128;
/// Protocol of its console.
const CONSOLE: &str = "nacelle-console";
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read: a guest may have many users and file systems.
const LIMIT: usize = 1 << 20;

/// A connection, whatever it is made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream to something in the pod, and what keeps it open.
pub(super) struct Connection {
    pub stream: Box<dyn Stream>,
    pub _forward: Option<Portforwarder>,
}

async fn forward(context: &Context, vmi: &VirtualMachineInstance, port: u16) -> Result<Connection, Refusal> {
    forward_to(
        context,
        &vmi.namespace().unwrap_or_default(),
        &in_charge(vmi),
        port,
    )
    .await
}

async fn forward_to(context: &Context, namespace: &str, pod: &str, port: u16) -> Result<Connection, Refusal> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let mut forward = pods.portforward(pod, &[port]).await?;
    let stream = forward
        .take_stream(port)
        .ok_or_else(|| Refusal::internal("the port-forward gives no stream"))?;
    Ok(Connection {
        stream: Box::new(stream),
        _forward: Some(forward),
    })
}

/// What a launcher says when it refuses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Failure {
    message: String,
}

/// Asks for a change of the machine's state.
pub(crate) async fn put(
    context: &Context,
    vmi: &VirtualMachineInstance,
    command: &str,
    body: Option<Value>,
) -> Result<(), Refusal> {
    let request = Request::put(format!("/v1/machine/{command}")).header("host", "localhost");
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let Connection { stream, _forward } = forward(context, vmi, PORT).await?;
    let response = ask(stream, request, body.into()).await?;
    answered(response, command).await.map(drop)
}

/// Asks for a change of the machine; what it is then.
pub(crate) async fn change(
    context: &Context,
    vmi: &VirtualMachineInstance,
    command: &str,
    body: Value,
) -> Result<Value, Refusal> {
    let request = Request::put(format!("/v1/machine/{command}")).header("host", "localhost");
    let Connection { stream, _forward } = forward(context, vmi, PORT).await?;
    let response = ask(stream, request, body.to_string().into()).await?;
    let body = answered(response, command).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Refusal::internal(format!(
            "the launcher's answer to {command} cannot be read: {error}"
        ))
    })
}

/// The word by which an attachment pod hands its volume over.
pub(crate) async fn word(context: &Context, namespace: &str, pod: &str) -> Result<String, Refusal> {
    let Connection { stream, _forward } = forward_to(context, namespace, pod, WORD_PORT).await?;
    let mut word = String::new();
    let read = timeout(PATIENCE, stream.take(WORD_LIMIT).read_to_string(&mut word)).await;
    match (read, word.trim()) {
        (Ok(Ok(_)), word) if !word.is_empty() => Ok(word.to_owned()),
        (Ok(Err(error)), _) => Err(Refusal::internal(format!("pod {pod} says nothing: {error}"))),
        _ => Err(Refusal::internal(format!("pod {pod} says nothing"))),
    }
}

/// Asks for something that is known of the machine.
pub(crate) async fn get(
    context: &Context,
    vmi: &VirtualMachineInstance,
    what: &str,
) -> Result<Value, Refusal> {
    let request = Request::get(format!("/v1/machine/{what}")).header("host", "localhost");
    let Connection { stream, _forward } = forward(context, vmi, PORT).await?;
    let response = ask(stream, request, Bytes::new()).await?;
    let body = answered(response, what).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Refusal::internal(format!("the launcher's answer to {what} cannot be read: {error}"))
    })
}

/// Asks for something that has an answer, or for something that is known where there is no `body`, of any pod.
pub(crate) async fn ask_pod(
    context: &Context,
    namespace: &str,
    pod: &str,
    what: &str,
    body: Option<Value>,
) -> Result<Value, Refusal> {
    let path = format!("/v1/machine/{what}");
    let request = match &body {
        Some(_) => Request::put(path),
        None => Request::get(path),
    };
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let Connection { stream, _forward } = forward_to(context, namespace, pod, PORT).await?;
    let response = ask(stream, request.header("host", "localhost"), body.into()).await?;
    let body = answered(response, what).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Refusal::internal(format!("the launcher's answer to {what} cannot be read: {error}"))
    })
}

/// The body of an answer that is no refusal.
async fn answered(response: axum::http::Response<Incoming>, asked: &str) -> Result<Bytes, Refusal> {
    let status = response.status();
    let body = timeout(PATIENCE, Limited::new(response.into_body(), LIMIT).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if status.is_success() => {
            return Err(Refusal::internal(format!(
                "the launcher's answer to {asked} cannot be read: {error}"
            )));
        }
        Err(_) if status.is_success() => return Err(Refusal::internal("the launcher does not answer")),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    if status.is_success() {
        return Ok(body);
    }
    let said: Failure = serde_json::from_slice(&body).unwrap_or_default();
    Err(match status {
        StatusCode::CONFLICT => Refusal::conflict(said.message),
        StatusCode::BAD_REQUEST => Refusal::bad_request(said.message),
        StatusCode::NOT_FOUND => Refusal::new(StatusCode::NOT_FOUND, "NotFound", said.message),
        _ => Refusal::internal(format!(
            "the launcher answered {status} to {asked}: {}",
            said.message
        )),
    })
}

/// Connects to the serial console; who was connected before is not any more.
pub(super) async fn console(context: &Context, vmi: &VirtualMachineInstance) -> Result<Connection, Refusal> {
    let request = Request::get("/v1/machine/console")
        .header("host", "localhost")
        .header("connection", "upgrade")
        .header("upgrade", CONSOLE);
    let Connection { stream, _forward } = forward(context, vmi, PORT).await?;
    let response = ask(stream, request, Bytes::new()).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::internal(format!(
            "the launcher answered {} to the console",
            response.status()
        )));
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|error| Refusal::internal(format!("the console cannot be opened: {error}")))?;
    Ok(Connection {
        stream: Box::new(TokioIo::new(upgraded)),
        _forward,
    })
}

/// Connects to a port of the guest: by its address where it has one of its own, else through the pod's loopback, from
/// where packets go to the guest as those from outside do.
pub(super) async fn guest_port(
    context: &Context,
    vmi: &VirtualMachineInstance,
    port: u16,
) -> Result<Connection, Refusal> {
    let bridged = vmi
        .spec
        .domain
        .devices
        .interfaces
        .first()
        .is_some_and(|interface| interface.bridge.is_some());
    if !bridged {
        return forward(context, vmi, port).await;
    }
    let address = vmi
        .status
        .as_ref()
        .and_then(|status| status.interfaces.first()?.ip_address.clone());
    let address =
        address.ok_or_else(|| Refusal::bad_request("the VMI's first interface has no IP address yet"))?;
    let connected = timeout(PATIENCE, TcpStream::connect(format!("{address}:{port}"))).await;
    match connected {
        Ok(Ok(stream)) => Ok(Connection {
            stream: Box::new(stream),
            _forward: None,
        }),
        Ok(Err(error)) => Err(Refusal::internal(format!(
            "cannot connect to {address}:{port}: {error}"
        ))),
        Err(_) => Err(Refusal::internal(format!("{address}:{port} does not answer"))),
    }
}

async fn ask(
    stream: Box<dyn Stream>,
    request: axum::http::request::Builder,
    body: Bytes,
) -> Result<axum::http::Response<Incoming>, Refusal> {
    let failed = |error: hyper::Error| Refusal::internal(format!("the launcher cannot be asked: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let request = request
        .body(Full::new(body))
        .map_err(|error| Refusal::internal(error.to_string()))?;
    match timeout(PATIENCE, sender.send_request(request)).await {
        Ok(response) => response.map_err(failed),
        Err(_) => Err(Refusal::internal("the launcher does not answer")),
    }
}
