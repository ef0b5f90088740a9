//! The guest's serial line for whoever looks at it: one client at a time, a newer one takes over, and a late one
//! is first told what was said before it came. Beside it a log may hear what is said.
//!
//! Every client reads from the history at a place of its own, so a slow one costs no memory and holds up nobody:
//! when it falls behind by more than the history, it misses the oldest.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Bytes kept of what the guest said.
pub const HISTORY: usize = 64 * 1024;
/// How long a client may take to read the last words of a machine that has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes read from the guest at once.
const CHUNK: usize = 2048;
/// Bytes read from a client at once; more waits until the guest took them.
const TYPED: usize = 256;

/// A terminal, near or far.
pub trait Client: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Client for T {}

/// The way to the console, for any number of tasks.
#[derive(Clone)]
pub struct Console {
    clients: mpsc::Sender<Newcomer>,
    leaves: Arc<AtomicBool>,
    spoke: watch::Receiver<Option<SystemTime>>,
}

/// Who comes to the console.
enum Newcomer {
    /// To have it.
    Terminal(Box<dyn Client>),
    /// To write down what is said.
    Log(Box<dyn Client>),
}

impl Console {
    /// Serves `guest`, the host's end of a serial line, in a task that ends some time after the machine: when the
    /// last client has read all. A log that is `expected` may come so much later than the machine's end.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn start(
        guest: std::os::unix::net::UnixStream,
        expected: Option<Duration>,
    ) -> io::Result<(Console, JoinHandle<()>)> {
        guest.set_nonblocking(true)?;
        let guest = UnixStream::from_std(guest)?;
        let (clients, newcomers) = mpsc::channel(1);
        let leaves = Arc::<AtomicBool>::default();
        let (speaks, spoke) = watch::channel(None);
        let serving = serve(guest, newcomers, Arc::clone(&leaves), speaks, expected);
        let serving = tokio::spawn(serving);
        let console = Console {
            clients,
            leaves,
            spoke,
        };
        Ok((console, serving))
    }

    /// Waits until the guest has said its first line; when that was, or nothing where it never does.
    pub async fn first_line(&self) -> Option<SystemTime> {
        let mut spoke = self.spoke.clone();
        *spoke.wait_for(Option::is_some).await.ok()?
    }

    /// Gives the console to `client`. It is told what was said so far and then what is said; the one before it
    /// is disconnected. A client that has nothing more to type may close that half and go on reading.
    ///
    /// `false` when the machine has ended.
    pub async fn attach(&self, client: Box<dyn Client>) -> bool {
        self.clients.send(Newcomer::Terminal(client)).await.is_ok()
    }

    /// Whether whoever has the console at the end is left to another process, and not told of it.
    pub fn leave(&self, leaves: bool) {
        self.leaves.store(leaves, Ordering::Release);
    }

    /// Has `client` told what was said so far and then what is said, beside who has the console; a log before it is
    /// closed.
    ///
    /// `false` when the machine has ended.
    pub async fn log(&self, client: Box<dyn Client>) -> bool {
        self.clients.send(Newcomer::Log(client)).await.is_ok()
    }
}

/// The last of what was said, by its place in all that was said.
#[derive(Default)]
struct History {
    bytes: VecDeque<u8>,
    /// Bytes said in all.
    said: u64,
}

impl History {
    fn push(&mut self, said: &[u8]) {
        let excess = (self.bytes.len() + said.len()).saturating_sub(HISTORY);
        self.bytes.drain(..excess.min(self.bytes.len()));
        // Grows with what is said, and never beyond the limit.
        self.bytes.extend(said);
        self.said += said.len() as u64;
    }

    /// The place of the oldest byte that is kept.
    fn oldest(&self) -> u64 {
        self.said - self.bytes.len() as u64
    }

    /// Bytes from `place` on, not always all that there are.
    fn from(&self, place: u64) -> &[u8] {
        let skip = usize::try_from(place.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        let (old, new) = self.bytes.as_slices();
        match old.get(skip..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => new.get(skip.saturating_sub(old.len())..).unwrap_or_default(),
        }
    }
}

type Input = ReadHalf<Box<dyn Client>>;

/// The half of a client that hears.
struct Output {
    stream: WriteHalf<Box<dyn Client>>,
    /// Place of the next byte it is told.
    place: u64,
}

async fn serve(
    guest: UnixStream,
    mut newcomers: mpsc::Receiver<Newcomer>,
    leaves: Arc<AtomicBool>,
    speaks: watch::Sender<Option<SystemTime>>,
    mut expected: Option<Duration>,
) {
    let (mut hears, mut says) = guest.into_split();
    let mut history = History::default();
    let mut chunk = [0; CHUNK];
    let (mut input, mut output): (Option<Input>, Option<Output>) = (None, None);
    let mut log: Option<Output> = None;
    let mut typed = Typed::default();
    let mut open = true;
    // Set when the machine has ended.
    let mut until: Option<Instant> = None;
    loop {
        let is_behind = |output: &Output| output.place < history.said;
        let (behind, log_behind) = (
            output.as_ref().is_some_and(is_behind),
            log.as_ref().is_some_and(is_behind),
        );
        if until.is_some() && !behind && !log_behind && expected.is_none() {
            break;
        }
        tokio::select! {
            newcomer = newcomers.recv(), if open && (until.is_none() || expected.is_some()) => match newcomer {
                Some(Newcomer::Terminal(newcomer)) => {
                    let (reads, writes) = split(newcomer);
                    input = Some(reads);
                    output = Some(Output { stream: writes, place: history.oldest() });
                }
                Some(Newcomer::Log(newcomer)) => {
                    log = Some(Output { stream: split(newcomer).1, place: history.oldest() });
                    expected = None;
                    until = until.map(|_| Instant::now() + LAST_WORDS);
                }
                // Nobody can come any more; who is here stays.
                None => open = false,
            },
            said = hears.read(&mut chunk), if until.is_none() => match said {
                Ok(count) if count > 0 => {
                    let words = chunk.get(..count).unwrap_or_default();
                    if speaks.borrow().is_none() && words.contains(&b'\n') {
                        speaks.send_replace(Some(SystemTime::now()));
                    }
                    history.push(words);
                }
                _ => until = Some(Instant::now() + expected.unwrap_or(LAST_WORDS)),
            },
            told = tell(&mut output, &history), if behind => {
                if told.is_err() {
                    (input, output) = (None, None);
                }
            }
            told = tell(&mut log, &history), if log_behind => {
                if told.is_err() {
                    log = None;
                }
            }
            () = carry(&mut input, &mut says, &mut typed), if until.is_none() => {}
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
        }
    }
    if leaves.load(Ordering::Acquire) {
        return;
    }
    for mut output in [output, log].into_iter().flatten() {
        let _ = output.stream.shutdown().await;
    }
}

async fn tell(output: &mut Option<Output>, history: &History) -> io::Result<()> {
    let Some(output) = output else {
        return pending().await;
    };
    output.place = output.place.max(history.oldest());
    let count = output.stream.write(history.from(output.place)).await?;
    output.place += count as u64;
    match count {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => output.stream.flush().await,
    }
}

/// Takes what the client types, or gives it to the guest: never more than the guest has room for.
async fn carry(input: &mut Option<Input>, guest: &mut OwnedWriteHalf, typed: &mut Typed) {
    if !typed.is_empty() {
        match guest.write(typed.waiting()).await {
            Ok(count) => typed.start += count,
            Err(_) => *typed = Typed::default(),
        }
    } else if let Some(client) = input {
        match client.read(&mut typed.bytes).await {
            Ok(count) if count > 0 => (typed.start, typed.end) = (0, count),
            _ => *input = None,
        }
    } else {
        pending().await
    }
}

/// What a client typed and the guest has not taken.
struct Typed {
    bytes: [u8; TYPED],
    start: usize,
    end: usize,
}

impl Default for Typed {
    fn default() -> Self {
        Typed {
            bytes: [0; TYPED],
            start: 0,
            end: 0,
        }
    }
}

impl Typed {
    fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
