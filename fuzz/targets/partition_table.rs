//! A partition table from anybody, GPT or MBR, for blocks of either usual size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacelle_firmware::partitions;

fuzz_target!(|input: &[u8]| {
    let disk = nacelle_fuzz::sparse::disk(input);
    for block_size in [512, 4096] {
        for partition in partitions::partitions(&disk, block_size).unwrap_or_default() {
            if let Ok(part) = partitions::open(&disk, &partition) {
                assert!(part.len() <= disk.len());
            }
        }
    }
});
