//! What KubeVirt's validating webhooks refuse, refused in the same words. Pure: nothing is looked up.
//!
//! Call it after [`crate::defaults`], as KubeVirt does. Rules that need a cluster (feature gates that an
//! administrator sets, other objects) are the controller's; what Nacelle never will do is refused here as if its
//! feature gate were off; what it does not do *yet* is told by [`crate::support()`].

mod disks;
mod domain;
mod names;
mod networks;
mod pod;
mod vm;
mod volumes;

use std::fmt;

use crate::disk::Disk;
use crate::path::FieldPath;
use crate::vmi::{VirtualMachineInstance, VirtualMachineInstanceSpec};
use crate::volume::Volume;

pub use vm::{validate_vm, vm_warnings};

/// One reason to refuse an object; its fields are those of `details.causes[]` in the API server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What sort of mistake it is.
    pub kind: CauseKind,
    /// A sentence for the user.
    pub message: String,
    /// Where.
    pub field: FieldPath,
}

/// The sorts of mistake that Kubernetes tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    /// The value is not possible.
    FieldValueInvalid,
    /// A value is missing.
    FieldValueRequired,
    /// The value must be unique and is not.
    FieldValueDuplicate,
    /// The value names something that is not there.
    FieldValueNotFound,
    /// The value is known, and not available here.
    FieldValueNotSupported,
}

impl CauseKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            CauseKind::FieldValueInvalid => "FieldValueInvalid",
            CauseKind::FieldValueRequired => "FieldValueRequired",
            CauseKind::FieldValueDuplicate => "FieldValueDuplicate",
            CauseKind::FieldValueNotFound => "FieldValueNotFound",
            CauseKind::FieldValueNotSupported => "FieldValueNotSupported",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a spec. `prefix` is where it stands: `spec` in a VirtualMachineInstance,
/// `spec.template.spec` in a VirtualMachine.
pub fn validate(spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) -> Vec<Cause> {
    let mut causes = Causes::default();
    domain::check(&mut causes, &spec.domain, &prefix.field("domain"));
    disks::check(&mut causes, spec, prefix);
    volumes::check(&mut causes, &spec.volumes, &prefix.field("volumes"));
    networks::check(&mut causes, spec, prefix);
    pod::check(&mut causes, spec, prefix);
    causes.0
}

/// Everything that is wrong with a VirtualMachineInstance.
pub fn validate_vmi(vmi: &VirtualMachineInstance) -> Vec<Cause> {
    let mut causes = validate(&vmi.spec, &FieldPath::new("spec"));
    if let Some(labels) = &vmi.metadata.labels
        && labels.keys().any(|key| RESERVED_LABELS.contains(&key.as_str()))
    {
        causes.push(Cause {
            kind: CauseKind::FieldValueNotSupported,
            message: "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
                .to_owned(),
            field: FieldPath::new("metadata.labels"),
        });
    }
    causes
}

/// Everything that is wrong with a disk that comes to a machine which is there, and its volume.
pub fn validate_disk(disk: &Disk, volume: &Volume, path: &FieldPath) -> Vec<Cause> {
    let mut causes = Causes::default();
    disks::disk(&mut causes, disk, Some(volume), path);
    volumes::volume(&mut causes, volume, &FieldPath::new("volumeSource"));
    causes.0
}

/// Labels that the controllers keep for themselves.
const RESERVED_LABELS: &[&str] = &[
    "kubevirt.io/created-by",
    "kubevirt.io/migrationJobUID",
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationTargetNodeName",
    "kubevirt.io/schedulable",
    "kubevirt.io/install-strategy",
];

/// What is found, as it is found.
#[derive(Default)]
struct Causes(Vec<Cause>);

impl Causes {
    fn add(&mut self, kind: CauseKind, field: FieldPath, message: impl Into<String>) {
        self.0.push(Cause {
            kind,
            message: message.into(),
            field,
        });
    }

    fn invalid(&mut self, field: FieldPath, message: impl Into<String>) {
        self.add(CauseKind::FieldValueInvalid, field, message);
    }

    fn required(&mut self, field: FieldPath, message: impl Into<String>) {
        self.add(CauseKind::FieldValueRequired, field, message);
    }

    fn not_supported(&mut self, field: FieldPath, message: impl Into<String>) {
        self.add(CauseKind::FieldValueNotSupported, field, message);
    }

    /// Refuses what KubeVirt has behind a feature gate, and Nacelle does not have at all.
    fn gated(&mut self, field: FieldPath, gate: &str) {
        let message = format!("{field} is not allowed: {gate} feature gate is not enabled");
        self.add(CauseKind::FieldValueNotSupported, field, message);
    }
}

/// How many of `options` are set.
fn count<const N: usize>(options: [bool; N]) -> usize {
    options.into_iter().filter(|set| *set).count()
}

#[cfg(test)]
mod tests;
