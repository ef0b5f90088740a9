//! A disk, written and read, treated well and badly.

use crate::interrupts::{self, Vectors};
use crate::memory::{self, Window};
use crate::virtio::blk::{self, Blk};
use crate::virtio::ring::Buffer;
use crate::virtio::{Error, NEEDS_RESET, Result};
use crate::{cpu, say, serial};

const SECTOR: u64 = 512;
const REQUEST: u64 = 64 << 10;
const SIZE: u64 = 8 << 20;

fn open() -> Result<(Blk, Vectors)> {
    let (device, vectors) = interrupts::open(blk::DEVICE_ID)?;
    Ok((Blk::new(device)?, vectors))
}

/// What the tests outside expect at byte `at` of the disk, in words of eight bytes.
fn pattern(at: u64, seed: u64) -> u64 {
    (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed
}

fn fill(memory: &Window, at: u64, seed: u64) {
    for i in (0..memory.len()).step_by(8) {
        memory.set(i, pattern(at + i, seed));
    }
}

fn check(memory: &Window, at: u64, seed: u64) -> Result<()> {
    match (0..memory.len())
        .step_by(8)
        .find(|&i| memory.get::<u64>(i) != pattern(at + i, seed))
    {
        Some(i) => Err(Error("the disk gives something else at", at + i)),
        None => Ok(()),
    }
}

/// Moves all of `memory` from or to byte `at`, as many requests at a time as there is room for.
fn transfer(disk: &mut Blk, kind: u32, memory: &Window, at: u64) -> Result<()> {
    let (mut next, mut under_way) = (0, 0);
    while next < memory.len() || under_way > 0 {
        while next < memory.len() && disk.ring.free() >= 4 {
            let len = REQUEST.min(memory.len() - next);
            // In two pieces of unlike length.
            let (a, b) = (
                memory.part(next, SECTOR),
                memory.part(next + SECTOR, len - SECTOR),
            );
            let data = match kind {
                blk::IN => [Buffer::write(&a), Buffer::write(&b)],
                _ => [Buffer::read(&a), Buffer::read(&b)],
            };
            disk.submit(kind, (at + next) / SECTOR, &data)?;
            next += len;
            under_way += 1;
        }
        match cpu::wait(|| disk.complete()) {
            (_, 0) => under_way -= 1,
            (_, status) => return Err(Error("a request ends with status", status.into())),
        }
    }
    Ok(())
}

fn done(disk: &mut Blk, kind: u32, sector: u64, data: &[Buffer], expected: u8) -> Result<()> {
    match disk.request(kind, sector, data)? {
        status if status == expected => Ok(()),
        status => Err(Error("a request ends with status", status.into())),
    }
}

pub fn write_and_read_back() -> Result<()> {
    let (mut disk, vectors) = open()?;
    let memory = memory::take(SIZE);
    fill(&memory, 0, 0);
    transfer(&mut disk, blk::OUT, &memory, 0)?;
    done(&mut disk, blk::FLUSH_CACHE, 0, &[], 0)?;
    memory.fill(0);
    transfer(&mut disk, blk::IN, &memory, 0)?;
    check(&memory, 0, 0)?;
    let id = memory::take(20).part(0, 20);
    done(&mut disk, blk::GET_ID, 0, &[Buffer::write(&id)], 0)?;
    let mut name = [0; 20];
    id.read(0, &mut name);
    let name = core::str::from_utf8(&name).unwrap_or("?").trim_end_matches('\0');
    let capacity = disk.capacity();
    vectors.wait();
    say!("ok blk {capacity} sectors, {SIZE} bytes, named {name}");
    Ok(())
}

/// Writes, flushes, reads and checks half a MiB at a time, around the first 8 MiB, until something is typed.
pub fn stream(rounds: u64) -> Result<()> {
    let (mut disk, _) = open()?;
    let memory = memory::take(SIZE / 16);
    serial::listen();
    let mut streamed = 0;
    for round in (0..rounds).take_while(|_| serial::typed().is_none()) {
        let at = round % 16 * memory.len();
        fill(&memory, at, round);
        transfer(&mut disk, blk::OUT, &memory, at)?;
        done(&mut disk, blk::FLUSH_CACHE, 0, &[], 0)?;
        memory.fill(0);
        transfer(&mut disk, blk::IN, &memory, at)?;
        check(&memory, at, round)?;
        say!("ok blk-stream {round}");
        streamed = round + 1;
    }
    say!("ok streamed {streamed}");
    Ok(())
}

/// What no driver does: each is answered, the device lives on, the disk keeps what it has.
pub fn hostile() -> Result<()> {
    const IOERR: u8 = 1;
    const UNSUPP: u8 = 2;
    let (mut disk, _) = open()?;
    let page = memory::take(memory::PAGE);
    let sector = page.part(0, SECTOR);
    fill(&sector, 0, 7);
    done(&mut disk, blk::OUT, 0, &[Buffer::read(&sector)], 0)?;

    let end = disk.capacity();
    for (kind, at, buffer, expected) in [
        (blk::OUT, end, Buffer::read(&sector), IOERR),
        (blk::IN, u64::MAX, Buffer::write(&sector), IOERR),
        (blk::OUT, 0, Buffer::read(&page.part(0, 100)), IOERR),
        (77, 0, Buffer::read(&sector), UNSUPP),
        (
            blk::OUT,
            0,
            Buffer {
                address: 0xffff_ffff_0000,
                ..Buffer::read(&sector)
            },
            IOERR,
        ),
        (
            blk::IN,
            0,
            Buffer {
                address: 0xfee0_0000,
                ..Buffer::write(&sector)
            },
            IOERR,
        ),
        (
            blk::IN,
            0,
            Buffer {
                address: u64::MAX - 8,
                ..Buffer::write(&sector)
            },
            IOERR,
        ),
    ] {
        done(&mut disk, kind, at, &[buffer], expected)?;
    }
    say!("ok blk-hostile refused");

    // A chain that bites its own tail: answered or not, the device must come back from it.
    let head = disk.ring.next_head();
    disk.ring.set_descriptor(head, page.address(), 16, 1, head);
    disk.ring.make_available(head);
    disk.device.notify(&disk.ring);
    cpu::wait(|| {
        let used: u16 = disk.ring.used.get(2);
        let broken = disk.device.status() & NEEDS_RESET != 0;
        (broken || used == 9).then_some(())
    });
    say!("ok blk-hostile loop");

    // A head beyond the table: the device asks for a reset, and interrupts for that.
    let mut disk = Blk::new(disk.device)?;
    disk.ring.make_available(0x7fff);
    disk.device.notify(&disk.ring);
    cpu::wait(|| (disk.device.status() & NEEDS_RESET != 0).then_some(()));
    say!("ok blk-hostile needs-reset");

    let mut disk = Blk::new(disk.device)?;
    sector.fill(0);
    done(&mut disk, blk::IN, 0, &[Buffer::write(&sector)], 0)?;
    check(&sector, 0, 7)?;
    say!("ok blk-hostile alive");
    Ok(())
}

/// Writes two MiB; gives the first back, has zeroes in place of the second.
pub fn discard() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let (mut disk, _) = open()?;
    let memory = memory::take(2 * MIB);
    fill(&memory, 0, 0);
    transfer(&mut disk, blk::OUT, &memory, 0)?;
    done(&mut disk, blk::FLUSH_CACHE, 0, &[], 0)?;
    serial::listen();
    say!("ok blk-discard written");
    // So that the test outside looks meanwhile.
    cpu::wait(serial::typed);

    let segment = memory::take(16).part(0, 16);
    segment.set(8, (MIB / SECTOR) as u32);
    done(&mut disk, blk::DISCARD_SECTORS, 0, &[Buffer::read(&segment)], 0)?;
    segment.set(0, MIB / SECTOR);
    // It may be unmapped.
    segment.set(12, 1u32);
    done(&mut disk, blk::ZERO_SECTORS, 0, &[Buffer::read(&segment)], 0)?;
    let zeroed = memory.part(MIB, MIB);
    transfer(&mut disk, blk::IN, &zeroed, MIB)?;
    match (0..MIB).step_by(8).find(|&i| zeroed.get::<u64>(i) != 0) {
        Some(at) => return Err(Error("no zero at", at)),
        None => say!("ok blk-discard done"),
    }
    Ok(())
}
