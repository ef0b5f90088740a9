//! A disk queue on io_uring: the kernel reads and writes guest memory itself, one system call per batch.
//!
//! What needs more than one step (an O_DIRECT access out of alignment) or blocks anyhow (discard, zeroes)
//! goes to the pool; both signal the same event.
#![expect(unsafe_code, reason = "the ring is given pointers into guest memory")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, opcode, types};
use vmm_sys_util::eventfd::EventFd;

use super::pool::PoolQueue;
use super::raw::Raw;
use super::{Completion, DiskOp, DiskQueue};
use crate::memory::GuestBuffer;

/// All that a ring is for: what filters of system calls say does not hold for what is submitted to one.
const OPERATIONS: [u8; 5] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
];

/// A ring that signals `completion` and can do nothing but [`OPERATIONS`] (IORING_REGISTER_RESTRICTIONS).
fn restricted(depth: u32, completion: &EventFd) -> io::Result<IoUring> {
    let ring = IoUring::builder().dontfork().setup_r_disabled().build(depth)?;
    ring.submitter().register_eventfd(completion.as_raw_fd())?;
    ring.submitter()
        .register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

/// Whether this process may use io_uring for disks: it may be missing, or denied by seccomp or a sysctl.
pub(super) fn probe() -> io::Result<()> {
    let ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if OPERATIONS.iter().all(|&code| probe.is_supported(code)) {
        restricted(2, &EventFd::new(0)?).map(drop)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A queue of a raw disk on its own ring.
pub(super) struct UringQueue {
    /// Before `buffers`: dropped first.
    ring: IoUring,
    raw: Arc<Raw>,
    /// What the kernel may access, by tag.
    buffers: Vec<Option<GuestBuffer>>,
    in_ring: usize,
    slow: PoolQueue,
    completion: Arc<EventFd>,
}

impl UringQueue {
    /// A ring for `depth` operations; `slow` signals the same `completion`.
    pub(super) fn new(
        raw: Arc<Raw>,
        depth: u16,
        slow: PoolQueue,
        completion: Arc<EventFd>,
    ) -> io::Result<Self> {
        let ring = restricted(u32::from(depth.max(1)), &completion)?;
        Ok(UringQueue {
            ring,
            raw,
            buffers: (0..depth).map(|_| None).collect(),
            in_ring: 0,
            slow,
            completion,
        })
    }

    fn submit_all(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reap_ring(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let tag = entry.user_data() as u16;
        let buffer = self.buffers.get_mut(usize::from(tag)).and_then(Option::take)?;
        self.in_ring -= 1;
        let result = match entry.result() {
            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            bytes => Ok(bytes as u32),
        };
        Some(Completion { tag, buffer, result })
    }
}

/// A read into these ranges. One range, as a small request has, costs the kernel less than a list.
fn read(fd: types::Fd, iovecs: &[libc::iovec], offset: u64) -> Entry {
    match iovecs {
        [one] => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .build(),
        _ => opcode::Readv::new(fd, iovecs.as_ptr(), iovecs.len() as u32)
            .offset(offset)
            .build(),
    }
}

/// A write from these ranges.
fn write(fd: types::Fd, iovecs: &[libc::iovec], offset: u64, flags: i32) -> Entry {
    match iovecs {
        [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .rw_flags(flags)
            .build(),
        _ => opcode::Writev::new(fd, iovecs.as_ptr(), iovecs.len() as u32)
            .offset(offset)
            .rw_flags(flags)
            .build(),
    }
}

impl DiskQueue for UringQueue {
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()> {
        let fd = types::Fd(self.raw.fd());
        let entry = match op {
            DiskOp::Read { offset } if self.raw.is_aligned(offset, &buffer) => {
                read(fd, buffer.iovecs(), offset)
            }
            DiskOp::Write { offset, durable } if self.raw.is_aligned(offset, &buffer) => write(
                fd,
                buffer.iovecs(),
                offset,
                if durable { libc::RWF_DSYNC } else { 0 },
            ),
            DiskOp::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            _ => return self.slow.submit(tag, op, buffer),
        };
        let slot = self
            .buffers
            .get_mut(usize::from(tag))
            .filter(|slot| slot.is_none())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the iovecs, and the guest memory that they and a single range point to, live in `buffer`, which stays in `buffers`
        // until the completion of this tag; the file stays open in `raw`. A move of the buffer moves no iovec.
        unsafe { self.ring.submission().push(&entry.user_data(u64::from(tag))) }
            .map_err(|_| io::ErrorKind::WouldBlock)?;
        *slot = Some(buffer);
        self.in_ring += 1;
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        // What the page cache can answer finishes in the call and is reaped right after it: to be woken for it, too,
        // would cost a good part of what a small read costs.
        self.ring.completion().disable_eventfd();
        let submitted = self.submit_all();
        self.ring.completion().enable_eventfd();
        // What finished before the event was on again is seen by who reaps from here on.
        fence(Ordering::SeqCst);
        submitted
    }

    fn reap(&mut self) -> Option<Completion> {
        self.reap_ring().or_else(|| self.slow.reap())
    }

    fn completion(&self) -> &EventFd {
        &self.completion
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        while self.in_ring > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => while self.reap_ring().is_some() {},
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The kernel may write there until it is done: the memory must never be used otherwise.
                    log::error!("{} disk operations are lost: {error}", self.in_ring);
                    std::mem::forget(std::mem::take(&mut self.buffers));
                    return;
                }
            }
        }
    }
}
