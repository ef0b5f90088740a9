//! What can go wrong, for people.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of anything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a measurement could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the operating system.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A monitor that is not here.
    #[error("{peer}: there is no {program} on PATH; install it, or name it by --peer-path {peer}=PATH")]
    NoPeer {
        /// The monitor.
        peer: &'static str,
        /// Its program.
        program: String,
    },
    /// A file that was named and is not there.
    #[error("{0} is not there or is no program that may be run")]
    NoProgram(PathBuf),
    /// The kernel is not one that can be measured.
    #[error("the kernel cannot be used: {0}")]
    Kernel(String),
    /// A program that prepares something failed.
    #[error("{command} failed: {said}")]
    Tool {
        /// Its command line.
        command: String,
        /// What it said.
        said: String,
    },
    /// The monitor ended before the guest was done.
    #[error("the monitor ended ({status}) before {awaited}{said}")]
    Ended {
        /// How.
        status: String,
        /// What was waited for.
        awaited: String,
        /// Its last words.
        said: String,
    },
    /// Time was up.
    #[error("{awaited} did not come within {} (--limit){said}", humantime::format_duration(*limit))]
    Late {
        /// What was waited for.
        awaited: String,
        /// How long.
        limit: Duration,
        /// The guest's and the monitor's last words.
        said: String,
    },
    /// The guest's program could not go on.
    #[error("the guest failed: {0}")]
    Guest(String),
    /// The guest said something else than is understood: another guest, or a console that loses bytes.
    #[error("the guest said something that is not understood: {0}")]
    Misheard(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Makes an error of the operating system's, for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            what: what.into(),
            source,
        }
    }
}
