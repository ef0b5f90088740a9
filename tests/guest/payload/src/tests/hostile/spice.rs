//! What a kind of device takes for its own: headers that are almost right.

use super::Dice;
use crate::virtio::{balloon, blk, console, vsock};

/// A page that no machine of these tests has: that of 1 GiB.
const BEYOND: u64 = 1 << 18;
/// Numbers at the edges of what is counted.
const EDGES: [u64; 8] = [
    0,
    1,
    2047,
    1 << 31,
    u32::MAX as u64,
    1 << 55,
    u64::MAX >> 9,
    u64::MAX,
];

/// The first bytes of a buffer, as words.
pub fn words(kind: u32, dice: &mut Dice) -> [u64; 6] {
    let mut words = [0; 6].map(|_: u64| dice.roll());
    match kind {
        // Type, and sector; or the ranges of a discard.
        blk::DEVICE_ID => {
            words[0] = dice.of(&[0, 1, 4, 8, 11, 13, 77, u64::from(u32::MAX)]);
            words[1] = dice.of(&EDGES).wrapping_add(dice.below(3));
        }
        // Page numbers: none of memory that is not the attacker's.
        balloon::DEVICE_ID => {
            for word in &mut words {
                let beyond = BEYOND + (*word & 0xfff);
                *word = beyond << 32 | (u64::from(u32::MAX) - (*word >> 40 & 0xff));
            }
        }
        // Port, event, value.
        console::DEVICE_ID => {
            words[0] =
                dice.of(&[0, 1, 2, 31, u64::from(u32::MAX)]) | dice.below(10) << 32 | dice.below(3) << 48;
        }
        // Addresses, ports, length, kind, operation, flags, credit.
        vsock::DEVICE_ID => {
            words[0] = dice.of(&[42, 42, 42, 2, 0, u64::MAX]);
            words[1] = dice.of(&[2, 2, 2, 42, u64::MAX]);
            words[2] = dice.below(40) | dice.of(&[1234, 1234, 1, 0, u64::from(u32::MAX)]) << 32;
            words[3] = dice.of(&[0, 0, 16, u64::from(u32::MAX)])
                | dice.of(&[1, 1, 1, 2, 0]) << 32
                | dice.below(10) << 48;
            words[4] = dice.below(4) | dice.of(&EDGES) << 32;
            words[5] = dice.of(&EDGES);
        }
        _ => {}
    }
    words
}
