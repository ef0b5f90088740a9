//! What a machine is doing, and how it ended.

use serde::{Deserialize, Serialize};

use crate::admit::State;

/// How a machine ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The guest powered off.
    #[error("the guest powered off")]
    PoweredOff,
    /// The guest asked for a reset, which was to end it.
    #[error("the guest asked for a reset")]
    Reset,
    /// It ended when its snapshot was written, as it was to.
    #[error("its snapshot was written")]
    Saved,
    /// It goes on elsewhere.
    #[error("it was moved")]
    Moved,
    /// It goes on in another process of this host.
    #[error("another process has it")]
    HandedOn,
    /// Somebody killed it.
    #[error("it was killed")]
    Killed,
    /// The guest did not power off in the time it was given.
    #[error("the guest did not power off within its grace period and was killed")]
    GraceExpired,
    /// The guest did not feed its watchdog, whose action is to power off.
    #[error("the guest did not feed its watchdog, and was powered off")]
    Watchdog,
    /// It could not go on.
    #[error("the machine failed")]
    Failed(#[source] nacelle_vmm::Error),
}

/// What a machine is doing, and what befell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// How often it was reset.
    pub resets: u32,
    /// The guest said that it panicked, and was not reset since.
    pub panicked: bool,
    /// The disk that failed, and why, until the machine goes on and tries again. Such a machine is paused, unless it
    /// is on its way.
    pub disk_error: Option<String>,
    /// Disks that were attached while it ran, in their order.
    pub plugged: Vec<Plugged>,
}

/// A disk that was attached to a machine that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plugged {
    /// Its name.
    pub name: String,
    /// The guest was asked to let go of it, and has not yet.
    pub leaving: bool,
}
