//! The controller: virtual machines as pods.
//!
//! - [`crd`] are the kinds that it serves.
//! - [`instancetype`] is what machines are made of beside their templates.
//! - [`webhook`] completes and refuses objects before they are stored.
//! - [`vm`] and [`vmi`] reconcile: a machine has an instance, an instance has a pod.
//! - [`datavolume`] fills claims with disks, where CDI is not there to do it.
//! - [`upload`] takes disks that people send, and passes them on to who waits for them.
//! - [`subresource`] is what people do to machines beside changing objects.
//! - [`report`] is where launchers say how their machines are.
//! - [`explain`] says what a machine waits for.
//! - [`trace`] says where the time of a start goes.
//! - [`server`], [`certificates`], [`leader`]: the process around it.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod configuration;
pub mod context;
pub mod crd;
pub mod datavolume;
pub mod error;
pub mod explain;
pub mod install;
pub mod instancetype;
pub mod kubevirt;
pub mod later;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod migration;
pub mod node;
pub mod pool;
pub mod processor;
pub mod replicas;
pub mod replicaset;
pub mod report;
pub mod run;
pub mod secret;
pub mod server;
pub mod settings;
pub mod subresource;
pub mod trace;
pub mod upload;
pub mod vm;
pub mod vmi;
pub mod volumes;
pub mod webhook;
pub mod written;

/// Finalizer of machines: the instance goes first.
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// Finalizer of instances: the pod goes first.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Annotation of instances: the generation of the machine that they were made of.
pub const VM_GENERATION: &str = "kubevirt.io/vm-generation";
/// Finalizer of migrations: what they began is brought to an end.
pub const MIGRATION_FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// Label of migrations: their instance.
pub const VMI_NAME: &str = "kubevirt.io/vmi-name";
/// Label of instances: the node that they move to.
pub const TARGET_NODE_NAME: &str = "kubevirt.io/migrationTargetNodeName";
/// Label of instances: the node that they run on.
pub const NODE_NAME: &str = "kubevirt.io/nodeName";
