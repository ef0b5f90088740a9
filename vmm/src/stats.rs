//! Counters of a machine in one snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use nacelle_devices::virtio::balloon::BalloonControl;
use nacelle_devices::virtio::blk::{BlkControl, OpCounters};
use nacelle_devices::virtio::net::{Direction, NetControl};
use serde::{Deserialize, Serialize};

/// Counters of a machine; those of devices only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Bytes of guest memory, the balloon's among them.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// The balloon, where there is one.
    pub balloon: Option<BalloonStats>,
    /// Disks in the order of the configuration.
    pub disks: Vec<DiskStats>,
    /// Network interfaces in the order of the configuration.
    pub nets: Vec<NetStats>,
}

/// A balloon, and what the guest says of its memory. In bytes, `None` where it has not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalloonStats {
    /// Asked to be in the balloon.
    pub target: u64,
    /// In the balloon.
    pub actual: u64,
    /// Milliseconds since the guest last spoke.
    pub age_ms: Option<u64>,
    /// Not used for anything.
    pub free: Option<u64>,
    /// What a new program could get without swapping.
    pub available: Option<u64>,
    /// Managed by the guest's kernel.
    pub total: Option<u64>,
    /// Disk caches that can be given up.
    pub disk_caches: Option<u64>,
    /// Swapped in since the guest's start.
    pub swap_in: Option<u64>,
    /// Swapped out since the guest's start.
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk (a count).
    pub major_faults: Option<u64>,
    /// Page faults that did not (a count).
    pub minor_faults: Option<u64>,
}

/// Operations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStats {
    /// Operations that succeeded.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Nanoseconds from taking an operation in to answering it, added up.
    pub nanoseconds: u64,
    /// Operations that failed.
    pub errors: u64,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStats {
    /// Name in the configuration.
    pub id: String,
    /// Reads.
    pub read: OperationStats,
    /// Writes.
    pub write: OperationStats,
    /// Flushes.
    pub flush: OperationStats,
    /// Discards.
    pub discard: OperationStats,
    /// Writes of zeroes.
    pub write_zeroes: OperationStats,
    /// Requests that were malformed, out of range or not known.
    pub refused: u64,
}

/// One direction of a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionStats {
    /// Frames moved.
    pub packets: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Frames dropped.
    pub dropped: u64,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetStats {
    /// Name in the configuration.
    pub id: String,
    /// Network to guest.
    pub rx: DirectionStats,
    /// Guest to network.
    pub tx: DirectionStats,
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn operations(counters: &OpCounters) -> OperationStats {
    OperationStats {
        operations: value(&counters.operations),
        bytes: value(&counters.bytes),
        nanoseconds: value(&counters.nanoseconds),
        errors: value(&counters.errors),
    }
}

pub(crate) fn disk(id: &str, control: &BlkControl) -> DiskStats {
    let counters = control.counters();
    DiskStats {
        id: id.to_owned(),
        read: operations(&counters.read),
        write: operations(&counters.write),
        flush: operations(&counters.flush),
        discard: operations(&counters.discard),
        write_zeroes: operations(&counters.write_zeroes),
        refused: value(&counters.refused),
    }
}

pub(crate) fn net(id: &str, control: &NetControl) -> NetStats {
    let counters = control.counters().unwrap_or_else(|error| {
        log::warn!("interface {id} does not say what it counted: {error}");
        Default::default()
    });
    let direction = |direction: Direction| DirectionStats {
        packets: direction.packets,
        bytes: direction.bytes,
        dropped: direction.dropped,
    };
    NetStats {
        id: id.to_owned(),
        rx: direction(counters.rx),
        tx: direction(counters.tx),
    }
}

pub(crate) fn balloon(control: &BalloonControl) -> BalloonStats {
    let said = control.statistics();
    let age = said
        .received
        .map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
    BalloonStats {
        target: control.target_bytes(),
        actual: control.actual_bytes(),
        age_ms: age,
        free: said.free_memory,
        available: said.available_memory,
        total: said.total_memory,
        disk_caches: said.disk_caches,
        swap_in: said.swap_in,
        swap_out: said.swap_out,
        major_faults: said.major_faults,
        minor_faults: said.minor_faults,
    }
}
