//! Moving a machine to another `nacelle`: where it goes, how the way there is protected, what is wanted. The
//! migration itself is `nacelle_vmm::migrate`, over streams that are made here.

pub mod address;
pub mod pair;
pub mod stream;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nacelle_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nacelle_api::quantity;
use nacelle_vmm::migrate::{Compression, Limits, OnTimeout, Options};

use rustls::ClientConfig;

use self::address::Address;
use self::pair::Pair;
use self::tls::Files;
use crate::Result;

/// A migration that somebody wants.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub to: Address,
    /// Who we are, for a way over a network.
    pub tls: Option<Credentials>,
    /// What is wanted of it.
    pub options: Options,
    /// Devices that are disks and go along, beside those that end with the machine.
    pub copied: Vec<String>,
}

/// Who we are to the other side.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// One of those whom an authority trusts.
    Files(Files),
    /// Who has this key, to who has that certificate (PEM).
    Pair(Arc<Pair>, String),
}

impl Credentials {
    /// What a source needs.
    ///
    /// # Errors
    /// When it is not what it must be.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        match self {
            Credentials::Files(files) => files.client(),
            Credentials::Pair(pair, peer) => pair.client(peer),
        }
    }
}

/// What is wanted of a migration, on the command line.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// How long the guest may stand still
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = time)]
    pub downtime: Duration,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = time)]
    pub timeout: Duration,
    /// What follows then
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub on_timeout: TimeoutArg,
    /// Copy this disk of the manifest to the one that the target has prepared; may be repeated. Those that end with the
    /// machine (containerDisk, emptyDisk, ephemeral, cloudInit...) are copied anyway
    #[arg(long = "copy-disk", value_name = "NAME")]
    pub copy_disks: Vec<String>,
    /// Let the guest go on there at once, and its memory follow as it needs it
    #[arg(long)]
    pub post_copy: bool,
    /// Never slow the guest down when it writes faster than can be sent
    #[arg(long)]
    pub no_auto_converge: bool,
    /// Most bytes a second while the guest runs here, as Kubernetes writes it: 100Mi
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bandwidth: Option<u64>,
    /// Connections that carry memory
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub streams: u16,
    /// Whether memory is compressed
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub compression: CompressionArg,
}

/// `--on-timeout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TimeoutArg {
    /// Give it up; the guest goes on where it is
    #[default]
    Cancel,
    /// Stop the guest for as long as the rest takes
    Finish,
    /// Let the guest go on there, and the rest of its memory follow as it needs it
    PostCopy,
}

/// `--compression`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CompressionArg {
    /// Where the link is the bottleneck, as long as it pays
    #[default]
    Auto,
    /// Never
    Never,
    /// Always
    Always,
}

impl From<TimeoutArg> for OnTimeout {
    fn from(what: TimeoutArg) -> Self {
        match what {
            TimeoutArg::Cancel => OnTimeout::Cancel,
            TimeoutArg::Finish => OnTimeout::Finish,
            TimeoutArg::PostCopy => OnTimeout::PostCopy,
        }
    }
}

impl From<CompressionArg> for Compression {
    fn from(when: CompressionArg) -> Self {
        match when {
            CompressionArg::Auto => Compression::Auto,
            CompressionArg::Never => Compression::Never,
            CompressionArg::Always => Compression::Always,
        }
    }
}

impl Wanted {
    /// The same for the monitor.
    pub fn options(&self) -> Options {
        Options {
            limits: Limits {
                downtime: self.downtime,
                timeout: self.timeout,
                on_timeout: self.on_timeout.into(),
                auto_converge: !self.no_auto_converge,
            },
            streams: self.streams,
            bandwidth: self.bandwidth,
            compression: self.compression.into(),
            post_copy: self.post_copy,
            ..Options::default()
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 50ms, 90s, 5min"))
}

fn size(text: &str) -> Result<u64, String> {
    match quantity::whole(&Quantity(text.into())) {
        Ok(0) => Err("nothing would ever arrive".into()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
