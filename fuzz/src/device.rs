//! The virtio devices, and the host's ends of them.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use nacelle_devices::net::backend::{readv, writev};
use nacelle_devices::net::{Frame, NetBackend};
use nacelle_devices::virtio::VirtioDevice;
use nacelle_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonControl};
use nacelle_devices::virtio::blk::{Blk, BlkConfig};
use nacelle_devices::virtio::console::{Console, ConsoleConfig, PortConfig};
use nacelle_devices::virtio::net::features::{GUEST_OFFLOADS, HOST_OFFLOADS};
use nacelle_devices::virtio::net::{Net, NetConfig, NetControl};
use nacelle_devices::virtio::rng::Rng;
use nacelle_devices::virtio::vsock::{Vsock, VsockConfig};
use nacelle_devices::worker::Worker;
use vmm_sys_util::tempdir::TempDir;

use crate::disk::MemoryDisk;

/// The I/O thread of all devices.
pub static WORKER: LazyLock<Worker> = LazyLock::new(|| Worker::spawn("io0").unwrap());
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().unwrap());

/// The guest's context, as a socket device has it.
pub const CID: u64 = 3;
/// Where a program of the host listens.
pub const PORT: u32 = 80;

/// Which device.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Balloon,
    Blk,
    Console,
    Net,
    Rng,
    Vsock,
}

/// What happens at the host.
#[derive(Arbitrary, Debug)]
pub enum HostEvent<'a> {
    /// Somebody writes to the device's socket `index`.
    Write(u8, &'a [u8]),
    /// Somebody reads what there is.
    Read,
    /// Somebody connects, or hangs up.
    Call,
    HangUp,
    /// The owner of the machine changes something.
    Control(u16),
}

/// The host's ends of a device.
#[derive(Default)]
pub struct Host {
    streams: Vec<UnixStream>,
    frames: Vec<UnixDatagram>,
    balloon: Option<BalloonControl>,
    net: Option<NetControl>,
    vsock: Option<(PathBuf, UnixListener)>,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.vsock {
            let _ = std::fs::remove_file(listener_of(path));
        }
    }
}

fn listener_of(path: &std::path::Path) -> PathBuf {
    path.with_extension(format!("sock_{PORT}"))
}

impl Host {
    /// Lets it happen; what cannot be is nothing.
    pub fn happen(&mut self, event: &HostEvent) {
        match *event {
            HostEvent::Write(index, data) => {
                let index = usize::from(index);
                if let Some(stream) = pick(&mut self.streams, index) {
                    let _ = stream.write(data);
                }
                if let Some(socket) = pick(&mut self.frames, index) {
                    let _ = socket.send(data);
                }
            }
            HostEvent::Read => {
                let mut data = [0; 4096];
                for stream in &mut self.streams {
                    let _ = stream.read(&mut data);
                }
                for socket in &self.frames {
                    let _ = socket.recv(&mut data);
                }
                if let Some((_, listener)) = &self.vsock
                    && let Ok((stream, _)) = listener.accept()
                {
                    stream.set_nonblocking(true).unwrap();
                    self.streams.push(stream);
                }
            }
            HostEvent::Call => {
                if let Some((path, _)) = &self.vsock
                    && let Ok(mut stream) = UnixStream::connect(path)
                {
                    stream.set_nonblocking(true).unwrap();
                    let _ = stream.write(b"CONNECT 5\n");
                    self.streams.push(stream);
                }
            }
            HostEvent::HangUp => drop(self.streams.pop()),
            HostEvent::Control(value) => {
                if let Some(control) = &self.balloon {
                    control.set_target_bytes(u64::from(value) << 12).unwrap();
                }
                if let Some(control) = &self.net {
                    control.set_link(value & 1 == 0).unwrap();
                    let _ = control.announce();
                }
            }
        }
    }
}

fn pick<T>(ends: &mut [T], index: usize) -> Option<&mut T> {
    let count = ends.len().max(1);
    ends.get_mut(index % count)
}

/// A network of one socket.
struct Wire(UnixDatagram);

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl NetBackend for Wire {
    fn receive(&self, frame: &mut Frame<'_>) -> std::io::Result<usize> {
        readv(self, frame)
    }
    fn send(&self, frame: &Frame<'_>) -> std::io::Result<()> {
        writev(self, frame)
    }
    fn offloads(&self) -> u64 {
        GUEST_OFFLOADS | HOST_OFFLOADS
    }
    fn set_offloads(&self, _features: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn set_active(&self, _active: bool) -> std::io::Result<()> {
        Ok(())
    }
}

/// A device with two of everything that there can be several of, and the host's ends of it.
pub fn make(kind: Kind) -> (Box<dyn VirtioDevice>, Host) {
    let worker = WORKER.clone();
    let mut host = Host::default();
    let device: Box<dyn VirtioDevice> = match kind {
        Kind::Rng => Box::new(Rng::new(worker)),
        Kind::Blk => {
            let config = BlkConfig {
                queues: 2,
                serial: "fuzz".into(),
                ..BlkConfig::new(Arc::new(MemoryDisk::new()))
            };
            Box::new(Blk::new(config, vec![worker]).unwrap().0)
        }
        Kind::Balloon => {
            let config = BalloonConfig {
                deflate_on_oom: true,
                free_page_reporting: true,
            };
            let (balloon, control) = Balloon::new(config, worker).unwrap();
            host.balloon = Some(control);
            Box::new(balloon)
        }
        Kind::Console => {
            let mut port = |name: &str, console| {
                let (device, end) = UnixStream::pair().unwrap();
                end.set_nonblocking(true).unwrap();
                host.streams.push(end);
                PortConfig {
                    name: name.into(),
                    console,
                    host: device,
                }
            };
            let ports = vec![port("", true), port("agent", false)];
            Box::new(Console::new(ConsoleConfig { ports }, worker).unwrap())
        }
        Kind::Net => {
            let mut wire = || -> Box<dyn NetBackend> {
                let (device, end) = UnixDatagram::pair().unwrap();
                device.set_nonblocking(true).unwrap();
                end.set_nonblocking(true).unwrap();
                host.frames.push(end);
                Box::new(Wire(device))
            };
            let config = NetConfig {
                backends: vec![wire(), wire()],
                mac: [2, 0, 0, 0, 0, 1],
                mtu: Some(1500),
                queue_size: 16,
                rx_limiter: None,
                tx_limiter: None,
            };
            let (net, control) = Net::new(config, vec![worker]).unwrap();
            host.net = Some(control);
            Box::new(net)
        }
        Kind::Vsock => {
            let path = DIRECTORY.as_path().join("v.sock");
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_file(listener_of(&path));
            let listener = UnixListener::bind(listener_of(&path)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let config = VsockConfig {
                guest_cid: CID,
                uds_path: path.clone(),
            };
            host.vsock = Some((path, listener));
            Box::new(Vsock::new(config, worker).unwrap())
        }
    };
    (device, host)
}
