//! The queue of packets for the guest.

use std::io::Write;
use std::sync::Arc;

use virtio_queue::QueueT;

use super::packet::{HEADER, Header};
use crate::complaint::Complaint;
use crate::irq::Interrupt;
use crate::memory::Memory;
use crate::virtio::{ActiveQueue, Chain, Served};

/// Buffers of the guest, to be filled with packets.
pub struct Receive {
    /// As the driver set it up, if it did.
    pub queue: Option<ActiveQueue>,
    /// The guest had no buffer the last time, and has not rung since.
    pub starved: bool,
    /// It has buffers back that it does not know of.
    filled: bool,
}

impl Receive {
    /// Nothing is known of the guest's buffers before its first ring.
    pub fn new(queue: Option<ActiveQueue>) -> Self {
        Receive {
            queue,
            starved: true,
            filled: false,
        }
    }

    /// A buffer of the guest for one packet, with room for this much data; `None` when it has none.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub fn next(
        &mut self,
        memory: &Arc<Memory>,
        complaint: &mut Complaint,
    ) -> Result<Option<(Chain, usize)>, virtio_queue::Error> {
        let Some(queue) = &mut self.queue else {
            return Ok(None);
        };
        for _ in 0..queue.queue.size() {
            let Some(chain) = queue.pop(memory)? else {
                if queue.queue.enable_notification(&**memory)? {
                    continue;
                }
                self.starved = true;
                return Ok(None);
            };
            let room = chain
                .clone()
                .writer(memory)
                .map_or(0, |writer| writer.available_bytes());
            if let Some(room) = room.checked_sub(HEADER) {
                return Ok(Some((chain, room)));
            }
            complaint.log("a receive buffer has no room for a header");
            queue.complete(memory, chain.head_index(), 0)?;
            self.filled = true;
        }
        // As good as none until it rings again.
        self.starved = true;
        let _ = queue.kick.write(1);
        Ok(None)
    }

    /// Gives the buffer back with a packet in it.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub fn fill(&mut self, memory: &Arc<Memory>, chain: Chain, header: &Header, data: &[u8]) -> Served {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        let head = chain.head_index();
        let mut len = 0;
        if let Ok(mut writer) = chain.writer(memory)
            && writer.write_all(&header.bytes()).is_ok()
            && writer.write_all(data).is_ok()
        {
            len = (HEADER + data.len()) as u32;
        }
        self.filled = true;
        queue.complete(memory, head, len)
    }

    /// Puts the buffer taken last back.
    pub fn put_back(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.undo_pop();
        }
    }

    /// Tells the guest of the buffers filled since the last time.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub fn notify(&mut self, memory: &Memory, interrupt: &dyn Interrupt) -> Served {
        match &mut self.queue {
            Some(queue) if std::mem::take(&mut self.filled) => queue.notify(memory, interrupt),
            _ => Ok(()),
        }
    }
}
