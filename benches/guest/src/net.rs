//! The network: what the host needs at this end. UDP port 7 answers a datagram with its first 16 bytes; TCP port 8
//! swallows a stream, port 9 says zeroes until the host has enough. A datagram of one byte ends UDP, then come 8 and 9.

use core::ffi::c_int;
use core::mem::{size_of, zeroed};
use core::ptr::{null, null_mut};

use crate::say;
use crate::sys::{self, Result};

/// The guest's address on the benchmark's network.
const ADDRESS: [u8; 4] = [10, 77, 0, 2];
const ANSWER: usize = 16;
const BUFFER: usize = 64 << 10;

/// Sets the interfaces up and serves the host through all three, once.
pub fn serve() -> Result<()> {
    let buffer = sys::pages(BUFFER)?;
    let udp = open_echo()?;
    let (sink, source) = (listen(8)?, listen(9)?);
    say!("@listening");
    echo(udp, buffer)?;
    let stream = accept(sink)?;
    let mut bytes = 0;
    loop {
        // SAFETY: the buffer has that many bytes.
        match sys::check("receive a stream", unsafe {
            libc::read(stream, sys::raw(buffer), BUFFER)
        })? {
            0 => break,
            n => bytes += n,
        }
    }
    // SAFETY: the descriptor is ours, and used no more: the host sees that all of it has come.
    unsafe { libc::close(stream) };
    say!("@swallowed bytes={bytes}");
    let stream = accept(source)?;
    // SAFETY: the buffer has that many bytes. The host's end of the stream is an error here, and the end of the work.
    while unsafe { libc::send(stream, sys::raw(buffer), BUFFER, libc::MSG_NOSIGNAL) } > 0 {}
    Ok(())
}

/// Sets the interfaces up; the socket of UDP port 7.
pub fn open_echo() -> Result<c_int> {
    set_up(b"lo", [127, 0, 0, 1])?;
    set_up(b"eth0", ADDRESS)?;
    socket(libc::SOCK_DGRAM, 7)
}

/// Lets few datagrams wait: who is slow answers what is asked now, not what was asked long ago.
pub fn forget_old(socket: c_int) -> Result<()> {
    // The kernel makes it its least.
    let bytes: c_int = 1;
    let size = size_of::<c_int>() as u32;
    // SAFETY: the value has the length that is said.
    let set = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const bytes).cast(),
            size,
        )
    };
    sys::check("make a queue short", set as isize).map(drop)
}

/// A datagram that is there, its length and who sent it.
pub fn receive(socket: c_int, buffer: &mut [u8]) -> Result<Option<(usize, libc::sockaddr_in)>> {
    // SAFETY: an address of zeroes is one; the buffer and the address have the lengths that are said.
    unsafe {
        let mut from: libc::sockaddr_in = zeroed();
        let mut size = size_of::<libc::sockaddr_in>() as u32;
        let (start, len) = (sys::raw(buffer), buffer.len());
        let address = (&raw mut from).cast();
        let len = libc::recvfrom(socket, start, len, libc::MSG_DONTWAIT, address, &mut size);
        match sys::check("receive a datagram", len) {
            Ok(len) => Ok(Some((len, from))),
            Err(error) if error.errno == libc::EAGAIN => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Sends a datagram; one that cannot be sent is lost, as others are.
pub fn send(socket: c_int, datagram: &mut [u8], to: &libc::sockaddr_in) {
    let size = size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: the buffer and the address have the lengths that are said.
    unsafe {
        libc::sendto(
            socket,
            sys::raw(datagram),
            datagram.len(),
            0,
            (&raw const *to).cast(),
            size,
        )
    };
}

fn echo(socket: c_int, buffer: &mut [u8]) -> Result<()> {
    loop {
        // SAFETY: an address of zeroes is one; the buffer and the address have the lengths that are said.
        let len = unsafe {
            let mut from: libc::sockaddr_in = zeroed();
            let mut size = size_of::<libc::sockaddr_in>() as u32;
            let address = &raw mut from;
            let len = libc::recvfrom(socket, sys::raw(buffer), BUFFER, 0, address.cast(), &mut size);
            let len = sys::check("receive a datagram", len)?;
            libc::sendto(socket, sys::raw(buffer), len.min(ANSWER), 0, address.cast(), size);
            len
        };
        if len == 1 {
            return Ok(());
        }
    }
}

fn address(address: [u8; 4], port: u16) -> libc::sockaddr_in {
    // SAFETY: an address of zeroes is one.
    let mut result: libc::sockaddr_in = unsafe { zeroed() };
    result.sin_family = libc::AF_INET as u16;
    result.sin_port = port.to_be();
    result.sin_addr.s_addr = u32::from_ne_bytes(address);
    result
}

fn set_up(name: &[u8], own: [u8; 4]) -> Result<()> {
    // SAFETY: a request of zeroes is one, and each call reads the part of it that was written.
    unsafe {
        let control = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = zeroed();
        for (place, byte) in request.ifr_name.iter_mut().zip(name) {
            *place = *byte as _;
        }
        for (call, own) in [
            (libc::SIOCSIFADDR, own),
            (libc::SIOCSIFNETMASK, [255, 255, 255, 0]),
        ] {
            let own = address(own, 0);
            (&raw mut request.ifr_ifru)
                .cast::<libc::sockaddr_in>()
                .write_unaligned(own);
            sys::check(
                "set the interface's address",
                libc::ioctl(control, call as _, &request) as isize,
            )?;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        sys::check(
            "bring the interface up",
            libc::ioctl(control, libc::SIOCSIFFLAGS as _, &request) as isize,
        )?;
        libc::close(control);
    }
    Ok(())
}

fn socket(kind: c_int, port: u16) -> Result<c_int> {
    let own = address([0; 4], port);
    // SAFETY: the address is as long as is said.
    unsafe {
        let socket = libc::socket(libc::AF_INET, kind, 0);
        sys::check("make a socket", socket as isize)?;
        let bound = libc::bind(
            socket,
            (&raw const own).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        );
        sys::check("bind a socket", bound as isize)?;
        Ok(socket)
    }
}

fn listen(port: u16) -> Result<c_int> {
    let socket = socket(libc::SOCK_STREAM, port)?;
    // SAFETY: it takes numbers only.
    sys::check("listen", unsafe { libc::listen(socket, 1) } as isize)?;
    Ok(socket)
}

fn accept(socket: c_int) -> Result<c_int> {
    // SAFETY: nobody asks for the address.
    let stream = unsafe { libc::accept(socket, null_mut(), null::<u32>().cast_mut()) };
    sys::check("accept", stream as isize).map(|stream| stream as c_int)
}
