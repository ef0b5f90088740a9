//! What a block device has done, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::disk::DiskOp;

/// Kinds of operations that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Kind {
    pub(super) fn of(op: &DiskOp) -> Kind {
        match op {
            DiskOp::Read { .. } => Kind::Read,
            DiskOp::Write { .. } => Kind::Write,
            DiskOp::Flush => Kind::Flush,
            DiskOp::Discard { .. } => Kind::Discard,
            DiskOp::WriteZeroes { .. } => Kind::WriteZeroes,
        }
    }
}

/// One kind of operation. Each value only grows.
#[derive(Debug, Default)]
pub struct OpCounters {
    /// Operations that succeeded.
    pub operations: AtomicU64,
    /// Bytes that they moved.
    pub bytes: AtomicU64,
    /// Time from taking an operation in to answering it, in nanoseconds, added up.
    pub nanoseconds: AtomicU64,
    /// Operations that failed.
    pub errors: AtomicU64,
}

/// What a block device has done since it was made.
#[derive(Debug, Default)]
pub struct BlkCounters {
    /// Reads.
    pub read: OpCounters,
    /// Writes.
    pub write: OpCounters,
    /// Flushes.
    pub flush: OpCounters,
    /// Discards.
    pub discard: OpCounters,
    /// Writes of zeroes.
    pub write_zeroes: OpCounters,
    /// Requests that were malformed, out of range or not known.
    pub refused: AtomicU64,
}

impl BlkCounters {
    pub(super) fn record(&self, kind: Kind, bytes: u32, started: Instant, good: bool) {
        let counters = match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
            Kind::Flush => &self.flush,
            Kind::Discard => &self.discard,
            Kind::WriteZeroes => &self.write_zeroes,
        };
        if !good {
            counters.errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counters.operations.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}
