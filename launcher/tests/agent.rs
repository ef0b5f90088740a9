//! The guest agent: Debian's own qemu-guest-agent, in a small Linux that is looked after with `nacelle`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use nacelle_launcher::agent::{FreezeStatus, Said};
use nacelle_launcher::http::api::{Freeze, Machine};
use nacelle_launcher::manage::client::Client;
use support::place::Place;
use support::{Bed, artefact};

/// More than the client's own, and than a slow machine needs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The machine's socket, for requests that wait for each other.
struct Asker {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Asker {
    fn said(&self) -> Said {
        self.runtime
            .block_on(self.client.get("/v1/machine/agent"))
            .unwrap()
    }

    /// Waits until the agent has said what is looked for.
    fn until(&self, what: &str, is: impl Fn(&Said) -> bool) -> Said {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            if is(&said) {
                return said;
            }
            assert!(Instant::now() < end, "{what}: {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn put(&self, path: &str, body: Option<&Freeze>) -> Machine {
        let path = format!("/v1/machine/{path}");
        self.runtime.block_on(self.client.long(&path, body)).unwrap()
    }
}

#[test]
fn what_it_says_is_known_and_what_only_it_can_do_is_done() {
    let bed = Bed::new();
    fs::copy(artefact("AGENT"), bed.path("agent.img")).unwrap();
    let place = Place::new(&bed, "ledger")
        .and_disk("agent", "persistentVolumeClaim: {claimName: agent}")
        .with("agent", &bed.path("agent.img"));
    let mut guest = place.run();
    guest.type_in("printf 'ID=small\\nPRETTY_NAME=\"A small Linux\"\\n' >/etc/os-release; hostname ledger\n");
    guest.type_in("mkdir /agent; mount -o ro /dev/vdb /agent; /agent/start; echo agent-started\n");
    guest.wait_for("\nagent-started");
    let asker = Asker {
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
        client: Client::new(&bed.path("run/nacelle"), "ledger").unwrap(),
    };

    let said = asker.until("all of it", |said| !said.fs_info.disks.is_empty());
    assert!(
        said.connected && said.guest_agent_version.starts_with("7."),
        "{said:?}"
    );
    assert!(
        said.supported_commands
            .iter()
            .any(|command| &*command.name == "guest-fsfreeze-freeze")
    );
    assert_eq!(said.os.pretty_name.as_deref(), Some("A small Linux"));
    assert_eq!(
        (said.os.machine.as_deref(), said.hostname.as_deref()),
        (Some("x86_64"), Some("ledger"))
    );
    assert_eq!(said.timezone.as_deref(), Some("UTC, 0"));
    assert_eq!(said.fs_freeze_status, Some(FreezeStatus::Thawed));
    let mounted = |point: &str| said.fs_info.disks.iter().any(|disk| &*disk.mount_point == point);
    assert!(mounted("/") && mounted("/agent"), "{:?}", said.fs_info);
    let lo = said
        .interfaces
        .iter()
        .find(|interface| &*interface.interface_name == "lo");
    assert!(lo.is_some(), "{:?}", said.interfaces);
    let (code, shown, log) = place.ask(&["status", "ledger"]);
    assert!(
        code == Some(0) && shown.contains("System:        A small Linux\n"),
        "{shown} {log}"
    );

    // Nothing is written while file systems are frozen, by command or for a time.
    let (code, _, log) = place.ask(&["freeze", "ledger", "--unfreeze-timeout", "0s"]);
    assert_eq!(code, Some(0), "{log}");
    guest.type_in("(echo note >/root/note; echo it is written) & sleep 1; echo still here\n");
    guest.wait_for("\nstill here");
    assert!(!guest.said.contains("\nit is written"), "{}", guest.said);
    let (code, _, log) = place.ask(&["unfreeze", "ledger"]);
    assert_eq!(code, Some(0), "{log}");
    guest.wait_for("it is written");
    let short = Freeze {
        unfreeze_timeout: Some("1s".into()),
    };
    asker.put("agent/freeze", Some(&short));
    asker.until("it is thawed in time", |said| {
        said.fs_freeze_status == Some(FreezeStatus::Thawed)
    });

    // An agent that was stopped is missed, and one that is started again is found.
    guest.type_in("kill $(cat /run/qemu-ga.pid); echo agent-stopped\n");
    guest.wait_for("\nagent-stopped");
    asker.until("nobody answers", |said| !said.connected);
    let (code, _, log) = place.ask(&["freeze", "ledger"]);
    assert!(
        code == Some(1) && log.contains("the guest agent is not connected"),
        "{log}"
    );
    guest.type_in("/agent/start; echo agent-again\n");
    guest.wait_for("\nagent-again");
    asker.until("it is found", |said| said.connected);

    let machine = asker.put("softreboot", None);
    assert_eq!(machine.resets, 1);
    assert!(!asker.said().connected);
    let (code, _, log) = place.ask(&["kill", "ledger"]);
    assert_eq!(code, Some(0), "{log}");
    guest.end();
}
