//! Memory as a machine has it: registers of devices, tables of the firmware, buffers shared with devices.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// A page of memory.
pub const PAGE: u64 = 4096;

/// Numbers that are read and written as a whole.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}

/// A range of addresses that others read and write too. Every access stays within.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: u64,
    len: u64,
}

impl Window {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// They are mapped and hold nothing that the compiler knows of: no variable, no stack.
    pub const unsafe fn new(base: u64, len: u64) -> Window {
        Window { base, len }
    }

    /// The first address.
    pub fn address(&self) -> u64 {
        self.base
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let end = offset.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset:#x} of {self:x?}"
        );
        (self.base + offset) as *mut u8
    }

    /// The part of `len` bytes at `offset`.
    pub fn part(&self, offset: u64, len: u64) -> Window {
        let base = self.at(offset, len as usize) as u64;
        Window { base, len }
    }

    /// Reads a number with one access.
    pub fn get<T: Plain>(&self, offset: u64) -> T {
        let from = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: `at` checked the range, which `new` was promised to be mapped; unaligned ones are as good here.
        unsafe { from.read_volatile() }
    }

    /// Writes a number with one access.
    pub fn set<T: Plain>(&self, offset: u64, value: T) {
        let to = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: as in `get`.
        unsafe { to.write_volatile(value) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as in `get`; `bytes` is a variable and so elsewhere.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: as in `get`.
        unsafe { ptr::write_bytes(self.at(0, self.len as usize), byte, self.len as usize) }
    }
}

/// Where the next pages are taken from: all memory from 16 MiB on is free.
static NEXT: AtomicU64 = AtomicU64::new(16 << 20);

/// Takes `len` bytes of zeroed memory, in whole pages; they are never given back.
pub fn take(len: u64) -> Window {
    let len = len.next_multiple_of(PAGE);
    let base = NEXT.fetch_add(len, Ordering::Relaxed);
    // SAFETY: this program lies below, and nobody else takes from here; tests give machines memory enough.
    let window = unsafe { Window::new(base, len) };
    window.fill(0);
    window
}

/// What compiled code calls for copies and comparisons, where others have a C library.
mod c {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller gives two ranges of `len` bytes.
        unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: as `memcpy`; a copy upwards does not reach what it has not read yet.
            return unsafe { memcpy(to, from, len) };
        }
        // SAFETY: the caller gives two ranges of `len` bytes; the copy goes downwards.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") len => _,
                inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _);
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller gives a range of `len` bytes.
        unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        for i in 0..len {
            // SAFETY: the caller gives two ranges of `len` bytes.
            let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the caller's promise is the same.
        unsafe { memcmp(a, b, len) }
    }
}
