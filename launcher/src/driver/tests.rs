use std::io::{Read, Write};
use std::time::{Duration, Instant};

use nacelle_vmm::config::{CacheMode, DiskConfig, DiskFormat, ErrorPolicy};

use super::*;
use crate::testing::{COUNTER, PARROT, guest};

const LONG: Duration = Duration::from_secs(3600);

/// A machine that runs `code`, seen by a test that waits for what it says.
struct Scene {
    driver: Driver,
    console: UnixStream,
    ended: oneshot::Receiver<End>,
    _home: tempfile::TempDir,
}

impl Scene {
    fn of(code: &[u8], options: Options) -> Scene {
        let home = tempfile::tempdir().unwrap();
        let Started {
            driver,
            console,
            ended,
            ..
        } = start(guest(home.path(), code), options).unwrap();
        Scene {
            driver,
            console,
            ended,
            _home: home,
        }
    }

    fn ask(&self, command: Command) -> Result<Answer, Refused> {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(self.driver.ask(command))
    }

    /// How often it was reset, by a driver that has done what it had in hand: the guest may be heard before.
    fn resets(&self) -> u32 {
        self.ask(Command::Stats).unwrap();
        self.driver.status().resets
    }

    fn hear(&mut self, words: &str) {
        let mut heard = vec![0; words.len()];
        self.console.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), words);
    }

    fn say(&mut self, words: &str) {
        self.console.write_all(words.as_bytes()).unwrap();
    }

    /// All that the guest said and nobody heard.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.console.set_nonblocking(true).unwrap();
        let _ = self.console.read_to_end(&mut rest);
        self.console.set_nonblocking(false).unwrap();
        rest
    }

    fn end(self) -> End {
        self.ended.blocking_recv().unwrap()
    }
}

#[test]
fn a_paused_guest_says_nothing_and_goes_on_where_it_was() {
    let mut scene = Scene::of(COUNTER, Options::default());
    scene.hear("abcdef");
    scene.ask(Command::Pause).unwrap();
    assert_eq!(scene.driver.status().state, State::Paused);
    scene.ask(Command::Pause).unwrap();
    // What the I/O thread had in hand arrives, then nothing more, for as long as one cares to listen.
    let mut said = b"abcdef".to_vec();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let more = scene.rest();
        if more.is_empty() {
            break;
        }
        said.extend(more);
    }
    scene.ask(Command::Resume).unwrap();
    let mut more = vec![0; 30];
    scene.console.read_exact(&mut more).unwrap();
    said.extend(more);
    for (index, &byte) in said.iter().enumerate() {
        assert_eq!(byte, b'a' + (index % 26) as u8, "at {index}");
    }
    scene.ask(Command::Kill).unwrap();
    assert!(matches!(scene.end(), End::Killed));
}

#[test]
fn stop_is_the_power_button_and_a_guest_that_listens_is_not_killed() {
    let mut scene = Scene::of(PARROT, Options::default());
    scene.hear(">");
    scene.ask(Command::Stop { grace: LONG }).unwrap();
    assert!(matches!(scene.end(), End::PoweredOff));
}

#[test]
fn a_guest_that_does_not_listen_is_killed_when_its_time_is_over() {
    let mut scene = Scene::of(COUNTER, Options::default());
    scene.hear("abc");
    scene.ask(Command::Stop { grace: LONG }).unwrap();
    assert_eq!(scene.driver.status().state, State::Stopping);
    let refused = scene.ask(Command::Pause).unwrap_err();
    assert!(matches!(refused, Refused::Denied(Denied::Stopping)));
    // A second stop shortens the time, and cannot make it longer.
    let grace = Duration::from_millis(10);
    scene.ask(Command::Stop { grace }).unwrap();
    let _ = scene.ask(Command::Stop { grace: LONG });
    assert!(matches!(scene.end(), End::GraceExpired));
}

#[test]
fn a_paused_guest_that_is_stopped_goes_on_to_power_off() {
    let mut scene = Scene::of(PARROT, Options::default());
    scene.hear(">");
    scene.ask(Command::Pause).unwrap();
    scene.ask(Command::Stop { grace: LONG }).unwrap();
    assert!(matches!(scene.end(), End::PoweredOff));
}

#[test]
fn a_guest_that_resets_begins_anew() {
    let mut scene = Scene::of(PARROT, Options::default());
    scene.say("xR");
    scene.hear(">xR>");
    assert_eq!(scene.resets(), 1);
    scene.ask(Command::Reset).unwrap();
    scene.hear(">");
    scene.say("yP");
    scene.hear("yP");
    let driver = scene.driver.clone();
    assert!(matches!(scene.end(), End::PoweredOff));
    let ended = Status {
        state: State::Ended,
        resets: 2,
        panicked: false,
        disk_error: None,
        plugged: Vec::new(),
    };
    assert_eq!(driver.status(), ended);
}

#[test]
fn a_guest_that_powers_off_to_reboot_begins_anew() {
    let mut scene = Scene::of(PARROT, Options::default());
    scene.hear(">");
    scene.ask(Command::Reboot { within: LONG }).unwrap();
    scene.hear(">");
    assert_eq!(scene.resets(), 1);
    // What it does by itself afterwards is meant as it is.
    scene.say("P");
    assert!(matches!(scene.end(), End::PoweredOff));

    let mut scene = Scene::of(COUNTER, Options::default());
    scene.hear("abc");
    scene.ask(Command::Reboot { within: LONG }).unwrap();
    let grace = Duration::from_millis(10);
    scene.ask(Command::Stop { grace }).unwrap();
    assert!(matches!(scene.end(), End::GraceExpired), "who is told to go goes");
}

#[test]
fn a_reset_may_be_the_end() {
    let options = Options {
        on_reset: OnReset::End,
        ..Default::default()
    };
    let mut scene = Scene::of(PARROT, options);
    scene.say("R");
    assert!(matches!(scene.end(), End::Reset));
}

#[test]
fn a_machine_may_begin_paused() {
    let options = Options {
        paused: true,
        ..Default::default()
    };
    let mut scene = Scene::of(PARROT, options);
    scene.ask(Command::Pause).unwrap();
    assert_eq!(scene.driver.status().state, State::Paused);
    assert!(scene.rest().is_empty());
    scene.ask(Command::Resume).unwrap();
    scene.hear(">");

    let scene = Scene::of(PARROT, options);
    scene.ask(Command::Stop { grace: LONG }).unwrap();
    assert!(matches!(scene.end(), End::PoweredOff));
}

#[test]
fn what_ends_a_guest_is_told() {
    let mut scene = Scene::of(PARROT, Options::default());
    scene.say("!");
    scene.hear(">!");
    scene.say("x");
    scene.hear("x");
    // The guest's next word may overtake the notice on its way through the driver's thread.
    let until = Instant::now() + Duration::from_secs(60);
    while !scene.driver.status().panicked {
        assert!(Instant::now() < until, "nobody was told of the panic");
        std::thread::sleep(Duration::from_millis(5));
    }
    scene.say("F");
    let driver = scene.driver.clone();
    let End::Failed(error) = scene.end() else {
        panic!("it did not fail");
    };
    assert!(error.to_string().starts_with("vCPU 0 stopped: "), "{error}");
    assert_eq!(driver.status().state, State::Ended);
}

#[test]
fn an_ended_machine_says_so() {
    let scene = Scene::of(COUNTER, Options::default());
    scene.ask(Command::Kill).unwrap();
    for command in [Command::Kill, Command::Stats, Command::Pause] {
        let refused = scene.ask(command).unwrap_err();
        assert!(matches!(refused, Refused::Denied(Denied::Ended)), "{refused}");
    }
}

#[test]
fn without_a_balloon_there_is_no_balloon() {
    let scene = Scene::of(COUNTER, Options::default());
    let refused = scene.ask(Command::Balloon { bytes: 1 << 20 }).unwrap_err();
    let Refused::Failed(error) = refused else {
        panic!("{refused}");
    };
    assert_eq!(error.to_string(), "there is no balloon in this machine");
}

#[test]
fn a_disk_that_fails_on_the_way_stops_the_machine_where_it_stays() {
    use std::os::unix::net::UnixListener;
    let scene = Scene::of(COUNTER, Options::default());
    let at = scene._home.path().join("in");
    // Somebody who takes the connection and says nothing.
    let silent = UnixListener::bind(&at).unwrap();
    let plan = crate::migrate::Plan {
        to: format!("unix:{}", at.display()).parse().unwrap(),
        tls: None,
        options: migrate::Options::default(),
        copied: Vec::new(),
    };
    let driver = scene.driver.clone();
    let moving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(driver.migrate(plan))
    });
    let _connection = silent.accept().unwrap();
    let error = std::io::Error::from_raw_os_error(28);
    let id = "disk-root".to_owned();
    let failed = VmEvent::DiskFailed { id, error };
    scene.driver.mailbox.send(Message::Event(failed)).unwrap();
    // It is known at once; the machine goes on, as it may go on elsewhere.
    scene.ask(Command::Stats).unwrap();
    let status = scene.driver.status();
    assert_eq!(status.state, State::Migrating);
    assert_eq!(
        status.disk_error.as_deref(),
        Some("disk root: No space left on device (os error 28)")
    );
    scene.ask(Command::CancelMigration).unwrap();
    assert!(moving.join().unwrap().is_err());
    scene.ask(Command::Stats).unwrap();
    assert_eq!(scene.driver.status().state, State::Paused);
    scene.ask(Command::Resume).unwrap();
    let status = scene.driver.status();
    assert_eq!((status.state, status.disk_error), (State::Running, None));
}

#[test]
fn a_disk_comes_once_and_leaves_with_a_reset_and_nothing_is_moved_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let mut config = guest(home.path(), COUNTER);
    config.transport = nacelle_vmm::config::Transport::Pci;
    let started = start(config, Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let driver = started.driver.clone();
    let plug = || Plug {
        name: "data".into(),
        config: DiskConfig {
            path: "data".into(),
            format: DiskFormat::Raw,
            read_only: false,
            ephemeral: false,
            local: false,
            cache: CacheMode::WriteBack,
            serial: String::new(),
            queues: 1,
            block_size: None,
            discard_granularity: None,
            io: Default::default(),
            shared: false,
            limit: None,
            on_error: ErrorPolicy::Stop,
        },
        files: vec![{
            let file = tempfile::tempfile().unwrap();
            file.set_len(4096).unwrap();
            file
        }],
    };
    runtime.block_on(driver.attach(plug())).unwrap();
    runtime.block_on(driver.attach(plug())).unwrap();
    let data = |leaving| {
        let name = "data".into();
        vec![Plugged { name, leaving }]
    };
    assert_eq!(driver.status().plugged, data(false));
    let saving = Saving {
        directory: home.path().join("snapshot"),
        incremental: false,
        track: false,
        then: Then::Continue,
    };
    let refused = runtime.block_on(driver.snapshot(saving)).unwrap_err();
    assert!(matches!(refused, Refused::Denied(Denied::Plugged)));

    runtime.block_on(driver.detach("data".into())).unwrap();
    assert_eq!(driver.status().plugged, data(true));
    let refused = runtime.block_on(driver.attach(plug())).unwrap_err();
    assert!(matches!(refused, Refused::Denied(Denied::Leaving)));
    // This guest will never let go by itself.
    runtime.block_on(driver.ask(Command::Reset)).unwrap();
    while !driver.status().plugged.is_empty() {
        runtime.block_on(driver.ask(Command::Stats)).unwrap();
    }
    let refused = runtime.block_on(driver.detach("data".into())).unwrap_err();
    assert!(matches!(
        refused,
        Refused::Failed(nacelle_vmm::Error::NotFound(_))
    ));
    runtime.block_on(driver.attach(plug())).unwrap();
    runtime.block_on(driver.ask(Command::Kill)).unwrap();
}
