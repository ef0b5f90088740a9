//! The machine's own small HTTP server, on a unix socket of the user's or on its pod's loopback address. Everything about it is bounded: how many
//! connections, how long a request, how long it may take.

pub mod api;
pub mod console;
pub mod depart;
mod failure;
mod plug;
pub(crate) mod route;
pub mod socket;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::console::Console;
use self::socket::Endpoint;
use crate::agent::Agent;
use crate::driver::Driver;
use crate::exit::{Error, Result};
use crate::origin::Origin;
use crate::pod::departure::Departures;
use crate::upgrade::Estate;

/// Most connections at once; more wait in the socket's backlog. An upgraded one does not count: of those there is
/// one.
const CONNECTIONS: usize = 16;
/// Time for a request's head, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;
/// Time for the last answers when the machine has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What is served.
pub struct Machine {
    /// Tells the machine what to do.
    pub driver: Driver,
    /// Its serial line.
    pub console: Console,
    /// The way to its guest agent.
    pub agent: Agent,
    /// vCPUs.
    pub vcpus: u8,
    /// Bytes of guest memory.
    pub memory: u64,
    /// How long a guest that is stopped has to power off, where the request does not say.
    pub grace_period: Duration,
    /// When it was started.
    pub started: Instant,
    /// What it was made of, for its snapshots.
    pub origin: Origin,
    /// Where the node agent hands over what is behind volumes, in a pod.
    pub volumes: Option<PathBuf>,
    /// What another program needs to go on with it; a pod's machine goes to another pod.
    pub estate: Option<Arc<Estate>>,
    /// Its departures for other pods, where it is a pod's.
    pub departures: Option<Arc<Departures>>,
}

/// Where it is served.
#[derive(Debug)]
pub enum Listener {
    /// On a unix socket in this user's directory.
    Unix(Endpoint),
    /// On a loopback address, where nobody else has the network namespace.
    Loopback(TcpListener),
}

/// A [`Listener`] that listens.
enum Listening {
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "held for its file")] Endpoint,
    ),
    Loopback(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listening {
    fn on(listener: Listener) -> io::Result<Listening> {
        Ok(match listener {
            Listener::Unix(endpoint) => Listening::Unix(endpoint.listener()?, endpoint),
            Listener::Loopback(listener) => Listening::Loopback(listener),
        })
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listening::Unix(listener, _) => Box::new(listener.accept().await?.0),
            Listening::Loopback(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves `machine`, which is called `name`, until it has ended and what was asked is answered.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(listener: Listener, name: String, machine: Machine) -> Result<()> {
    let listener = Listening::on(listener).map_err(Error::io("listen on the machine's socket"))?;
    let shared = Arc::new(route::Context { name, machine });
    let (closing, close) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.machine.driver.ended() => break,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(stream, Arc::clone(&shared), close.clone()));
                }
                // Out of descriptors, most likely: others may close theirs.
                Err(error) => {
                    log::warn!("the machine's socket: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let _ = closing.send(true);
    let answered = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(LAST_ANSWERS, answered).await;
    Ok(())
}

async fn connection(stream: Box<dyn Stream>, context: Arc<route::Context>, mut close: watch::Receiver<bool>) {
    let service = service_fn(move |request| route::answer(Arc::clone(&context), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let closed = async { drop(close.wait_for(|close| *close).await) };
    let served = tokio::select! {
        served = &mut connection => served,
        () = closed => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        log::debug!("a connection to the machine's socket: {error}");
    }
}

#[cfg(test)]
mod tests;
