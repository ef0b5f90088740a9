//! Memory balloon (virtio 1.2, §5.5).

use super::ring::{Buffer, Ring};
use super::{Device, Error, Result};
use crate::cpu;
use crate::memory::{self, PAGE, Window};

pub const DEVICE_ID: u32 = 5;
const STATS: u64 = 1 << 1;
/// Page numbers in one request.
const BATCH: u64 = 256;

/// A balloon over a range of memory that nobody else uses, filled from its start.
pub struct Balloon {
    pub device: Device,
    inflate: Ring,
    deflate: Ring,
    statistics: Ring,
    numbers: Window,
    report: Window,
    /// What it may give away.
    pub memory: Window,
    given: u64,
}

impl Balloon {
    pub fn new(device: Device, memory: Window) -> Result<Balloon> {
        if device.negotiate(STATS)? & STATS == 0 {
            return Err(Error("the balloon takes no statistics", 0));
        }
        let mut balloon = Balloon {
            inflate: device.queue(0, 16)?,
            deflate: device.queue(1, 16)?,
            statistics: device.queue(2, 16)?,
            numbers: memory::take(4 * BATCH),
            report: memory::take(PAGE),
            device,
            memory,
            given: 0,
        };
        balloon.device.start();
        balloon.tell()?;
        Ok(balloon)
    }

    /// Pages that it gave away.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Pages that the host wants.
    pub fn wanted(&self) -> u64 {
        u64::from(self.device.config().get::<u32>(0)).min(self.memory.len() / PAGE)
    }

    /// Gives or takes back a batch of pages towards what is wanted; `true` when it moved.
    pub fn follow(&mut self) -> Result<bool> {
        let wanted = self.wanted();
        let (ring, first, count) = match wanted.cmp(&self.given) {
            core::cmp::Ordering::Equal => return Ok(false),
            core::cmp::Ordering::Greater => (&mut self.inflate, self.given, (wanted - self.given).min(BATCH)),
            core::cmp::Ordering::Less => {
                let count = (self.given - wanted).min(BATCH);
                (&mut self.deflate, self.given - count, count)
            }
        };
        for i in 0..count {
            let page = self.memory.address() / PAGE + first + i;
            self.numbers.set(4 * i, page as u32);
        }
        self.device
            .offer(ring, &[Buffer::read(&self.numbers.part(0, 4 * count))])?;
        cpu::wait(|| ring.take_used());
        self.given = if wanted > self.given { first + count } else { first };
        self.device.config().set(4, self.given as u32);
        Ok(true)
    }

    /// Answers when the host asks for statistics; `true` when it did.
    pub fn answer(&mut self) -> Result<bool> {
        let asked = self.statistics.take_used().is_some();
        if asked {
            self.tell()?;
        }
        Ok(asked)
    }

    /// Tells how much is free (tag 4) and how much there is (tag 5).
    fn tell(&mut self) -> Result<()> {
        let total = self.memory.len();
        for (at, tag, value) in [(0, 4u16, total - self.given * PAGE), (10, 5, total)] {
            self.report.set(at, tag);
            self.report.set(at + 2, value);
        }
        self.device
            .offer(&mut self.statistics, &[Buffer::read(&self.report.part(0, 20))])
            .map(|_| ())
    }
}
