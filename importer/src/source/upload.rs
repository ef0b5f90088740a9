//! What a client sends: HTTP/1.1 over TLS that both sides show certificates for. One upload at a time, until one is whole.
//!
//! The key of this side is made here and stays here; its certificate is printed, `listens CERTIFICATE` in base64, for who
//! reads the pod's log. An upload that breaks off, or has no disk in it, is answered with why, and may be begun again.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyDataStream, Full};
use hyper::body::{Body as _, Buf, Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::error::io as doing;
use crate::progress::Progress;
use crate::{Error, Result};

/// The name in the certificate.
pub const NAME: &str = "nacelle-importer";
/// How long a client may take to say who it is and what it wants, and to send the next bytes.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client waits to hear how it ended who need not.
const EARLY: Duration = Duration::from_secs(2);
/// Connections at once. One of them uploads.
const CONNECTIONS: usize = 16;
/// Pieces that came and are not used yet; then the client waits.
const AHEAD: usize = 4;

/// Who may send, and where.
pub struct Options {
    /// Addresses to listen at: the first that there is.
    pub listen: Vec<SocketAddr>,
    /// Authorities in PEM: whoever has a client's certificate of theirs may upload.
    pub clients: String,
}

/// What is done with the bytes of an upload, each time from the beginning.
pub type Fill = dyn Fn(&mut dyn Read) -> Result<()> + Send + Sync;

/// Serves until an upload is whole and was used, or one that was thought whole turned out not to be a disk.
///
/// # Errors
/// Nobody can be served, or an upload whose client was told that all of it came could not be used.
pub fn serve(options: &Options, progress: &Progress, fill: Arc<Fill>) -> Result<()> {
    let tls = tls(&options.clients).map_err(|reason| Error::Source {
        what: "an upload".to_owned(),
        reason,
    })?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(doing("begin"))?;
    let (over, mut ended) = mpsc::unbounded_channel();
    let server = Arc::new(Server {
        fill,
        progress: progress.clone(),
        turn: Arc::new(Semaphore::new(1)),
        over,
    });
    let done = runtime.block_on(async {
        let listener = TcpListener::bind(options.listen.as_slice()).await;
        let listener = listener.map_err(doing(format!("listen at {:?}", options.listen)))?;
        println!("listens {}", STANDARD.encode(&tls.certificate));
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            loop {
                let Ok(slot) = slots.clone().acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (server, tls) = (server.clone(), tls.acceptor.clone());
                        tokio::spawn(async move {
                            if let Err(error) = server.connection(stream, tls).await {
                                println!("a connection ended: {error}");
                            }
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        println!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        let done = tokio::select! {
            () = accept => Ok(()),
            done = ended.recv() => done.unwrap_or(Ok(())),
        };
        // Whoever sent it shall hear of it.
        let all = u32::try_from(CONNECTIONS).unwrap_or(1);
        let _ = timeout(PATIENCE, slots.acquire_many(all)).await;
        done
    });
    runtime.shutdown_background();
    done
}

struct Tls {
    acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

/// A key of our own, and whom to let in.
fn tls(clients: &str) -> Result<Tls, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let key = rcgen::KeyPair::generate().map_err(|error| text(&error))?;
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).map_err(|error| text(&error))?;
    let certificate = params.self_signed(&key).map_err(|error| text(&error))?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(clients.as_bytes()) {
        let authority = authority.map_err(|error| text(&error))?;
        roots.add(authority).map_err(|error| text(&error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| text(&error))?;
    let der = certificate.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| text(&error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![der.clone()], key)
        .map_err(|error| text(&error))?;
    // Nobody comes back.
    config.send_tls13_tickets = 0;
    Ok(Tls {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        certificate: der,
    })
}

/// How an upload is sent, and when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Manner {
    /// As the part `file` of a form; otherwise it is the whole body.
    form: bool,
    /// When all of it came; otherwise when all of it was used.
    early: bool,
}

/// What CDI's paths mean.
fn manner(path: &str) -> Option<Manner> {
    let name = path
        .strip_prefix("/v1beta1/")
        .or_else(|| path.strip_prefix("/v1alpha1/"))?;
    let (form, early) = match name {
        "upload" | "upload-archive" => (false, false),
        "upload-async" => (false, true),
        "upload-form" => (true, false),
        "upload-form-async" => (true, true),
        _ => return None,
    };
    Some(Manner { form, early })
}

/// Why an upload is not taken.
type Refusal = (StatusCode, String);

struct Server {
    fill: Arc<Fill>,
    progress: Progress,
    turn: Arc<Semaphore>,
    over: mpsc::UnboundedSender<Result<()>>,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, tls: TlsAcceptor) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = timeout(PATIENCE, tls.accept(stream)).await??;
        let service = service_fn(async |request| {
            let (status, text) = match self.answer(request).await {
                Ok(()) => (StatusCode::OK, String::new()),
                Err(refusal) => refusal,
            };
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            Ok::<_, std::convert::Infallible>(response)
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<(), Refusal> {
        let Some(manner) = manner(request.uri().path()) else {
            return Err((StatusCode::NOT_FOUND, "nothing is uploaded there".into()));
        };
        if !matches!(*request.method(), Method::POST | Method::PUT) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "an upload is a POST".into()));
        }
        let Ok(turn) = self.turn.clone().try_acquire_owned() else {
            let busy = "another upload to this volume is going on";
            return Err((StatusCode::SERVICE_UNAVAILABLE, busy.into()));
        };
        let boundary = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let boundary = boundary.and_then(|kind| multer::parse_boundary(kind).ok());
        self.progress
            .expect(request.body().size_hint().exact().unwrap_or(0));
        let (sender, pieces) = mpsc::channel(AHEAD);
        // Whoever is first decides: the client is told that all came, or how it ended.
        let decided = Arc::new(AtomicBool::new(false));
        let mut filled = {
            let (fill, progress, over) = (self.fill.clone(), self.progress.clone(), self.over.clone());
            let decided = decided.clone();
            tokio::task::spawn_blocking(move || {
                let mut received = Received {
                    pieces,
                    piece: Bytes::new(),
                    over: false,
                    progress,
                };
                let done = used(&*fill, &mut received);
                received.progress.expect(0);
                let said = done.as_ref().map_err(ToString::to_string).copied();
                let unheard = decided.swap(true, Ordering::AcqRel);
                if done.is_ok() || unheard {
                    // Who waits for it may have ended with the process.
                    let _ = over.send(done);
                }
                drop(turn);
                said
            })
        };
        let data = BodyDataStream::new(request.into_body());
        let came = match (manner.form, boundary) {
            (false, _) => forward(data, &sender).await,
            (true, Some(boundary)) => file(multer::Multipart::new(data, boundary), &sender).await,
            (true, None) => Err("it is no form: multipart/form-data with a boundary".to_owned()),
        };
        if came.is_ok() {
            // Where nobody takes it, what was done with the rest says why.
            let _ = sender.send(None).await;
        }
        drop(sender);
        let patience = if came.is_ok() && manner.early {
            EARLY
        } else {
            Duration::MAX
        };
        let filled = match timeout(patience, &mut filled).await {
            Ok(filled) => filled,
            Err(_) if !decided.swap(true, Ordering::AcqRel) => return Ok(()),
            Err(_) => filled.await,
        };
        let filled = filled.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let refused = |reason| (StatusCode::BAD_REQUEST, reason);
        // What the stream's use ended with names its cause, unless the stream itself was that.
        came.map_err(|reason| refused(format!("the upload broke off: {reason}")))?;
        filled.map_err(refused)
    }
}

/// Uses an upload, all of it.
fn used(fill: &Fill, received: &mut Received) -> Result<()> {
    fill(received)?;
    // A format may end before its file; the upload is whole only when that came, too.
    io::copy(received, &mut io::sink()).map_err(doing("read the upload"))?;
    Ok(())
}

/// Passes on the part of a form that is the file.
async fn file(mut form: multer::Multipart<'_>, to: &mpsc::Sender<Option<Bytes>>) -> Result<(), String> {
    loop {
        let part = timeout(SILENCE, form.next_field()).await.map_err(|_| silent())?;
        match part.map_err(|error| error.to_string())? {
            Some(part) if part.name() == Some("file") => return forward(part, to).await,
            Some(_) => {}
            None => return Err("the form has no part that is named file".into()),
        }
    }
}

/// Passes on what comes, as fast as it is used. Well also where nobody wants more of it: why, the one who used it knows.
async fn forward<E: std::fmt::Display>(
    mut data: impl Stream<Item = Result<Bytes, E>> + Unpin,
    to: &mpsc::Sender<Option<Bytes>>,
) -> Result<(), String> {
    loop {
        match timeout(SILENCE, data.next()).await.map_err(|_| silent())? {
            Some(Ok(piece)) => {
                if to.send(Some(piece)).await.is_err() {
                    // Who still sends is heard out for a while: an answer would be lost on him.
                    let _ = timeout(PATIENCE, data.by_ref().for_each(async |_| ())).await;
                    return Ok(());
                }
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => return Ok(()),
        }
    }
}

fn silent() -> String {
    format!("nothing came for {} s", SILENCE.as_secs())
}

/// What came, in order. It has an end only where it was told so: an upload that breaks off is an error.
struct Received {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    over: bool,
    progress: Progress,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.over {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.over = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the upload broke off",
                    ));
                }
            }
        }
        let mut piece: &[u8] = &self.piece;
        let count = piece.read(buffer)?;
        self.piece.advance(count);
        self.progress.add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_how_an_upload_is_sent_and_answered() {
        let manner = |path| manner(path).map(|manner| (manner.form, manner.early));
        for (path, known) in [
            ("/v1beta1/upload", Some((false, false))),
            ("/v1alpha1/upload-async", Some((false, true))),
            ("/v1beta1/upload-archive", Some((false, false))),
            ("/v1beta1/upload-form", Some((true, false))),
            ("/v1beta1/upload-form-async", Some((true, true))),
            ("/v1beta1/upload-form-async/", None),
            ("/v2/upload", None),
            ("/healthz", None),
        ] {
            assert_eq!(manner(path), known, "{path}");
        }
    }

    #[test]
    fn what_breaks_off_has_no_end() {
        let (sender, pieces) = mpsc::channel(4);
        let mut received = Received {
            pieces,
            piece: Bytes::new(),
            over: false,
            progress: Progress::default(),
        };
        for piece in ["ab", "", "c"] {
            sender.blocking_send(Some(Bytes::from(piece))).unwrap();
        }
        let mut got = Vec::new();
        (&mut received).take(3).read_to_end(&mut got).unwrap();
        assert_eq!(got, b"abc");
        drop(sender);
        assert_eq!(
            received.read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let (sender, pieces) = mpsc::channel(4);
        received.pieces = pieces;
        sender.blocking_send(None).unwrap();
        assert_eq!(received.read(&mut [0]).unwrap(), 0);
        assert_eq!(received.read(&mut [0]).unwrap(), 0);
    }
}
