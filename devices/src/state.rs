//! All that devices save, in one reviewed file: the schema of snapshots and of live migration.
//!
//! Rules: a field is only added, with a default; it is never renamed, never given another meaning, never
//! removed. Values are the driver's view, not our memory layout.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState as RingState, QueueT};

use crate::Error;
use crate::pci::root::SLOTS;

/// What one virtio device saves beside its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DeviceState {
    /// A device that remembers nothing (rng).
    #[default]
    Stateless,
    /// Block device.
    Blk(BlkState),
    /// Network device.
    Net(NetState),
    /// Memory balloon.
    Balloon(BalloonState),
    /// Console.
    Console(ConsoleState),
    /// Socket device.
    Vsock(VsockState),
}

/// What a block device saves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkState {
    /// The driver chose write-back (virtio 1.2, §5.2.5).
    pub writeback: bool,
    /// Of each queue, the heads of the chains whose requests the disk failed, which are to be tried again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Vec<u16>>,
}

/// What a network device saves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetState {
    /// The station's address, which the driver may have changed.
    pub mac: Option<[u8; 6]>,
    /// Offloads that the driver chose with a command; what it negotiated where it chose none.
    pub guest_offloads: Option<u64>,
    /// Queue pairs that receive.
    pub queue_pairs: u16,
    /// The driver was asked to announce itself and has not acknowledged it.
    pub announce: bool,
    /// The host took the link down.
    pub link_down: bool,
}

/// What a balloon saves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonState {
    /// Pages of 4 KiB that the host asks for.
    pub num_pages: u32,
    /// Pages of 4 KiB that the guest says it gave.
    pub actual: u32,
    /// What the guest fills free pages with (virtio 1.2, §5.5.4).
    pub poison_val: u32,
}

/// What a console saves. What lies in the host's sockets is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleState {
    /// Its ports, in order.
    pub ports: Vec<ConsolePortState>,
}

/// What a port of a console saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsolePortState {
    /// The driver must be told that the port exists.
    pub add_due: bool,
    /// The driver has set the port up.
    pub ready: bool,
    /// The driver must be told that it is a console.
    pub console_due: bool,
    /// The driver must be told its name.
    pub name_due: bool,
    /// What the driver was last told of the host's side.
    pub told_open: bool,
    /// A program in the guest has the port open.
    pub guest_open: bool,
    /// Bytes of the next transmit chain that the host has already.
    pub sent: u32,
}

/// What a socket device saves; its connections end with a move, the guest is told by the transport reset event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VsockState {}

impl DeviceState {
    /// The error of a device that was given another device's state.
    pub fn refused_by(&self, device: &'static str) -> Error {
        Error::State {
            device,
            reason: format!("it is another device's: {self:?}"),
        }
    }
}

/// The registers of a serial line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of the 16550's registers")]
pub struct SerialState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// Bytes typed that the guest has not read.
    pub in_buffer: Vec<u8>,
}

/// A virtio device behind its transport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtioState {
    /// Device type (virtio 1.2, §5), to refuse another device's state.
    pub device_id: u32,
    /// Status register (§2.1).
    pub status: u8,
    /// Selector of the page of device features.
    pub device_features_page: u32,
    /// Selector of the page of driver features.
    pub driver_features_page: u32,
    /// Features that the driver wrote.
    pub driver_features: u64,
    /// Selected queue.
    pub queue_select: u16,
    /// Interrupt status register (virtio-mmio) or ISR (virtio-pci).
    pub interrupt_status: u32,
    /// The driver broke the rules and must reset.
    pub needs_reset: bool,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// What the device itself keeps.
    pub device: DeviceState,
}

/// A virtio device behind virtio-pci.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtioPciState {
    /// The device and its registers.
    pub virtio: VirtioState,
    /// MSI-X vector of the configuration (virtio 1.2, §4.1.4.3), 0xffff for none.
    pub config_vector: u16,
    /// Configuration space as the guest reads it, BARs and MSI-X message control among it.
    pub config: Vec<u8>,
    /// The MSI-X table.
    pub msix: Vec<MsixVectorState>,
}

/// One entry of an MSI-X table (PCI 3.0, §6.8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsixVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Masked by the guest.
    pub masked: bool,
    /// Signalled while it could not be sent.
    pub pending: bool,
}

/// The PCI bus, apart from what is plugged into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciRootState {
    /// Port 0xcf8.
    pub config_address: u32,
    /// Configuration space of the host bridge.
    pub host_bridge: Vec<u8>,
}

/// Devices that come and go (slots, a bit each).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HotPlugState {
    /// The last slot that the guest knows devices to come to and to leave: all of them before this was said.
    pub last_slot: u8,
    /// Have got a device, which the guest has not read yet.
    pub inserted: u32,
    /// Are to be emptied, which the guest has not read yet.
    pub requested: u32,
    /// Are to be emptied, and the guest has not let go yet.
    pub leaving: u32,
}

impl Default for HotPlugState {
    fn default() -> Self {
        HotPlugState {
            last_slot: SLOTS - 1,
            inserted: 0,
            requested: 0,
            leaving: 0,
        }
    }
}

/// The watchdog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchdogState {
    /// Configuration space as the guest reads it.
    pub config: Vec<u8>,
    /// Lengths of the two stages.
    pub preload: [u32; 2],
    /// How much the guest has written of what unlocks the registers.
    pub unlocked: u8,
    /// It bit, or would have, and the guest has not acknowledged it.
    pub timed_out: bool,
    /// The stage that runs, from 1 on; 0: none.
    pub stage: u8,
    /// Nanoseconds until it ends.
    pub left_ns: u64,
}

/// A virtio device behind whichever transport it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "lowercase")]
pub enum TransportState {
    /// virtio-mmio.
    Mmio(VirtioState),
    /// virtio-pci.
    Pci(VirtioPciState),
}

/// One virtqueue: where the driver put it and how far we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueState {
    /// Size that the driver chose.
    pub size: u16,
    /// Enabled by the driver.
    pub ready: bool,
    /// Address of the descriptor table.
    pub desc_table: u64,
    /// Address of the available ring.
    pub avail_ring: u64,
    /// Address of the used ring.
    pub used_ring: u64,
    /// Next entry of the available ring.
    pub next_avail: u16,
    /// Next entry of the used ring.
    pub next_used: u16,
    /// MSI-X vector (virtio-pci), 0xffff for none.
    pub vector: u16,
}

impl QueueState {
    /// What `queue` holds.
    pub fn of(queue: &Queue, vector: u16) -> QueueState {
        QueueState {
            size: queue.size(),
            ready: queue.ready(),
            desc_table: queue.desc_table(),
            avail_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
            vector,
        }
    }

    /// The queue with this state.
    ///
    /// # Errors
    /// When the state is no queue's: a size that is no power of two or too large, an address misaligned.
    pub fn to_queue(self, max_size: u16, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(RingState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        })
    }
}
