//! The host's side of a network device: something that frames are read from and written to.
#![expect(unsafe_code, reason = "iovecs are advanced into guest memory")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use crate::memory::GuestBuffer;

/// Length of the header before each frame: `struct virtio_net_hdr` with `num_buffers` (virtio 1.2, §5.1.6).
pub const HEADER_LEN: usize = 12;
/// The header before each frame, as it lies in memory.
pub type Header = [u8; HEADER_LEN];

/// One queue pair's connection to a network. All of it is said to the kernel, so nothing needs `&mut`: the
/// thread that moves frames and the one that serves the driver's commands may hold it both.
pub trait NetBackend: AsFd + Send + Sync {
    /// Reads one frame and its header into `frame`; gives how many bytes, the header among them. What does not
    /// fit is cut off. The descriptor is readable while a frame waits.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; any other when the network is gone.
    fn receive(&self, frame: &mut Frame<'_>) -> io::Result<usize>;

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// `WouldBlock` when it must be tried again once the descriptor is writable; any other when this frame
    /// cannot be sent.
    fn send(&self, frame: &Frame<'_>) -> io::Result<()>;

    /// The checksum and segmentation features of virtio (§5.1.3) that it can serve: the `GUEST_` ones by
    /// [`NetBackend::set_offloads`], the others in frames sent.
    fn offloads(&self) -> u64;

    /// From now on frames received may need what these `GUEST_` features say, and no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_offloads(&self, features: u64) -> io::Result<()>;

    /// Whether frames are steered to this queue pair. All pairs of one network are steered to at first.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_active(&self, active: bool) -> io::Result<()>;
}

/// Where one frame lies: its header, then ranges of guest memory or of our own.
pub struct Frame<'a> {
    iovecs: Vec<libc::iovec>,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Frame<'a> {
    /// A frame that has a header and nothing yet behind it.
    pub fn new(header: &'a mut Header) -> Self {
        let mut frame = Frame {
            iovecs: Vec::with_capacity(4),
            len: 0,
            memory: PhantomData,
        };
        frame.own(header);
        frame
    }

    /// Adds bytes of our own.
    pub fn own(&mut self, bytes: &'a mut [u8]) {
        self.iovecs.push(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
        self.len += bytes.len();
    }

    /// Adds guest memory, all of `buffer` but its first `skip` bytes.
    pub fn guest(&mut self, buffer: &'a GuestBuffer, skip: usize) {
        let mut skip = skip;
        for iovec in buffer.iovecs() {
            let skipped = skip.min(iovec.iov_len);
            skip -= skipped;
            let iov_len = iovec.iov_len - skipped;
            if iov_len > 0 {
                // SAFETY: `skipped` is less than the length of this range, so the pointer stays inside it.
                let iov_base = unsafe { iovec.iov_base.cast::<u8>().add(skipped) }.cast();
                self.iovecs.push(libc::iovec { iov_base, iov_len });
                self.len += iov_len;
            }
        }
    }

    /// The ranges, for `readv` and `writev`; they may be read and written while `self` lives.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Bytes that it holds, the header among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: it has its header.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Reads one frame from a descriptor that keeps frames apart (a tap, a datagram socket).
///
/// # Errors
/// As `readv`.
pub fn readv(fd: &impl AsFd, frame: &mut Frame<'_>) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let (iovecs, count) = (frame.iovecs().as_ptr(), frame.iovecs().len());
    // SAFETY: `frame` borrows all memory that its iovecs name, guest memory by a buffer that keeps it mapped.
    let got = unsafe { libc::readv(fd.as_fd().as_raw_fd(), iovecs, count as libc::c_int) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes one frame to a descriptor that keeps frames apart.
///
/// # Errors
/// As `writev`; a frame written in part is an error too.
pub fn writev(fd: &impl AsFd, frame: &Frame<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (iovecs, count) = (frame.iovecs().as_ptr(), frame.iovecs().len());
    // SAFETY: as in `readv`.
    let put = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iovecs, count as libc::c_int) };
    match usize::try_from(put) {
        Ok(put) if put == frame.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
