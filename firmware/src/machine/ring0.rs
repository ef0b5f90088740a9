//! Ring 3's ways to ring 0, and what comes from there (entry.s).

unsafe extern "C" {
    fn leave_to_kernel(entry: u64, zero_page: u64) -> !;
    fn stop_forever() -> !;
    static exception_record: [u64; 4];
    static pvh_start: u8;
    static code_end: u8;
    static user_stack_top: u8;
}

/// Enters a kernel by Linux's 64-bit protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
///
/// # Safety
/// `entry` is a kernel's entry and `zero_page` its `boot_params`.
pub unsafe fn enter(entry: u64, zero_page: u64) -> ! {
    // SAFETY: entry.s; nothing of ours runs any more.
    unsafe { leave_to_kernel(entry, zero_page) }
}

/// Stops the processor for good.
pub fn stop() -> ! {
    // SAFETY: entry.s; it does not come back.
    unsafe { stop_forever() }
}

/// The processor's last exception: its vector, error code, where, and the address of a page fault.
pub fn exception() -> [u64; 4] {
    // SAFETY: entry.s writes it before anybody can ask.
    unsafe { (&raw const exception_record).read_volatile() }
}

/// What looks like an address of code on the stack, from the newest on: among them are all places that wait for a
/// function to come back.
pub fn callers() -> impl Iterator<Item = u64> {
    let code = &raw const pvh_start as u64..&raw const code_end as u64;
    let (here, top) = (0u64, &raw const user_stack_top as u64);
    let stack = (&raw const here as u64..top).step_by(8);
    // SAFETY: from a variable of ours up to its top all is stack, and reading it changes nothing.
    let words = stack.map(|at| unsafe { (at as *const u64).read_volatile() });
    words.filter(move |word| code.contains(word))
}
