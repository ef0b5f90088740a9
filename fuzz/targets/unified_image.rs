//! A unified kernel image from anybody, and the kernel in it.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use nacelle_firmware::boot::linux::Kernel;
use nacelle_firmware::boot::uki::Unified;
use nacelle_firmware::io::Source;
use nacelle_firmware::memory::place;

fuzz_target!(|input: &[u8]| {
    let file: Source = Rc::new(input.to_vec());
    let kernel = match Unified::read(&file) {
        Ok(image) => image.kernel,
        Err(_) => file,
    };
    if let Ok(kernel) = Kernel::read(&*kernel) {
        let _ = place(&[], 16 << 20, &kernel.wish, 1 << 20);
        assert_eq!(kernel.zero_page(&[], 0, 0, (0, 0)).len(), 4096);
    }
});
