//! The streams of a migration: unix sockets as they are, TCP by TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nacelle_vmm::migrate::{Cancel, Stream};
use rustls::{ClientConfig, ServerConfig, StreamOwned};

use super::Plan;
use super::address::Address;
use super::tls;
use crate::{Error, Result};

/// How often a stream that waits looks whether it still should.
const MOMENT: Duration = Duration::from_millis(100);
/// How long a connection may take to be made, and to be agreed on.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes a source's streams.
pub struct Connector {
    to: Address,
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// For `plan`.
    ///
    /// # Errors
    /// When TLS is needed and its files are not there.
    pub fn new(plan: &Plan) -> Result<Connector> {
        let tls = match (&plan.to, &plan.tls) {
            (Address::Unix(_), _) => None,
            (Address::Tcp { .. }, Some(credentials)) => Some(credentials.client()?),
            (Address::Tcp { .. }, None) => {
                return Err(Error::Usage(
                    "a machine goes over a network by TLS only: say where its certificates are".into(),
                ));
            }
        };
        Ok(Connector {
            to: plan.to.clone(),
            tls,
        })
    }

    /// One more stream.
    ///
    /// # Errors
    /// When nobody listens there, or not the one who should.
    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match (&self.to, &self.tls) {
            (Address::Unix(path), _) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(MOMENT))?;
                stream.set_write_timeout(Some(MOMENT))?;
                Ok(Box::new(stream))
            }
            (Address::Tcp { host, port }, Some(tls)) => {
                let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT) {
                        Ok(stream) => {
                            prepare(&stream)?;
                            let mut stream = StreamOwned::new(tls::to(tls, host)?, stream);
                            shake(|| {
                                stream
                                    .conn
                                    .complete_io(&mut stream.sock)
                                    .map(|_| !stream.conn.is_handshaking())
                            })?;
                            return Ok(Box::new(Ended(stream)));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            (Address::Tcp { .. }, None) => Err(ErrorKind::PermissionDenied.into()),
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(MOMENT))?;
    stream.set_write_timeout(Some(MOMENT))
}

/// Has `step` work on a handshake until it is done, for as long as that may take.
fn shake(mut step: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let until = Instant::now() + CONNECT;
    loop {
        match step() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        if Instant::now() > until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

/// A connection that the other side may end without saying so: what matters is in frames with checksums.
struct Ended<S>(S);

impl<S: Read> Read for Ended<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.read(bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            result => result,
        }
    }
}

impl<S: Write> Write for Ended<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Takes a target's streams.
pub struct Listener {
    socket: Socket,
    cancel: Cancel,
}

enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, Arc<ServerConfig>),
}

impl Listener {
    /// Listens at `address`; a port 0 is any that is free.
    ///
    /// # Errors
    /// When that cannot be, or TLS is needed and its files are not there.
    pub fn bind(
        address: &Address,
        tls: impl FnOnce() -> Result<Arc<ServerConfig>>,
        cancel: Cancel,
    ) -> Result<Listener> {
        let listen = |source| Error::Listen {
            address: address.to_string(),
            source,
        };
        let socket = match address {
            Address::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(listen)?;
                listener.set_nonblocking(true).map_err(listen)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(listen)?;
                Socket::Unix(listener, path.clone())
            }
            Address::Tcp { host, port } => {
                let tls = tls()?;
                let listener = TcpListener::bind((host.as_str(), *port)).map_err(listen)?;
                listener.set_nonblocking(true).map_err(listen)?;
                Socket::Tcp(listener, tls)
            }
        };
        Ok(Listener { socket, cancel })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Unix(_, path) => format!("unix:{}", path.display()),
            Socket::Tcp(listener, _) => listener
                .local_addr()
                .map_or_else(|_| "?".into(), |at| at.to_string()),
        }
    }

    /// The next stream of somebody who may send a machine here. Others are sent away.
    ///
    /// # Errors
    /// When the socket fails or the wait is cancelled.
    pub fn accept(&self) -> io::Result<Box<dyn Stream>> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::new(
                    ErrorKind::ConnectionAborted,
                    "it is not waited for any more",
                ));
            }
            match self.try_accept() {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) if self.is_tcp() => log::warn!("a connection is refused: {error}"),
                Err(error) => return Err(error),
            }
        }
    }

    fn is_tcp(&self) -> bool {
        matches!(self.socket, Socket::Tcp(..))
    }

    fn try_accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.socket {
            Socket::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(MOMENT))?;
                stream.set_write_timeout(Some(MOMENT))?;
                Ok(Box::new(stream))
            }
            Socket::Tcp(listener, tls) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(false)?;
                prepare(&stream)?;
                let mut stream = StreamOwned::new(tls::from(tls)?, stream);
                let shaken = shake(|| {
                    stream
                        .conn
                        .complete_io(&mut stream.sock)
                        .map(|_| !stream.conn.is_handshaking())
                });
                // Not as the listener's own "nothing yet".
                shaken.map_err(|error| io::Error::other(format!("{peer}: {error}")))?;
                Ok(Box::new(Ended(stream)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}
