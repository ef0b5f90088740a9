//! Faults of guest memory that this process answers (userfaultfd(2), ioctl_userfaultfd(2)).
#![expect(unsafe_code, reason = "the ioctls of userfaultfd")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use nacelle_devices::memory::Memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use crate::memory::dirty::{PAGE, Run};

/// linux/userfaultfd.h.
const UFFD: u32 = 0xaa;
const API: u64 = 0xaa;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of a message, and where in it the address of a fault is.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
#[derive(Default)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, UFFD, 0x00);
ioctl_iowr_nr!(UFFDIO_API, UFFD, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFD, 0x00, Register);
ioctl_ior_nr!(UFFDIO_UNREGISTER, UFFD, 0x01, Range);
ioctl_iowr_nr!(UFFDIO_COPY, UFFD, 0x03, Copy);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, UFFD, 0x04, ZeroPage);

/// Guest memory whose missing pages this process brings.
pub(super) struct Userfault {
    file: File,
    memory: Memory,
}

/// A descriptor that may also answer the kernel's own accesses, as KVM's are.
fn open() -> io::Result<File> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd >= 0 {
        // SAFETY: the descriptor was made just now and is owned by nobody else.
        return Ok(unsafe { File::from_raw_fd(fd as i32) });
    }
    let refused = io::Error::last_os_error();
    // Who may open this needs no capability.
    let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") else {
        return Err(refused);
    };
    // SAFETY: the ioctl takes flags by value and gives a descriptor.
    let fd = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            USERFAULTFD_IOC_NEW() as _,
            libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn last(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Userfault {
    /// For `memory`, of which nothing is registered yet.
    ///
    /// # Errors
    /// When the kernel does not let this process.
    pub fn new(memory: &Memory) -> io::Result<Userfault> {
        let file = open()?;
        let shared = memory.iter().any(|region| region.flags() & libc::MAP_SHARED != 0);
        let mut api = Api {
            api: API,
            features: if shared { FEATURE_MISSING_SHMEM } else { 0 },
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        last(unsafe { ioctl_with_mut_ref(&file, UFFDIO_API(), &mut api) })?;
        Ok(Userfault {
            file,
            memory: memory.clone(),
        })
    }

    /// From now on whoever reaches a page that is not there waits until it is brought.
    ///
    /// # Errors
    /// When the kernel refuses, as for pages of hugetlbfs.
    pub fn register(&self) -> io::Result<()> {
        for region in self.memory.iter() {
            let mut register = Register {
                range: Range {
                    start: region.as_ptr() as u64,
                    len: region.len(),
                },
                mode: MODE_MISSING,
                ioctls: 0,
            };
            // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`; the range is mapped for as long as
            // `memory` is held, and whoever waits for a page of it waits for us.
            last(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut register) })?;
        }
        Ok(())
    }

    /// Whoever waits goes on; what is not there is zero.
    pub fn unregister(&self) {
        for region in self.memory.iter() {
            let range = Range {
                start: region.as_ptr() as u64,
                len: region.len(),
            };
            // SAFETY: UFFDIO_UNREGISTER reads one `uffdio_range`.
            if let Err(error) = last(unsafe { ioctl_with_ref(&self.file, UFFDIO_UNREGISTER(), &range) }) {
                log::warn!("faults of guest memory are still to be answered: {error}");
            }
        }
    }

    /// The guest's address of the next page that somebody waits for; `None` when `wake` is signalled.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn next(&self, wake: &EventFd) -> io::Result<Option<u64>> {
        loop {
            let poll = |fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            };
            let mut fds = [poll(self.file.as_raw_fd()), poll(wake.as_raw_fd())];
            // SAFETY: there are two entries, which live as long as the call.
            if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if fds.last().is_some_and(|wake| wake.revents != 0) {
                return Ok(None);
            }
            let mut message = [0; MESSAGE];
            match (&self.file).read(&mut message) {
                Ok(MESSAGE) if message.first() == Some(&EVENT_PAGEFAULT) => {
                    let address = message.get(ADDRESS..).and_then(<[u8]>::first_chunk);
                    let address = u64::from_ne_bytes(address.copied().unwrap_or_default());
                    if let Some(guest) = self.guest(address) {
                        return Ok(Some(guest));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The guest's address of the page that this process has at `host`.
    fn guest(&self, host: u64) -> Option<u64> {
        self.memory.iter().find_map(|region| {
            let offset = host.checked_sub(region.as_ptr() as u64)?;
            (offset < region.len()).then_some((region.start_addr().0 + offset) & !(PAGE - 1))
        })
    }

    /// Whether all of these pages are in one range of memory.
    pub fn holds(&self, run: Run) -> bool {
        let found = self.memory.to_region_addr(vm_memory::GuestAddress(run.address));
        found.is_some_and(|(region, offset)| run.len() <= region.len() - offset.0)
    }

    fn host(&self, guest: u64) -> io::Result<u64> {
        let found = self.memory.to_region_addr(vm_memory::GuestAddress(guest));
        let (region, offset) = found.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(region.as_ptr() as u64 + offset.0)
    }

    /// Brings a page, unless it is there; whoever waits for it goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn copy(&self, guest: u64, page: &[u8; PAGE as usize]) -> io::Result<()> {
        let mut copy = Copy {
            to: self.host(guest)?,
            from: page.as_ptr() as u64,
            len: PAGE,
            ..Copy::default()
        };
        // SAFETY: UFFDIO_COPY reads and writes one `uffdio_copy`, reads the page, and writes guest memory that is
        // mapped, where nothing is yet.
        there(last(unsafe {
            ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut copy)
        }))
    }

    /// The same with a page of zeroes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn zero(&self, guest: u64) -> io::Result<()> {
        let mut zero = ZeroPage {
            range: Range {
                start: self.host(guest)?,
                len: PAGE,
            },
            ..ZeroPage::default()
        };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one `uffdio_zeropage`; guest memory is mapped there.
        there(last(unsafe {
            ioctl_with_mut_ref(&self.file, UFFDIO_ZEROPAGE(), &mut zero)
        }))
    }
}

/// What is there already is as good.
fn there(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Whether this process may answer for guest memory, with what to do where it may not.
pub(super) fn available() -> Result<(), String> {
    open().map(drop).map_err(|error| {
        format!(
            "its host lets nacelle not answer page faults ({error}): make vm.unprivileged_userfaultfd 1 there, or let it \
             open /dev/userfaultfd"
        )
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn whoever_reads_what_is_missing_waits_until_it_is_brought() {
        let memory = Memory::from_ranges(&[(GuestAddress(0x10000), 8 * PAGE as usize)]).unwrap();
        memory.write_slice(&[3; 8], GuestAddress(0x10000)).unwrap();
        let faults = Userfault::new(&memory).unwrap();
        faults.register().unwrap();
        let wake = EventFd::new(0).unwrap();
        let reader = {
            let memory = memory.clone();
            std::thread::spawn(move || {
                [0x10000, 0x11008, 0x12000].map(|at| memory.read_obj::<u8>(GuestAddress(at)).unwrap())
            })
        };
        // What is there is not asked for.
        assert_eq!(faults.next(&wake).unwrap(), Some(0x11000));
        faults.copy(0x11000, &[7; PAGE as usize]).unwrap();
        faults.copy(0x11000, &[8; PAGE as usize]).unwrap();
        assert_eq!(faults.next(&wake).unwrap(), Some(0x12000));
        faults.zero(0x12000).unwrap();
        assert_eq!(reader.join().unwrap(), [3, 7, 0]);
        wake.write(1).unwrap();
        assert_eq!(faults.next(&wake).unwrap(), None);
        faults.unregister();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x13000)).unwrap(), 0);
    }
}
