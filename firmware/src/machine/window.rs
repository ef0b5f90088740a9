//! Memory that is not the compiler's: registers of devices, tables that the monitor wrote, memory for a kernel.

use core::ptr;

/// Numbers that are read and written as a whole.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}

/// A range of addresses. Every access stays within; one beyond it is a bug, and panics.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: u64,
    len: u64,
}

impl Window {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// They are mapped and hold nothing that the compiler knows of: no variable, no stack, no heap.
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
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset:#x} of {self:x?}");
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
        // SAFETY: `at` checked the range, which `new` was promised to be mapped; x86 reads unaligned numbers.
        unsafe { from.read_volatile() }
    }

    /// Writes a number with one access.
    pub fn set<T: Plain>(&self, offset: u64, value: T) {
        let to = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: as in `get`.
        unsafe { to.write_volatile(value) }
    }

    /// A copy of all of it.
    pub fn to_vec(self) -> alloc::vec::Vec<u8> {
        let mut bytes = alloc::vec![0; self.len as usize];
        // SAFETY: as in `get`; `bytes` is the compiler's and so elsewhere.
        unsafe { ptr::copy_nonoverlapping(self.base as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// All of it, as memory of the compiler's from now on.
    ///
    /// # Safety
    /// It is memory, and nobody else has a slice of any of it, a device neither.
    pub unsafe fn into_slice(self) -> &'static mut [u8] {
        // SAFETY: `new` was promised that it is mapped, our caller promises that it is ours alone.
        unsafe { core::slice::from_raw_parts_mut(self.base as *mut u8, self.len as usize) }
    }
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
