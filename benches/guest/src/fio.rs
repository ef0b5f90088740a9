//! fio, where the guest has it as /fio: a second opinion on what `blk` says of random reads.

use core::ffi::{CStr, c_char};
use core::fmt::Write;
use core::ptr::{null, null_mut};

use crate::say;
use crate::sys::{self, Error, Line, Result};

const PROGRAM: &CStr = c"/fio";
const OUTPUT: &CStr = c"/fio.out";
/// Fields of its terse output of version 3, which semicolons end (fio's HOWTO, "Terse output"): reads a second.
const RATE: usize = 7;
/// Twenty percentiles of what a read took, as `99.000000%=123`, in microseconds.
const PERCENTILES: core::ops::Range<usize> = 17..37;

/// Reads 4 KiB at random as `blk` does, one and 32 at a time, and says what fio says.
pub fn check(path: &CStr, count: u64, seconds: u64) -> Result<()> {
    let name = path.to_str().unwrap_or("").rsplit('/').next().unwrap_or("");
    for (engine, depth) in [("psync", 1), ("libaio", 32)] {
        say!("@begin {name} fio-{depth}");
        let words = [
            text(format_args!("fio")),
            text(format_args!("--name=check")),
            text(format_args!("--filename=/dev/{name}")),
            text(format_args!("--rw=randread")),
            text(format_args!("--bs=4k")),
            text(format_args!("--direct=1")),
            text(format_args!("--ioengine={engine}")),
            text(format_args!("--iodepth={depth}")),
            text(format_args!("--number_ios={count}")),
            text(format_args!("--runtime={seconds}")),
            text(format_args!("--thread")),
            text(format_args!("--clocksource=clock_gettime")),
            text(format_args!("--disk_util=0")),
            text(format_args!("--output-format=terse")),
            text(format_args!("--terse-version=3")),
            text(format_args!("--output=/fio.out")),
        ];
        run(&words)?;
        let mut bytes = [0; 4096];
        report(name, depth, read(&mut bytes)?)?;
    }
    Ok(())
}

fn text(words: core::fmt::Arguments) -> Line {
    let mut line = Line::default();
    let _ = line.write_fmt(words);
    let _ = line.write_char('\0');
    line
}

fn run(words: &[Line; 16]) -> Result<()> {
    let mut arguments = [null_mut::<c_char>(); 17];
    for (argument, word) in arguments.iter_mut().zip(words) {
        *argument = word.as_bytes().as_ptr().cast_mut().cast();
    }
    let (mut pid, mut status) = (0, 0);
    let nothing = [null_mut::<c_char>()];
    // SAFETY: the arguments are strings that end with a zero, and end with a null pointer, as the environment does.
    let failed = unsafe {
        libc::posix_spawn(
            &mut pid,
            PROGRAM.as_ptr(),
            null(),
            null(),
            arguments.as_ptr(),
            nothing.as_ptr(),
        )
    };
    if failed != 0 {
        return Err(Error {
            what: "run /fio",
            errno: failed,
        });
    }
    // SAFETY: the status is there to be written.
    let ended = unsafe { libc::waitpid(pid, &mut status, 0) };
    sys::check("wait for fio", ended as isize)?;
    match status {
        0 => Ok(()),
        _ => Err(Error {
            what: "fio failed",
            errno: 0,
        }),
    }
}

fn read(bytes: &mut [u8]) -> Result<&str> {
    let file = sys::open(OUTPUT, libc::O_RDONLY, "open fio's output")?;
    let length = bytes.len();
    // SAFETY: there are that many bytes; the descriptor is ours, and closed once.
    let read = unsafe {
        let read = libc::read(file, sys::raw(bytes), length);
        libc::close(file);
        read
    };
    let length = sys::check("read fio's output", read)?;
    core::str::from_utf8(&bytes[..length]).map_err(|_| misunderstood())
}

fn misunderstood() -> Error {
    Error {
        what: "understand fio's output",
        errno: 0,
    }
}

fn report(name: &str, depth: u32, terse: &str) -> Result<()> {
    let rate = terse.split(';').nth(RATE).ok_or_else(misunderstood)?;
    let percentile = |wanted: &str| {
        let mut fields = terse.split(';').skip(PERCENTILES.start).take(PERCENTILES.len());
        fields
            .find_map(|field| field.strip_prefix(wanted))
            .ok_or_else(misunderstood)
    };
    say!(
        "@fio disk={name} depth={depth} rate={rate} p50={} p99={}",
        percentile("50.000000%=")?,
        percentile("99.000000%=")?
    );
    Ok(())
}
