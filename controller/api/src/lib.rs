//! The `kubevirt.io/v1` types that Nacelle serves, and what can be said of them without a cluster.
//!
//! - [`parse()`] reads a manifest strictly: whatever it does not know is an error with its path.
//! - [`defaults`] completes a spec as KubeVirt's mutating webhooks would.
//! - [`mod@validate`] refuses what KubeVirt's validating webhooks refuse, in their words.
//! - [`support()`] tells which fields of a valid spec this version does not honour yet.
//!
//! The types know every field that the real API knows, so that a field which cannot be honoured is told apart
//! from one that is misspelt. Nothing here does I/O, and no API client is linked.
#![forbid(unsafe_code)]

pub mod cdiconfig;
pub mod conditions;
pub mod cpu;
pub mod credentials;
pub mod datavolume;
pub mod defaults;
pub mod devices;
pub mod disk;
pub mod domain;
pub mod features;
pub mod firmware;
pub mod instancetype;
pub mod kubevirt;
pub mod migration;
pub mod network;
mod object;
pub mod parse;
pub mod path;
pub mod pool;
pub mod preference;
pub mod quantity;
pub mod replicaset;
pub mod support;
pub mod validate;
pub mod vm;
pub mod vmi;
pub mod volume;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use instancetype::InstancetypeSpec;
pub use k8s_openapi;
pub use kubevirt::KubeVirt;
pub use migration::VirtualMachineInstanceMigration;
pub use parse::{Manifest, ParseError, Problem, parse};
pub use path::FieldPath;
pub use pool::VirtualMachinePool;
pub use preference::PreferenceSpec;
pub use replicaset::VirtualMachineInstanceReplicaSet;
pub use support::{Support, support, support_disk};
pub use validate::{Cause, CauseKind, validate, validate_disk, validate_vm, validate_vmi};
pub use vm::{VirtualMachine, VirtualMachineSpec};
pub use vmi::{VirtualMachineInstance, VirtualMachineInstanceSpec};

/// API group and version of the kinds here.
pub const API_VERSION: &str = "kubevirt.io/v1";

/// An object that has no fields: being there is all it says (`masquerade: {}`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
// Without this the schema would say "any object", and the strict parser take anything in it.
#[schemars(extend("properties" = {}))]
pub struct Empty {}

/// An object whose fields are not looked at, since nothing that holds one is honoured.
pub type Freeform = BTreeMap<String, serde_json::Value>;
