//! The balloon's queues while a worker serves them.

use std::io::Read;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::timerfd::TimerFd;

use super::discard::{self, Region};
use super::pages::{self, Given, PAGE};
use super::statistics::{self, BalloonStatistics};
use super::{PAGE_REPORTING, STATS_VQ, Shared};
use crate::complaint::Complaint;
use crate::irq::{Interrupt, Vector};
use crate::memory::{Memory, SharedMemory};
use crate::virtio::{Activation, ActiveQueue, Chain, Served};
use crate::{Error, Result};

/// Page numbers read of one chain, 16 MiB of memory; Linux sends 256.
const MAX_PFNS: usize = 4096;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
    None,
}

impl Role {
    /// The specification counts the queues of features that are not negotiated (§5.5.2); Linux leaves them
    /// out, so that the reporting queue is number 3 there, or 2 without statistics. Since we offer no free page
    /// hints, whose queue would be number 3, both can be served.
    fn of(index: u16, features: u64) -> Role {
        let (statistics, reporting) = (features & STATS_VQ != 0, features & PAGE_REPORTING != 0);
        match index {
            0 => Role::Inflate,
            1 => Role::Deflate,
            2 if statistics => Role::Statistics,
            2..=4 if reporting => Role::Reporting,
            _ => Role::None,
        }
    }
}

/// The queues while they are served.
pub struct BalloonQueues {
    queues: Vec<(Role, ActiveQueue)>,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
    shared: Arc<Shared>,
    given: Given,
    timer: TimerFd,
    armed_ms: u64,
    /// The statistics buffer that we keep until we want new ones: giving it back is the question (§5.5.6.3).
    asked: Option<u16>,
    complaint: Complaint,
    /// The driver broke the rules; nothing is served until it resets.
    broken: bool,
}

impl BalloonQueues {
    /// The queues of `activation`; `given` is what the guest gave before.
    ///
    /// # Errors
    /// When the host has no timer left.
    pub fn new(activation: Activation, shared: Arc<Shared>, given: Given) -> Result<Self> {
        let timer = TimerFd::new().map_err(|error| Error::io("make the balloon's timer")(error.into()))?;
        let queues = activation
            .queues
            .into_iter()
            .map(|queue| (Role::of(queue.index, activation.features), queue))
            .collect();
        Ok(BalloonQueues {
            queues,
            memory: activation.memory,
            interrupt: activation.interrupt,
            shared,
            given,
            timer,
            armed_ms: 0,
            asked: None,
            complaint: Complaint::new("balloon"),
            broken: false,
        })
    }

    /// The queues with nothing in flight, and what the guest gave. The statistics buffer that we keep is
    /// popped again by whoever goes on.
    pub fn stop(mut self) -> (Vec<ActiveQueue>, Given) {
        if let Some((_, queue)) = self.queues.iter_mut().find(|(role, _)| *role == Role::Statistics)
            && self.asked.take().is_some()
        {
            queue.undo_pop();
        }
        (
            self.queues.into_iter().map(|(_, queue)| queue).collect(),
            self.given,
        )
    }

    /// Serves the queue whose doorbell is `fd`.
    fn serve(&mut self, fd: i32) -> Served {
        let memory = self.memory.memory().into_inner();
        let Some((role, queue)) = self.queues.iter_mut().find(|(_, q)| q.kick.as_raw_fd() == fd) else {
            return Ok(());
        };
        let _ = queue.kick.read();
        let (given, complaint) = (&mut self.given, &mut self.complaint);
        match role {
            Role::Inflate => queue.serve(&memory, &*self.interrupt, |chain| {
                inflate(&memory, chain, given, complaint);
                0
            }),
            Role::Deflate => queue.serve(&memory, &*self.interrupt, |chain| {
                deflate(&memory, chain, given);
                0
            }),
            Role::Reporting => {
                let poisoned = self.shared.poison_val.load(Ordering::SeqCst) != 0;
                queue.serve(&memory, &*self.interrupt, |chain| {
                    // We would give back zeroes where the guest expects its pattern: keep them (§5.5.6.7).
                    if !poisoned {
                        take_reported(&memory, chain, complaint);
                    }
                    0
                })
            }
            Role::Statistics => self.receive_statistics(&memory),
            Role::None => Ok(()),
        }
    }

    /// The driver sent statistics: keeps their buffer. An honest driver has one buffer only.
    fn receive_statistics(&mut self, memory: &Arc<Memory>) -> Served {
        let Some((_, queue)) = self.queues.iter_mut().find(|(role, _)| *role == Role::Statistics) else {
            return Ok(());
        };
        let memory_size = memory.iter().map(GuestMemoryRegion::len).sum();
        for _ in 0..queue.queue.size() {
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let bytes = read_start(memory, chain, statistics::MAX_BYTES);
            *self.shared.statistics() = BalloonStatistics {
                received: Some(Instant::now()),
                ..BalloonStatistics::parse(&bytes, memory_size)
            };
            if let Some(former) = self.asked.replace(head) {
                queue.complete(memory, former, 0)?;
                queue.notify(memory, &*self.interrupt)?;
            }
        }
        let _ = queue.kick.write(1);
        Ok(())
    }

    /// Gives the statistics buffer back, so that the driver fills it anew.
    fn ask_for_statistics(&mut self) -> Served {
        let memory = self.memory.memory();
        if let Some((_, queue)) = self.queues.iter_mut().find(|(role, _)| *role == Role::Statistics)
            && let Some(head) = self.asked.take()
        {
            queue.complete(&memory, head, 0)?;
            queue.notify(&memory, &*self.interrupt)?;
        }
        Ok(())
    }

    /// The host's side changed something.
    fn follow_control(&mut self) {
        let _ = self.shared.wake.read();
        if self.shared.resized.swap(false, Ordering::SeqCst)
            && let Err(error) = self.interrupt.trigger(Vector::Config)
        {
            log::warn!("balloon: the driver is not told of the new size: {error}");
        }
        let ms = self.shared.interval_ms.load(Ordering::SeqCst);
        if ms != self.armed_ms {
            let interval = Duration::from_millis(ms);
            let set = match ms {
                0 => self.timer.clear(),
                _ => self.timer.reset(interval, Some(interval)),
            };
            match set {
                Ok(()) => self.armed_ms = ms,
                Err(error) => log::error!("balloon: statistics cannot be timed: {error}"),
            }
        }
    }
}

impl MutEventSubscriber for BalloonQueues {
    fn init(&mut self, ops: &mut EventOps) {
        let kicks = self
            .queues
            .iter()
            .map(|(_, queue)| Events::new(&queue.kick, EventSet::IN));
        let own = [
            Events::new(&self.shared.wake, EventSet::IN),
            Events::new(&self.timer, EventSet::IN),
        ];
        for events in kicks.chain(own) {
            if let Err(error) = ops.add(events) {
                log::error!("balloon: cannot watch a descriptor: {error:?}");
            }
        }
        for (_, queue) in &self.queues {
            let _ = queue.kick.write(1);
        }
        // The timer of this run is not armed yet.
        let _ = self.shared.wake.write(1);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = events.fd();
        let done = if fd == self.shared.wake.as_raw_fd() {
            self.follow_control();
            Ok(())
        } else if fd == self.timer.as_raw_fd() {
            let _ = self.timer.wait();
            match self.broken {
                true => Ok(()),
                false => self.ask_for_statistics(),
            }
        } else if self.broken {
            // Its doorbells are heard and not followed.
            if let Some((_, queue)) = self.queues.iter().find(|(_, q)| q.kick.as_raw_fd() == fd) {
                let _ = queue.kick.read();
            }
            Ok(())
        } else {
            self.serve(fd)
        };
        if let Err(error) = done {
            self.broken = true;
            self.complaint.log(format_args!(
                "a queue is malformed, the driver must reset: {error}"
            ));
            self.interrupt.needs_reset();
        }
    }
}

/// The first `max` bytes of what the driver sent; nothing where a buffer is not in memory.
fn read_start(memory: &Memory, chain: Chain, max: usize) -> Vec<u8> {
    let Ok(mut reader) = chain.reader(memory) else {
        return Vec::new();
    };
    let mut bytes = vec![0; reader.available_bytes().min(max)];
    match reader.read_exact(&mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// The page numbers in a chain, as runs of guest memory.
fn read_runs(memory: &Memory, chain: Chain) -> Vec<Range<u64>> {
    let bytes = read_start(memory, chain, MAX_PFNS * 4);
    let (pfns, _) = bytes.as_chunks::<4>();
    pages::runs(pfns.iter().map(|&pfn| u32::from_le_bytes(pfn)).collect())
}

/// Calls `each` with the parts of `range` that lie in guest memory, as offsets in their region; `false` when
/// some part does not.
fn for_each_part(memory: &Memory, range: Range<u64>, mut each: impl FnMut(&Region, Range<u64>)) -> bool {
    let mut covered = 0;
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let from = range.start.max(base);
        let to = range.end.min(base.saturating_add(region.len()));
        if from < to {
            covered += to - from;
            each(region, from - base..to - base);
        }
    }
    covered == range.end - range.start
}

/// The pages in the chain are the host's now (§5.5.6.1).
fn inflate(memory: &Memory, chain: Chain, given: &mut Given, complaint: &mut Complaint) {
    for run in read_runs(memory, chain) {
        let mut refused = None;
        let inside = for_each_part(memory, run, |region, part| {
            let host_page = discard::host_page_size(region);
            let part = pages::whole(part, PAGE);
            let free = match host_page > PAGE {
                // Keyed by guest address; a region begins on a host page.
                true => {
                    let base = region.start_addr().raw_value();
                    given
                        .inflate(part.start + base..part.end + base, host_page)
                        .into_iter()
                        .map(|page| page.start - base..page.end - base)
                        .collect()
                }
                false => vec![part],
            };
            for range in free.into_iter().filter(|range| !range.is_empty()) {
                refused = discard::discard(region, range.start, range.end - range.start)
                    .err()
                    .or(refused.take());
            }
        });
        if !inside {
            complaint.log("the guest gave pages that it does not have");
        }
        if let Some(error) = refused {
            complaint.log(format_args!("the host does not take pages back: {error}"));
        }
    }
}

/// The guest takes the pages in the chain back (§5.5.6.2); they come when it touches them.
fn deflate(memory: &Memory, chain: Chain, given: &mut Given) {
    for run in read_runs(memory, chain) {
        for_each_part(memory, run, |region, part| {
            let host_page = discard::host_page_size(region);
            let base = region.start_addr().raw_value();
            let part = pages::whole(part, PAGE);
            if host_page > PAGE {
                given.deflate(part.start + base..part.end + base, host_page);
            }
        });
    }
}

/// The chain's buffers are free memory of the guest (§5.5.6.7).
fn take_reported(memory: &Memory, chain: Chain, complaint: &mut Complaint) {
    for buffer in chain.writable() {
        let (start, len) = (buffer.addr().raw_value(), u64::from(buffer.len()));
        let range = start..start.saturating_add(len);
        if !memory.check_range(GuestAddress(start), len as usize) {
            complaint.log("the guest reports memory that it does not have");
            continue;
        }
        for_each_part(memory, range, |region, part| {
            let part = pages::whole(part, discard::host_page_size(region));
            if part.is_empty() {
                return;
            }
            if let Err(error) = discard::discard(region, part.start, part.end - part.start) {
                complaint.log(format_args!("the host does not take free pages back: {error}"));
            }
        });
    }
}
