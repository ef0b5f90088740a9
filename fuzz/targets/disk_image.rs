//! A disk image from anybody, of a format that the importer reads: opened, and every block looked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacelle_importer::image::{Format, HEAD, open};

/// Blocks that are looked at: tables are the same all along.
const BLOCKS: u64 = 4096;

fuzz_target!(|image: &[u8]| {
    let image = image.to_vec();
    let Ok(format) = Format::of(image.get(..HEAD).unwrap_or(&image)) else { return };
    let Ok(mut disk) = open(format, &image) else { return };
    let mut held = Vec::new();
    for index in 0..disk.size().div_ceil(disk.block()).min(BLOCKS) {
        if disk.find(index, &mut held).is_err() {
            return;
        }
    }
});
