//! A guest that attacks its devices, by a seed: each attack is followed by a look whether the device still answers, and
//! whether another one, the entropy device, still works. Nothing that a device may write lies outside `ARENA` and what
//! is no memory: a guest may well kill itself, and that would show nothing.

mod spice;
pub mod sweep;

use crate::interrupts;
use crate::memory::{self, Window};
use crate::virtio::rng::Rng;
use crate::virtio::{
    self, ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, Error, FEATURES_OK, NEEDS_RESET, Result, Way, balloon,
};
use crate::{cpu, say};

/// Numbers by a seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    pub fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// Rings and data of all attacks: a window of memory.
const ARENA: u64 = 4 << 20;
const MAX_QUEUES: u16 = 8;
/// How often the other device is looked at before it is called dead; a look takes 10 µs or more.
const PATIENCE: u32 = 40_000;
/// Queues lie before these, tables behind them.
const DATA: u64 = MAX_QUEUES as u64 * 4 * memory::PAGE;
const TABLE: u64 = 2 << 20;
/// The largest chain that a table can hold.
const LONGEST: u64 = 1 << 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Attacker {
    dice: Dice,
    device: Device,
    kind: u32,
    arena: Window,
    /// Bytes of the machine's memory; it ends there.
    end: u64,
    queues: [Option<Queue>; MAX_QUEUES as usize],
    witness: Rng,
    page: Window,
}

/// A queue within the arena, as far as it lies there.
#[derive(Clone, Copy)]
struct Queue {
    size: u16,
    parts: [u64; 3],
    doorbell: u64,
    available: u16,
}

/// Attacks the device of type `number & 0xff`, with the seed above that.
pub fn hostile(number: u64) -> Result<()> {
    let (kind, seed) = (number as u32 & 0xff, number >> 8);
    let (witness, _) = interrupts::open(virtio::rng::DEVICE_ID)?;
    let (device, _) = interrupts::open(kind)?;
    let mut attacker = Attacker {
        dice: Dice::new(seed),
        device,
        kind,
        witness: Rng::new(witness)?,
        page: memory::take(memory::PAGE),
        // Last, as a buffer of it may be said to be longer than that.
        arena: memory::take(ARENA),
        end: crate::firmware::memory_size(),
        queues: [None; MAX_QUEUES as usize],
    };
    for at in (DATA..TABLE).step_by(48) {
        let words = spice::words(kind, &mut attacker.dice);
        for (i, word) in (0u64..).zip(words) {
            attacker.arena.set(at + 8 * i, word);
        }
    }
    let attacks: [(&str, fn(&mut Attacker)); 10] = [
        ("rings", Attacker::rings),
        ("indices", Attacker::indices),
        ("descriptors", Attacker::descriptors),
        ("races", Attacker::races),
        ("longest", Attacker::longest),
        ("resets", Attacker::resets),
        ("configuration", Attacker::configuration),
        ("doorbells", Attacker::doorbells),
        ("messages", Attacker::messages),
        ("pages", Attacker::pages),
    ];
    for (name, attack) in attacks {
        attack(&mut attacker);
        let broken = attacker.device.status() & NEEDS_RESET != 0;
        attacker.look()?;
        say!("ok hostile {name}{}", if broken { " needs-reset" } else { "" });
    }
    Ok(())
}

impl Attacker {
    /// The device answers and can be used again, and the other one works.
    fn look(&mut self) -> Result<()> {
        self.device.negotiate(0)?;
        self.device.queue(0, 16)?;
        self.device.start();
        if self.device.status() & (NEEDS_RESET | DRIVER_OK) != DRIVER_OK {
            return Err(Error(
                "a reset does not heal the device",
                self.device.status().into(),
            ));
        }
        self.device.reset();
        let buffer = virtio::ring::Buffer::write(&self.page.part(0, 64));
        self.witness.device.offer(&mut self.witness.ring, &[buffer])?;
        // Without interrupts, which a device could take away.
        for _ in 0..PATIENCE {
            match self.witness.ring.take_used() {
                Some(used) if used.len == 64 => return Ok(()),
                Some(used) => return Err(Error("the other device is out of order", used.len.into())),
                None => _ = self.witness.device.status(),
            }
        }
        Err(Error(
            "the other device does not answer",
            self.witness.device.status().into(),
        ))
    }

    /// An address: in the arena, at the end of memory, beyond it, at devices, at the end of 64 bits.
    fn address(&mut self) -> u64 {
        let inside = match self.kind {
            // What it reads as page numbers must be such, or the guest gives its own code away.
            balloon::DEVICE_ID => self.data(),
            _ => self.arena.address() + self.dice.below(ARENA),
        };
        let beyond = [
            self.end - 8,
            self.end,
            self.end + self.dice.below(1 << 30),
            0xc000_0000 + self.dice.below(0x1000_0000),
            0xd000_0000 + self.dice.below(0x1_0000),
            0xe000_0000 + self.dice.below(1 << 20),
            0xfee0_0000,
            0xffff_ffff_0000,
            u64::MAX - self.dice.below(64),
            self.dice.roll() | 1 << 40,
        ];
        match self.dice.below(4) {
            0 => self.dice.of(&beyond),
            _ => inside,
        }
    }

    /// Begins with the device: some of its features, and `place` says where each queue lies.
    fn begin(&mut self, place: fn(&mut Attacker, u16) -> [u64; 3]) {
        self.device.reset();
        self.device.set_status(ACKNOWLEDGE | DRIVER);
        let features = self.device.features() & (self.dice.roll() | 1 << 32);
        self.device.set_features(features);
        self.device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for index in 0..MAX_QUEUES {
            // What is given to the balloon is gone: garbage there would be the guest's own end (see `pages`).
            let max = match (self.kind, index) {
                (balloon::DEVICE_ID, 0) => 0,
                _ => self.device.queue_max(index),
            };
            self.queues[usize::from(index)] = (max != 0).then(|| {
                let size = match self.dice.below(8) {
                    // Used rings would grow into page numbers.
                    0 if self.kind != balloon::DEVICE_ID => self.dice.roll() as u16,
                    _ => max.min(64),
                };
                let parts = place(self, index);
                let doorbell = self.device.place_queue(index, size, parts);
                Queue {
                    size: size.clamp(1, 256),
                    parts,
                    doorbell,
                    available: 0,
                }
            });
        }
        self.device
            .set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn everywhere(&mut self, _index: u16) -> [u64; 3] {
        let mask = self.dice.of(&[!0xf, !0]);
        let one = self.address() & mask;
        match self.dice.below(3) {
            // On top of each other.
            0 => [one; 3],
            _ => [one, self.address() & mask, self.address() & mask],
        }
    }

    /// A page for each part, at the start of the arena.
    fn orderly(&mut self, index: u16) -> [u64; 3] {
        let base = self.arena.address() + u64::from(index) * 4 * memory::PAGE;
        [base, base + memory::PAGE * 2, base + memory::PAGE * 3]
    }

    /// Where data are: behind all queues, before the tables.
    fn data(&mut self) -> u64 {
        let at = DATA + self.dice.below(TABLE - DATA - (128 << 10));
        self.arena.address() + (at & !7)
    }

    fn put<T: memory::Plain>(&self, address: u64, value: T) {
        let at = address.wrapping_sub(self.arena.address());
        if at < ARENA - 8 {
            self.arena.set(at, value);
        }
    }

    /// One descriptor with anything in it. What is in the memory that it names is what such a device understands.
    fn descriptor(&mut self, at: u64, size: u16) {
        let (address, len) = match self.dice.below(3) {
            0 => (
                self.address(),
                self.dice.of(&[0, 1, 511, 512, 65_536, u32::MAX, 1 << 31]),
            ),
            _ => (self.data(), self.dice.of(&[1, 4, 12, 16, 44, 512, 4096, 60_000])),
        };
        if address < self.arena.address() + ARENA - 64 && address >= self.arena.address() {
            let words = spice::words(self.kind, &mut self.dice);
            for (i, word) in (0u64..).zip(words) {
                self.put(address + 8 * i, word);
            }
        }
        let flags = match self.dice.below(6) {
            0 => self.dice.roll() as u16,
            1 => INDIRECT,
            2 => WRITE,
            3 => NEXT | WRITE,
            _ => NEXT,
        };
        self.put(at, address);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        let next = self.dice.below(u64::from(size) + u64::from(size / 8)) as u16;
        self.put(at + 14, next);
    }

    /// Has the device look at `count` chains of every queue, after what `index` makes of the ring's position.
    fn offer(&mut self, count: u16, jump: u16) {
        for number in 0..MAX_QUEUES {
            let Some(mut queue) = self.queues[usize::from(number)] else {
                continue;
            };
            for i in 0..count {
                let slot = u64::from(queue.available.wrapping_add(i) % queue.size);
                let head = self.dice.below(u64::from(queue.size) + 1) as u16;
                self.put(queue.parts[1] + 4 + 2 * slot, head);
            }
            queue.available = queue.available.wrapping_add(count).wrapping_add(jump);
            self.put(queue.parts[1] + 2, queue.available);
            self.device.ring(number, queue.doorbell);
            self.queues[usize::from(number)] = Some(queue);
        }
    }

    fn fill_tables(&mut self) {
        for number in 0..usize::from(MAX_QUEUES) {
            let Some(queue) = self.queues[number] else {
                continue;
            };
            for i in 0..u64::from(queue.size) {
                self.descriptor(queue.parts[0] + 16 * i, queue.size);
            }
        }
    }

    /// Rings that lie outside memory, at devices, on each other, across the end.
    fn rings(&mut self) {
        for _ in 0..24 {
            self.begin(Attacker::everywhere);
            self.fill_tables();
            self.offer(4, 0);
            let _ = self.device.status();
        }
    }

    /// Positions that jump.
    fn indices(&mut self) {
        for jump in [1, 63, 64, 65, 255, 256, 0x7fff, 0x8000, 0xfffe] {
            self.begin(Attacker::orderly);
            self.fill_tables();
            self.offer(1, 0);
            self.offer(0, jump);
            self.offer(2, jump);
        }
    }

    /// Descriptors with anything in them.
    fn descriptors(&mut self) {
        for round in 0..24 {
            if round % 4 == 0 || self.device.status() & NEEDS_RESET != 0 {
                self.begin(Attacker::orderly);
            }
            self.fill_tables();
            let count = self.dice.below(32) as u16;
            self.offer(count, 0);
        }
    }

    /// Descriptors and data that change while the device works on them.
    fn races(&mut self) {
        for _ in 0..4 {
            self.begin(Attacker::orderly);
            self.fill_tables();
            self.offer(32, 0);
            for _ in 0..200 {
                let number = self.dice.below(MAX_QUEUES.into()) as usize;
                let Some(queue) = self.queues[number] else {
                    continue;
                };
                let at = queue.parts[0] + 16 * self.dice.below(queue.size.into());
                self.descriptor(at, queue.size);
            }
            self.offer(8, 0);
        }
    }

    /// An indirect table of 65 536 descriptors, and one that leads into itself.
    fn longest(&mut self) {
        for (step, len) in [(1u64, LONGEST), (0, 16), (1, LONGEST - 1)] {
            self.begin(Attacker::orderly);
            let table = self.arena.address() + TABLE;
            let data = self.data();
            for i in 0..LONGEST {
                let at = table + 16 * i;
                self.put(at, data);
                self.put(at + 8, 16u32);
                self.put(at + 12, NEXT | if i >= LONGEST / 2 { WRITE } else { 0 });
                self.put(at + 14, ((i + step) % LONGEST) as u16);
            }
            for number in 0..usize::from(MAX_QUEUES) {
                let Some(queue) = self.queues[number] else {
                    continue;
                };
                for i in 0..u64::from(queue.size) {
                    let at = queue.parts[0] + 16 * i;
                    self.put(at, table);
                    self.put(at + 8, (16 * len) as u32);
                    self.put(at + 12, INDIRECT);
                }
            }
            self.offer(2, 0);
            let _ = self.device.status();
        }
    }

    /// Resets while there is work.
    fn resets(&mut self) {
        for _ in 0..24 {
            self.begin(Attacker::orderly);
            self.fill_tables();
            self.offer(16, 0);
            if self.dice.below(2) == 0 {
                self.offer(16, 0);
            }
            self.device
                .set_status(self.dice.of(&[0, 0, 0, 128, NEEDS_RESET, 0xff]));
        }
    }

    /// The device's own configuration, and the registers of the transport, written with every width in every state.
    fn configuration(&mut self) {
        let config = self.device.config();
        for status in [0, 1, 3, 11, 15, 79, 143] {
            self.device.set_status(status);
            for offset in 0..config.len().min(64) {
                let value = self.dice.roll();
                match offset % 4 {
                    0 => config.set(offset, value as u32),
                    2 => config.set(offset, value as u16),
                    _ => config.set(offset, value as u8),
                }
                let _ = config.get::<u8>(offset);
            }
            if let Way::Pci(function) = &self.device.way {
                let common = function.common();
                // Not the status, which would only reset it.
                for offset in (0..0x14).chain(0x16..common.len().min(0x38)) {
                    common.set(offset, self.dice.roll() as u8);
                    let _ = common.get::<u8>(offset);
                }
            }
        }
    }

    /// Doorbells of queues that there are, and of others, again and again.
    fn doorbells(&mut self) {
        self.begin(Attacker::orderly);
        self.fill_tables();
        for _ in 0..600 {
            let number = self.dice.of(&[0u16, 1, 2, 3, 7, 64, 0x7fff, 0xffff]);
            let known = self.queues[usize::from(number % MAX_QUEUES)];
            self.device.ring(number, known.map_or(0, |queue| queue.doorbell));
        }
        self.offer(1, 0);
    }

    /// Pages that are not there, given to the balloon.
    fn pages(&mut self) {
        if self.kind != balloon::DEVICE_ID {
            return;
        }
        let Ok(mut ring) = self.device.negotiate(0).and_then(|_| self.device.queue(0, 16)) else {
            return;
        };
        self.device.start();
        let list = self.arena.part(DATA, 4 * memory::PAGE);
        for _ in 0..16 {
            for at in (0..list.len()).step_by(4) {
                let page = self
                    .dice
                    .of(&[u32::MAX, 1 << 31, 0x8_0000, 0xc_0000, 0xd_0000, 0xf_ee00]);
                list.set(at, page - self.dice.below(16) as u32);
            }
            let _ = self.device.offer(&mut ring, &[virtio::ring::Buffer::read(&list)]);
            for _ in 0..PATIENCE {
                if ring.take_used().is_some() || self.device.status() & NEEDS_RESET != 0 {
                    break;
                }
            }
        }
    }

    /// Vectors that say anything, to a processor that is not there; the configuration space of the function.
    fn messages(&mut self) {
        let Way::Pci(function) = &self.device.way else {
            return;
        };
        let (space, vectors) = (function.space(), function.msix.len());
        let kept: [u32; 16] = core::array::from_fn(|i| space.get(4 * i as u64));
        for _ in 0..100 {
            // A destination that nobody has, and no logical one.
            let address = self.dice.roll() & !0xf_f004 | 0x7e << 12;
            let vector = self.dice.below(vectors.into()) as u16;
            function.msix.route(vector, address, self.dice.roll() as u32);
            function.msix.mask(vector, self.dice.below(2) == 0);
            function.msix.mask_all(self.dice.below(4) == 0);
        }
        for _ in 0..200 {
            let at = self.dice.below(0x100);
            match self.dice.below(3) {
                0 => space.set(at & !3, self.dice.roll() as u32),
                1 => space.set(at & !1, self.dice.roll() as u16),
                _ => space.set(at, self.dice.roll() as u8),
            }
            let _ = space.get::<u32>(self.dice.below(0xffd));
        }
        // As it was: command last.
        for i in (1..16).rev() {
            space.set(4 * i as u64, kept[i]);
        }
        function.msix.mask_all(true);
        cpu::outb(0x80, 0);
    }
}
