//! The old process's side.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacelle_devices::net::tap::Tap;
use nacelle_vmm::config::{BootConfig, DiskConfig, Opened, TapConfig};
use nacelle_vmm::migrate::{Options, Stream};

use tokio::runtime::Handle;

use super::{Behind, Bundle, Handover, Network, Role, VERSION, descriptors};
use crate::http::console::Console;
use crate::http::socket::Deed;
use crate::net::HostNet;
use crate::origin::Origin;
use crate::{Error, Result};

/// How long the new process may be silent; the guest may stand still meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a stream that waits looks whether it still should.
const MOMENT: Duration = Duration::from_millis(100);

/// All that a machine has beside itself and its devices, as its process keeps it.
pub struct Estate {
    /// What it was made of.
    pub origin: Origin,
    /// What is behind its disks.
    pub disks: Vec<Behind>,
    /// What it booted.
    pub boot: BootConfig,
    /// The host's side of its interfaces.
    pub nets: Vec<Interface>,
    /// The terminal of the process that was started first.
    pub terminal: Option<OwnedFd>,
    /// The machine's socket.
    pub socket: Deed,
    /// Who has the console.
    pub console: Console,
    /// When it was started.
    pub started: Instant,
    /// This process is the one that was started first: others are its children.
    pub first: bool,
    /// Whoever has it now.
    pub successor: Mutex<Option<Successor>>,
}

/// The new process.
pub struct Successor {
    /// It.
    pub child: Child,
    /// It waits for this to end before it has the terminal.
    pub stream: UnixStream,
}

/// An interface: its tap's queues, and what the guest is told.
pub struct Interface {
    tap: Vec<OwnedFd>,
    network: Network,
}

impl Interface {
    /// Keeps what is needed of `net`, whose tap is opened here where it was not yet.
    ///
    /// # Errors
    /// When there is no descriptor left, or the tap is not to be had.
    pub fn keep(net: &mut HostNet, queue_pairs: u16) -> Result<Interface> {
        let duplicates = |queues: Vec<BorrowedFd<'_>>| {
            let owned: io::Result<Vec<_>> = queues.iter().map(BorrowedFd::try_clone_to_owned).collect();
            owned.map_err(Error::io("duplicate the descriptor of a tap"))
        };
        let tap = match &net.tap {
            TapConfig::Name(name) => {
                let taps = Tap::open(name, usize::from(queue_pairs)).map_err(|error| Error::Network {
                    network: name.clone(),
                    reason: crate::exit::Chain(&error).to_string(),
                })?;
                let tap = duplicates(taps.iter().map(Tap::as_fd).collect())?;
                net.tap = TapConfig::Fds(duplicates(tap.iter().map(OwnedFd::as_fd).collect())?);
                tap
            }
            TapConfig::Fds(queues) => duplicates(queues.iter().map(OwnedFd::as_fd).collect())?,
        };
        let network = Network {
            mac: net.mac,
            mtu: net.mtu,
        };
        Ok(Interface { tap, network })
    }
}

impl From<&DiskConfig> for Behind {
    fn from(disk: &DiskConfig) -> Behind {
        Behind {
            path: disk.path.clone(),
            format: disk.format,
            ephemeral: disk.ephemeral,
            cache: disk.cache,
            block_size: disk.block_size,
        }
    }
}

/// A machine on its way to a new program.
pub struct Heir {
    /// What goes along.
    pub estate: Arc<Estate>,
    /// The program.
    pub binary: PathBuf,
    /// The process's first thread: another one may not run programs.
    first: Handle,
}

impl Heir {
    /// To be called on the process's runtime, which has the one thread that may run programs.
    pub fn new(estate: Arc<Estate>, binary: PathBuf) -> Heir {
        let first = Handle::current();
        Heir {
            estate,
            binary,
            first,
        }
    }

    /// Has the first thread do something.
    fn there<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = channel();
        self.first.spawn(async move {
            let _ = done.send(act());
        });
        result
            .recv()
            .map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?
    }

    /// How the machine is to move.
    pub fn options() -> Options {
        Options {
            patience: PATIENCE,
            ..Options::default()
        }
    }

    /// Starts the program and gives it what it needs; the machine then goes over the stream.
    ///
    /// # Errors
    /// When it cannot be started, or something is not there any more.
    pub fn start(&self, opened: &mut Opened) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = UnixStream::pair()?;
        let (document, bundle) = self.estate.document(std::mem::take(opened))?;
        let mut command = Command::new(&self.binary);
        if log::max_level() > log::LevelFilter::Info {
            command.arg("--verbose");
        }
        command.arg("take-over");
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        if self.estate.first {
            // What a terminal sends to the first process is for that to pass on.
            command.process_group(0);
        }
        let started = self.there(move || command.spawn());
        let child = started
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.binary.display())))?;
        *self.estate.successor() = Some(Successor {
            child,
            stream: ours.try_clone()?,
        });
        ours.set_write_timeout(Some(PATIENCE))?;
        descriptors::send(&ours, &document, &bundle.descriptors)?;
        ours.set_read_timeout(Some(MOMENT))?;
        ours.set_write_timeout(Some(MOMENT))?;
        self.estate.leave(true);
        Ok(Box::new(ours))
    }

    /// The machine has not moved: the new process goes, and all is this one's.
    pub fn fail(&self) {
        self.estate.leave(false);
        if let Some(Successor { mut child, .. }) = self.estate.take_successor() {
            let ended = self.there(move || {
                // It may have ended by itself.
                let _ = child.kill();
                child.wait()
            });
            match ended {
                Ok(status) => log::debug!("the new process ended: {status}"),
                Err(error) => log::warn!("the new process: {error}"),
            }
        }
    }
}

impl Estate {
    /// Whoever has the machine now, if anybody has.
    pub fn take_successor(&self) -> Option<Successor> {
        self.successor().take()
    }

    fn successor(&self) -> MutexGuard<'_, Option<Successor>> {
        self.successor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the sockets go on when this process has let go of them.
    fn leave(&self, leave: bool) {
        self.socket.give(leave);
        self.console.leave(leave && self.terminal.is_some());
    }

    fn document(&self, opened: Opened) -> io::Result<(Vec<u8>, Bundle)> {
        let mut bundle = Bundle::default();
        if let Some(memory) = opened.memory {
            bundle.add(Role::Memory, memory);
        }
        bundle.add(Role::Kernel, File::open(&self.boot.kernel)?);
        if let Some(initrd) = &self.boot.initrd {
            bundle.add(Role::Initrd, File::open(initrd)?);
        }
        for (id, files) in opened.disks {
            for file in files {
                bundle.add(Role::Disk(id.clone()), file);
            }
        }
        for (number, net) in self.nets.iter().enumerate() {
            for queue in &net.tap {
                bundle.add(Role::Tap(number), queue.try_clone()?);
            }
        }
        if let Some(vsock) = opened.vsock {
            bundle.add(Role::Vsock, vsock);
        }
        bundle.add(Role::Socket, self.socket.listener()?);
        if let Some(terminal) = &self.terminal {
            bundle.add(Role::Terminal, terminal.try_clone()?);
        }
        let handover = Handover {
            version: VERSION,
            origin: self.origin.clone(),
            disks: self.disks.clone(),
            nets: self.nets.iter().map(|net| net.network).collect(),
            cmdline: self.boot.cmdline.clone(),
            uptime: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            roles: bundle.roles.clone(),
        };
        Ok((serde_json::to_vec(&handover)?, bundle))
    }
}
