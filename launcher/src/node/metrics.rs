//! `GET /metrics`: what the machines of this node are worth counting.
//!
//! Launchers connect to a socket in a directory that comes along with `/dev/kvm`, and answer what they are asked there; so
//! the agent needs no way into pods, and pods none into the network. A launcher says itself which machine it is: nothing but
//! a graph depends on it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::time::{sleep, timeout};

use super::{families, sockets};
use crate::figures::{ASK, Figures, LINE_MAX, SOCKET};
use crate::{Error, Result};

/// Time for a launcher's answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Time for a request of Prometheus.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of Prometheus at once.
const REQUESTS: usize = 4;
/// What the text is (OpenMetrics).
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The socket for launchers.
pub(crate) fn listen(plugins: &Path) -> Result<UnixListener> {
    sockets::listen(plugins, SOCKET)
}

pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(Error::io("listen for Prometheus (nacelle node --metrics)"))
}

/// The machines of this node that are connected.
#[derive(Clone)]
pub(crate) struct Machines {
    /// Asks all of them; each answers by what is sent.
    ask: broadcast::Sender<mpsc::Sender<Figures>>,
    room: Arc<Semaphore>,
}

impl Machines {
    /// None yet, and `most` at once.
    pub fn new(most: usize) -> Machines {
        Machines {
            ask: broadcast::Sender::new(REQUESTS),
            room: Arc::new(Semaphore::new(most)),
        }
    }

    /// Takes on whoever connects.
    pub async fn meet(self, listener: UnixListener) {
        loop {
            let room = Arc::clone(&self.room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let asked = self.ask.subscribe();
                    tokio::spawn(async move {
                        converse(stream, asked).await;
                        drop(room);
                    });
                }
                Err(error) => {
                    log::warn!("a launcher cannot connect: {error}");
                    sleep(ANSWER).await;
                }
            }
        }
    }

    /// The figures of all that answer in time, by namespace and name; of two that say the same name, one's.
    pub async fn figures(&self) -> Vec<Figures> {
        let (answer, mut answers) = mpsc::channel(64);
        // Nobody listens: there is no machine.
        let _ = self.ask.send(answer);
        let mut all = Vec::new();
        let _ = timeout(2 * ANSWER, async {
            while let Some(figures) = answers.recv().await {
                all.push(figures);
            }
        })
        .await;
        all.sort_by(|a: &Figures, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all.dedup_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name));
        all
    }
}

/// Asks one launcher as often as somebody wants to know, until it does not answer.
async fn converse(stream: UnixStream, mut asked: broadcast::Receiver<mpsc::Sender<Figures>>) {
    let mut stream = BufReader::new(stream);
    // Until it has said who it is.
    let mut whose = "a launcher".to_owned();
    loop {
        let mut end = [0];
        let answer = tokio::select! {
            asked = asked.recv() => match asked {
                Ok(answer) => answer,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            // It says nothing of its own accord: it went.
            _ = stream.read(&mut end) => return,
        };
        match timeout(ANSWER, ask(&mut stream)).await {
            Ok(Ok(figures)) => {
                whose = format!(
                    "the launcher of {}/{} ({})",
                    figures.namespace, figures.name, figures.uid
                );
                let _ = answer.send(figures).await;
            }
            Ok(Err(error)) => return log::debug!("{whose}: {error}"),
            Err(_) => return log::debug!("{whose} did not answer in time"),
        }
    }
}

async fn ask(stream: &mut BufReader<UnixStream>) -> std::io::Result<Figures> {
    stream.write_all(ASK.as_bytes()).await?;
    let mut line = Vec::new();
    stream.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

/// Answers Prometheus.
pub(super) async fn serve(listener: TcpListener, machines: Machines, node: String) {
    let room = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ANSWER).await;
            continue;
        };
        let (machines, node) = (machines.clone(), node.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                let path = request.uri().path().to_owned();
                let (machines, node) = (&machines, &node);
                async move { Ok::<_, Infallible>(answer(&path, machines, node).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
                log::debug!("metrics: {error}");
            }
            drop(permit);
        });
    }
}

async fn answer(path: &str, machines: &Machines, node: &str) -> Response<Full<Bytes>> {
    if path != "/metrics" {
        let mut response = Response::new(Full::new("there is /metrics\n".into()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let text = families::text(node, machines.figures().await);
    let mut response = Response::new(Full::new(text.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A launcher that is asked and answers.
    async fn launcher(directory: &Path, name: &str) -> tokio::task::JoinHandle<()> {
        let stream = UnixStream::connect(directory.join(SOCKET)).await.unwrap();
        let figures = families::tests::figures(name);
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                assert_eq!(line, ASK);
                line.clear();
                let mut bytes = serde_json::to_vec(&figures).unwrap();
                bytes.push(b'\n');
                stream.write_all(&bytes).await.unwrap();
            }
        })
    }

    #[tokio::test]
    async fn machines_that_are_there_are_counted_and_those_that_went_or_talk_nonsense_are_not() {
        let home = tempfile::tempdir().unwrap();
        let machines = Machines::new(8);
        tokio::spawn(machines.clone().meet(listen(home.path()).unwrap()));
        assert!(machines.figures().await.is_empty());
        let there = sockets::directory(home.path());
        let first = launcher(&there, "b").await;
        let _second = launcher(&there, "a").await;
        let mut odd = UnixStream::connect(there.join(SOCKET)).await.unwrap();
        odd.write_all(b"GET / HTTP/1.1\n").await.unwrap();
        let names = async || -> Vec<String> {
            let figures = machines.figures().await.into_iter();
            figures.map(|figures| figures.name).collect()
        };
        // Who connected is met a moment later.
        while names().await.len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(names().await, ["a", "b"]);
        first.abort();
        let _ = first.await;
        while names().await.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(names().await, ["a"]);
    }
}
