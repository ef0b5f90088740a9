//! This process's standard input and output as a client of a guest's console.
//!
//! Two small threads copy between them and a socket: standard input may be a file, which nothing but a blocking
//! read serves, and must not be made non-blocking, since the shell has it too.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::logging::raw_terminal;
use crate::{Error, Result};

/// Ctrl-]: what telnet, virsh and virtctl leave a console by.
const LEAVE: u8 = 0x1d;
/// How long the last words of a guest may take to be printed.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Threads that copy a few bytes need little.
const STACK: usize = 64 << 10;

/// The console's end at this process's standard input and output.
pub struct Terminal {
    /// The other end, for who has the console.
    socket: tokio::net::UnixStream,
    /// Hears of each Ctrl-]: only a terminal has that key, from a pipe the byte goes to the guest.
    leave: mpsc::UnboundedReceiver<()>,
    /// Closes when the other end has, and all that came from it is printed.
    printed: oneshot::Receiver<()>,
    raw: Option<Raw>,
}

/// A [`Terminal`] whose socket somebody has.
pub struct Attached {
    leave: mpsc::UnboundedReceiver<()>,
    printed: oneshot::Receiver<()>,
    _raw: Option<Raw>,
}

/// What happens at a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Ctrl-] was typed.
    Leave,
    /// The console is closed, or another terminal has it.
    Closed,
}

impl Terminal {
    /// Takes standard input and output. A terminal is in raw mode until this value goes: every key but Ctrl-] is
    /// the guest's. To be called on a tokio runtime.
    ///
    /// # Errors
    /// When the host has no socket or thread left.
    pub fn open() -> Result<Terminal> {
        let (theirs, ours) = UnixStream::pair().map_err(Error::io("make a socket for the console"))?;
        let keys = ours
            .try_clone()
            .map_err(Error::io("duplicate the console's socket"))?;
        let socket = theirs
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(theirs))
            .map_err(Error::io("set up the console's socket"))?;
        let is_terminal = io::stdin().is_terminal();
        let raw = if is_terminal { Raw::enter() } else { None };
        let (left, leave) = mpsc::unbounded_channel();
        let (done, printed) = oneshot::channel();
        spawn("stdin", move || copy_keys(keys, is_terminal, &left))?;
        spawn("stdout", move || {
            print(ours);
            drop(done);
        })?;
        Ok(Terminal {
            socket,
            leave,
            printed,
            raw,
        })
    }

    /// Gives the socket to who has the console, and keeps the rest.
    pub fn attach(self) -> (tokio::net::UnixStream, Attached) {
        let attached = Attached {
            leave: self.leave,
            printed: self.printed,
            _raw: self.raw,
        };
        (self.socket, attached)
    }
}

/// Returns at the next thing that happens at `terminal`; where there is none, nothing ever does.
pub async fn next(terminal: &mut Option<Attached>) -> Happened {
    match terminal {
        Some(terminal) => terminal.next().await,
        None => std::future::pending().await,
    }
}

impl Attached {
    /// Returns at the next thing that happens. The console is closed once.
    pub async fn next(&mut self) -> Happened {
        tokio::select! {
            Some(()) = self.leave.recv() => Happened::Leave,
            _ = &mut self.printed, if !self.printed.is_terminated() => Happened::Closed,
            else => std::future::pending().await,
        }
    }

    /// Waits until all has been printed, but not for long: a reader of ours may have stopped reading.
    pub async fn finish(mut self) {
        if !self.printed.is_terminated() {
            let _ = timeout(LAST_WORDS, &mut self.printed).await;
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(body)
        .map(drop)
        .map_err(Error::io("start a thread for the console"))
}

/// Standard input to the console. The socket is the guest's pace: nothing is lost while the guest does not read.
fn copy_keys(mut console: UnixStream, is_terminal: bool, left: &mpsc::UnboundedSender<()>) {
    let mut bytes = [0; 1024];
    loop {
        let count = match io::stdin().read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let typed = bytes.get(..count).unwrap_or_default();
        for part in typed.split_inclusive(|&byte| is_terminal && byte == LEAVE) {
            let (keys, leaves) = match part.split_last() {
                Some((&LEAVE, keys)) if is_terminal => (keys, true),
                _ => (part, false),
            };
            // Once the console is gone a terminal still has its Ctrl-].
            if console.write_all(keys).is_err() && !is_terminal {
                return;
            }
            if leaves && left.send(()).is_err() {
                return;
            }
        }
    }
    // The end of input is not the end of the machine: its output is still wanted.
    let _ = console.shutdown(Shutdown::Write);
}

/// The console to standard output; when nobody reads that any more, the guest still goes on.
fn print(mut console: UnixStream) {
    let mut bytes = [0; 4096];
    let mut reader = true;
    loop {
        match console.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(count) if reader => {
                let mut out = io::stdout().lock();
                let said = bytes.get(..count).unwrap_or_default();
                reader = out.write_all(said).and_then(|()| out.flush()).is_ok();
            }
            Ok(_) => {}
        }
    }
}

/// A terminal in raw mode; as it was before when this value goes.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Raw> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        raw_terminal(true);
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        raw_terminal(false);
    }
}
