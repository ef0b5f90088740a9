//! Messages of the kubelet's device plugin API, version v1beta1: those that a plugin without options needs.

use prost::Message;

/// The version.
pub const VERSION: &str = "v1beta1";

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// What more a plugin can do: ours, nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Options {}

/// A plugin presents itself to the kubelet.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterRequest {
    /// [`VERSION`].
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its socket's name in the kubelet's directory.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// What its devices are requested by.
    #[prost(string, tag = "3")]
    pub resource_name: String,
}

/// All devices of a plugin.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Devices {
    /// The devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Device {
    /// What it is called.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `Healthy` or `Unhealthy`.
    #[prost(string, tag = "2")]
    pub health: String,
}

/// What the containers of a pod get.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AllocateRequest {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<ContainerRequest>,
}

/// What a container gets.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerRequest {
    /// Which devices.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}

/// How the containers of a pod get it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AllocateResponse {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<ContainerResponse>,
}

/// How a container gets it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerResponse {
    /// Files and directories of the node.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device files.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceFile>,
}

/// A file or directory of the node in a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    /// Where the container has it.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where the node has it.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// The container may not write.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// A device file in a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeviceFile {
    /// Where the container has it.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where the node has it.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// `r`, `w`, `m`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

pub use generated::*;

#[expect(clippy::allow_attributes, reason = "the generator's")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.Registration.rs"));
    include!(concat!(env!("OUT_DIR"), "/v1beta1.DevicePlugin.rs"));
}
