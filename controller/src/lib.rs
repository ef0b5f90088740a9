//! The controller: virtual machines as pods.
//!
//! - [`crd`] are the kinds that it serves.
//! - [`instancetype`] is what machines are made of beside their templates.
//! - [`webhook`] completes and refuses objects before they are stored.
//! - [`vm`] and [`vmi`] reconcile: a machine has an instance, an instance has a pod.
//! - [`subresource`] is what people do to machines beside changing objects.
//! - [`report`] is where launchers say how their machines are.
//! - [`server`], [`certificates`], [`leader`]: the process around it.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod configuration;
pub mod context;
pub mod crd;
pub mod error;
pub mod install;
pub mod instancetype;
pub mod kubevirt;
pub mod later;
pub mod leader;
pub mod node;
pub mod report;
pub mod run;
pub mod server;
pub mod settings;
pub mod subresource;
pub mod vm;
pub mod vmi;
pub mod webhook;

/// Finalizer of machines: the instance goes first.
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// Finalizer of instances: the pod goes first.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Annotation of instances: the generation of the machine that they were made of.
pub const VM_GENERATION: &str = "kubevirt.io/vm-generation";
/// Label of instances: the node that they run on.
pub const NODE_NAME: &str = "kubevirt.io/nodeName";
