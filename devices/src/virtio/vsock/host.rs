//! Who of the host is connected, or wants to be.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use event_manager::{EventOps, EventSet, Events};

use super::connection::Connection;
use super::packet::Header;
use super::unix::{Caller, Stream, dial};

/// The listener's name in the event loop, after those of the queues.
pub const LISTENER: u32 = 3;
const FIRST_PEER: u32 = 16;
/// Ports of the host's callers begin here, above those that people choose.
const FIRST_CALLER_PORT: u32 = 1 << 30;
/// Callers that are taken before others get their turn.
const TURN: usize = 16;

/// Names a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The guest's port.
    pub guest_port: u32,
    /// The host's port.
    pub host_port: u32,
}

/// Who has a socket in the event loop.
pub enum Peer {
    /// A program that has not said yet which port it wants.
    Caller(Caller),
    /// The stream of this name.
    Stream(Key),
}

/// The host's side, which outlives a pause.
pub struct Host {
    listener: UnixListener,
    path: PathBuf,
    /// Callers and streams together are limited.
    limit: usize,
    /// By their name in the event loop.
    pub peers: BTreeMap<u32, Peer>,
    /// The streams among them.
    pub streams: BTreeMap<Key, Stream>,
    next_token: u32,
    next_port: u32,
    /// The loop watches the listener.
    listening: bool,
    /// RSTs for packets that belong to no stream.
    pub replies: VecDeque<Header>,
    /// The guest must be told that its streams are gone.
    pub reset_due: bool,
}

impl Host {
    /// Nobody has called yet at `listener`, bound to `path`.
    pub fn new(listener: UnixListener, path: PathBuf, limit: usize) -> Self {
        Host {
            listener,
            path,
            limit,
            peers: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_token: FIRST_PEER,
            next_port: FIRST_CALLER_PORT,
            listening: false,
            replies: VecDeque::new(),
            reset_due: false,
        }
    }

    /// Hangs up on everyone. Only while no loop watches.
    pub fn forget_all(&mut self) {
        self.peers.clear();
        self.streams.clear();
        self.replies.clear();
        self.reset_due = false;
    }

    /// Whether there is no room for another peer.
    pub fn full(&self) -> bool {
        self.peers.len() >= self.limit
    }

    fn new_token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(FIRST_PEER);
            if !self.peers.contains_key(&token) {
                return token;
            }
        }
    }

    /// The name of a new stream from a caller to `guest_port`.
    fn new_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_port;
            self.next_port = FIRST_CALLER_PORT | host_port.wrapping_add(1) & !(1 << 31);
            let key = Key {
                guest_port,
                host_port,
            };
            if !self.streams.contains_key(&key) {
                return key;
            }
        }
    }

    /// A program of the guest calls a port of the host.
    ///
    /// # Errors
    /// When nobody takes it, or there is no room for another stream.
    pub fn call(&mut self, key: Key, request: &Header) -> io::Result<()> {
        if self.full() {
            return Err(io::Error::other("the guest has as many streams as it may have"));
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", key.host_port));
        let socket = dial(path.as_ref())?;
        let token = self.new_token();
        self.insert(key, Stream::new(Connection::from_guest(request), token, socket));
        Ok(())
    }

    /// A caller said which port of the guest it wants.
    pub fn connect(&mut self, token: u32, caller: Caller, guest_port: u32) -> Key {
        let key = self.new_key(guest_port);
        self.insert(
            key,
            Stream::new(Connection::to_guest(), token, caller.into_socket()),
        );
        key
    }

    fn insert(&mut self, key: Key, stream: Stream) {
        self.peers.insert(stream.token, Peer::Stream(key));
        self.streams.insert(key, stream);
    }

    /// The stream is over and said so.
    pub fn forget(&mut self, key: Key) {
        if let Some(stream) = self.streams.remove(&key) {
            self.peers.remove(&stream.token);
        }
    }

    /// Watches for callers, or no longer.
    pub fn listen(&mut self, wanted: bool, ops: &mut EventOps) {
        if self.listening == wanted {
            return;
        }
        let events = Events::with_data(&self.listener, LISTENER, EventSet::IN);
        let done = match wanted {
            true => ops.add(events),
            false => ops.remove(events),
        };
        match done {
            Ok(()) => self.listening = wanted,
            Err(error) => log::error!("vsock: cannot watch the listener: {error:?}"),
        }
    }

    /// Programs of the host call: takes some of them.
    ///
    /// # Errors
    /// When the host has no descriptor for one.
    pub fn accept(&mut self, ops: &mut EventOps) -> io::Result<()> {
        for _ in 0..TURN {
            if self.full() {
                break;
            }
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            let token = self.new_token();
            let mut caller = Caller::new(socket);
            caller.watch(token, true, ops);
            self.peers.insert(token, Peer::Caller(caller));
        }
        Ok(())
    }

    /// Another loop watches from now on: it starts with the callers.
    pub fn begin(&mut self, ops: &mut EventOps) {
        self.listening = false;
        for (&token, peer) in &mut self.peers {
            if let Peer::Caller(caller) = peer {
                caller.begin();
                caller.watch(token, true, ops);
            }
        }
        for stream in self.streams.values_mut() {
            stream.begin();
        }
    }

    /// Watches nothing any more: the driver broke the rules, and a socket that nobody reads would be
    /// reported again and again.
    pub fn end(&mut self, ops: &mut EventOps) {
        self.listen(false, ops);
        for (&token, peer) in &mut self.peers {
            if let Peer::Caller(caller) = peer {
                caller.watch(token, false, ops);
            }
        }
        for stream in self.streams.values_mut() {
            stream.end(ops);
        }
    }
}
