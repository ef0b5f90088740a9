//! A client of a machine: by its socket, or in its pod.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use crate::exit::{Error, Result};
use crate::http::api::Failure;
use crate::http::route::CONSOLE_PROTOCOL;
use crate::http::socket;

/// Most bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;
/// Time for an answer: the machine gives up earlier, and says so.
const ANSWER: Duration = Duration::from_secs(90);

/// Bytes both ways.
trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// A running machine.
pub struct Client {
    name: String,
    place: Place,
}

/// Where a machine listens.
enum Place {
    Socket(PathBuf),
    /// The loopback address, this port.
    Loopback(u16),
}

impl Client {
    /// The machine `name` of those in `directory`.
    ///
    /// # Errors
    /// When no machine can have this name.
    pub fn new(directory: &Path, name: &str) -> Result<Client> {
        Ok(Client {
            name: name.into(),
            place: Place::Socket(socket::path(directory, name)?),
        })
    }

    /// The machine of this pod, which listens at `port`.
    pub fn loopback(port: u16) -> Client {
        Client {
            name: "of this pod".into(),
            place: Place::Loopback(port),
        }
    }

    /// What the machine answers to a GET.
    ///
    /// # Errors
    /// When it does not run, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.send(request("GET", path, Bytes::new())?).await?;
        self.read(answer).await
    }

    /// What the machine answers to a PUT.
    ///
    /// # Errors
    /// When it does not run, or refuses.
    pub async fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.send(request("PUT", path, Bytes::new())?).await?;
        self.read(answer).await
    }

    /// What the machine answers to a PUT of `body`.
    ///
    /// # Errors
    /// When it does not run, or refuses.
    pub async fn put_body<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| self.odd(error))?;
        let answer = self.send(request("PUT", path, body.into())?).await?;
        self.read(answer).await
    }

    /// What the machine answers to a PUT of `body`, or of none, however long that takes.
    ///
    /// # Errors
    /// When it does not run, or refuses.
    pub async fn long<T: DeserializeOwned>(&self, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| self.odd(error))?.unwrap_or_default();
        let request = request("PUT", path, body.into())?;
        let mut sender = self.connect().await?;
        let answer = sender.send_request(request).await;
        self.read(answer.map_err(|error| self.odd(error))?).await
    }

    /// The console, as a stream of bytes both ways.
    ///
    /// # Errors
    /// When the machine does not run, or refuses.
    pub async fn console(&self) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>> {
        let mut request = request("GET", "/v1/machine/console", Bytes::new())?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, hyper::http::HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, hyper::http::HeaderValue::from_static(CONSOLE_PROTOCOL));
        let answer = self.send(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.failure(answer).await);
        }
        let stream = hyper::upgrade::on(answer)
            .await
            .map_err(|error| self.odd(error))?;
        Ok(TokioIo::new(stream))
    }

    /// Returns when the machine has ended.
    pub async fn ended(&self) {
        let mut pause = Duration::from_millis(10);
        while self.stream().await.is_ok() {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    async fn stream(&self) -> io::Result<Box<dyn Both>> {
        Ok(match &self.place {
            Place::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Place::Loopback(port) => Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?),
        })
    }

    /// The place, for messages.
    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Socket(path) => path.clone(),
            Place::Loopback(port) => format!("127.0.0.1:{port}").into(),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = self.stream().await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NotRunning {
                name: self.name.clone(),
            },
            _ => Error::file("connect to", self.path())(error),
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.odd(error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                log::debug!("the machine's connection: {error}");
            }
        });
        Ok(sender)
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let answer = async {
            let mut sender = self.connect().await?;
            sender
                .send_request(request)
                .await
                .map_err(|error| self.odd(error))
        };
        timeout(ANSWER, answer)
            .await
            .map_err(|_| self.odd(io::Error::from(ErrorKind::TimedOut)))?
    }

    async fn read<T: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<T> {
        if !answer.status().is_success() {
            return Err(self.failure(answer).await);
        }
        let body = self.body(answer).await?;
        serde_json::from_slice(&body).map_err(|error| self.odd(error))
    }

    /// The failure that an answer tells of.
    async fn failure(&self, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        let body = match self.body(answer).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Error::Answer {
                name: self.name.clone(),
                message: failure.message,
                hint: failure.hint,
            },
            Err(_) => self.odd(format!("HTTP status {status}")),
        }
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Bytes> {
        let limited = Limited::new(answer.into_body(), ANSWER_MAX).collect();
        let body = timeout(ANSWER, limited)
            .await
            .map_err(|_| self.odd(io::Error::from(ErrorKind::TimedOut)))?;
        Ok(body.map_err(|error| self.odd(error))?.to_bytes())
    }

    /// An answer that is none.
    fn odd(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::File {
            what: "talk to the machine through",
            path: self.path(),
            source: io::Error::other(error),
        }
    }
}

/// A request as [`Client`] sends it.
pub(crate) fn request(method: &str, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(method)
        .uri(path)
        // HTTP/1.1 wants one; a socket has no name.
        .header(HOST, "localhost")
        .body(Full::new(body))
        .map_err(|error| Error::io("make a request")(io::Error::other(error)))
}
