//! The serial line, COM1: what the firmware says, and what is typed to it.

use core::fmt;

use super::ports;

const PORT: u16 = 0x3f8;
const DATA_READY: u8 = 1;

/// The serial line, for `write!`.
pub struct Line;

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                ports::write(PORT, b'\r');
            }
            ports::write(PORT, byte);
        }
        Ok(())
    }
}

/// Lets what is typed come in: it waits until the modem control register says that somebody listens.
pub fn listen(on: bool) {
    ports::write(PORT + 4, if on { 0x03 } else { 0 });
}

/// The next byte typed, if there is one.
pub fn typed() -> Option<u8> {
    (ports::read(PORT + 5) & DATA_READY != 0).then(|| ports::read(PORT))
}

/// Says a line.
macro_rules! say {
    ($($text:tt)*) => {{
        use core::fmt::Write;
        // The line takes everything.
        let _ = writeln!($crate::machine::serial::Line, $($text)*);
    }};
}
pub(crate) use say;
