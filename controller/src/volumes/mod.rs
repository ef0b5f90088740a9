//! Volumes that come to a machine which runs, and leave it.
//!
//! ```text
//! spec.volumes has one more with hotpluggable ─▶ attachment pod on the machine's node ─▶ it runs: its word is read from it,
//!     and told to the launcher, which gets the volume by it from the node agent (docs/pod.md) ─▶ Ready
//! spec.volumes has it no more ─▶ the launcher asks the guest ─▶ it has let go ─▶ the attachment pod is deleted ─▶ forgotten
//! ```
//! What is under way is in `status.volumeStatus`; the pod has its name from what it attaches. So whoever reconciles next goes
//! on where the last one was, and asks again what it may have asked.

pub mod declared;
pub mod pod;
mod reconcile;
pub mod request;
pub mod status;

use std::collections::BTreeSet;

use nacelle_api::VirtualMachineInstanceSpec;
use nacelle_api::volume::Volume;

pub use reconcile::{forget, reconcile};

/// Annotation with the names of volumes in which an instance differs from its machine, as somebody asked of the instance
/// alone: a list, as JSON.
pub const APART: &str = "nacelle.io/volumes-apart";

/// Whether a volume comes when the machine runs already.
pub fn is_hot(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    let data = volume.data_volume.as_ref();
    claim.is_some_and(|claim| claim.hotpluggable == Some(true))
        || data.is_some_and(|data| data.hotpluggable == Some(true))
}

/// The volumes that come when the machine runs already.
pub fn hot(spec: &VirtualMachineInstanceSpec) -> impl Iterator<Item = &Volume> {
    spec.volumes.iter().filter(|volume| is_hot(volume))
}

/// What the machine begins with.
pub fn cold(spec: &VirtualMachineInstanceSpec) -> VirtualMachineInstanceSpec {
    let mut cold = spec.clone();
    let names: BTreeSet<&str> = hot(spec).map(|volume| volume.name.as_str()).collect();
    cold.volumes.retain(|volume| !is_hot(volume));
    let disks = &mut cold.domain.devices.disks;
    disks.retain(|disk| !names.contains(disk.name.as_str()));
    cold
}
