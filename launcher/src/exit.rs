//! What can go wrong in the launcher, with what to do about it, and the status that the command then ends with.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nacelle_api::{Cause, ParseError};

/// Statuses of `nacelle`, for scripts; [`HELP`] is what `--help` says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest powered off, the machine was moved, or the command did what it was asked.
    Done = 0,
    /// Something that has no status of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The manifest is wrong, or asks for what this version does not do.
    Manifest = 3,
    /// The host lacks KVM, or does not let us use it.
    NoKvm = 4,
    /// An image, a disk or a file of the machine is not there.
    NotFound = 5,
    /// A disk is in use by another machine.
    DiskLocked = 6,
    /// The host has too little memory, or does not let us make what the machine needs.
    Host = 7,
    /// The guest failed: its kernel could not be started, or a processor or a device could not go on.
    Guest = 8,
    /// The machine was killed: on demand, or because the guest did not power off within its grace period, or feed its watchdog.
    Killed = 9,
    /// Another process has the machine; the one that was started first waits for it, and never ends by this.
    HandedOn = 10,
}

impl Status {
    /// The status of this number.
    pub fn of(number: i32) -> Option<Status> {
        use Status::{
            DiskLocked, Done, Failed, Guest, HandedOn, Host, Killed, Manifest, NoKvm, NotFound, Usage,
        };
        let all = [
            Done, Failed, Usage, Manifest, NoKvm, NotFound, DiskLocked, Host, Guest, Killed, HandedOn,
        ];
        all.into_iter().find(|status| *status as i32 == number)
    }
}

/// The statuses as `--help` and the manual show them.
pub const HELP: &str = "\
Exit status:
  0  the guest powered off, or the machine was moved
  1  another failure
  2  wrong usage
  3  the manifest is wrong, or asks for what this version does not do
  4  the host has no KVM, or does not let us use it
  5  an image, a disk or a file of the machine is not there
  6  a disk is in use by another machine
  7  the host has too little memory, or refuses what the machine needs
  8  the guest failed: wrong kernel, or a processor or device could not go on
  9  the machine was killed: on demand, at the end of its grace period, or by its watchdog";

/// The launcher's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A word of the command line does not fit.
    #[error("{0}")]
    Usage(String),
    /// A machine of this name runs already.
    #[error(
        "a machine named {name} runs already (see nacelle status {name}): choose another name, or stop it"
    )]
    NameInUse {
        /// Its name.
        name: String,
    },
    /// No machine of this name runs.
    #[error("no machine named {name} runs here (see nacelle ls)")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// A running machine did not do as asked.
    #[error("machine {name}: {message}{}", .hint.as_deref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Answer {
        /// Its name.
        name: String,
        /// What it says.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The manifest cannot be read.
    #[error("{manifest} cannot be used")]
    Parse {
        /// Its name.
        manifest: String,
        /// What is wrong in it.
        source: ParseError,
    },
    /// The manifest is refused.
    #[error("{manifest} is refused:{}", List(.causes))]
    Refused {
        /// Its name.
        manifest: String,
        /// Every reason.
        causes: Vec<Cause>,
    },
    /// A file of a pod is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing says what to boot.
    #[error(
        "machine {0} has nothing to boot: give it a disk with an operating system (spec.domain.devices.disks), or \
         name a kernel by spec.domain.firmware.kernelBoot in the manifest or by --kernel PATH"
    )]
    NothingToBoot(String),
    /// An image is not in the layout and could not be had.
    #[error("image {image} is not in {layout}{hint}")]
    NoImage {
        /// Its name.
        image: String,
        /// The directory that was searched.
        layout: PathBuf,
        /// What to do, or what was tried.
        hint: String,
        /// Why its registry did not give it.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// An image does not hold what is looked for, or is not to be trusted.
    #[error("image {image}: {reason}")]
    Image {
        /// Its name.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// A registry did not give an image.
    #[error("cannot pull image {image}")]
    Pull {
        /// Its name.
        image: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A volume has nothing behind it.
    #[error("volume {volume}: {reason}")]
    Volume {
        /// Its name.
        volume: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The host's side of a network cannot be had.
    #[error(transparent)]
    HostNetwork(#[from] crate::net::Error),
    /// A network cannot be had.
    #[error("network {network}: {reason}")]
    Network {
        /// Its name.
        network: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file cannot be used.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A machine cannot be waited for there.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No machine came.
    #[error("no machine has come: it goes on where it was, if it was sent at all")]
    NotReceived(#[source] nacelle_vmm::Error),
    /// The operating system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried, as a verb phrase.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// KVM does not say what it has.
    #[error("what guests can be shown of this host's processor is not known")]
    Processor {
        /// Why.
        source: nacelle_vmm::Error,
    },
    /// The machine could not be built or did not do as told.
    #[error("machine {name}")]
    Machine {
        /// Its name.
        name: String,
        /// Why.
        source: nacelle_vmm::Error,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::File`], for use with `map_err`.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File {
            what,
            path: path.into(),
            source,
        }
    }

    /// An [`Error::Io`], for use with `map_err`.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }

    /// The status that the command ends with.
    pub fn status(&self) -> Status {
        match self {
            Error::Usage(_) => Status::Usage,
            Error::Parse { .. }
            | Error::Refused { .. }
            | Error::Document { .. }
            | Error::NothingToBoot(_) => Status::Manifest,
            Error::NoImage { .. } | Error::Image { .. } | Error::Pull { .. } | Error::Volume { .. } => {
                Status::NotFound
            }
            Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Status::NotFound,
            Error::NotRunning { .. } => Status::NotFound,
            Error::HostNetwork(crate::net::Error::NoInterface { .. }) => Status::Usage,
            Error::HostNetwork(_) | Error::Network { .. } => Status::Host,
            Error::NameInUse { .. } | Error::Answer { .. } => Status::Failed,
            Error::File { .. } | Error::Io { .. } | Error::Listen { .. } => Status::Failed,
            Error::NotReceived(source) => of_machine(source),
            Error::Machine { source, .. } | Error::Processor { source } => of_machine(source),
        }
    }
}

fn of_machine(error: &nacelle_vmm::Error) -> Status {
    use nacelle_vmm::Error as Vmm;
    match error {
        Vmm::Config { .. } => Status::Manifest,
        Vmm::NoHypervisor { .. } | Vmm::HypervisorPermission { .. } | Vmm::Capability(_) => Status::NoKvm,
        Vmm::Memory { .. } => Status::Host,
        Vmm::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Status::NotFound,
        Vmm::Kernel { .. } | Vmm::DoesNotFit { .. } | Vmm::Vcpu { .. } => Status::Guest,
        Vmm::Device { source, .. } => match source {
            nacelle_devices::Error::DiskLocked { .. } => Status::DiskLocked,
            nacelle_devices::Error::Disk { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Status::NotFound
            }
            _ => Status::Failed,
        },
        _ => Status::Failed,
    }
}

/// An error with all its causes, one a line, each said once.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Libraries often repeat their cause in their own words.
            if !said.contains(&text) {
                write!(f, "\n  because: {}", text.replace('\n', "\n  "))?;
                said.push_str(&text);
            }
            cause = error.source();
        }
        Ok(())
    }
}

struct List<'a>(&'a [Cause]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cause in self.0 {
            // Most of KubeVirt's sentences name the field already.
            if cause.message.contains(cause.field.as_str()) {
                write!(f, "\n  {}", cause.message)?;
            } else {
                write!(f, "\n  {}: {}", cause.field, cause.message)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot fetch: connection refused")]
        struct Wordy(#[source] io::Error);
        let error = Error::Pull {
            image: "example/disk:1".into(),
            source: Box::new(Wordy(io::Error::other("connection refused"))),
        };
        assert_eq!(
            Chain(&error).to_string(),
            "cannot pull image example/disk:1\n  because: cannot fetch: connection refused"
        );
    }

    #[test]
    fn scripts_can_tell_failures_apart() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let machine = |source| Error::Machine {
            name: "vm".into(),
            source,
        };
        let cases = [
            (Error::Usage("x".into()), Status::Usage),
            (Error::NothingToBoot("vm".into()), Status::Manifest),
            (Error::file("open", "/x")(missing()), Status::NotFound),
            (Error::io("poll")(missing()), Status::Failed),
            (
                machine(nacelle_vmm::Error::NoHypervisor {
                    path: "/dev/kvm".into(),
                }),
                Status::NoKvm,
            ),
            (
                machine(nacelle_vmm::Error::Kernel {
                    path: "k".into(),
                    reason: "no".into(),
                }),
                Status::Guest,
            ),
        ];
        for (error, status) in cases {
            assert_eq!(error.status(), status, "{error}");
            assert!(HELP.contains(&format!("\n  {}  ", status as u8)));
        }
    }
}
