//! What a process or a thread gives up beside system calls.

use std::io;
use std::sync::Once;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

/// What root keeps for the process: images are others' files, and what was made of networks is taken away at the end.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER);

/// For the process: no core file, which would have the guest's memory; nobody of its user may look into it; no
/// capability but those that it needs.
pub(super) fn give_up_of_process() -> io::Result<()> {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, nothing)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    keep(KEPT)
}

/// For a thread that works on what a guest gave it: no capability, no path, no new connection.
pub(super) fn give_up() -> io::Result<()> {
    keep(CapabilitySet::empty())?;
    lock_paths().map_err(io::Error::other)
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let held = capabilities(None)?;
    let left = held.permitted & kept;
    if held.permitted == left && held.inheritable.is_empty() {
        return Ok(());
    }
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (CapabilitySet::all() - kept).iter() {
            // A kernel that does not know of it has nothing to remove.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        },
    )?)
}

/// Nothing beneath any path, as far as the kernel has Landlock: what is open stays usable.
fn lock_paths() -> Result<(), RulesetError> {
    static ONCE: Once = Once::new();
    let locked = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .restrict_self()?;
    if locked.ruleset == RulesetStatus::NotEnforced {
        ONCE.call_once(|| log::debug!("the kernel has no Landlock: threads are confined by seccomp alone"));
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the descriptors are nobody's")]
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: plain numbers; the caller has opened nothing yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
