//! What is around an image, from anybody: taken off, and read to some length.
#![no_main]

use std::io::{Read, copy, sink};

use libfuzzer_sys::fuzz_target;
use nacelle_importer::unpack::unpack;

fuzz_target!(|packed: &[u8]| {
    let mut stream = packed;
    let _ = unpack(&mut stream, &mut |image| {
        let _ = copy(&mut image.take(1 << 20), &mut sink());
        Ok(())
    });
});
