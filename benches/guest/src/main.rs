//! Init of the benchmark's guest, the same under every monitor. It stamps its first instruction by a byte to the serial
//! port's register, then does what `nacelle_bench=TASK[:COUNT[:SECONDS]],...` on the kernel's command line names, and says what it
//! measured on the serial line, a line for each result: `@NAME KEY=VALUE...`. It never ends: the host ends it.
#![no_std]
#![no_main]

mod blk;
mod exits;
mod fio;
mod moving;
mod net;
mod sys;

use core::ffi::{CStr, c_int};
use core::fmt::Write;
use core::panic::PanicInfo;

use sys::{Error, Result};

/// The serial port's data register, and what says there that init runs.
const SERIAL: u16 = 0x3f8;
const STAMP: u8 = 3;
/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Says a line to the host.
macro_rules! say {
    ($($words:tt)*) => { $crate::say_line(format_args!($($words)*)) };
}
pub(crate) use say;

fn say_line(words: core::fmt::Arguments) {
    // It cannot fail: what does not fit is cut.
    let mut line = sys::Line::default();
    let _ = line.write_fmt(words);
    let _ = line.write_char('\n');
    line.send();
}

/// Entered by musl's start code.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    let stamped = sys::allow_ports(SERIAL, 8);
    if stamped.is_ok() {
        sys::write_port(SERIAL, STAMP);
    }
    let uptime = sys::now();
    let console = sys::open_console();
    say!("@init uptime={uptime}");
    if let Err(error) = stamped
        .and(console)
        .and_then(|()| sys::load_modules())
        .and_then(|()| tasks())
    {
        say!("@failed {} errno={}", error.what, error.errno);
    }
    say!("@done");
    loop {
        sys::sleep(3600);
    }
}

const DISKS: [&CStr; 4] = [c"/dev/vda", c"/dev/vdb", c"/dev/vdc", c"/dev/vdd"];

fn tasks() -> Result<()> {
    let words = sys::environment(c"nacelle_bench").map_or("", |words| words.to_str().unwrap_or(""));
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let mut numbers = word.split(':').skip(1).map(|number| number.parse().ok());
        let mut number = |default| numbers.next().flatten().unwrap_or(default);
        let (count, budget) = (number(1000), number(u64::MAX / SECOND) * SECOND);
        let task = word.split(':').next().unwrap_or(word);
        match task {
            // Long enough for the host to look at a machine that does nothing.
            "idle" => sys::sleep(count),
            "blk" => {
                for disk in DISKS.iter().filter(|disk| sys::exists(disk)) {
                    blk::measure(disk, count as usize, budget)?;
                }
            }
            "fio" => {
                for disk in DISKS.iter().filter(|disk| sys::exists(disk)) {
                    fio::check(disk, count, budget / SECOND)?;
                }
            }
            "net" => net::serve()?,
            "exits" => exits::measure(count)?,
            "tick" => moving::tick(count),
            "move" => moving::serve(count, budget / SECOND)?,
            _ => {
                return Err(Error {
                    what: "there is no such task",
                    errno: 0,
                });
            }
        }
        say!("@task-done {task}");
    }
    Ok(())
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("@failed {info}");
    loop {
        sys::sleep(3600);
    }
}

/// The prebuilt `core` names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
