//! Guest memory over streams: what the source does with a round's pages, what the target does with a frame.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nacelle_devices::memory::Memory;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::connection::{Connection, closed};
use super::packing::{Packing, Window};
use super::wire::{self, Frame, Kind, MOST_PAGES, MOST_RUNS, ZSTD};
use crate::memory::dirty::{PAGE, Pages, Run};
use crate::{Error, Result};

/// Holds what is sent to a bandwidth, all streams together, and says when time is over.
pub(super) struct Pace {
    limit: Option<u64>,
    begun: Instant,
    /// When all that was let through is sent at that rate, in nanoseconds since `begun`.
    due: AtomicU64,
    /// When it is.
    until: Option<Instant>,
}

/// What of the past may still be used, in nanoseconds: a tenth of a second.
const SAVED: u64 = 100_000_000;

impl Pace {
    /// At most `limit` bytes a second.
    pub fn new(limit: Option<u64>) -> Pace {
        Pace {
            limit,
            begun: Instant::now(),
            due: AtomicU64::new(0),
            until: None,
        }
    }

    /// The same, and nothing more is begun after that time.
    pub fn until(self, until: Option<Instant>) -> Pace {
        Pace { until, ..self }
    }

    /// Whether nothing more is to be begun.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Pages that are sent at once: a tenth of a second's worth, so that a slow stream never looks like one that is broken.
    pub fn pages(&self) -> u64 {
        self.limit
            .map_or(MOST_PAGES, |limit| (limit / PAGE / 10).clamp(1, MOST_PAGES))
    }

    /// Waits until `bytes` more may be sent; gives the time that it waited. What was not used is saved up for a moment only:
    /// that makes up for a sleep that was too long, and is no burst.
    pub fn wait(&self, bytes: u64) -> Duration {
        let Some(limit) = self.limit else {
            return Duration::ZERO;
        };
        let takes = nanoseconds(Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64));
        let now = nanoseconds(self.begun.elapsed());
        let sent = |due: u64| due.max(now.saturating_sub(SAVED)).saturating_add(takes);
        let before = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| Some(sent(due)));
        let wait = Duration::from_nanos(sent(before.unwrap_or(0)).saturating_sub(now));
        std::thread::sleep(wait);
        wait
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How often it is told how far a round is.
const TELL: Duration = Duration::from_millis(50);

/// What a round sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes of pages that are not zero.
    pub bytes: u64,
    /// Bytes of pages that are.
    pub zero: u64,
    /// Where the pages begin that were not sent, as time was over.
    pub left: Option<u64>,
}

/// Sends `pages` over all streams, until time is over, and returns when all that was sent has arrived.
pub(super) fn send(
    streams: &mut [Sender],
    memory: &Memory,
    pages: &Pages,
    number: u32,
    pace: &Pace,
    tell: &mut dyn FnMut(u64),
) -> Result<Sent> {
    let round = Shared {
        memory,
        runs: pages.runs(pace.pages()),
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        number,
        pace,
    };
    let results = Mutex::new(Vec::new());
    let work = |stream: &mut Sender, tell: &mut dyn FnMut(u64)| {
        let result = stream.share(&round, tell);
        round.failed.fetch_or(result.is_err(), Ordering::Relaxed);
        results
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(result);
    };
    match streams {
        [only] => work(only, tell),
        [first, others @ ..] => std::thread::scope(|scope| {
            for stream in others {
                scope.spawn(|| work(stream, &mut |_| {}));
            }
            work(first, tell);
        }),
        [] => {}
    }
    let mut all = Sent {
        left: round.left().map(|run| run.address),
        ..Sent::default()
    };
    for result in results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        let sent = result?;
        all.bytes += sent.bytes;
        all.zero += sent.zero;
    }
    Ok(all)
}

/// A round, as all of its streams see it.
struct Shared<'a> {
    memory: &'a Memory,
    runs: Vec<Run>,
    next: AtomicUsize,
    /// Bytes that all streams have done.
    done: AtomicU64,
    failed: AtomicBool,
    number: u32,
    pace: &'a Pace,
}

impl Shared<'_> {
    /// The next run, for whichever stream asks first, while there is time.
    fn next(&self) -> Option<Run> {
        match self.pace.is_over() {
            true => None,
            false => self.runs.get(self.next.fetch_add(1, Ordering::Relaxed)).copied(),
        }
    }

    /// The first one that nobody had.
    fn left(&self) -> Option<Run> {
        self.runs.get(self.next.load(Ordering::Relaxed)).copied()
    }
}

/// The source's end of a stream.
pub(super) struct Sender {
    pub connection: Connection,
    plain: Vec<u8>,
    packed: Vec<u8>,
    zero: Vec<Run>,
    packing: Packing,
    window: Window,
}

impl Sender {
    pub fn new(connection: Connection, packing: Packing) -> Sender {
        Sender {
            connection,
            plain: Vec::new(),
            packed: Vec::new(),
            zero: Vec::new(),
            packing,
            window: Window::default(),
        }
    }

    /// Sends this stream's share of a round.
    fn share(&mut self, round: &Shared, tell: &mut dyn FnMut(u64)) -> Result<Sent> {
        let mut told = Instant::now();
        let mut sent = Sent::default();
        while let Some(run) = round.next() {
            if round.failed.load(Ordering::Relaxed) {
                return Ok(sent);
            }
            self.run(run, round, &mut sent)?;
            let done = round.done.fetch_add(run.len(), Ordering::Relaxed) + run.len();
            if told.elapsed() > TELL {
                tell(done);
                told = Instant::now();
            }
        }
        self.send_zero()?;
        let number = round.number.to_le_bytes();
        self.connection.send_parts(Kind::Round, 0, &[&number])?;
        self.connection.flush()?;
        match self.connection.receive()? {
            Some((frame, payload)) if frame.kind == Kind::RoundDone && payload == number => Ok(sent),
            Some((frame, _)) => Err(wire::wrong(format!(
                "{:?} instead of the end of round {}",
                frame.kind, round.number
            ))),
            None => Err(closed()),
        }
    }

    /// Sends pages that somebody waits for.
    pub fn urgent(&mut self, memory: &Memory, run: Run) -> Result<()> {
        let round = Shared {
            memory,
            runs: Vec::new(),
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            number: 0,
            pace: &Pace::new(None),
        };
        self.run(run, &round, &mut Sent::default())?;
        self.send_zero()?;
        self.connection.flush()
    }

    /// Sends a run: its zero pages as ranges, the others as they are.
    fn run(&mut self, run: Run, round: &Shared, sent: &mut Sent) -> Result<()> {
        let begun = Instant::now();
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(run.len() as usize, 0);
        let copied = round.memory.read_slice(&mut plain, GuestAddress(run.address));
        copied.map_err(|error| Error::Protocol(format!("guest memory at {:#x}: {error}", run.address)))?;
        let (pages, _) = plain.as_chunks::<{ PAGE as usize }>();
        let mut at = run.address;
        for same in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len = same.len() as u64 * PAGE;
            let zero = same.first().is_some_and(is_zero);
            if zero {
                sent.zero += len;
                self.add_zero(Run {
                    address: at,
                    pages: same.len() as u64,
                })?;
            } else {
                sent.bytes += len;
                self.window.waited += round.pace.wait(len);
                self.send_pages(at, same.as_flattened())?;
            }
            at += len;
        }
        self.plain = plain;
        self.window.took += begun.elapsed();
        if self.window.is_full() {
            self.packing = self.packing.next(&std::mem::take(&mut self.window));
        }
        Ok(())
    }

    fn send_pages(&mut self, address: u64, data: &[u8]) -> Result<()> {
        let address = address.to_le_bytes();
        let (_, writing) = self.connection.written();
        let mut packed = false;
        if self.packing.packs() {
            let begun = Instant::now();
            self.packed.resize(data.len(), 0);
            // What does not become shorter does not fit, and goes as it is.
            if let Ok(len) = zstd::bulk::compress_to_buffer(data, self.packed.as_mut_slice(), 1) {
                self.packed.truncate(len);
                packed = true;
            }
            self.window.packing += begun.elapsed();
        }
        let (flags, payload) = if packed {
            (ZSTD, self.packed.as_slice())
        } else {
            (0, data)
        };
        self.connection
            .send_parts(Kind::Pages, flags, &[&address, payload])?;
        self.window.plain += data.len() as u64;
        self.window.wire += payload.len() as u64;
        self.window.waited += self.connection.written().1 - writing;
        Ok(())
    }

    fn add_zero(&mut self, run: Run) -> Result<()> {
        match self.zero.last_mut() {
            Some(last) if last.address + last.len() == run.address => last.pages += run.pages,
            _ => self.zero.push(run),
        }
        if self.zero.len() >= MOST_RUNS {
            self.send_zero()
        } else {
            Ok(())
        }
    }

    fn send_zero(&mut self) -> Result<()> {
        if self.zero.is_empty() {
            return Ok(());
        }
        let payload = wire::zero_payload(&self.zero);
        self.zero.clear();
        self.connection.send_parts(Kind::Zero, 0, &[&payload])
    }
}

/// Whether there is nothing in a page.
pub(crate) fn is_zero(page: &[u8; PAGE as usize]) -> bool {
    let (words, _) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0)
}

/// Puts pages where they belong. The memory must be fresh: what was never written there is zero.
pub struct Receiver<'a> {
    memory: &'a Memory,
    plain: Vec<u8>,
}

impl Receiver<'_> {
    /// Into `memory`.
    pub fn new(memory: &Memory) -> Receiver<'_> {
        Receiver {
            memory,
            plain: Vec::new(),
        }
    }

    /// Does what a frame of pages says; `false` where it is another frame.
    ///
    /// # Errors
    /// When it is no such frame as can be, or its pages are not in memory.
    pub fn take(&mut self, frame: &Frame, payload: &[u8]) -> Result<bool> {
        match frame.kind {
            Kind::Pages => {
                let (address, data) = wire::pages(frame.flags, payload, &mut self.plain)?;
                let written = self.memory.write_slice(data, GuestAddress(address));
                written.map_err(|_| outside(address))?;
            }
            Kind::Zero => {
                for run in wire::zero_runs(payload)? {
                    self.clear(run)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn clear(&self, run: Run) -> Result<()> {
        let start = GuestAddress(run.address);
        let (region, offset) = self
            .memory
            .to_region_addr(start)
            .ok_or_else(|| outside(run.address))?;
        if run.len() > region.len() - offset.0 {
            return Err(outside(run.address));
        }
        for page in 0..run.pages {
            let offset = offset.0 + page * PAGE;
            if region.bitmap().dirty_at(offset as usize) {
                let zero = [0; PAGE as usize];
                let address = region.start_addr().0 + offset;
                let written = self.memory.write_slice(&zero, GuestAddress(address));
                written.map_err(|_| outside(address))?;
            }
        }
        Ok(())
    }
}

pub(super) fn outside(address: u64) -> Error {
    wire::wrong(format!("pages at {address:#x}, where the machine has no memory"))
}

/// A checksum over all of guest memory.
pub fn checksum(memory: &Memory) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut plain = vec![0; (MOST_PAGES * PAGE) as usize];
    for run in Pages::all(memory).runs(MOST_PAGES) {
        if let Some(part) = plain.get_mut(..run.len() as usize)
            && memory.read_slice(part, GuestAddress(run.address)).is_ok()
        {
            hasher.update(part);
        }
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_replace_what_was_written_and_nothing_else_is_touched() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 8 * PAGE as usize)]).unwrap();
        let mut receiver = Receiver::new(&memory);
        let mut take = |kind, payload: &[u8]| receiver.take(&Frame { kind, flags: 0 }, payload);
        let page = [7; PAGE as usize];
        assert!(take(Kind::Pages, &[&(2 * PAGE).to_le_bytes()[..], &page].concat()).unwrap());
        assert!(take(Kind::Pages, &[&(3 * PAGE).to_le_bytes()[..], &page].concat()).unwrap());
        let zero = |address, pages| wire::zero_payload(&[Run { address, pages }]);
        assert!(take(Kind::Zero, &zero(0, 3)).unwrap());
        assert!(!take(Kind::Ready, &[]).unwrap());
        let byte = |page: u64| memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap();
        assert_eq!((byte(2), byte(3)), (0, 7));
        for (address, pages) in [(8 * PAGE, 1), (7 * PAGE, 2), (0, 1 << 40)] {
            assert!(take(Kind::Zero, &zero(address, pages)).is_err());
        }
        assert!(take(Kind::Pages, &[&(8 * PAGE).to_le_bytes()[..], &page].concat()).is_err());
    }

    #[test]
    fn a_bandwidth_is_held() {
        let pace = Pace::new(Some(1 << 20));
        assert!(pace.wait(100 << 10) > Duration::from_millis(50));
        assert_eq!(Pace::new(None).wait(1 << 30), Duration::ZERO);
    }

    #[test]
    fn nothing_is_begun_when_time_is_over() {
        let now = Instant::now();
        for (until, over) in [
            (None, false),
            (Some(now), true),
            (Some(now + Duration::from_secs(3600)), false),
        ] {
            assert_eq!(Pace::new(None).until(until).is_over(), over, "{until:?}");
        }
    }

    #[test]
    fn what_was_not_used_is_saved_up_for_a_moment_only() {
        let pace = Pace::new(Some(1 << 20));
        std::thread::sleep(Duration::from_millis(300));
        assert!(pace.wait(300 << 10) > Duration::from_millis(150));
    }

    #[test]
    fn a_slow_link_is_given_small_pieces() {
        for (limit, pages) in [
            (None, MOST_PAGES),
            (Some(0), 1),
            (Some(1 << 20), 25),
            (Some(1 << 30), MOST_PAGES),
        ] {
            assert_eq!(Pace::new(limit).pages(), pages, "{limit:?}");
        }
    }
}
