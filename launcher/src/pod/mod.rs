//! The programs of a launcher pod: what the controller's pod runs, one subcommand for each container. What they and
//! the controller know of each other is docs/pod.md.
//!
//! ```text
//! pod init           before the others: makes the interface, with NET_ADMIN alone, and copies `serve-file` to where the
//!                    containers of users' images find it
//! pod console-log    prints what the guest says on its serial line
//! pod probe          what the kubelet runs beside the machine, to ask the guest's agent
//! pod run            runs the machine, without any privilege
//! pod volume         in a pod of its own: hands a claim over to a machine that runs already
//! ```
//! The last ones start in any order. Who serves the machine ends with it: it listens on a socket as long as it lives.

mod arrival;
mod console_log;
mod credentials;
pub mod departure;
mod install;
mod instance;
mod metrics;
mod net;
mod probe;
mod report;
mod run;
mod start;
pub mod storage;
mod volume;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::exit::Chain;
use crate::figures;
use crate::node::sockets::IN_CONTAINERS;
use crate::node::volumes;
use crate::{Error, Result, Status};

/// What a container of the pod does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pod's machine until it ends
    Run {
        /// What it says on its serial line is printed by `pod console-log`, which may start later
        #[arg(long)]
        logged: bool,
        /// Where the pod's files are
        #[command(flatten)]
        root: Root,
    },
    /// Make what the pod's machine needs before it starts: its interface
    Init {
        /// Copy serve-file to DIR, for the containers of other images
        #[arg(long, value_name = "DIR")]
        serve_file: Option<PathBuf>,
        /// Where the pod's files are
        #[command(flatten)]
        root: Root,
    },
    /// Hand a claim over to a machine of this node that runs already
    Volume {
        /// The claim: a block device, or a directory
        path: PathBuf,
        /// Nobody may write it
        #[arg(long)]
        read_only: bool,
        /// Where the pod's files are
        #[command(flatten)]
        root: Root,
    },
    /// Print what the pod's machine says on its serial line
    ConsoleLog(Root),
    /// Ask the guest's agent how the guest is: status 0 when it is well
    Probe(probe::Probe),
}

/// Where the pod's files are.
#[derive(Clone, Debug, clap::Args)]
pub struct Root {
    /// Directory under which a pod's files are; tests have their own
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

impl Root {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The instance, as the controller gives it.
    fn instance(&self) -> PathBuf {
        self.at("etc/nacelle/vmi.json")
    }

    /// Who comes, where the machine is one that runs elsewhere.
    fn migration(&self) -> PathBuf {
        self.at("etc/nacelle/migration.json")
    }

    /// Where to report to.
    fn report(&self) -> PathBuf {
        self.at("etc/nacelle/report.json")
    }

    /// What the controller knows us by.
    fn token(&self) -> PathBuf {
        self.at("var/run/secrets/nacelle.io/token")
    }

    /// What the containers of the pod share.
    fn shared(&self) -> PathBuf {
        self.at("run/nacelle")
    }

    /// What `pod init` tells `pod run`.
    fn net(&self) -> PathBuf {
        self.at("run/nacelle/net.json")
    }

    /// Where `pod console-log` hears the serial line.
    fn console_log(&self) -> PathBuf {
        self.at("run/nacelle/console-log.sock")
    }

    /// Where `pod run` listens as long as it lives: who is connected hears of its end.
    fn machine(&self) -> PathBuf {
        self.at("run/nacelle/machine.sock")
    }

    /// Where the node agent brings together who has a volume and who wants it.
    fn volumes(&self) -> PathBuf {
        self.at(IN_CONTAINERS).join(volumes::SOCKET)
    }

    /// Where the node agent asks for figures.
    fn metrics(&self) -> PathBuf {
        self.at(IN_CONTAINERS).join(figures::SOCKET)
    }

    /// Where the kubelet reads why a container ended.
    fn termination_log(&self) -> PathBuf {
        self.at("dev/termination-log")
    }
}

impl Command {
    /// Where the container's files are; a probe has a container only as its guest.
    fn root(&self) -> Option<&Root> {
        match self {
            Command::Run { root, .. }
            | Command::ConsoleLog(root)
            | Command::Init { root, .. }
            | Command::Volume { root, .. } => Some(root),
            Command::Probe(_) => None,
        }
    }

    /// Does what the container is for. What goes wrong is left for the kubelet too.
    ///
    /// # Errors
    /// When it cannot.
    pub fn run(&self) -> Result<Status> {
        let done = match self {
            Command::Run { logged, root } => run::run(root, *logged),
            Command::Init { serve_file, root } => init(serve_file.as_deref(), root).map(|()| Status::Done),
            Command::Volume {
                path,
                read_only,
                root,
            } => volume::run(root, path, *read_only).map(|()| Status::Done),
            Command::ConsoleLog(root) => console_log::run(root).map(|()| Status::Done),
            Command::Probe(probe) => probe::run(probe),
        };
        if let (Err(error), Some(root)) = (&done, self.root()) {
            last_words(&root.termination_log(), Chain(error));
        }
        done
    }
}

fn init(serve_file: Option<&Path>, root: &Root) -> Result<()> {
    serve_file.map_or(Ok(()), install::run)?;
    net::run(root)
}

/// Leaves a message for who looks at the pod (`kubectl describe`).
fn last_words(file: &Path, message: impl Display) {
    // There is none where nobody would read it.
    if file.exists()
        && let Err(error) = fs::write(file, message.to_string())
    {
        log::debug!("{}: {error}", file.display());
    }
}

/// A runtime for what a container does besides the machine.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("start the event loop"))
}

#[cfg(test)]
mod tests;
