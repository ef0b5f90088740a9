//! The host's end of the network: a namespace of this process's own with one tap in it, and what is sent over that.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The tap's name; the namespace has no other, so it is in nobody's way.
pub const TAP: &str = "bench0";
pub(crate) const HOST: &str = "10.77.0.1";
pub(crate) const GUEST: &str = "10.77.0.2";
/// Longer than any answer takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Datagrams under way at a time.
const WINDOW: usize = 32;

/// A network that ends with this process.
pub struct Network;

/// Puts this thread, and what it starts, into a network namespace of its own, and does these commands there.
pub(crate) fn namespace(commands: &[String]) -> Result<()> {
    // SAFETY: it takes a number only, and changes what network this thread sees.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        let what = "make a network namespace (measures of a network need root)";
        return Err(Error::io(what)(std::io::Error::last_os_error()));
    }
    for command in commands {
        let (program, words) = command.split_once(' ').unwrap_or((command, ""));
        let output = Command::new(program).args(words.split(' ')).output();
        let output = output.map_err(Error::io(format!("run {program} (package iproute2)")))?;
        if !output.status.success() {
            return Err(Error::Tool {
                command: command.clone(),
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
    }
    Ok(())
}

impl Network {
    /// Makes one with a tap.
    ///
    /// # Errors
    /// When we are not root, or the kernel lacks something.
    pub fn make() -> Result<Network> {
        namespace(&[
            "ip link set lo up".to_owned(),
            format!("ip tuntap add dev {TAP} mode tap vnet_hdr"),
            format!("ip address add {HOST}/24 dev {TAP}"),
            format!("ip link set {TAP} up"),
        ])?;
        Ok(Network)
    }

    /// A socket to the guest's echo.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn echo(&self) -> Result<Echo> {
        let made = || {
            let socket = UdpSocket::bind((HOST, 0))?;
            socket.connect((GUEST, 7))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        made()
            .map(|socket| Echo { socket })
            .map_err(Error::io("make a socket to the guest"))
    }

    /// Sends so many bytes to the guest as a stream, or what can be sent in `budget`; gives how many, and the time it took
    /// until the guest had taken them all.
    ///
    /// # Errors
    /// When the guest does not.
    pub fn send_stream(&self, bytes: u64, budget: Duration) -> Result<(u64, Duration)> {
        let transfer = || {
            let mut stream = connect(8)?;
            let piece = [0x5a; 64 << 10];
            let start = Instant::now();
            let mut left = bytes;
            while left > 0 && start.elapsed() < budget {
                let length = left.min(piece.len() as u64) as usize;
                stream.write_all(piece.get(..length).unwrap_or_default())?;
                left -= length as u64;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            // Its end of the stream closes when it has read to ours.
            match stream.read(&mut [0])? {
                0 => Ok((bytes - left, start.elapsed())),
                _ => Err(ErrorKind::InvalidData.into()),
            }
        };
        transfer().map_err(Error::io("send a stream to the guest"))
    }

    /// Receives so many bytes from the guest, or what comes in `budget`; gives how many, and the time it took.
    ///
    /// # Errors
    /// When it does not send them.
    pub fn receive_stream(&self, bytes: u64, budget: Duration) -> Result<(u64, Duration)> {
        let transfer = || {
            let mut stream = connect(9)?;
            let mut piece = [0; 64 << 10];
            let (start, mut had) = (Instant::now(), 0);
            while had < bytes && start.elapsed() < budget {
                match stream.read(&mut piece)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    n => had += n as u64,
                }
            }
            Ok((had, start.elapsed()))
        };
        transfer().map_err(Error::io("receive a stream from the guest"))
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((GUEST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The guest's echo.
pub struct Echo {
    socket: UdpSocket,
}

impl Echo {
    fn send(&self, datagram: &[u8]) -> Result<()> {
        self.socket
            .send(datagram)
            .map(drop)
            .map_err(Error::io("send a datagram to the guest"))
    }

    fn receive(&self) -> Result<()> {
        self.socket
            .recv(&mut [0; 64])
            .map(drop)
            .map_err(Error::io("receive the guest's answer to a datagram"))
    }

    /// Times of so many round trips of 64 bytes, or of as many as there are in `budget`, one after the other, in
    /// nanoseconds; sorted.
    ///
    /// # Errors
    /// When an answer does not come.
    pub fn round_trips(&self, count: usize, budget: Duration) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        let begun = Instant::now();
        while times.len() < count && begun.elapsed() < budget {
            let start = Instant::now();
            self.send(&[1; 64])?;
            self.receive()?;
            times.push(start.elapsed().as_nanos() as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// Sends so many datagrams of 1400 bytes, or as many as go in `budget`, 32 of them under way at a time; gives how
    /// many, and the time until the last was answered.
    ///
    /// # Errors
    /// When an answer does not come.
    pub fn flood(&self, count: usize, budget: Duration) -> Result<(usize, Duration)> {
        let start = Instant::now();
        let mut sent = 0;
        while sent < count && start.elapsed() < budget {
            if sent >= WINDOW {
                self.receive()?;
            }
            self.send(&[2; 1400])?;
            sent += 1;
        }
        for _ in 0..WINDOW.min(sent) {
            self.receive()?;
        }
        Ok((sent, start.elapsed()))
    }

    /// Tells the guest to go on to streams.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn end(self) -> Result<()> {
        self.send(&[0])
    }
}
