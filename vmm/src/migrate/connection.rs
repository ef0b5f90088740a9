//! A stream between two monitors: whole frames, patience that ends, a wish to stop that is noticed.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, Frame, Kind};
use crate::{Error, Result};

/// What a migration runs over. One that blocks for ever cannot be cancelled: give a socket time limits of some
/// tenths of a second; a limit that is reached is no failure here.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Somebody's wish that a migration stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody has wished so yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the migration as soon as it notices. Too late once the target was told to go on.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody wished so.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// [`Error::Cancelled`] where somebody wished so.
    ///
    /// # Errors
    /// Just then.
    pub fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

/// Frames over a stream.
pub struct Connection {
    stream: Patient,
    payload: Vec<u8>,
}

struct Patient {
    stream: Box<dyn Stream>,
    cancel: Vec<Cancel>,
    patience: Duration,
    /// Bytes written, and time that writing took.
    written: u64,
    writing: Duration,
    /// What is to be written, and what was read and not taken: pages often come one by one.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    taken: usize,
}

/// Bytes that are gathered before they are written, or read at a time.
const BUFFER: usize = 128 << 10;

impl Connection {
    /// Frames over `stream`, lost when it does not move for as long as `patience`.
    pub fn new(stream: Box<dyn Stream>, cancel: Cancel, patience: Duration) -> Self {
        Connection {
            stream: Patient {
                stream,
                cancel: vec![cancel],
                patience,
                written: 0,
                writing: Duration::ZERO,
                outgoing: Vec::new(),
                incoming: Vec::new(),
                taken: 0,
            },
            payload: Vec::new(),
        }
    }

    /// From now on nobody's wish to stop counts.
    pub fn decide(&mut self) {
        self.stream.cancel.clear();
    }

    /// From now on these wishes to stop count, and no others.
    pub(super) fn obey(&mut self, wishes: &[&Cancel]) {
        self.stream.cancel = wishes.iter().map(|wish| (*wish).clone()).collect();
    }

    /// From now on the other side may be silent for as long as it likes.
    pub(super) fn wait(&mut self) {
        self.stream.patience = Duration::MAX;
    }

    /// Bytes written so far, and how long writing took.
    pub fn written(&self) -> (u64, Duration) {
        (self.stream.written, self.stream.writing)
    }

    /// Sends a frame whose payload is in parts.
    ///
    /// # Errors
    /// When the connection is lost or the migration cancelled.
    pub fn send_parts(&mut self, kind: Kind, flags: u16, payload: &[&[u8]]) -> Result<()> {
        self.stream
            .noticed(|stream| wire::write(stream, kind, flags, payload))
    }

    /// Sends a message, and sees to it that it leaves.
    ///
    /// # Errors
    /// When the connection is lost or the migration cancelled.
    pub fn send(&mut self, kind: Kind, message: &impl Serialize) -> Result<()> {
        let payload = wire::encode(message)?;
        self.send_parts(kind, 0, &[&payload])?;
        self.flush()
    }

    /// Sends what is in buffers.
    ///
    /// # Errors
    /// When the connection is lost or the migration cancelled.
    pub fn flush(&mut self) -> Result<()> {
        self.stream.noticed(|stream| {
            stream
                .flush()
                .map_err(Error::io("go on with the migration: the connection is lost"))
        })
    }

    /// The next frame, `None` where the other side has closed between two frames. A refusal of the other side
    /// is an error.
    ///
    /// # Errors
    /// When the connection is lost, the migration cancelled, or what comes is wrong.
    pub fn receive(&mut self) -> Result<Option<(Frame, &[u8])>> {
        let payload = &mut self.payload;
        let frame = self.stream.noticed(|stream| wire::read(stream, payload))?;
        match frame {
            Some(Frame {
                kind: Kind::Abort, ..
            }) => {
                let reason: String = wire::decode(&self.payload).unwrap_or_default();
                // It came over a network and goes to somebody's terminal.
                let printable = |c: char| if c.is_control() { ' ' } else { c };
                Err(Error::Refused(reason.chars().map(printable).collect()))
            }
            Some(frame) => Ok(Some((frame, &self.payload))),
            None => Ok(None),
        }
    }

    /// The next frame, which must be of this kind.
    ///
    /// # Errors
    /// As [`Connection::receive`], and when it is another.
    pub fn expect<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<T> {
        match self.receive()? {
            Some((frame, payload)) if frame.kind == kind => wire::decode(payload),
            Some((frame, _)) => Err(wire::wrong(format!("{:?} instead of {kind:?}", frame.kind))),
            None => Err(closed()),
        }
    }

    /// Why the connection was lost, where the other side has said so before it closed it; else `error`.
    pub fn last_words(&mut self, error: Error) -> Error {
        if !matches!(error, Error::Io { .. }) {
            return error;
        }
        self.decide();
        self.stream.patience = Duration::from_millis(200);
        loop {
            match self.receive() {
                Ok(Some(_)) => {}
                Err(refused @ Error::Refused(_)) => return refused,
                Ok(None) | Err(_) => return error,
            }
        }
    }

    /// Tells the other side that we give up, if it still listens.
    pub fn abort(&mut self, reason: &Error) {
        self.decide();
        self.stream.patience = self.stream.patience.min(Duration::from_secs(1));
        let mut text = reason.to_string();
        let mut cause = std::error::Error::source(reason);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let text: String = text.chars().take(1000).collect();
        if let Err(error) = self.send(Kind::Abort, &text) {
            log::debug!("the other side is not told: {error}");
        }
    }
}

/// The other side closed the connection in the middle of things.
pub(super) fn closed() -> Error {
    Error::Io {
        what: "go on with the migration: the other side closed the connection",
        source: ErrorKind::UnexpectedEof.into(),
    }
}

impl Patient {
    fn is_cancelled(&self) -> bool {
        self.cancel.iter().any(Cancel::is_cancelled)
    }

    /// What `act` gives; where that failed because of a wish to stop, that.
    fn noticed<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.cancel.iter().try_for_each(Cancel::check)?;
        let result = act(self);
        match result {
            Err(Error::Io { .. }) if self.is_cancelled() => Err(Error::Cancelled),
            result => result,
        }
    }

    /// Repeats `act` while it only says that it would take longer.
    fn patiently<T>(&mut self, mut act: impl FnMut(&mut dyn Stream) -> io::Result<T>) -> io::Result<T> {
        let begun = Instant::now();
        loop {
            match act(&mut *self.stream) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    if self.is_cancelled() {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                    if begun.elapsed() >= self.patience {
                        let text =
                            format!("the other side has been silent for {} s", self.patience.as_secs());
                        return Err(io::Error::new(ErrorKind::TimedOut, text));
                    }
                }
                result => return result,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.incoming.len() {
            if bytes.len() >= BUFFER {
                return self.patiently(|stream| stream.read(bytes));
            }
            let mut buffer = std::mem::take(&mut self.incoming);
            buffer.resize(BUFFER, 0);
            let read = self.patiently(|stream| stream.read(&mut buffer));
            buffer.truncate(*read.as_ref().unwrap_or(&0));
            (self.incoming, self.taken) = (buffer, 0);
            read?;
        }
        let rest = self.incoming.get(self.taken..).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        self.taken += len;
        Ok(len)
    }
}

impl Patient {
    fn write_out(&mut self, bytes: &[u8]) -> io::Result<()> {
        let begun = Instant::now();
        let mut left = bytes;
        while !left.is_empty() {
            let written = self.patiently(|stream| stream.write(left))?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            left = left.get(written..).unwrap_or_default();
        }
        self.written += bytes.len() as u64;
        self.writing += begun.elapsed();
        Ok(())
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.outgoing);
        self.write_out(&buffer)?;
        self.outgoing = buffer;
        self.outgoing.clear();
        Ok(())
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= BUFFER {
            self.write_buffer()?;
            self.write_out(bytes)?;
        } else {
            self.outgoing.extend_from_slice(bytes);
            if self.outgoing.len() >= BUFFER {
                self.write_buffer()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_buffer()?;
        self.patiently(|stream| stream.flush())
    }
}
