//! `nacelle-controller`: see `--help`.
#![forbid(unsafe_code)]

mod logging;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nacelle_controller::crd;
use nacelle_controller::settings::Settings;

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
    Run(Settings),
    /// Print the CustomResourceDefinitions, as deploy/ has them
    Crds,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Command::Run(settings) => {
            logging::start(args.verbose);
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(nacelle_controller::run::run(settings))
        }
        Command::Crds => {
            for crd in crd::all()? {
                print!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
            Ok(())
        }
    }
}
