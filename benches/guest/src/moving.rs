//! A guest that is moved. It stamps the serial line each millisecond that it runs, writes memory as fast as it is told,
//! and answers a datagram to UDP port 7 (a number and the bytes a second to write) with the number, its clock, the bytes
//! that it has written, and the longest time that passed on its clock between two looks at it.

use core::ffi::c_int;

use crate::sys::{self, Result};
use crate::{SERIAL, net, say};

/// What says on the serial line that the guest runs.
const STAMP: u8 = 4;
const PAGE: usize = 4096;
/// A guest that writes looks for datagrams so many milliseconds apart, as a look may be costly, and does not make up for more
/// than that.
const LOOK: u64 = 4;
/// How many it answers at one look: twice what is sent meanwhile. Where an answer takes longer than a question takes to come,
/// there would be no end of them, and nothing written.
const ANSWERS: usize = 8;

/// Serves for ever, with this many MiB to write to, and so many ticks of the processor's counter in a millisecond. It goes
/// by that counter: its kernel's clock is what is watched.
pub fn serve(mebibytes: u64, millisecond: u64) -> Result<()> {
    let memory = sys::pages((mebibytes as usize) << 20)?;
    let socket = net::open_echo()?;
    net::forget_old(socket)?;
    let pages = memory.len() / PAGE;
    let mut writer = Writer {
        memory,
        next: 0,
        seed: 1,
        written: 0,
    };
    // What is in use has something in it.
    (0..pages).for_each(|_| writer.write());
    say!("@moving free={}", sys::free_memory()?);
    let (mut rate, mut longest) = (0, 0);
    let mut last = sys::now();
    let (mut stamped, mut looked, mut since) = (0, 0, 0);
    loop {
        let ticks = sys::counter();
        let past = |then: u64| ticks.wrapping_sub(then);
        if past(stamped) >= millisecond {
            sys::write_port(SERIAL, STAMP);
            stamped = ticks;
        }
        let now = sys::now();
        longest = longest.max(now.saturating_sub(last));
        last = now;
        if rate == 0 {
            sys::await_input(socket, 1);
        }
        if rate == 0 || past(looked) >= LOOK * millisecond {
            for _ in 0..ANSWERS {
                let Some(wanted) = answer(socket, now, writer.written, &mut longest)? else {
                    break;
                };
                rate = wanted;
            }
            looked = sys::counter();
        }
        if past(since) > LOOK * millisecond {
            since = ticks.wrapping_sub(LOOK * millisecond);
        }
        let page_time = (PAGE as u64 * 1000 * millisecond).checked_div(rate);
        if let Some(page_time) = page_time
            && past(since) >= page_time
        {
            writer.write();
            since = since.wrapping_add(page_time);
        }
    }
}

/// Stamps the serial line for ever, once in so many ticks of the processor's counter.
pub fn tick(millisecond: u64) -> ! {
    let mut stamped = 0;
    loop {
        let ticks = sys::counter();
        if ticks.wrapping_sub(stamped) >= millisecond {
            sys::write_port(SERIAL, STAMP);
            stamped = ticks;
        }
    }
}

struct Writer {
    memory: &'static mut [u8],
    next: usize,
    seed: u64,
    written: u64,
}

impl Writer {
    /// Fills the next page with what cannot be compressed.
    fn write(&mut self) {
        let end = self.next + PAGE;
        for word in self.memory[self.next..end].chunks_exact_mut(8) {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            word.copy_from_slice(&self.seed.to_le_bytes());
        }
        self.next = if end == self.memory.len() { 0 } else { end };
        self.written += PAGE as u64;
    }
}

/// Answers a datagram, if there is one: the rate that it asks for. What was longest begins anew.
fn answer(socket: c_int, now: u64, written: u64, longest: &mut u64) -> Result<Option<u64>> {
    let mut datagram = [0u64; 4];
    let Some((length, from)) = net::receive(socket, sys::words(&mut datagram))? else {
        return Ok(None);
    };
    if length != 16 {
        return Ok(Some(0));
    }
    let [number, rate, ..] = datagram;
    let mut said = [number, now, written, *longest];
    *longest = 0;
    net::send(socket, sys::words(&mut said), &from);
    Ok(Some(rate))
}
