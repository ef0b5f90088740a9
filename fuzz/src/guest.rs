//! A guest: its memory, and a driver that programs a device behind virtio-mmio, honestly or not.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use event_manager::{EventOps, Events, MutEventSubscriber};
use nacelle_devices::bus::BusDevice;
use nacelle_devices::memory::{Memory, SharedMemory};
use nacelle_devices::state::TransportState;
use nacelle_devices::transport::Transport;
use nacelle_devices::transport::mmio::MmioTransport;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{self, Host, HostEvent, Kind, WORKER};

/// Queues lie in the first of the memory, a page each.
const QUEUE: u64 = 0x1000;
const SIZE: u16 = 16;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where data of chains lie: a slot for each descriptor of each of six queues.
pub const DATA: u64 = 0x1_0000;
const SLOT: u64 = 0x800;
/// Where in its slot a chain has its indirect table, and what it may be long.
const TABLE: u64 = 0x780;
const MAX_PARTS: usize = 8;
/// Memory: two regions side by side, a hole, a third.
const REGIONS: [(u64, usize); 3] = [(0, 0x2_0000), (0x2_0000, 0x2_0000), (0x5_0000, 0x1_0000)];
const END: u64 = 0x6_0000;

static MEMORY: LazyLock<SharedMemory> = LazyLock::new(|| {
    let regions: Vec<_> = REGIONS
        .iter()
        .map(|&(base, len)| (GuestAddress(base), len))
        .collect();
    SharedMemory::new(Memory::from_ranges(&regions).unwrap())
});

/// The guest's memory, all zeroes.
pub fn memory() -> SharedMemory {
    let memory = MEMORY.memory();
    for (base, len) in REGIONS {
        memory.write_slice(&vec![0; len], GuestAddress(base)).unwrap();
    }
    MEMORY.clone()
}

/// Writes as far as there is memory.
pub fn put(memory: &SharedMemory, address: u64, data: &[u8]) {
    let _ = memory.memory().write(data, GuestAddress(address));
}

struct Nothing;

impl MutEventSubscriber for Nothing {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
    fn init(&mut self, _ops: &mut EventOps) {}
}

/// Returns when the I/O thread has had its turn at all that happened before.
pub fn settle() {
    WORKER.add(Nothing).unwrap().remove().unwrap();
}

/// A piece of a chain: mostly of the chain's own data, sometimes anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// From the start of the chain's data, or an address.
    at: Result<u16, u64>,
    len: u32,
    write: bool,
}

impl<'a> Arbitrary<'a> for Part {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let choice: u8 = u.arbitrary()?;
        let at = match choice & 15 {
            0 => Err(u.arbitrary()?),
            1 => Err(*u.choose(&[0x1_ffff, 0x3_ffff, 0x4_0000, 0x4_ffff, END - 1, END, u64::MAX])?),
            _ => Ok(u.int_in_range(0..=0x3ff)?),
        };
        let len = match choice >> 4 {
            0 => u.arbitrary()?,
            1 => u.int_in_range(0..=0x2_0000)?,
            2..6 => *u.choose(&[0, 1, 10, 12, 16, 44, 512, 513])?,
            _ => u.int_in_range(0..=0x300)?,
        };
        Ok(Part {
            at,
            len,
            write: u.arbitrary()?,
        })
    }
}

/// What a driver may do.
#[derive(Arbitrary, Debug)]
pub enum Step<'a> {
    /// Offers a chain with these data, in a table of its own or not, and rings.
    Offer(u8, Vec<Part>, &'a [u8], bool),
    /// Offers `header` to read, `room` to write.
    Ask(u8, &'a [u8], u16),
    Host(HostEvent<'a>),
    Config(u8, u32),
    Pause,
    Move,
    Restart(u64),
    /// Not honest: a descriptor, an available entry, an index of its own making.
    Descriptor(u8, u8, u64, u32, u16, u16),
    Available(u8, u16),
    Index(u8, u16),
    Scribble(u16, &'a [u8]),
}

impl Part {
    /// Where it lies for a chain in the slot at `slot`.
    fn address(&self, slot: u64) -> u64 {
        self.at.map_or_else(|at| at, |at| slot + u64::from(at))
    }

    /// The device may write what is not this chain's: no honest driver offers that.
    fn astray(&self, slot: u64) -> bool {
        let start = self.address(slot);
        let own = slot <= start && start.saturating_add(u64::from(self.len)) <= slot + TABLE;
        self.write && !own
    }
}

/// Chains that a queue of an honest driver has on offer, by head: the most that may be written.
#[derive(Default)]
struct Ring {
    next: u16,
    avail: u16,
    used: u16,
    offered: BTreeMap<u16, u64>,
}

/// A guest with one device.
pub struct Guest {
    pub memory: SharedMemory,
    pub host: Host,
    kind: Kind,
    transport: MmioTransport,
    features: u64,
    rings: Vec<Ring>,
    honest: bool,
}

fn transport(kind: Kind, memory: &SharedMemory) -> (MmioTransport, Host) {
    let (device, host) = device::make(kind);
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    (MmioTransport::new(device, memory.clone(), line).unwrap(), host)
}

impl Guest {
    /// A guest whose driver took these of the features offered, and runs.
    pub fn new(kind: Kind, features: u64) -> Guest {
        let memory = memory();
        let (transport, host) = transport(kind, &memory);
        let mut guest = Guest {
            memory,
            host,
            kind,
            transport,
            features: 0,
            rings: Vec::new(),
            honest: true,
        };
        guest.start(features);
        guest
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn start(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        let offered = u64::from(self.read(0x10)) << 32 | u64::from(low);
        self.features = offered & features | 1 << 32;
        for page in 0..2 {
            self.write(0x24, page);
            self.write(0x20, (self.features >> (32 * page)) as u32);
        }
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11);
        self.rings.clear();
        let count = self.transport.registers().queue_count();
        for queue in 0..count {
            let base = u64::from(queue) * QUEUE;
            put(&self.memory, base, &[0; QUEUE as usize]);
            self.write(0x30, u32::from(queue));
            self.write(0x38, u32::from(SIZE));
            for (register, address) in [(0x80, base), (0x90, base + AVAIL), (0xa0, base + USED)] {
                self.write(register, address as u32);
            }
            self.write(0x44, 1);
            self.rings.push(Ring::default());
        }
        self.write(0x70, 15);
        self.honest = true;
        settle();
    }

    fn queue(&self, queue: u8) -> usize {
        usize::from(queue) % self.rings.len()
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let low = u128::from(address) | u128::from(len) << 64;
        let raw = low | u128::from(flags) << 96 | u128::from(next) << 112;
        put(&self.memory, at, &raw.to_le_bytes());
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = queue as u64 * QUEUE + AVAIL + 4 + 2 * u64::from(ring.avail % SIZE);
        ring.avail = ring.avail.wrapping_add(1);
        put(&self.memory, entry, &head.to_le_bytes());
        put(
            &self.memory,
            queue as u64 * QUEUE + AVAIL + 2,
            &self.rings[queue].avail.to_le_bytes(),
        );
    }

    fn ring(&self, queue: usize) {
        self.write(0x50, queue as u32);
        settle();
    }

    /// Offers a chain of these parts, none of it in use, unless the queue is full.
    pub fn offer(&mut self, queue: u8, parts: &[Part], data: &[u8], indirect: bool) {
        let queue = self.queue(queue);
        let parts = &parts[..parts.len().min(MAX_PARTS)];
        let ring = &mut self.rings[queue];
        if parts.is_empty() || !ring.offered.is_empty() && ring.next + parts.len() as u16 > SIZE {
            return;
        }
        if ring.offered.is_empty() {
            ring.next = 0;
        }
        let head = ring.next;
        ring.next += if indirect { 1 } else { parts.len() as u16 };
        let slot = DATA + (queue as u64 * u64::from(SIZE) + u64::from(head)) * SLOT;
        put(&self.memory, slot, &data[..data.len().min(TABLE as usize)]);
        self.honest &= !parts.iter().any(|part| part.astray(slot));
        // A balloon may take what the rings lie in.
        self.honest &= self.kind != Kind::Balloon || queue != 0;
        let ring_table = queue as u64 * QUEUE + 16 * u64::from(head);
        let (table, first) = match indirect {
            true => (slot + TABLE, 0),
            false => (queue as u64 * QUEUE, head),
        };
        let mut writable = 0;
        for (index, part) in (0..).zip(parts) {
            let last = usize::from(index) + 1 == parts.len();
            let flags = u16::from(part.write) << 1 | u16::from(!last);
            let at = table + 16 * u64::from(first + index);
            self.descriptor(at, part.address(slot), part.len, flags, first + index + 1);
            if part.write {
                writable += u64::from(part.len);
            }
        }
        if indirect {
            self.descriptor(ring_table, table, 16 * parts.len() as u32, 4, 0);
        }
        self.rings[queue].offered.insert(head, writable);
        self.make_available(queue, head);
        self.ring(queue);
        self.check();
    }

    /// Offers what a well-formed request is: something to read, and room to write.
    pub fn ask(&mut self, queue: u8, header: &[u8], room: u16) {
        let header = &header[..header.len().min(0x400)];
        let part = |at, len, write| Part {
            at: Ok(at),
            len,
            write,
        };
        let mut parts = Vec::new();
        if !header.is_empty() {
            parts.push(part(0, header.len() as u32, false));
        }
        if room > 0 {
            parts.push(part(0x400, u32::from(room.min(0x380)), true));
        }
        self.offer(queue, &parts, header, false);
    }

    /// An honest driver's chains come back once each, with no more written than there was room for.
    fn check(&mut self) {
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            let base = queue as u64 * QUEUE + USED;
            let memory = self.memory.memory();
            let number = |at: u64| -> u32 { memory.read_obj(GuestAddress(at)).unwrap() };
            if !self.honest {
                continue;
            }
            let index = (number(base) >> 16) as u16;
            while ring.used != index {
                let entry = base + 4 + 8 * u64::from(ring.used % SIZE);
                let (head, written) = (number(entry), number(entry + 4));
                let room = u16::try_from(head)
                    .ok()
                    .and_then(|head| ring.offered.remove(&head));
                assert!(room.is_some(), "queue {queue}: {head} was not on offer");
                assert!(
                    room.is_some_and(|room| u64::from(written) <= room),
                    "{written} of {room:?}"
                );
                ring.used = ring.used.wrapping_add(1);
            }
        }
        if self.honest {
            assert_eq!(self.read(0x70) & 0x40, 0, "nobody broke the rings");
        }
    }

    /// Does one step and lets the device follow.
    pub fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer(queue, ref parts, data, indirect) => self.offer(queue, parts, data, indirect),
            Step::Ask(queue, header, room) => self.ask(queue, header, room),
            Step::Host(ref event) => {
                self.host.happen(event);
                settle();
                self.check();
            }
            Step::Config(offset, value) => {
                self.write(0x100 + u64::from(offset), value);
                self.read(0x100 + u64::from(offset));
            }
            Step::Pause => {
                self.transport.pause().unwrap();
                self.transport.resume().unwrap();
                settle();
                self.check();
            }
            Step::Move => self.migrate(),
            Step::Restart(features) => self.start(features),
            Step::Descriptor(queue, index, address, len, flags, next) => {
                self.honest = false;
                let at = self.queue(queue) as u64 * QUEUE + 16 * u64::from(index % SIZE as u8);
                self.descriptor(at, address, len, flags, next);
            }
            Step::Available(queue, head) => {
                self.honest = false;
                let queue = self.queue(queue);
                self.make_available(queue, head);
                self.ring(queue);
            }
            Step::Index(queue, index) => {
                self.honest = false;
                let queue = self.queue(queue);
                put(
                    &self.memory,
                    queue as u64 * QUEUE + AVAIL + 2,
                    &index.to_le_bytes(),
                );
                self.ring(queue);
            }
            Step::Scribble(at, data) => {
                self.honest = false;
                put(&self.memory, u64::from(at), data);
            }
        }
    }

    /// Goes on in another process.
    fn migrate(&mut self) {
        self.transport.pause().unwrap();
        let state = Transport::save(&self.transport);
        let text = serde_json::to_string(&state).unwrap();
        let arrived: TransportState = serde_json::from_str(&text).unwrap();
        assert_eq!(arrived, state);
        let (transport, host) = transport(self.kind, &self.memory);
        Transport::restore(&transport, arrived).unwrap();
        self.transport = transport;
        self.host = host;
        // What the driver made of its rings may be nothing that can be taken up.
        let resumed = Transport::resume(&self.transport);
        assert!(resumed.is_ok() || !self.honest, "{resumed:?}");
        settle();
    }
}
