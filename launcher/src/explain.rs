//! `nacelle explain`: another program knows clusters, so that this one, of which there is one for each machine, stays small.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, ValueEnum};

use crate::Error;

/// The program that does it.
const PROGRAM: &str = "nacelle-controller";

const EXAMPLES: &str = "\
Examples:
  nacelle explain web                      the machine of the namespace that kubectl uses
  nacelle explain shop/web --output json   for programs
The cluster is kubectl's (KUBECONFIG), or in a pod that which it runs in. nacelle-controller does it: it is beside this
program, or found by PATH.";

/// What `nacelle explain` is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The machine; an instance that no machine made has its own name
    #[arg(value_name = "[NAMESPACE/]NAME")]
    machine: String,
    /// How it is shown
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How an explanation is shown.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Becomes the other program; why that cannot be.
pub fn hand_over(arguments: &Arguments) -> Error {
    let beside = env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    let program = beside.filter(|program| program.exists());
    let program = program.unwrap_or_else(|| PathBuf::from(PROGRAM));
    let output = match arguments.output {
        Output::Text => "text",
        Output::Json => "json",
    };
    let failed = Command::new(&program)
        .args(["explain", "--output", output, "--", &arguments.machine])
        .exec();
    Error::file("run", &program)(failed)
}
