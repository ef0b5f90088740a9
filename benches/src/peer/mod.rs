//! The monitors. Each is one file that knows how its program is told what a machine is: by a command line, and files
//! beside it. What they are told is a pure function, so that it can be tested where the program is not to be had.

mod cloud_hypervisor;
mod crosvm;
mod firecracker;
mod nacelle;
mod qemu;
mod qemu_microvm;
mod qemu_q35;
mod qmp;
mod slim;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A machine, as every monitor is to make it: one processor, a serial line on standard output, nothing that is not
/// named here.
#[derive(Clone, Debug)]
pub struct Machine {
    /// An ELF kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// Its arguments.
    pub cmdline: String,
    /// Memory in MiB.
    pub memory: u32,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// The tap device that its interface is connected to.
    pub tap: Option<String>,
    /// A directory of the run's own, for what the monitor needs or leaves.
    pub directory: PathBuf,
    /// It will leave its process.
    pub leaves: bool,
    /// Certificates for a way over a network, where it takes one.
    pub certificates: Option<PathBuf>,
}

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its file.
    pub path: PathBuf,
    /// It is qcow2, not raw.
    pub qcow2: bool,
    /// The host's page cache is passed by.
    pub direct: bool,
}

/// The interface's MAC address.
const MAC: &str = "02:00:00:77:00:02";

/// How a monitor is started.
#[derive(Debug, Default)]
pub struct Launch {
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Files to be written before: name in the machine's directory, and content.
    pub files: Vec<(&'static str, String)>,
    /// Variables of its environment.
    pub environment: Vec<(&'static str, PathBuf)>,
}

impl Launch {
    fn argument(mut self, argument: impl Into<OsString>) -> Launch {
        self.arguments.push(argument.into());
        self
    }

    fn option(self, name: &str, value: impl Into<OsString>) -> Launch {
        self.argument(name).argument(value)
    }
}

/// A monitor that is known here.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// Its program.
    pub program: &'static str,
    /// Whether it knows qcow2.
    pub qcow2: bool,
    /// How it is started.
    pub launch: fn(&Machine) -> Launch,
    /// How its machines leave it, where they can.
    pub moves: Option<&'static Moves>,
    /// How they are kept, where they can be.
    pub saves: Option<&'static Saves>,
}

/// How a machine leaves its process for another one.
#[derive(Debug)]
pub struct Moves {
    /// How a process is started that waits at this TCP port of this host for a machine, which is to be as this one.
    pub receive: fn(&Machine, u16) -> Launch,
    /// Moves a machine to that port within a time; when it is over, how long its monitor says that it stood still.
    pub send: fn(&Found, &Machine, u16, Duration) -> Result<Duration>,
}

/// How a machine is written to files, and goes on from them.
#[derive(Debug)]
pub struct Saves {
    /// Writes a running machine to what is to be at this path, within a time; it does not run on.
    pub save: fn(&Found, &Machine, &Path, Duration) -> Result<()>,
    /// How a process is started in which it goes on.
    pub restore: fn(&Machine, &Path) -> Launch,
}

/// Ours comes first, in both its forms.
pub const PEERS: [&Peer; 7] = [
    &nacelle::PEER,
    &slim::PEER,
    &qemu_microvm::PEER,
    &qemu_q35::PEER,
    &firecracker::PEER,
    &cloud_hypervisor::PEER,
    &crosvm::PEER,
];

impl Peer {
    /// The monitor of this name.
    pub fn named(name: &str) -> Option<&'static Peer> {
        PEERS.into_iter().find(|peer| peer.name == name)
    }

    /// Whether it is made here.
    pub fn is_ours(&self) -> bool {
        self.name.starts_with("nacelle")
    }

    /// Its program: the one that was named, else the one of ours that was built, else what PATH has.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&'static self, named: Option<&Path>, built: &Path, path: &str) -> Result<Found> {
        let runs = |file: &PathBuf| {
            fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let program = match named {
            Some(named) => {
                let named = named.to_owned();
                Some(
                    runs(&named)
                        .then_some(named.clone())
                        .ok_or(Error::NoProgram(named))?,
                )
            }
            None if self.is_ours() => Some(built.join(self.program)).filter(runs),
            None => path
                .split(':')
                .map(|dir| Path::new(dir).join(self.program))
                .find(runs),
        };
        let program = program.ok_or_else(|| Error::NoPeer {
            peer: self.name,
            program: self.program.into(),
        })?;
        let program = fs::canonicalize(&program).map_err(Error::io(format!("find {}", program.display())))?;
        Ok(Found {
            version: version(&program),
            peer: self,
            program,
        })
    }
}

/// What a command has beyond its limit to say that it did not do it.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether a command is over.
const LOOK: Duration = Duration::from_millis(1);

/// A monitor whose program is here.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub peer: &'static Peer,
    /// Its program.
    pub program: PathBuf,
    /// What it says of itself.
    pub version: String,
}

/// Runs a monitor's program for something that ends by itself: what it says. After `limit`, and a moment for it to say
/// why, it is ended.
fn ask(found: &Found, machine: &Machine, launch: &Launch, limit: Duration) -> Result<String> {
    let words: Vec<_> = launch
        .arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let asked = format!("{} {}", found.peer.program, words.join(" "));
    let [said, errors] = ["asked.out", "asked.err"].map(|name| machine.directory.join(name));
    let create = |path: &Path| File::create(path).map_err(Error::io(format!("write {}", path.display())));
    let mut child = Command::new(&found.program)
        .args(&launch.arguments)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(create(&said)?)
        .stderr(create(&errors)?)
        .process_group(0)
        .spawn()
        .map_err(Error::io(format!("start {}", found.program.display())))?;
    let until = Instant::now() + limit + GRACE;
    let status = loop {
        let waited = child.try_wait().map_err(Error::io(format!("wait for {asked}")));
        match waited {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            waited => {
                // What cannot be ended or waited for has ended.
                let _ = child.kill();
                let _ = child.wait();
                waited?;
                return Err(Error::Late {
                    awaited: format!("the end of {asked}"),
                    limit,
                    said: String::new(),
                });
            }
        }
    };
    let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    match status.success() {
        true => Ok(text(&said)),
        false => Err(Error::Tool {
            command: asked,
            said: text(&errors).lines().last().unwrap_or_default().to_owned(),
        }),
    }
}

fn version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    said.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
