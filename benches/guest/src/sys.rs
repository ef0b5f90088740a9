//! What the guest asks of its kernel.

use core::ffi::{CStr, c_int, c_void};
use core::fmt;
use core::ptr::null_mut;

/// What failed, and the kernel's number for why.
#[derive(Clone, Copy)]
pub struct Error {
    /// What was being done.
    pub what: &'static str,
    /// As the kernel says it.
    pub errno: i32,
}

/// The result of asking.
pub type Result<T> = core::result::Result<T, Error>;

/// Why the last call failed.
pub fn error(what: &'static str) -> Error {
    // SAFETY: the thread's own errno.
    let errno = unsafe { *libc::__errno_location() };
    Error { what, errno }
}

/// The result of a call that gives a number below 0 when it failed.
pub fn check(what: &'static str, result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| error(what))
}

/// Nanoseconds on the kernel's clock.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is there to be written; this clock always is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The processor's counter.
pub fn counter() -> u64 {
    // SAFETY: every processor with 64 bits has it, and Linux lets programs read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Does nothing for some seconds.
pub fn sleep(seconds: u64) {
    let time = libc::timespec {
        tv_sec: seconds as i64,
        tv_nsec: 0,
    };
    // SAFETY: `time` is only read.
    unsafe { libc::nanosleep(&time, null_mut()) };
}

/// Waits for something to read, some milliseconds at most.
pub fn await_input(fd: c_int, milliseconds: c_int) {
    let mut wanted = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: it is one, and is there to be written.
    unsafe { libc::poll(&mut wanted, 1, milliseconds) };
}

/// Bytes of memory that nobody uses.
pub fn free_memory() -> Result<u64> {
    // SAFETY: `info` is there to be written; one of zeroes is one.
    unsafe {
        let mut info: libc::sysinfo = core::mem::zeroed();
        check("ask for free memory", libc::sysinfo(&mut info) as isize)?;
        Ok(info.freeram as u64 * u64::from(info.mem_unit))
    }
}

/// The value of an environment variable, which is where the kernel puts `NAME=VALUE` of its command line.
pub fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: nothing changes the environment, so what is found there stays.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

/// Whether there is such a file.
pub fn exists(path: &CStr) -> bool {
    // SAFETY: the path ends with a zero.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

/// Opens a file.
pub fn open(path: &CStr, flags: c_int, what: &'static str) -> Result<c_int> {
    // SAFETY: the path ends with a zero.
    check(what, unsafe { libc::open(path.as_ptr(), flags) } as isize).map(|fd| fd as c_int)
}

/// Mounts /dev and makes the serial line standard output.
pub fn open_console() -> Result<()> {
    // SAFETY: all strings end with a zero; descriptors are numbers.
    unsafe {
        libc::mount(
            c"dev".as_ptr(),
            c"/dev".as_ptr(),
            c"devtmpfs".as_ptr(),
            0,
            core::ptr::null(),
        );
        let fd = libc::open(c"/dev/ttyS0".as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        check("open /dev/ttyS0", fd as isize)?;
        check("take the serial line", libc::dup2(fd, 1) as isize)?;
    }
    Ok(())
}

/// Loads the drivers that lie in the initramfs, for a kernel that has them in files: `/modules/a`, `b` and so on, each after
/// those that it needs.
pub fn load_modules() -> Result<()> {
    let mut path = *b"/modules/a\0";
    while let Ok(path_now) = CStr::from_bytes_with_nul(&path)
        && exists(path_now)
    {
        let file = open(path_now, libc::O_RDONLY | libc::O_CLOEXEC, "open a driver")?;
        let words = [file as usize, c"".as_ptr() as usize, 0, 0, 0];
        // SAFETY: the descriptor is open, and the parameters are a string that ends with a zero.
        unsafe { call("load a driver", libc::SYS_finit_module, words) }?;
        // SAFETY: it is ours, and nobody else's.
        unsafe { libc::close(file) };
        let [.., letter, _] = &mut path;
        *letter += 1;
    }
    Ok(())
}

/// A line in the making; what is too long is cut.
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            bytes: [0; 512],
            len: 0,
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl Line {
    /// What was written to it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Writes it to standard output.
    pub fn send(&self) {
        let mut rest = &self.bytes[..self.len];
        while !rest.is_empty() {
            // SAFETY: `rest` is as long as is said.
            let written = unsafe { libc::write(1, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(written @ 1..) => rest = &rest[written..],
                _ => return,
            }
        }
    }
}

/// Lets this program use `count` I/O ports from `first` on.
pub fn allow_ports(first: u16, count: u16) -> Result<()> {
    // SAFETY: it takes numbers only.
    check("ioperm", unsafe { libc::ioperm(first.into(), count.into(), 1) }
        as isize)
    .map(drop)
}

/// Writes a byte to an I/O port, which must be allowed.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: the ports that this program is allowed are those of a serial line and of diagnostic codes.
    unsafe {
        core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Reads a byte from an I/O port, which must be allowed.
pub fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Memory from the kernel, page by page, never given back.
pub fn pages(len: usize) -> Result<&'static mut [u8]> {
    // SAFETY: a new mapping, that nobody else knows of.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let start = libc::mmap(null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(error("map memory"));
        }
        Ok(core::slice::from_raw_parts_mut(start.cast(), len))
    }
}

/// A system call that has no function in the C library.
///
/// # Safety
/// As the call.
pub unsafe fn call(what: &'static str, number: i64, words: [usize; 5]) -> Result<usize> {
    let [a, b, c, d, e] = words;
    // SAFETY: said by the caller.
    check(what, unsafe { libc::syscall(number, a, b, c, d, e) } as isize)
}

/// `bytes` as the kernel's calls take a buffer.
pub fn raw(bytes: &mut [u8]) -> *mut c_void {
    bytes.as_mut_ptr().cast()
}

/// Words as bytes.
pub fn words(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes are words and words are bytes; the borrow is handed on.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
