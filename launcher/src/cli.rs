//! The command line.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use log::LevelFilter;
use nacelle_vmm::config::{DiskFormat, Transport};
use serde::{Deserialize, Serialize};

use crate::exit::HELP;
use crate::logging::Format;
use crate::manage::{self, Named};
use crate::migrate::address::Address;
use crate::migrate::tls::TlsArgs;
use crate::{explain, node, pod};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

/// Virtual machines from KubeVirt manifests, on a monitor of our own.
#[derive(Debug, Parser)]
#[command(name = "nacelle", version, styles = STYLES, after_help = HELP, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines on standard error look
    #[arg(
        long,
        global = true,
        env = "NACELLE_LOG",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub log: Format,
    /// Say more: once for what is done, twice for details
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Which log lines are wanted.
    pub fn level(&self) -> LevelFilter {
        match self.verbose {
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        }
    }
}

/// What `nacelle` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the machine of a manifest here, its console on this terminal
    Run(Box<RunArgs>),
    /// Check a manifest, fetch and unpack what its machine needs, and leave it at that: nacelle run has it then
    Prepare(Box<RunArgs>),
    /// Wait for a machine that another nacelle sends (nacelle migrate), and run it here
    Receive(Box<ReceiveArgs>),
    /// Go on with the machine of a snapshot (nacelle snapshot)
    Restore(RestoreArgs),
    /// What nacelle upgrade starts
    #[command(hide = true)]
    TakeOver,
    /// Look after running machines
    #[command(flatten)]
    Manage(manage::Command),
    /// Take over the console of a running machine; Ctrl-] leaves it, and the machine goes on
    Console(Named),
    /// What a launcher pod runs; see docs/pod.md
    #[command(subcommand)]
    Pod(pod::Command),
    /// Give a node's /dev/kvm and its like to the pods that ask for them
    Node(node::NodeArgs),
    /// Print which processor the guests of this host can be shown: models and features, for cpu.model and cpu.features
    Cpu {
        /// Write it to this file instead, in JSON, for the controller
        #[arg(long, value_name = "FILE", hide = true)]
        report: Option<PathBuf>,
    },
    /// Say what a machine of a cluster waits for, since when, and what to do
    Explain(explain::Arguments),
    /// Pull an image from its registry, or anew, and print its digest
    Pull {
        /// Its name, as registry.example/disks/debian:12
        image: String,
        /// OCI image layout to pull it into [default: nacelle/images in the user's data directory]
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// Print a shell's completion script
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page in roff (nacelle man | man -l -)
    Man,
}

impl Command {
    /// Whether a guest runs in this process.
    pub fn runs_a_machine(&self) -> bool {
        match self {
            Command::Run(_) | Command::Receive(_) | Command::Restore(_) | Command::TakeOver => true,
            Command::Pod(command) => matches!(command, pod::Command::Run { .. }),
            _ => false,
        }
    }
}

const RUN_EXAMPLES: &str = "\
Examples:
  nacelle run vm.yaml
      boot it and give its serial console; Ctrl-] stops it
  echo 'uname -a; poweroff -f' | nacelle run vm.yaml
      standard input is the console where it is no terminal; its end does not end the machine
  nacelle run vm.yaml --volume ledger-root=/srv/ledger.img
      the volume of the claim or DataVolume ledger-root is that file
  nacelle run vm.yaml --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0 root=/dev/vda1'
      boot this kernel, whatever the manifest says";

/// What `nacelle run` is told.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[command(after_long_help = format!("{RUN_EXAMPLES}\n\n{HELP}"), after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// A kubevirt.io/v1 VirtualMachine or VirtualMachineInstance, YAML or JSON; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Run it under this name instead of the manifest's
    #[arg(long)]
    pub name: Option<String>,
    /// OCI image layout that holds images, and into which they are pulled [default: nacelle/images in the user's
    /// data directory]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// What is behind a persistentVolumeClaim or dataVolume: an image file, a block device or a directory with a
    /// disk.img; may be repeated
    #[arg(long = "volume", value_name = "NAME=PATH[,format=raw|qcow2]", value_parser = volume)]
    pub volumes: Vec<VolumeMapping>,
    /// Connect the machine's interface to this tap device of the host; once for each interface, in order
    #[arg(long = "tap", value_name = "NAME")]
    pub taps: Vec<String>,
    /// Connect interfaces with the binding bridge to this bridge of the host
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// How the guest finds its virtio devices
    #[arg(long, value_enum, default_value_t = TransportArg::Pci)]
    pub transport: TransportArg,
    /// Boot this kernel (ELF or bzImage) instead of the manifest's
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Its arguments
    #[arg(
        long,
        value_name = "WORDS",
        requires = "kernel",
        default_value = "console=ttyS0 root=/dev/vda rw",
        allow_hyphen_values = true
    )]
    pub cmdline: String,
    /// Offer what the firmware finds on the disk in a menu on the serial line, for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with = "kernel")]
    pub boot_menu: u32,
    /// Guest memory that another process can have: nacelle upgrade passes it on then instead of copying it. The host
    /// joins its pages less
    #[arg(long)]
    pub shared_memory: bool,
    /// Device file of KVM
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub kvm: PathBuf,
}

const RECEIVE_EXAMPLES: &str = "\
Examples:
  nacelle receive vm.yaml --listen unix:/run/nacelle/in
      from another nacelle of this host
  nacelle receive vm.yaml --listen 0.0.0.0:4000 --volume ledger-root=/srv/ledger.img
      from another host, by TLS; the volume is the same storage as there
The manifest says what the machine is made of here, as for nacelle run; it must have the same processors, memory
and devices as there.";

/// What `nacelle receive` is told.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{RECEIVE_EXAMPLES}\n\n{HELP}"), after_help = RECEIVE_EXAMPLES)]
pub struct ReceiveArgs {
    /// Where to wait for it: HOST:PORT, by TLS, or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Address,
    /// Certificates.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// The machine.
    #[command(flatten)]
    pub run: RunArgs,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  nacelle restore /srv/snapshots/ledger
  nacelle restore /srv/snapshots/ledger --name copy    beside the one that it was taken of";

/// What `nacelle restore` is told.
#[derive(Args, Debug)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct RestoreArgs {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Run it under this name
    #[arg(long)]
    pub name: Option<String>,
    /// Let its guest wait for nacelle resume
    #[arg(long)]
    pub paused: bool,
}

/// `--transport`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum TransportArg {
    /// virtio-pci
    #[default]
    Pci,
    /// virtio-mmio: for kernels without PCI; at most 15 devices
    Mmio,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Transport {
        match transport {
            TransportArg::Pci => Transport::Pci,
            TransportArg::Mmio => Transport::Mmio,
        }
    }
}

/// `--volume`: what is behind a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMapping {
    /// Name of the claim or DataVolume.
    pub name: String,
    /// File, block device or directory.
    pub path: PathBuf,
    /// What is in it.
    pub format: DiskFormat,
}

fn volume(text: &str) -> Result<VolumeMapping, String> {
    let (name, rest) = text.split_once('=').ok_or("must be NAME=PATH")?;
    let (path, format) = match rest.rsplit_once(",format=") {
        None => (rest, DiskFormat::Raw),
        Some((path, "raw")) => (path, DiskFormat::Raw),
        Some((path, "qcow2")) => (path, DiskFormat::Qcow2),
        Some((_, other)) => return Err(format!("the format is raw or qcow2, not {other}")),
    };
    if name.is_empty() || path.is_empty() {
        return Err("must be NAME=PATH".into());
    }
    Ok(VolumeMapping {
        name: name.into(),
        path: path.into(),
        format,
    })
}

/// Writes the completion script for `shell`.
pub fn completion(shell: Shell, out: &mut dyn std::io::Write) {
    clap_complete::generate(shell, &mut Cli::command(), "nacelle", out);
}

/// Writes the manual page: the command, then its subcommands one after the other.
///
/// # Errors
/// When `out` cannot be written.
pub fn manual(out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let man = clap_mangen::Man::new(sub.clone().display_name(format!("nacelle {}", sub.get_name())));
        man.render_name_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        man.render_options_section(out)?;
        man.render_extra_section(out)?;
    }
    Ok(())
}

/// What `nacelle run WORDS` is told.
#[cfg(test)]
pub(crate) fn run_arguments(words: &[&str]) -> RunArgs {
    match Cli::parse_from(["nacelle", "run"].iter().chain(words)).command {
        Command::Run(arguments) => *arguments,
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn volumes_are_mapped_with_their_format() {
        let mapping = |text| volume(text).map(|v| (v.name, v.path.display().to_string(), v.format));
        let path = |path: &str, format| Ok(("a".to_owned(), path.to_owned(), format));
        assert_eq!(mapping("a=/x"), path("/x", DiskFormat::Raw));
        assert_eq!(mapping("a=/x,format=qcow2"), path("/x", DiskFormat::Qcow2));
        assert_eq!(mapping("a=/x=y,z"), path("/x=y,z", DiskFormat::Raw));
        assert_eq!(mapping("a"), Err("must be NAME=PATH".into()));
        assert_eq!(mapping("=x"), Err("must be NAME=PATH".into()));
        assert_eq!(
            mapping("a=x,format=vmdk"),
            Err("the format is raw or qcow2, not vmdk".into())
        );
    }

    #[test]
    fn the_manual_and_the_completion_know_every_command() {
        let (mut man, mut bash) = (Vec::new(), Vec::new());
        manual(&mut man).unwrap();
        completion(Shell::Bash, &mut bash);
        let (man, bash) = (String::from_utf8(man).unwrap(), String::from_utf8(bash).unwrap());
        // Roff would break a line at a plain one.
        let man = man.replace("\\-", "-");
        for command in Cli::command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(man.contains(&format!("nacelle {}", command.get_name())), "{man}");
            assert!(bash.contains(command.get_name()));
        }
    }
}
