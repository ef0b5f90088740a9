//! A virtqueue in service: the ring, our position in it, its doorbell.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::ChainAgain;
use crate::irq::{Interrupt, Vector};
use crate::memory::Memory;

/// A chain of descriptors that the driver offers.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// Outcome of work on a ring that the driver may have made malformed.
pub type Served = Result<(), Error>;

/// A queue that the driver has set up, and its doorbell.
pub struct ActiveQueue {
    /// Index within the device.
    pub index: u16,
    /// The ring and our position in it.
    pub queue: Queue,
    /// Signalled when the driver rings the doorbell.
    pub kick: EventFd,
}

impl ActiveQueue {
    /// The next chain that the driver offers, if any.
    ///
    /// # Errors
    /// When the ring is malformed: the available index runs ahead of the ring, or the ring is not in memory.
    pub fn pop(&mut self, memory: &Arc<Memory>) -> Result<Option<Chain>, Error> {
        Ok(self.queue.iter(Arc::clone(memory))?.next())
    }

    /// Puts the chain popped last back, to be popped again later. Only right when none was popped since.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// The chain that begins at `head`, which was popped some time ago and not given back: it is read from guest
    /// memory again, and may be another than it was.
    pub fn again(&self, memory: &Arc<Memory>, head: u16) -> ChainAgain {
        ChainAgain::new(&self.queue, Arc::clone(memory), head)
    }

    /// Gives the chain that begins at `head` back, `len` bytes of it written.
    ///
    /// # Errors
    /// When the used ring is not in memory.
    pub fn complete(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), Error> {
        self.queue.add_used(memory, head, len)
    }

    /// Gives several chains back, so that the driver sees all of them or none. [`ActiveQueue::notify`] then
    /// knows of the last one only.
    ///
    /// # Errors
    /// When the used ring is not in memory, or a head is none of this queue's.
    pub fn complete_together(&mut self, memory: &Memory, chains: &[(u16, u32)]) -> Result<(), Error> {
        let Some((&(last, last_len), before)) = chains.split_last() else {
            return Ok(());
        };
        let mut next = self.queue.next_used();
        for &(head, len) in before {
            if head >= self.queue.size() {
                return Err(Error::InvalidDescriptorIndex);
            }
            // The used ring has 4 bytes of flags and index, then 8 for each entry (virtio 1.2, §2.7.8).
            let offset = 4 + 8 * u64::from(next % self.queue.size());
            let at = self
                .queue
                .used_ring()
                .checked_add(offset)
                .ok_or(Error::AddressOverflow)?;
            let entry = u64::from(head) | u64::from(len) << 32;
            memory
                .write_obj(entry.to_le(), GuestAddress(at))
                .map_err(Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.queue.add_used(memory, last, last_len)
    }

    /// Tells the driver of the chains given back since the last time, when it wants to know.
    ///
    /// # Errors
    /// When the ring is not in memory.
    pub fn notify(&mut self, memory: &Memory, interrupt: &dyn Interrupt) -> Result<(), Error> {
        if self.queue.needs_notification(memory)?
            && self.takes_interrupts(memory)?
            && let Err(error) = interrupt.trigger(Vector::Queue(self.index))
        {
            log::warn!("interrupt of queue {} is lost: {error}", self.index);
        }
        Ok(())
    }

    /// Whether a driver without EVENT_IDX leaves interrupts on (§2.7.7): one that polls may have nobody for them.
    fn takes_interrupts(&self, memory: &Memory) -> Result<bool, Error> {
        if self.queue.event_idx_enabled() {
            return Ok(true);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(Error::GuestMemory)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Serves the chains on offer with `serve`, which gives the number of bytes written, then tells the
    /// driver once. For devices that answer at once. After a queue's length of them the doorbell is rung for
    /// the rest: a driver that never ends must not hold a thread that serves others too.
    ///
    /// # Errors
    /// When the ring is malformed; the caller says so with [`Interrupt::needs_reset`].
    pub fn serve(
        &mut self,
        memory: &Arc<Memory>,
        interrupt: &dyn Interrupt,
        mut serve: impl FnMut(Chain) -> u32,
    ) -> Result<(), Error> {
        let mut left = self.queue.size();
        while left > 0 {
            self.queue.disable_notification(&**memory)?;
            while left > 0
                && let Some(chain) = self.pop(memory)?
            {
                let head = chain.head_index();
                let len = serve(chain);
                self.complete(memory, head, len)?;
                left -= 1;
            }
            if left > 0 && !self.queue.enable_notification(&**memory)? {
                break;
            }
        }
        if left == 0 {
            let _ = self.kick.write(1);
        }
        match left < self.queue.size() {
            true => self.notify(memory, interrupt),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    struct Silent;

    impl Interrupt for Silent {
        fn trigger(&self, _vector: Vector) -> std::io::Result<()> {
            Ok(())
        }
        fn needs_reset(&self) {}
    }

    #[test]
    fn a_driver_that_offers_without_end_gets_one_round_at_a_time() {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        queue.set_ready(true);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut queue = ActiveQueue {
            index: 0,
            queue,
            kick,
        };
        let mut offered = 0u16;
        let mut offer = |memory: &Memory| {
            offered += 1;
            memory.write_obj(offered, GuestAddress(0x2002)).unwrap();
        };

        offer(&memory);
        let mut served = 0;
        queue
            .serve(&memory, &Silent, |_| {
                offer(&memory);
                served += 1;
                0
            })
            .unwrap();

        assert_eq!(served, 16);
        assert_eq!(queue.kick.read().unwrap(), 1);
        queue.serve(&memory, &Silent, |_| 0).unwrap();
        assert_eq!(queue.queue.next_avail(), 17);
        assert!(queue.kick.read().is_err());
    }
}
