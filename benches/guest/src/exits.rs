//! What it costs to leave the guest: to the kernel and back (CPUID), to the monitor and back (I/O ports).

use crate::say;
use crate::sys::{self, Result};

/// Nobody listens there: diagnostic codes of a PC.
const NOBODY: u16 = 0x80;
/// The line status register of the serial port, which every monitor has.
const DEVICE: u16 = 0x3fd;
/// Rounds, of which the median is told: an interrupt spoils some.
const ROUNDS: usize = 21;

/// Measures each with `count` exits a round.
pub fn measure(count: u64) -> Result<()> {
    sys::allow_ports(NOBODY, 1)?;
    say!("@begin exits");
    time("cpuid", count, || core::arch::x86_64::__cpuid(0));
    time("port-write", count, || sys::write_port(NOBODY, 0));
    time("port-read", count, || sys::read_port(DEVICE));
    Ok(())
}

fn time<T>(name: &str, count: u64, exit: impl Fn() -> T) {
    let mut rounds = [0; ROUNDS];
    for round in &mut rounds {
        let start = sys::now();
        for _ in 0..count {
            core::hint::black_box(exit());
        }
        *round = sys::now() - start;
    }
    rounds.sort_unstable();
    let picoseconds = |nanoseconds: u64| nanoseconds * 1000 / count.max(1);
    say!(
        "@exit name={name} count={} median_ps={} best_ps={}",
        count * ROUNDS as u64,
        picoseconds(rounds[ROUNDS / 2]),
        picoseconds(rounds[0])
    );
}
