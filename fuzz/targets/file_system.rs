//! A file system from anybody, of any kind that the firmware reads: listed, looked into, read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacelle_firmware::fs::{self, FileSystem};

/// As much of a file as a kernel's header and more.
const MUCH: u64 = 1 << 20;

fn look(fs: &dyn FileSystem, directory: &str, depth: u32) {
    for name in fs.list(directory).unwrap_or_default().iter().take(20) {
        let path = format!("{directory}/{name}");
        if let Ok(file) = fs.open(&path) {
            let _ = file.bytes(0, file.len().min(MUCH) as usize);
        } else if depth > 0 {
            look(fs, &path, depth - 1);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    if let Ok(Some(fs)) = fs::open(&nacelle_fuzz::sparse::disk(input)) {
        look(&*fs, "", 2);
    }
});
