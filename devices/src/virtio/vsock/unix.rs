//! Sockets of the host: callers, the programs that the guest calls, and the streams between.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use event_manager::{EventOps, EventSet, Events};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::connection::{Connection, Phase};

/// What is moved at a time.
pub const CHUNK: usize = 4096;
/// The longest greeting, `CONNECT 4294967295\n`, and some room for blanks.
const MAX_GREETING: usize = 32;

/// Connects to the socket at `path` without waiting for whoever listens there.
///
/// # Errors
/// When nobody listens there, or has too many waiting.
pub fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// Watches `socket` for `wanted` instead of `watched`, or not at all.
fn watch(
    socket: &UnixStream,
    token: u32,
    watched: &mut Option<EventSet>,
    wanted: Option<EventSet>,
    ops: &mut EventOps,
) {
    if *watched == wanted {
        return;
    }
    let events = Events::with_data(socket, token, wanted.unwrap_or(EventSet::empty()));
    let done = match (*watched, wanted) {
        (None, _) => ops.add(events),
        (Some(_), None) => ops.remove(events),
        (Some(_), Some(_)) => ops.modify(events),
    };
    match done {
        Ok(()) => *watched = wanted,
        Err(error) => log::error!("vsock: cannot watch a socket: {error:?}"),
    }
}

/// A program of the host that has not said yet which port it wants.
pub struct Caller {
    socket: UnixStream,
    greeting: Vec<u8>,
    watched: Option<EventSet>,
}

/// How far a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It has not finished.
    Unfinished,
    /// It wants this port of the guest.
    Port(u32),
    /// It says something else, or hung up.
    Wrong,
}

impl Caller {
    /// A caller just accepted, on a socket that does not block.
    pub fn new(socket: UnixStream) -> Self {
        Caller {
            socket,
            greeting: Vec::new(),
            watched: None,
        }
    }

    /// Reads as much of the greeting as is there, and nothing of what follows it.
    pub fn listen(&mut self) -> Greeting {
        loop {
            let mut byte = [0];
            match self.socket.read(&mut byte) {
                Ok(0) => return Greeting::Wrong,
                Ok(_) if byte == *b"\n" => return parse_greeting(&self.greeting),
                Ok(_) if self.greeting.len() >= MAX_GREETING => return Greeting::Wrong,
                Ok(_) => self.greeting.extend(byte),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Greeting::Unfinished,
                Err(_) => return Greeting::Wrong,
            }
        }
    }

    /// Watches it under `token`, or no longer.
    pub fn watch(&mut self, token: u32, wanted: bool, ops: &mut EventOps) {
        let wanted = wanted.then_some(EventSet::IN);
        watch(&self.socket, token, &mut self.watched, wanted, ops);
    }

    /// Another loop watches from now on.
    pub fn begin(&mut self) {
        self.watched = None;
    }

    /// Its socket, no longer watched.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }
}

fn parse_greeting(line: &[u8]) -> Greeting {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let port = match (words.next(), words.next(), words.next()) {
        (Some(verb), Some(port), None) if verb.eq_ignore_ascii_case(b"connect") => {
            str::from_utf8(port).ok().and_then(|port| port.parse().ok())
        }
        _ => None,
    };
    port.map_or(Greeting::Wrong, Greeting::Port)
}

/// A stream: what guest and host agreed on, and the host's socket.
pub struct Stream {
    /// What was agreed on.
    pub connection: Connection,
    /// Its name in the event loop.
    pub token: u32,
    /// Gone once the stream is over for the host.
    socket: Option<UnixStream>,
    /// Bytes of the guest that the socket does not take yet, as many as we gave credit for at most.
    held: VecDeque<u8>,
    watched: Option<EventSet>,
    /// What the guest shut and the socket was told of.
    shut: (bool, bool),
}

impl Stream {
    /// A stream that ends in `socket`, which does not block.
    pub fn new(connection: Connection, token: u32, socket: UnixStream) -> Self {
        Stream {
            connection,
            token,
            socket: Some(socket),
            held: VecDeque::new(),
            watched: None,
            shut: (false, false),
        }
    }

    /// Another loop watches from now on.
    pub fn begin(&mut self) {
        self.watched = None;
    }

    /// Nobody watches from now on.
    pub fn end(&mut self, ops: &mut EventOps) {
        if let Some(socket) = &self.socket {
            watch(socket, self.token, &mut self.watched, None, ops);
        }
    }

    /// Tells the caller that the guest granted the stream.
    pub fn greet(&mut self, host_port: u32) {
        // The socket is new: there is room for a line.
        let line = format!("OK {host_port}\n");
        let told = self
            .socket
            .as_mut()
            .is_some_and(|socket| socket.write_all(line.as_bytes()).is_ok());
        if !told {
            self.connection.fail();
        }
    }

    /// Takes `len` bytes of the guest, for which it had credit.
    ///
    /// # Errors
    /// When `data` ends before.
    pub fn deliver(&mut self, data: &mut impl Read, len: u32) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        let mut left = len as usize;
        while left > 0 {
            let part = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            data.read_exact(part)?;
            left -= part.len();
            self.held.extend(&*part);
            if self.held.len() == part.len() {
                self.flush();
            }
        }
        Ok(())
    }

    /// Gives the host what it takes of the bytes held.
    pub fn flush(&mut self) {
        let mut forwarded = 0;
        let refused = loop {
            let (first, _) = self.held.as_slices();
            if first.is_empty() {
                break false;
            }
            let Some(socket) = &mut self.socket else {
                break true;
            };
            match socket.write(first) {
                Ok(len) if len > 0 => {
                    self.held.drain(..len);
                    forwarded += len;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break true,
            }
        };
        if refused {
            self.connection.host_receives_no_more();
            forwarded += self.held.len();
            self.held.clear();
        }
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
        self.connection.forwarded(forwarded as u32, self.held.len());
    }

    /// Reads for the guest; `None` where there is nothing now, for whatever reason.
    pub fn read(&mut self, bytes: &mut [u8], hung_up: bool) -> Option<usize> {
        match self.socket.as_mut()?.read(bytes) {
            Ok(0) => {
                self.connection.host_sends_no_more();
                if hung_up {
                    self.connection.host_receives_no_more();
                }
                None
            }
            Ok(len) => Some(len),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(_) => {
                self.connection.host_sends_no_more();
                self.connection.host_receives_no_more();
                None
            }
        }
    }

    /// After a change: closes what is over, watches what is awaited. Without `room` in the guest's queue
    /// nothing of the host is awaited. A socket is not left in the loop for no reason, since it reports a
    /// hang-up again and again.
    pub fn settle(&mut self, room: bool, ops: &mut EventOps) {
        let over = match self.connection.phase() {
            Phase::Broken | Phase::Gone => true,
            Phase::Draining => self.held.is_empty(),
            Phase::Requested | Phase::Established => false,
        };
        let Some(socket) = &self.socket else {
            return;
        };
        if over {
            watch(socket, self.token, &mut self.watched, None, ops);
            self.socket = None;
            self.held = VecDeque::new();
            self.connection.forwarded(0, 0);
            return;
        }
        if self.connection.guest_sends_no_more() && self.held.is_empty() && !self.shut.0 {
            self.shut.0 = socket.shutdown(Shutdown::Write).is_ok();
        }
        if self.connection.guest_receives_no_more() && !self.shut.1 {
            self.shut.1 = socket.shutdown(Shutdown::Read).is_ok();
        }
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, room && self.connection.to_read() > 0);
        wanted.set(EventSet::OUT, !self.held.is_empty());
        // A caller who gives up before the guest answers shows as a hang-up.
        let wanted = (!wanted.is_empty() || self.connection.phase() == Phase::Requested).then_some(wanted);
        watch(socket, self.token, &mut self.watched, wanted, ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_names_a_port_and_nothing_else() {
        for (line, greeting) in [
            (&b"CONNECT 52"[..], Greeting::Port(52)),
            (b"connect 4294967295\r", Greeting::Port(u32::MAX)),
            (b"CONNECT 4294967296", Greeting::Wrong),
            (b"CONNECT", Greeting::Wrong),
            (b"CONNECT -1", Greeting::Wrong),
            (b"CONNECT 1 2", Greeting::Wrong),
            (b"GET / HTTP/1.1", Greeting::Wrong),
            (b"", Greeting::Wrong),
            (b"CONNECT \xff", Greeting::Wrong),
        ] {
            assert_eq!(parse_greeting(line), greeting, "{line:?}");
        }
    }

    #[test]
    fn what_follows_the_greeting_is_not_read_with_it() {
        let (mut program, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut caller = Caller::new(socket);
        program.write_all(b"CONN").unwrap();
        assert_eq!(caller.listen(), Greeting::Unfinished);
        program.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(caller.listen(), Greeting::Port(7));
        let mut rest = [0; 16];
        assert_eq!(caller.into_socket().read(&mut rest).unwrap(), 5);
    }

    #[test]
    fn an_endless_greeting_is_refused() {
        let (mut program, socket) = UnixStream::pair().unwrap();
        program.write_all(&[b' '; 1000]).unwrap();
        assert_eq!(Caller::new(socket).listen(), Greeting::Wrong);
    }

    #[test]
    fn nobody_is_reached_where_nobody_listens() {
        let path = std::env::temp_dir().join(format!("nacelle-nobody-{}", std::process::id()));
        assert!(dial(&path).is_err());
        assert!(dial(Path::new(&"x".repeat(200))).is_err());
    }
}
