//! A disk queue on the caller's own thread, for files in memory (tmpfs): a read there is a copy, and to hand it to
//! somebody takes longer than to do it.
//!
//! io_uring gives each such operation to a thread of the kernel, as tmpfs does not promise to have everything at hand
//! (FMODE_NOWAIT). What it swapped out is waited for here.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::pool::PoolQueue;
use super::raw::Raw;
use super::{Backend, Completion, DiskOp, DiskQueue};
use crate::memory::GuestBuffer;

/// A queue of a raw disk that does what it is given at once.
pub(super) struct InlineQueue {
    raw: Arc<Raw>,
    done: VecDeque<Completion>,
    /// Takes what may be about the whole disk.
    slow: PoolQueue,
}

impl InlineQueue {
    pub(super) fn new(raw: Arc<Raw>, slow: PoolQueue) -> Self {
        InlineQueue {
            raw,
            done: VecDeque::new(),
            slow,
        }
    }
}

impl DiskQueue for InlineQueue {
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()> {
        match op {
            DiskOp::Read { .. } | DiskOp::Write { .. } | DiskOp::Flush => {
                let result = self.raw.execute(op, &buffer);
                self.done.push_back(Completion { tag, buffer, result });
                Ok(())
            }
            DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => self.slow.submit(tag, op, buffer),
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        self.done.pop_front().or_else(|| self.slow.reap())
    }

    fn completion(&self) -> &EventFd {
        self.slow.completion()
    }
}
