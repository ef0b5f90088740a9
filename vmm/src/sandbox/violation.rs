//! What is said when a thread makes a call that its filter denies. The kernel sends SIGSYS to that thread.
#![expect(unsafe_code, reason = "a signal handler")]

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use super::names;

/// The status by which a process ends whose thread made a call that is denied: as a shell tells of SIGSYS.
pub const STATUS: i32 = 128 + libc::SIGSYS;

/// Where else it is told.
static ALSO: AtomicI32 = AtomicI32::new(-1);

/// Has a violation told to `descriptor` too, which stays open from now on.
pub(super) fn tell(descriptor: RawFd) {
    ALSO.store(descriptor, Ordering::Relaxed);
}

/// One handler serves the process.
pub(super) fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler makes only calls that signal-safety(7) lists.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSYS, &action, ptr::null_mut());
        }
    });
}

extern "C" fn handle(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    /// siginfo_t of SIGSYS (sigaction(2)): libc has no names for its fields.
    #[repr(C)]
    struct Sigsys {
        numbers: [c_int; 3],
        address: *mut c_void,
        call: c_int,
    }
    // SAFETY: the kernel gives a siginfo_t, and of SIGSYS it has these fields.
    let call = unsafe { (*info.cast::<Sigsys>()).call };
    // SAFETY: the kernel gives a ucontext_t; the second argument of a system call is in this register (syscall(2)).
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let second = registers.get(libc::REG_RSI as usize).copied().unwrap_or_default();
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes 16 bytes at most, with a zero at their end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = CStr::from_bytes_until_nul(&name).map_or(&b"?"[..], CStr::to_bytes);
    let mut line = Line::default();
    for part in [
        b"nacelle: the machine ends: thread ",
        name,
        b" made system call ",
        names::name(call.into()).as_bytes(),
        b" (",
    ] {
        line.add(part);
    }
    line.number(call.unsigned_abs());
    line.add(b", second argument ");
    line.number(second as u32);
    line.add(b"), which its filter denies (docs/security.md)\n");
    for descriptor in [libc::STDERR_FILENO, ALSO.load(Ordering::Relaxed)] {
        // SAFETY: the line has `len` bytes; a descriptor that is not open is refused.
        unsafe { libc::write(descriptor, line.bytes.as_ptr().cast(), line.len) };
    }
    // SAFETY: nothing of this process runs after it.
    unsafe { libc::_exit(STATUS) }
}

/// A line of text, without an allocation. What is too long is cut.
struct Line {
    bytes: [u8; 200],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            bytes: [0; 200],
            len: 0,
        }
    }
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let len = text.len().min(room.len());
        for (to, from) in room.iter_mut().zip(text) {
            *to = *from;
        }
        self.len += len;
    }

    fn number(&mut self, number: u32) {
        let mut digits = [0u8; 10];
        let mut left = number;
        let mut begin = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
            begin -= 1;
            if left == 0 {
                break;
            }
        }
        self.add(digits.get(begin..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 425, u32::MAX] {
            let mut line = Line::default();
            line.number(number);
            assert_eq!(
                std::str::from_utf8(&line.bytes[..line.len]).unwrap(),
                number.to_string()
            );
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line::default();
        line.add(&[b'x'; 500]);
        assert_eq!(line.len, 200);
    }
}
