//! COM1: what this program says and is told.

use core::fmt;

use crate::cpu::{inb, outb};
use crate::interrupts;

const PORT: u16 = 0x3f8;
/// Its pin of the I/O APIC.
const PIN: u32 = 4;

/// Modem control: terminal ready, request to send, interrupts on.
const DTR_RTS_OUT2: u8 = 0x0b;

/// The serial line, for `write!`.
pub struct Line;

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            outb(PORT, byte);
        }
        Ok(())
    }
}

/// Asks for an interrupt when something was typed, and for what is typed: it waits until RTS is raised.
pub fn listen() {
    interrupts::pin(PIN);
    outb(PORT + 4, DTR_RTS_OUT2);
    outb(PORT + 1, 1);
}

/// The next byte typed, if there is one.
pub fn typed() -> Option<u8> {
    (inb(PORT + 5) & 1 != 0).then(|| inb(PORT))
}

/// Says a line.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::serial::Line, $($text)*);
    }};
}
