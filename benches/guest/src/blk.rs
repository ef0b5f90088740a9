//! A disk: random reads and writes of 4 KiB, one and 32 at a time, and 1 MiB in sequence, past the page cache.

use core::ffi::{CStr, c_int};

use crate::say;
use crate::sys::{self, Error, Result};

const BLOCK: usize = 4096;
const LARGE: usize = 1 << 20;
const DEPTH: usize = 32;
/// Most operations of a phase: their times are kept.
const MOST: usize = 1 << 17;

/// `struct iocb` of Linux's asynchronous I/O (linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    more: [u32; 2],
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    more: i64,
}

/// What a phase does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

struct Disk {
    file: c_int,
    blocks: u64,
    buffer: &'static mut [u8],
    times: &'static mut [u32],
    random: u64,
    /// Nanoseconds after which a phase ends with fewer operations.
    budget: u64,
}

/// Measures a disk: in each phase `count` operations of 4 KiB, or as many as can be done in `budget` nanoseconds.
pub fn measure(path: &CStr, count: usize, budget: u64) -> Result<()> {
    let file = sys::open(path, libc::O_RDWR | libc::O_DIRECT, "open the disk")?;
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes the 64 bits that are there.
    let told = unsafe { libc::ioctl(file, 0x8008_1272u32 as _, &mut size) };
    sys::check("size of the disk", told as isize)?;
    let count = count.min(MOST);
    let times = sys::pages(count * 4)?;
    // SAFETY: pages are aligned, any bits are a number, and nobody else has them.
    let times = unsafe { core::slice::from_raw_parts_mut(times.as_mut_ptr().cast(), count) };
    let mut disk = Disk {
        file,
        blocks: size / BLOCK as u64,
        buffer: sys::pages(LARGE)?,
        times,
        random: 0x9e37_79b9_7f4a_7c15,
        budget,
    };
    let name = path.to_str().unwrap_or("").rsplit('/').next().unwrap_or("");
    disk.buffer.fill(0x5a);
    for (phase, way) in [("read", Way::Read), ("write", Way::Write)] {
        say!("@begin {name} rand{phase}-1");
        let (done, elapsed) = disk.one_at_a_time(way)?;
        disk.report(name, phase, 1, done, elapsed);
        say!("@begin {name} rand{phase}-32");
        let (done, elapsed) = disk.many_at_a_time(way)?;
        disk.report(name, phase, DEPTH, done, elapsed);
        say!("@begin {name} seq{phase}");
        let (bytes, elapsed) = disk.in_sequence(way, count)?;
        say!("@blk disk={name} phase=seq{phase} bytes={bytes} elapsed={elapsed}");
    }
    // SAFETY: the descriptor is ours, and used no more.
    unsafe { libc::close(file) };
    Ok(())
}

impl Disk {
    /// The place of a block by chance (xorshift64).
    fn place(&mut self) -> i64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % self.blocks) as i64 * BLOCK as i64
    }

    fn transfer(&mut self, way: Way, length: usize, place: i64) -> Result<()> {
        let buffer = sys::raw(&mut self.buffer[..length]);
        // SAFETY: the buffer has `length` bytes.
        let done = unsafe {
            match way {
                Way::Read => libc::pread(self.file, buffer, length, place),
                Way::Write => libc::pwrite(self.file, buffer, length, place),
            }
        };
        match sys::check("transfer", done)? {
            done if done == length => Ok(()),
            _ => Err(Error {
                what: "a short transfer",
                errno: 0,
            }),
        }
    }

    /// Gives how many there were, and how long they took.
    fn one_at_a_time(&mut self, way: Way) -> Result<(usize, u64)> {
        let start = sys::now();
        let (mut last, mut done) = (start, 0);
        while done < self.times.len() && last - start < self.budget {
            let place = self.place();
            self.transfer(way, BLOCK, place)?;
            let now = sys::now();
            self.times[done] = nanoseconds(now - last);
            last = now;
            done += 1;
        }
        Ok((done, last - start))
    }

    fn many_at_a_time(&mut self, way: Way) -> Result<(usize, u64)> {
        let mut context = 0usize;
        // SAFETY: the kernel writes the context's number to where it is told.
        unsafe {
            sys::call(
                "io_setup",
                libc::SYS_io_setup,
                [DEPTH, &raw mut context as usize, 0, 0, 0],
            )?
        };
        let mut controls = [Control::default(); DEPTH];
        let mut begun = [0u64; DEPTH];
        let mut events = [Event::default(); DEPTH];
        let mut count = self.times.len();
        let mut wanted: [usize; DEPTH] = core::array::from_fn(|i| i);
        let (mut submitted, mut done, mut free) = (0, 0, DEPTH.min(count));
        let start = sys::now();
        while done < count {
            let mut batch = [core::ptr::null_mut::<Control>(); DEPTH];
            let mut size = 0;
            for &slot in wanted[..free].iter().take(count - submitted) {
                let place = self.place();
                controls[slot] = Control {
                    data: slot as u64,
                    opcode: match way {
                        Way::Read => 0,
                        Way::Write => 1,
                    },
                    file: self.file as u32,
                    buffer: self.buffer[slot * BLOCK..].as_mut_ptr() as u64,
                    length: BLOCK as u64,
                    offset: place,
                    ..Control::default()
                };
                begun[slot] = sys::now();
                batch[size] = &raw mut controls[slot];
                size += 1;
            }
            submitted += size;
            let mut sent = 0;
            while sent < size {
                let words = [context, size - sent, batch[sent..].as_mut_ptr() as usize, 0, 0];
                // SAFETY: the batch has that many controls, whose buffers stay until their events have come.
                sent += unsafe { sys::call("io_submit", libc::SYS_io_submit, words)? };
            }
            let words = [context, 1, DEPTH, events.as_mut_ptr() as usize, 0];
            // SAFETY: there is room for that many events.
            free = unsafe { sys::call("io_getevents", libc::SYS_io_getevents, words)? };
            let now = sys::now();
            for (event, slot) in events[..free].iter().zip(&mut wanted) {
                if event.result != BLOCK as i64 {
                    return Err(Error {
                        what: "asynchronous transfer",
                        errno: -event.result as i32,
                    });
                }
                *slot = event.data as usize;
                self.times[done] = nanoseconds(now - begun[*slot]);
                done += 1;
            }
            if now - start >= self.budget {
                // What is under way is waited for.
                count = submitted;
            }
        }
        let elapsed = sys::now() - start;
        // SAFETY: nothing is under way in it.
        unsafe { sys::call("io_destroy", libc::SYS_io_destroy, [context, 0, 0, 0, 0])? };
        Ok((done, elapsed))
    }

    /// A quarter of the bytes that the random phases move, at most the whole disk twice.
    fn in_sequence(&mut self, way: Way, count: usize) -> Result<(u64, u64)> {
        let places = (self.blocks * BLOCK as u64 / LARGE as u64).max(1);
        let count = (count as u64 / 16).clamp(1, 2 * places);
        let start = sys::now();
        let (mut done, mut elapsed) = (0, 0);
        while done < count && elapsed < self.budget {
            self.transfer(way, LARGE, ((done % places) as usize * LARGE) as i64)?;
            done += 1;
            elapsed = sys::now() - start;
        }
        Ok((done * LARGE as u64, elapsed))
    }

    fn report(&mut self, name: &str, phase: &str, depth: usize, count: usize, elapsed: u64) {
        let times = &mut self.times[..count];
        times.sort_unstable();
        let at = |thousandths: usize| times[(count * thousandths / 1000).min(count - 1)];
        say!(
            "@blk disk={name} phase=rand{phase}-{depth} count={count} elapsed={elapsed} p50={} p99={} p999={}",
            at(500),
            at(990),
            at(999)
        );
    }
}

/// A time as it is kept: what is longer than 4 seconds is told as those.
fn nanoseconds(time: u64) -> u32 {
    u32::try_from(time).unwrap_or(u32::MAX)
}
