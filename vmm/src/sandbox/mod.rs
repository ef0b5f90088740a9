//! Confines the threads of a machine: whoever takes one over from within the guest finds little to call.
//!
//! Each kind of thread is a [`Role`] with a filter of system calls (`filters.rs`), which its first act on that thread
//! puts in force, for good. Threads that a guest reaches also lose all capabilities, and by Landlock every path. The
//! threads that this library makes confine themselves; those of an embedder that own or move a machine call
//! [`Sandbox::enter`]. A call that is denied ends the process with [`STATUS`], and a line on standard error that names
//! the call and the thread.
//!
//! ```no_run
//! use nacelle_vmm::sandbox::{Role, Sandbox};
//! // Of the thread that keeps the `Vm`, before it does:
//! Sandbox::default().enter(Role::Owner)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod filters;
mod names;
mod privileges;
mod violation;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::thread::{SecureComputingMode, secure_computing_mode};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use self::filters::{Filter, Limit};
pub use self::violation::STATUS;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The embedder's first thread, and what it makes but for the others here. Its filter is that of the process.
    Process,
    /// Has the [`crate::Vm`] and calls it.
    Owner,
    /// Runs a virtual processor.
    Vcpu,
    /// Serves devices.
    Io,
    /// Makes blocking calls for disks; a thread of [`Role::Io`] makes it.
    Disk,
    /// Calls [`crate::migrate::send`] or [`crate::snapshot::save`].
    Migration,
    /// Takes the memory that follows a machine ([`crate::migrate::Rest::take`]).
    Memory,
    /// Sends pages of a machine that runs elsewhere already.
    Faults,
    /// Slows a guest down that writes faster than it can be moved.
    Throttle,
}

/// All of them.
pub const ROLES: [Role; 9] = [
    Role::Process,
    Role::Owner,
    Role::Vcpu,
    Role::Io,
    Role::Disk,
    Role::Migration,
    Role::Memory,
    Role::Faults,
    Role::Throttle,
];

impl Role {
    fn filter(self) -> &'static Filter {
        match self {
            Role::Process => &filters::PROCESS,
            Role::Owner => &filters::OWNER,
            Role::Vcpu => &filters::VCPU,
            Role::Io => &filters::IO,
            Role::Disk => &filters::DISK,
            Role::Migration => &filters::MIGRATION,
            Role::Memory => &filters::MEMORY,
            Role::Faults => &filters::FAULTS,
            Role::Throttle => &filters::THROTTLE,
        }
    }
}

type Enter = dyn Fn(Role) -> io::Result<()> + Send + Sync;

/// How the threads of a machine are confined: [`Sandbox::default`] by the filters here, [`Sandbox::own`] as an embedder
/// wants, [`Sandbox::none`] not at all.
#[derive(Clone)]
pub struct Sandbox(Arc<Enter>);

impl Default for Sandbox {
    fn default() -> Self {
        Sandbox::own(confine)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sandbox")
    }
}

impl Sandbox {
    /// Confined by `enter`, which each thread calls first; the thread ends where it fails.
    pub fn own(enter: impl Fn(Role) -> io::Result<()> + Send + Sync + 'static) -> Sandbox {
        Sandbox(Arc::new(enter))
    }

    /// Not confined.
    pub fn none() -> Sandbox {
        Sandbox::own(|_| Ok(()))
    }

    /// Confines the calling thread, for good, and those that it will make.
    ///
    /// # Errors
    /// When the kernel has no seccomp filters, or the embedder's own way fails.
    pub fn enter(&self, role: Role) -> io::Result<()> {
        (self.0)(role)
    }
}

/// Has a violation also told to `descriptor`, such as the file of a container's last words.
pub fn tell_violations_to(descriptor: OwnedFd) {
    violation::tell(descriptor.into_raw_fd());
}

/// Closes all descriptors that this process was given beside its standard ones. To be called first of all: what is
/// opened before is closed, too.
///
/// # Errors
/// When the kernel cannot (it is older than 5.9).
pub fn close_inherited() -> io::Result<()> {
    privileges::close_inherited()
}

/// Confines a process that a confined one started: it lives under the filter of that already, and another one with each
/// program that follows another would in the end be more than the kernel takes. One that is under none enters
/// [`Role::Process`].
///
/// # Errors
/// As [`Sandbox::enter`].
pub fn succeed() -> io::Result<()> {
    match secure_computing_mode()? {
        SecureComputingMode::Filter => {
            violation::install_handler();
            privileges::give_up_of_process()
        }
        _ => confine(Role::Process),
    }
}

fn confine(role: Role) -> io::Result<()> {
    violation::install_handler();
    match role {
        Role::Process => privileges::give_up_of_process()?,
        Role::Vcpu | Role::Io => privileges::give_up()?,
        _ => {}
    }
    let denied = |error| io::Error::other(format!("the kernel takes no filter of system calls: {error}"));
    for program in role.programs()? {
        apply_filter(program).map_err(denied)?;
    }
    Ok(())
}

impl Role {
    /// Its filters as the kernel takes them, made once.
    fn programs(self) -> io::Result<&'static [BpfProgram]> {
        static ALL: [OnceLock<Result<Vec<BpfProgram>, String>>; ROLES.len()] =
            [const { OnceLock::new() }; ROLES.len()];
        let made = ALL
            .get(self as usize)
            .map(|made| made.get_or_init(|| compile(self.filter()).map_err(|error| error.to_string())));
        match made {
            Some(Ok(programs)) => Ok(programs),
            Some(Err(error)) => Err(io::Error::other(format!(
                "a filter of system calls is wrong: {error}"
            ))),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// What a filter says with all that it includes.
#[derive(Default)]
struct Whole {
    /// Calls with any arguments.
    calls: BTreeSet<i64>,
    /// Rules for others: the thread's own before those that it includes, as they are its frequent ones.
    limits: Vec<Limit>,
    /// Calls that fail.
    turned_away: BTreeSet<i64>,
}

impl Whole {
    fn of(filter: &Filter) -> Whole {
        let mut whole = Whole::default();
        whole.add(filter);
        let limited = |call: &i64| whole.limits.iter().any(|limit| limit.call == *call);
        whole
            .turned_away
            .retain(|call| !whole.calls.contains(call) && !limited(call));
        whole.limits.retain(|limit| !whole.calls.contains(&limit.call));
        whole
    }

    fn add(&mut self, filter: &Filter) {
        self.calls.extend(filter.calls);
        self.turned_away.extend(filter.turned_away);
        for limit in filter.limited {
            if !self.limits.contains(limit) {
                self.limits.push(*limit);
            }
        }
        filter.with.iter().for_each(|other| self.add(other));
    }
}

fn compile(filter: &Filter) -> Result<Vec<BpfProgram>, BackendError> {
    let whole = Whole::of(filter);
    let freely = |calls: &BTreeSet<i64>| calls.iter().map(|call| (*call, Vec::new())).collect();
    let away: BTreeMap<i64, Vec<SeccompRule>> = freely(&whole.turned_away);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = freely(&whole.calls);
    rules.extend(away.clone());
    for limit in whole.limits {
        for value in limit.values {
            let condition = SeccompCondition::new(
                limit.argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(limit.mask),
                *value,
            )?;
            rules
                .entry(limit.call)
                .or_default()
                .push(SeccompRule::new(vec![condition])?);
        }
    }
    // The kernel asks both, and does what is stricter.
    Ok(vec![
        program(
            away,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?,
        program(rules, SeccompAction::Trap, SeccompAction::Allow)?,
    ])
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, action, arch)?.try_into()
}

#[cfg(test)]
mod tests;
