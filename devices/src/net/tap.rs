//! A tap device of Linux: an interface of the host whose other end we hold.
#![expect(unsafe_code, reason = "ioctls of the tun driver")]

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM,
    TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUNGETIFF, TUNSETIFF, TUNSETOFFLOAD, TUNSETOWNER,
    TUNSETPERSIST, TUNSETQUEUE, TUNSETVNETHDRSZ, c_int, c_short, c_uint, c_ulong,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::backend::{Frame, HEADER_LEN, NetBackend, readv, writev};
use crate::virtio::net::features::{
    CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO,
};
use crate::{Error, Result};

const TUN_DEVICE: &str = "/dev/net/tun";
const FRAME_FLAGS: c_int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

/// One queue of a tap device.
pub struct Tap {
    file: File,
    name: String,
    multi_queue: bool,
    offloads: u64,
}

impl Tap {
    /// Attaches `queues` queues to the tap device `name`. It is made if there is none and we may; `%d` in the
    /// name then stands for a number of the kernel's choice.
    ///
    /// # Errors
    /// When there is no such device and we may not make it, it belongs to somebody else, is in use, or is no
    /// tap device with that many queues. The message says what to do.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Tap>> {
        let mut taps: Vec<Tap> = Vec::with_capacity(queues);
        for _ in 0..queues {
            // The kernel's choice for the first is the name for the others.
            let name = taps.first().map_or(name, |first| &first.name).to_owned();
            taps.push(Tap::attach(&name, queues > 1)?);
        }
        Ok(taps)
    }

    fn attach(name: &str, multi_queue: bool) -> Result<Tap> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(|source| Error::Io {
                what: format!("open {TUN_DEVICE}{}", advice_on_open(&source)),
                source,
            })?;
        let mut request = interface_request(name)?;
        let mut set = |multi_queue: bool| {
            let flags = FRAME_FLAGS | if multi_queue { IFF_MULTI_QUEUE } else { 0 };
            request.ifr_ifru.ifru_flags = flags as c_short;
            // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
            checked(unsafe { ioctl_with_mut_ref(&file, TUNSETIFF as c_ulong, &mut request) })
        };
        let attached = match set(multi_queue) {
            // A device that was made for several queues takes one as well, when asked in its way.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi_queue => set(true),
            other => other,
        };
        attached.map_err(|source| Error::Io {
            what: format!(
                "attach to the tap device {name}{}",
                advice_on_attach(&source, name, exists(name), multi_queue)
            ),
            source,
        })?;
        Tap::from_fd(file.into())
    }

    /// A queue that somebody else opened and attached, and hands to us.
    ///
    /// # Errors
    /// When the descriptor is not attached to a tap device with packet headers.
    pub fn from_fd(fd: OwnedFd) -> Result<Tap> {
        let file = File::from(fd);
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        checked(unsafe { ioctl_with_mut_ref(&file, TUNGETIFF as c_ulong, &mut request) }).map_err(
            Error::io("use a descriptor as a tap device: it is not attached to one"),
        )?;
        // SAFETY: TUNGETIFF fills the flags, and ends the name with a zero.
        let (flags, name) = unsafe {
            let name = CStr::from_ptr(request.ifr_name.as_ptr());
            (
                c_int::from(request.ifr_ifru.ifru_flags),
                name.to_string_lossy().into_owned(),
            )
        };
        if flags & FRAME_FLAGS != FRAME_FLAGS {
            return Err(Error::Io {
                what: format!(
                    "use the descriptor of {name}: it must be a tap with vnet_hdr and no packet information"
                ),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        set_nonblocking(&file).map_err(Error::io(format!("make the tap device {name} non-blocking")))?;
        let header_len = HEADER_LEN as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        checked(unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ as c_ulong, &header_len) }).map_err(
            Error::io(format!("set the header length of the tap device {name}")),
        )?;
        let mut tap = Tap {
            file,
            name,
            multi_queue: flags & IFF_MULTI_QUEUE != 0,
            offloads: 0,
        };
        tap.offloads = tap.probe_offloads().map_err(Error::io(format!(
            "set the offloads of the tap device {}",
            tap.name
        )))?;
        Ok(tap)
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the device outlive its descriptors and gives it to the user `owner`, who may then attach to it without
    /// any privilege.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_for(&self, owner: u32) -> Result<()> {
        let what = || format!("leave the tap device {} to the user {owner}", self.name);
        for (request, value) in [(TUNSETOWNER, c_ulong::from(owner)), (TUNSETPERSIST, 1)] {
            // SAFETY: both take their argument by value.
            checked(unsafe { ioctl_with_val(&self.file, request as c_ulong, value) })
                .map_err(Error::io(what()))?;
        }
        Ok(())
    }

    /// What this kernel can do; it refuses unknown bits. Leaves every offload off.
    fn probe_offloads(&self) -> io::Result<u64> {
        let most = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
        let ufo = match self.set_offloads(most | GUEST_UFO) {
            Ok(()) => GUEST_UFO | HOST_UFO,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => 0,
            Err(error) => return Err(error),
        };
        self.set_offloads(0)?;
        Ok(most | ufo | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetBackend for Tap {
    fn receive(&self, frame: &mut Frame<'_>) -> io::Result<usize> {
        readv(self, frame)
    }

    fn send(&self, frame: &Frame<'_>) -> io::Result<()> {
        writev(self, frame)
    }

    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        checked(unsafe {
            ioctl_with_val(
                &self.file,
                TUNSETOFFLOAD as c_ulong,
                c_ulong::from(tun_offloads(features)),
            )
        })
    }

    fn set_active(&self, active: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if active {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flag as c_short;
        // SAFETY: TUNSETQUEUE reads one ifreq.
        match checked(unsafe { ioctl_with_ref(&self.file, TUNSETQUEUE as c_ulong, &request) }) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }
}

/// The tun driver's words for `GUEST_` features.
fn tun_offloads(features: u64) -> c_uint {
    [
        (GUEST_CSUM, TUN_F_CSUM),
        (GUEST_TSO4, TUN_F_TSO4),
        (GUEST_TSO6, TUN_F_TSO6),
        (GUEST_ECN, TUN_F_TSO_ECN),
        (GUEST_UFO, TUN_F_UFO),
    ]
    .iter()
    .filter(|(feature, _)| features & feature != 0)
    .fold(0, |flags, (_, flag)| flags | flag)
}

pub(super) fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL touch no memory of ours.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    checked(flags)?;
    // SAFETY: as above.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

/// A request about the interface `name`.
pub(super) fn interface_request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['/', '\0', ' ']) {
        return Err(Error::Io {
            what: format!(
                "use {name:?} as the name of a network interface: it must have 1 to 15 bytes, no slash and no space"
            ),
            source: io::ErrorKind::InvalidInput.into(),
        });
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

fn exists(name: &str) -> bool {
    std::ffi::CString::new(name)
        // SAFETY: the name ends with a zero.
        .is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

fn advice_on_open(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            " (load the tun module: `modprobe tun`; in a container, give it this device)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            " (no permission: run as root or let this user read and write it; in a container, give it this device)"
        }
        _ => "",
    }
}

/// What a person can do about a refused TUNSETIFF, in brackets; nothing where the cause says enough.
fn advice_on_attach(error: &io::Error, name: &str, exists: bool, multi_queue: bool) -> String {
    let mode = if multi_queue { " multi_queue" } else { "" };
    let make = format!("`ip tuntap add dev {name} mode tap vnet_hdr{mode} user $UID`");
    match (error.raw_os_error(), exists) {
        (Some(libc::EPERM), false) => {
            format!(" (it does not exist and making one needs CAP_NET_ADMIN: have root run {make})")
        }
        (Some(libc::EPERM), true) => {
            format!(" (it belongs to another user: have root delete it and run {make})")
        }
        (Some(libc::EBUSY), _) => " (another process uses it)".to_owned(),
        (Some(libc::EINVAL), true) if multi_queue => {
            format!(" (it is no tap device for several queues: make one with {make})")
        }
        (Some(libc::EINVAL), true) => {
            format!(
                " (there is such an interface, but it is no tap device: choose another name, or make one with {make})"
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
