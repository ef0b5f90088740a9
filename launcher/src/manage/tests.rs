use clap::{Command as Clap, CommandFactory, FromArgMatches, Parser};
use tokio::io::AsyncReadExt;

use super::*;
use crate::driver::End;
use crate::testing::{COUNTER, PARROT, Served, guest_agent};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn parse(words: &str) -> Result<Command, clap::Error> {
    let command: Clap = Cli::command().no_binary_name(true);
    Ok(Cli::from_arg_matches(&command.try_get_matches_from(words.split(' '))?)?.command)
}

/// What a command prints, or its error.
async fn run(directory: &Path, words: &str) -> Result<String, String> {
    let mut out = Vec::new();
    let done = parse(words).unwrap().act(directory, &mut out).await;
    done.map(|()| String::from_utf8(out).unwrap())
        .map_err(|error| error.to_string())
}

#[test]
fn the_commands_are_well_formed_and_show_examples() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands_mut() {
        let name = command.get_name().to_owned();
        let help = command.render_help().to_string();
        assert!(help.contains(&format!("  nacelle {name}")), "{help}");
    }
    let error = parse("balloon ledger 256Mib").unwrap_err().to_string();
    assert!(error.contains("'256Mib' is not a quantity"), "{error}");
}

#[tokio::test]
async fn a_machine_is_listed_paused_resumed_and_killed() {
    let served = Served::start(COUNTER, |_| {});
    let here = served.directory.clone();
    let list = run(&here, "ls").await.unwrap();
    let pid = std::process::id();
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["ledger", "Running", "1", "16Mi"]);
    assert_eq!(row[5], pid.to_string());

    assert_eq!(run(&here, "pause ledger").await.unwrap(), "ledger: Paused\n");
    let status: Machine = serde_json::from_str(&run(&here, "status ledger -o json").await.unwrap()).unwrap();
    assert_eq!(status.state, crate::admit::State::Paused);
    assert_eq!(
        run(&here, "reset ledger").await.unwrap_err(),
        "machine ledger: the machine is paused: resume it first"
    );
    assert_eq!(run(&here, "resume ledger").await.unwrap(), "ledger: Running\n");
    assert_eq!(run(&here, "reset ledger").await.unwrap(), "ledger: Running\n");
    assert!(
        run(&here, "status ledger")
            .await
            .unwrap()
            .contains("Resets:    1\n")
    );
    assert!(
        run(&here, "stats ledger")
            .await
            .unwrap()
            .contains("Guest memory:")
    );
    assert_eq!(
        run(&here, "balloon ledger 1Mi").await.unwrap_err(),
        "machine ledger: there is no balloon in this machine"
    );
    assert_eq!(run(&here, "kill ledger").await.unwrap(), "ledger: Ended\n");
    assert!(matches!(served.end.await.unwrap(), End::Killed));
    assert_eq!(run(&here, "ls -o json").await.unwrap(), "[]\n");
}

#[tokio::test]
async fn what_the_agent_says_shows_and_its_file_systems_are_frozen() {
    let served = Served::with_agent(COUNTER, |_| {}, Some(guest_agent()));
    let here = served.directory.clone();
    let mut shown = String::new();
    while !shown.contains("Host name") {
        shown = run(&here, "status ledger").await.unwrap();
    }
    for line in [
        "System:        Debian 12\n",
        "Host name:     ledger\n",
        "Addresses:     10.0.2.2\n",
        "Guest agent:   7.2.22\n",
    ] {
        assert!(shown.contains(line), "{line:?} is not in {shown}");
    }
    assert_eq!(
        run(&here, "freeze ledger").await.unwrap(),
        "ledger: its file systems are frozen\n"
    );
    assert!(
        run(&here, "status ledger")
            .await
            .unwrap()
            .contains("frozen: nacelle unfreeze")
    );
    assert_eq!(
        run(&here, "unfreeze ledger").await.unwrap(),
        "ledger: its file systems take writes\n"
    );
    let error = run(&here, "freeze ledger --unfreeze-timeout soon")
        .await
        .unwrap_err();
    assert!(error.contains("write it as 5m0s"), "{error}");

    let bare = Served::start(COUNTER, |_| {});
    assert!(
        !run(&bare.directory, "status ledger")
            .await
            .unwrap()
            .contains("Guest agent")
    );
    assert_eq!(
        run(&bare.directory, "freeze ledger").await.unwrap_err(),
        "machine ledger: the guest agent is not connected: install qemu-guest-agent in the guest, and see that it runs"
    );
    assert_eq!(
        run(&bare.directory, "soft-reboot ledger").await.unwrap(),
        "ledger: Running\n"
    );
}

#[tokio::test]
async fn stop_returns_when_the_machine_has_ended() {
    let served = Served::start(PARROT, |_| {});
    let mut console = served.client.console().await.unwrap();
    console.read_exact(&mut [0]).await.unwrap();
    assert_eq!(
        run(&served.directory, "stop ledger").await.unwrap(),
        "ledger has ended\n"
    );
    assert!(matches!(served.end.await.unwrap(), End::PoweredOff));
}

#[tokio::test]
async fn a_guest_that_ignores_the_button_has_its_grace_period_and_no_longer() {
    let served = Served::start(COUNTER, |_| {});
    let stopping = run(&served.directory, "stop ledger --grace-period 3600 --no-wait").await;
    assert_eq!(stopping.unwrap(), "ledger: Stopping\n");
    let stopped = run(&served.directory, "stop ledger --grace-period 0").await;
    assert_eq!(stopped.unwrap(), "ledger has ended\n");
    assert!(matches!(served.end.await.unwrap(), End::GraceExpired));
}

#[tokio::test]
async fn what_does_not_run_is_an_error_that_says_so() {
    let home = tempfile::tempdir().unwrap();
    let here = home.path().join("nacelle");
    assert_eq!(
        run(&here, "ls").await.unwrap(),
        "NAME   STATE   VCPUS   MEMORY   UPTIME   PID\n"
    );
    let error = run(&here, "status ledger").await.unwrap_err();
    assert_eq!(error, "no machine named ledger runs here (see nacelle ls)");
    assert!(run(&here, "status ../ledger").await.is_err());
}
