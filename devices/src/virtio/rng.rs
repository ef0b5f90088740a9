//! Entropy device (virtio 1.2, §5.4): fills the driver's buffers from the host's random source.

use std::io::Write;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestAddressSpace;

use super::{Activation, ActiveQueue, Chain, VirtioDevice};
use crate::Result;
use crate::irq::Interrupt;
use crate::memory::{Memory, SharedMemory};
use crate::worker::{Placed, Worker};

const DEVICE_ID: u32 = 4;
const QUEUE_SIZES: &[u16] = &[64];
/// A request is answered with at most this much, so that a guest cannot hold the I/O thread with one
/// descriptor of gigabytes; a short answer is allowed (§5.4.6.2).
const MAX_BYTES: usize = 64 * 1024;

/// The entropy device.
pub struct Rng {
    worker: Worker,
    running: Option<Placed<RngQueue>>,
}

impl Rng {
    /// A device whose queue is served by `worker`.
    pub fn new(worker: Worker) -> Self {
        Rng {
            worker,
            running: None,
        }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let Activation {
            memory,
            interrupt,
            queues,
            ..
        } = activation;
        if let Some(queue) = queues.into_iter().next() {
            self.running = Some(self.worker.add(RngQueue {
                queue,
                memory,
                interrupt,
            })?);
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        match self.running.take() {
            Some(running) => Ok(vec![running.remove()?.queue]),
            None => Ok(Vec::new()),
        }
    }
}

/// The queue while it is served.
struct RngQueue {
    queue: ActiveQueue,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
}

/// Fills one chain and says how many bytes; 0 where the driver gave nothing that can be written.
fn fill(memory: &Memory, chain: Chain) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else {
        return 0;
    };
    let mut bytes = vec![0; writer.available_bytes().min(MAX_BYTES)];
    if getrandom::fill(&mut bytes).is_err() || writer.write_all(&bytes).is_err() {
        return 0;
    }
    u32::try_from(bytes.len()).unwrap_or(0)
}

impl MutEventSubscriber for RngQueue {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.queue.kick, EventSet::IN)) {
            log::error!("rng: cannot watch the doorbell: {error:?}");
        }
        // What the driver offered before we ran (a restore, a resume) has rung no doorbell of ours.
        let _ = self.queue.kick.write(1);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.queue.kick.read();
        let memory = self.memory.memory().into_inner();
        if let Err(error) = self
            .queue
            .serve(&memory, &*self.interrupt, |chain| fill(&memory, chain))
        {
            log::warn!("rng: the queue is malformed, the driver must reset: {error}");
            self.interrupt.needs_reset();
        }
    }
}

#[cfg(test)]
mod tests;
