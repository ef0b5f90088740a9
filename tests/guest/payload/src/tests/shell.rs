//! A prompt for whoever sits at the serial line. What is typed is not echoed, so that what is said is an answer.

use super::machine;
use crate::virtio::Result;
use crate::{cpu, say, serial};

/// A line that somebody types.
struct Line {
    bytes: [u8; 128],
    len: usize,
}

/// Obeys until it is told to go, by `poweroff` or by the power button.
pub fn shell() -> Result<()> {
    serial::listen();
    let button = machine::power_button();
    let mut deaf = false;
    let mut line = Line {
        bytes: [0; 128],
        len: 0,
    };
    say!("guest ready");
    cpu::wait(|| {
        while let Some(byte) = serial::typed() {
            if !matches!(byte, b'\r' | b'\n') {
                if let Some(place) = line.bytes.get_mut(line.len) {
                    *place = byte;
                    line.len += 1;
                }
                continue;
            }
            let text = line.bytes.get(..line.len).unwrap_or_default();
            match core::str::from_utf8(text).unwrap_or("?").trim() {
                "poweroff" => return Some(()),
                "deaf" => {
                    deaf = true;
                    say!("deaf to the power button");
                }
                text => match text.strip_prefix("say ") {
                    Some(words) => say!("{words}"),
                    None => say!("say WORDS, deaf, or poweroff"),
                },
            }
            line.len = 0;
        }
        (!deaf && cpu::interrupts(button) > 0).then_some(())
    });
    Ok(())
}
