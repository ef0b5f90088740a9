//! `nacelle-controller`: see `--help`.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use nacelle_controller::settings::Settings;
use nacelle_controller::{crd, explain, logging};

/// Virtual machines as pods: admission, subresources and reconcilers of kubevirt.io
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  nacelle-controller run --image registry/nacelle:1   in the cluster, or with KUBECONFIG beside it\n  nacelle-controller crds | kubectl apply --server-side -f -"
)]
struct Args {
    /// Say more; twice, everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve and reconcile until SIGTERM
    Run(Box<Settings>),
    /// Say what a machine waits for, since when, and what to do: the chain from the machine to its guest
    Explain(explain::Arguments),
    /// Print the CustomResourceDefinitions, as deploy/ has them
    Crds {
        /// Those of CDI that are served where CDI is not installed
        #[arg(long)]
        cdi: bool,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Command::Run(settings) => {
            logging::start(settings.log, args.verbose);
            runtime()?.block_on(nacelle_controller::run::run(*settings))
        }
        Command::Explain(arguments) => runtime()?.block_on(explain::run(&arguments)),
        Command::Crds { cdi } => {
            for crd in if cdi { crd::cdi()? } else { crd::all()? } {
                print!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
            Ok(())
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
