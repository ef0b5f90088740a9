//! `nacelle`: virtual machines from KubeVirt manifests.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use nacelle_launcher::cli::{self, Cli, Command};
use nacelle_launcher::exit::Chain;
use nacelle_launcher::manage::console;
use nacelle_launcher::storage::layout::Layout;
use nacelle_launcher::storage::{paths, pull};
use nacelle_launcher::{Error, Status, explain, logging, node, processor, run, upgrade};
use nacelle_vmm::sandbox;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.runs_a_machine()
        && let Err(error) = sandbox::close_inherited()
    {
        log::debug!("descriptors that were open stay so: {error}");
    }
    logging::start(cli.log, cli.level());
    let status = command(cli.command).unwrap_or_else(|error| {
        log::error!("{}", Chain(&error));
        error.status()
    });
    ExitCode::from(status as u8)
}

fn command(command: Command) -> Result<Status, Error> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Prepare(args) => run::prepare(&args).map(|()| Status::Done),
        Command::Receive(args) => run::receive(&args),
        Command::Restore(args) => run::restore(&args),
        Command::TakeOver => upgrade::take_over(),
        Command::Manage(command) => {
            let mut text = Vec::new();
            command.run(&mut text)?;
            print(|out| out.write_all(&text))
        }
        Command::Console(machine) => console::run(&machine.name).map(|()| Status::Done),
        Command::Pod(command) => command.run(),
        Command::Explain(arguments) => Err(explain::hand_over(&arguments)),
        Command::Node(args) => node::run(&args).map(|()| Status::Done),
        Command::Cpu { report: None } => {
            let text = processor::text(&processor::host()?);
            print(|out| out.write_all(text.as_bytes()))
        }
        Command::Cpu { report: Some(file) } => processor::report(&file).map(|()| Status::Done),
        Command::Pull { image, images } => {
            let layout = Layout::new(paths::images(images.as_deref())?);
            let digest = pull::fetch_image(&layout, &image)?;
            print(|out| writeln!(out, "{digest}"))
        }
        Command::Completion { shell } => print(|out| {
            cli::completion(shell, out);
            Ok(())
        }),
        Command::Man => print(cli::manual),
    }
}

/// Has `write` make a text and prints it. A reader who has seen enough is no failure.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Status, Error> {
    let mut text = Vec::new();
    let result = write(&mut text).and_then(|()| io::stdout().write_all(&text));
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("print")(error)),
        _ => Ok(Status::Done),
    }
}
