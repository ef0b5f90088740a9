//! The conversation, with an agent that the test is.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep, timeout};

use super::*;
use crate::admit::State;
use crate::testing::answer_as_agent;

const HOUR: Duration = Duration::from_secs(3600);

/// The guest's side.
struct Peer {
    hears: BufReader<OwnedReadHalf>,
    says: OwnedWriteHalf,
    /// What was heard of a line.
    line: Vec<u8>,
    frozen: bool,
}

impl Peer {
    /// The next command, whatever time it takes to come.
    async fn hear(&mut self) -> (String, Value) {
        self.hears.read_until(b'\n', &mut self.line).await.unwrap();
        let line = std::mem::take(&mut self.line);
        let begin = usize::from(line[0] == 0xff);
        let mut request: Value = serde_json::from_slice(&line[begin..]).unwrap();
        let name = request["execute"].as_str().unwrap().to_owned();
        (name, request["arguments"].take())
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.says.write_all(bytes).await.unwrap();
    }

    /// Answers as an agent that is in order; gives the command.
    async fn answer(&mut self) -> String {
        let (name, arguments) = self.hear().await;
        self.reply(&name, &arguments).await;
        name
    }

    async fn reply(&mut self, name: &str, arguments: &Value) {
        let answer = answer_as_agent(name, arguments, &mut self.frozen);
        self.say(&answer).await;
    }

    /// Answers until `name` is asked, which it does not answer.
    async fn until(&mut self, name: &str) -> Value {
        loop {
            let (asked, arguments) = self.hear().await;
            if asked == name {
                return arguments;
            }
            self.reply(&asked, &arguments).await;
        }
    }

    /// Answers until `name` is answered too.
    async fn through(&mut self, name: &str) {
        while self.answer().await != name {}
    }

    /// Answers until this is done.
    async fn meanwhile<T>(&mut self, mut task: JoinHandle<T>) -> T {
        loop {
            tokio::select! {
                biased;
                done = &mut task => return done.unwrap(),
                _ = self.answer() => {}
            }
        }
    }

    /// Answers all that is asked in this time.
    async fn goes_on(&mut self, time: Duration) -> Vec<String> {
        let (mut heard, end) = (Vec::new(), Instant::now() + time);
        while let Ok(name) = timeout(end - Instant::now(), self.answer()).await {
            heard.push(name);
        }
        heard
    }
}

/// A machine that runs, the way to its agent, and the agent.
fn bed() -> (Agent, Peer, watch::Sender<Status>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (hears, says) = tokio::net::UnixStream::from_std(theirs).unwrap().into_split();
    let (machine, status) = watch::channel(Status {
        state: State::Running,
        resets: 0,
        panicked: false,
        disk_error: None,
        plugged: Vec::new(),
    });
    let peer = Peer {
        hears: BufReader::new(hears),
        says,
        line: Vec::new(),
        frozen: false,
    };
    (Agent::of(Some(ours), status).unwrap(), peer, machine)
}

/// The same, when all is known of the guest.
async fn connected() -> (Agent, Peer, watch::Sender<Status>) {
    let (agent, mut peer, machine) = bed();
    peer.through("guest-get-fsinfo").await;
    while agent.said().fs_info.disks.is_empty() {
        tokio::task::yield_now().await;
    }
    (agent, peer, machine)
}

fn wish(agent: &Agent, wish: Wish) -> JoinHandle<Result<(), Refused>> {
    let agent = agent.clone();
    tokio::spawn(async move {
        match wish {
            Wish::Freeze(time) => agent.freeze(time).await,
            Wish::Unfreeze => agent.unfreeze().await,
            Wish::Reboot => agent.reboot().await,
            Wish::Authorize { user, keys } => agent.authorize(&user, &keys).await,
            Wish::SetPassword { user, password } => agent.set_password(&user, &password).await,
            Wish::Ping => agent.ping().await,
            Wish::Exec(command, time) => agent.exec(command, time).await,
        }
    })
}

fn reset(machine: &watch::Sender<Status>) {
    machine.send_modify(|status| status.resets += 1);
}

fn enter(machine: &watch::Sender<Status>, state: State) {
    machine.send_modify(|status| status.state = state);
}

#[tokio::test(start_paused = true)]
async fn what_it_says_is_known_and_asked_again() {
    let (agent, mut peer, _machine) = bed();
    assert_eq!(agent.said(), Said::default());
    peer.until("guest-get-host-name").await;
    let first = agent.said();
    assert!(first.connected && first.hostname.is_none());
    assert_eq!(
        (first.os.id.as_deref(), &*first.guest_agent_version),
        (Some("debian"), "7.2.22")
    );
    peer.reply("guest-get-host-name", &Value::Null).await;
    peer.through("guest-get-fsinfo").await;
    let heard = peer.goes_on(Duration::from_secs(125)).await;
    let count = |name: &str| heard.iter().filter(|heard| *heard == name).count();
    assert_eq!(count("guest-network-get-interfaces"), 12);
    assert_eq!(
        (
            count("guest-get-users"),
            count("guest-get-fsinfo"),
            count("guest-info")
        ),
        (4, 2, 0)
    );
    let said = agent.said();
    assert_eq!(said.hostname.as_deref(), Some("ledger"));
    assert_eq!(said.timezone.as_deref(), Some("UTC, 0"));
    assert_eq!(
        (&*said.user_list[0].user_name, &*said.fs_info.disks[0].mount_point),
        ("root", "/")
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_of_who_is_not_there_or_may_not() {
    let (agent, mut peer, machine) = bed();
    assert!(matches!(agent.reboot().await, Err(Refused::NotConnected)));
    let none = Agent::of(None, machine.subscribe()).unwrap();
    assert!(matches!(none.freeze(None).await, Err(Refused::NotConnected)));
    peer.through("guest-get-fsinfo").await;
    for (state, denied) in [
        (State::Paused, Denied::Paused),
        (State::Stopping, Denied::Stopping),
        (State::Migrating, Denied::Migrating),
        (State::Saving, Denied::Saving),
        (State::HandedOver, Denied::HandedOver),
    ] {
        enter(&machine, state);
        for refused in [agent.freeze(None).await, agent.reboot().await] {
            assert!(
                matches!(refused, Err(Refused::Denied(why)) if why == denied),
                "{state:?}: {refused:?}"
            );
        }
    }
    enter(&machine, State::Ended);
    sleep(Duration::from_secs(1)).await;
    assert!(matches!(
        agent.unfreeze().await,
        Err(Refused::Denied(Denied::Ended))
    ));
    assert!(!agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_is_greeted_now_and_then() {
    let (agent, mut peer, _machine) = bed();
    let (mut greeted, end) = (Vec::new(), Instant::now() + HOUR);
    while let Ok((name, arguments)) = timeout(end - Instant::now(), peer.hear()).await {
        assert_eq!(name, "guest-sync-delimited");
        greeted.push(arguments["id"].clone());
    }
    assert!((50..70).contains(&greeted.len()), "{}", greeted.len());
    assert!(!agent.said().connected);
    // It answers all of them when it comes to it; only the last one counts.
    for id in greeted {
        peer.say(b"\0garbage\n").await;
        peer.say(b"\xff").await;
        peer.say(format!("{{\"return\": {id}}}\n").as_bytes()).await;
    }
    peer.through("guest-get-osinfo").await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_silent_once_is_not_connected_any_more() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(&agent, Wish::Unfreeze);
    peer.until("guest-fsfreeze-thaw").await;
    assert!(matches!(
        asked.await.unwrap(),
        Err(Refused::Silent("guest-fsfreeze-thaw"))
    ));
    assert_eq!(peer.hear().await.0, "guest-sync-delimited");
    assert_eq!(agent.said(), Said::default());
    assert!(matches!(agent.unfreeze().await, Err(Refused::NotConnected)));
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_answered_with_a_pause() {
    for nonsense in ["what?\n", "{\"return\"\n", "{}\n", "\u{0}\n"] {
        let (agent, mut peer, _machine) = connected().await;
        let asked = wish(&agent, Wish::Unfreeze);
        peer.until("guest-fsfreeze-thaw").await;
        peer.say(nonsense.as_bytes()).await;
        assert!(matches!(
            asked.await.unwrap(),
            Err(Refused::Nonsense("guest-fsfreeze-thaw"))
        ));
        // Who is in order at first, and then talks nonsense, is heard ever less.
        let begun = Instant::now();
        for _ in 0..8 {
            peer.until("guest-get-osinfo").await;
            peer.say(nonsense.as_bytes()).await;
        }
        assert!(
            begun.elapsed() > Duration::from_secs(1 + 2 + 4 + 8 + 16 + 32 + 60),
            "{:?}",
            begun.elapsed()
        );
    }
    // An answer to nothing is nonsense, too.
    let (agent, mut peer, _machine) = connected().await;
    peer.until("guest-fsfreeze-status").await;
    peer.say(b"{\"return\": \"thawed\"}\n{\"return\": 7}\n").await;
    assert_eq!(peer.hear().await.0, "guest-sync-delimited");
    assert!(!agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_read_with_pauses_and_never_kept() {
    for line in ["x".repeat(4096), "{\"return\": 1}\n".repeat(300)] {
        let (agent, peer, _machine) = bed();
        let Peer { mut says, .. } = peer;
        let (count, counted) = watch::channel(0usize);
        tokio::spawn(async move {
            while says.write_all(line.as_bytes()).await.is_ok() {
                count.send_modify(|count| *count += line.len());
            }
        });
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            sleep(Duration::from_secs(1)).await;
        }
        // Six turns: at once, and after 1, 2, 4, 8, 16, 32 s.
        let read = *counted.borrow();
        assert!((4 << 20..40 << 20).contains(&read), "{read}");
        assert!(!agent.said().connected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_end_is_given_up() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(&agent, Wish::Unfreeze);
    peer.until("guest-fsfreeze-thaw").await;
    let Peer {
        mut says, mut hears, ..
    } = peer;
    tokio::spawn(async move { while says.write_all(&[b'['; 4096]).await.is_ok() {} });
    assert!(matches!(asked.await.unwrap(), Err(Refused::Nonsense(_))));
    let mut line = Vec::new();
    hears.read_until(b'\n', &mut line).await.unwrap();
    assert_eq!(line[0], 0xff);
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_noticed_while_a_call_runs() {
    let (agent, mut peer, machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(None));
    peer.until("guest-fsfreeze-freeze").await;
    let begun = Instant::now();
    reset(&machine);
    assert!(matches!(asked.await.unwrap(), Err(Refused::Reset)));
    assert_eq!(peer.hear().await.0, "guest-sync-delimited");
    assert!(begun.elapsed() < Duration::from_millis(10));
    // While it is being greeted, too.
    reset(&machine);
    assert_eq!(peer.hear().await.0, "guest-sync-delimited");
    assert!(begun.elapsed() < Duration::from_millis(20));
    assert!(!agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn a_call_has_the_time_that_the_guest_runs() {
    let (agent, mut peer, machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(None));
    peer.until("guest-fsfreeze-freeze").await;
    sleep(Duration::from_secs(100)).await;
    enter(&machine, State::Paused);
    sleep(HOUR).await;
    enter(&machine, State::Running);
    sleep(Duration::from_secs(15)).await;
    assert!(!asked.is_finished());
    peer.reply("guest-fsfreeze-freeze", &Value::Null).await;
    assert!(asked.await.unwrap().is_ok());
    peer.goes_on(Duration::from_secs(5)).await;
    // Nobody is asked anything while it stands still.
    enter(&machine, State::Paused);
    assert!(timeout(HOUR, peer.hear()).await.is_err());
    assert!(agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn what_is_frozen_is_thawed_in_time_and_asked_little_meanwhile() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(Some(Duration::from_secs(100))));
    peer.through("guest-fsfreeze-freeze").await;
    asked.await.unwrap().unwrap();
    assert_eq!(agent.said().fs_freeze_status, Some(FreezeStatus::Frozen));
    let meanwhile = peer.goes_on(Duration::from_secs(60)).await;
    let little = |name: &String| ["guest-ping", "guest-fsfreeze-status"].contains(&name.as_str());
    assert!(
        meanwhile.len() > 4 && meanwhile.iter().all(little),
        "{meanwhile:?}"
    );
    // Asked again, the time begins again.
    let again = wish(&agent, Wish::Freeze(Some(Duration::from_secs(100))));
    peer.meanwhile(again).await.unwrap();
    let begun = Instant::now();
    peer.through("guest-fsfreeze-thaw").await;
    let took = begun.elapsed().as_secs();
    assert!((99..102).contains(&took), "{took}");
    peer.goes_on(Duration::from_secs(30)).await;
    assert_eq!(agent.said().fs_freeze_status, Some(FreezeStatus::Thawed));
    assert_eq!(agent.said().hostname.as_deref(), Some("ledger"));

    let asked = wish(&agent, Wish::Freeze(Some(HOUR)));
    peer.through("guest-fsfreeze-freeze").await;
    asked.await.unwrap().unwrap();
    let asked = wish(&agent, Wish::Unfreeze);
    peer.through("guest-fsfreeze-thaw").await;
    asked.await.unwrap().unwrap();
    assert!(
        !peer
            .goes_on(HOUR * 2)
            .await
            .contains(&"guest-fsfreeze-thaw".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_to_stay_frozen_stays_so_when_the_conversation_begins_anew() {
    let thaw = "guest-fsfreeze-thaw".to_owned();
    let (agent, mut peer, machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(None));
    peer.through("guest-fsfreeze-freeze").await;
    asked.await.unwrap().unwrap();
    peer.until("guest-ping").await;
    assert!(!peer.goes_on(HOUR).await.contains(&thaw));
    assert_eq!(agent.said().fs_freeze_status, Some(FreezeStatus::Frozen));

    // What somebody else froze does not stay so.
    reset(&machine);
    let begun = Instant::now();
    peer.through(&thaw).await;
    assert!(begun.elapsed() >= UNFREEZE && begun.elapsed() < UNFREEZE + Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_to_power_off_is_thawed() {
    let (agent, mut peer, machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(None));
    peer.through("guest-fsfreeze-freeze").await;
    asked.await.unwrap().unwrap();
    // While it is asked something else, too.
    peer.until("guest-ping").await;
    enter(&machine, State::Stopping);
    sleep(Duration::from_secs(1)).await;
    peer.reply("guest-ping", &Value::Null).await;
    let begun = Instant::now();
    peer.through("guest-fsfreeze-thaw").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(
        !peer
            .goes_on(HOUR)
            .await
            .contains(&"guest-fsfreeze-thaw".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn keys_replace_those_that_a_user_had_and_a_password_goes_as_base64() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(
        &agent,
        Wish::Authorize {
            user: "ann".into(),
            keys: vec!["ssh-ed25519 A".into()],
        },
    );
    let arguments = peer.until("guest-ssh-add-authorized-keys").await;
    assert_eq!(
        arguments,
        json!({"username": "ann", "keys": ["ssh-ed25519 A"], "reset": true})
    );
    peer.say(b"{\"return\": {}}\n").await;
    asked.await.unwrap().unwrap();
    let asked = wish(
        &agent,
        Wish::SetPassword {
            user: "ann".into(),
            password: b"geheim".to_vec(),
        },
    );
    let arguments = peer.until("guest-set-user-password").await;
    assert_eq!(
        arguments,
        json!({"username": "ann", "password": "Z2VoZWlt", "crypted": false})
    );
    peer.say(b"{\"error\": {\"desc\": \"no such user\"}}\n").await;
    let refused = asked.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("no such user"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_command_in_the_guest_is_waited_for_as_long_as_it_may_take() {
    let (agent, mut peer, _machine) = connected().await;
    let run = |program: &str| {
        let time = Duration::from_secs(3);
        wish(&agent, Wish::Exec(vec![program.into(), "-x".into()], time))
    };
    let well = run("true");
    let arguments = peer.until("guest-exec").await;
    assert_eq!(
        arguments,
        json!({"path": "true", "arg": ["-x"], "capture-output": false})
    );
    peer.reply("guest-exec", &arguments).await;
    peer.meanwhile(well).await.unwrap();
    let refused = peer.meanwhile(run("false")).await.unwrap_err();
    assert!(refused.to_string().contains("ended with status 1"), "{refused}");
    let begun = Instant::now();
    let refused = peer.meanwhile(run("sleep")).await.unwrap_err();
    assert!(refused.to_string().contains("not ended in time"), "{refused}");
    assert!((3..4).contains(&begun.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_done() {
    let (agent, mut peer, _machine) = connected().await;
    let first = wish(&agent, Wish::Unfreeze);
    peer.until("guest-fsfreeze-thaw").await;
    let given_up = timeout(Duration::from_secs(5), agent.freeze(None)).await;
    assert!(given_up.is_err());
    peer.reply("guest-fsfreeze-thaw", &Value::Null).await;
    first.await.unwrap().unwrap();
    assert!(
        !peer
            .goes_on(HOUR)
            .await
            .contains(&"guest-fsfreeze-freeze".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_freeze_whose_answer_does_not_come_is_thawed_all_the_same() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(Some(Duration::from_secs(20))));
    peer.until("guest-fsfreeze-freeze").await;
    peer.frozen = true;
    assert!(matches!(asked.await.unwrap(), Err(Refused::Silent(_))));
    peer.through("guest-fsfreeze-thaw").await;
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_is_declined_says_why() {
    let (agent, mut peer, _machine) = connected().await;
    let asked = wish(&agent, Wish::Freeze(None));
    peer.until("guest-fsfreeze-freeze").await;
    peer.say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to freeze /\"}}\n")
        .await;
    assert_eq!(peer.answer().await, "guest-fsfreeze-status");
    assert_eq!(
        asked.await.unwrap().unwrap_err().to_string(),
        "the guest agent refused guest-fsfreeze-freeze: failed to freeze /"
    );
    assert!(agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_is_done_when_the_machine_is_reset() {
    let (agent, mut peer, machine) = connected().await;
    let asked = wish(&agent, Wish::Reboot);
    assert_eq!(peer.until("guest-shutdown").await, json!({"mode": "reboot"}));
    sleep(Duration::from_secs(30)).await;
    assert!(!asked.is_finished());
    reset(&machine);
    asked.await.unwrap().unwrap();
    peer.through("guest-get-fsinfo").await;

    // Silence is not.
    let asked = wish(&agent, Wish::Reboot);
    peer.until("guest-shutdown").await;
    let begun = Instant::now();
    assert!(matches!(
        asked.await.unwrap(),
        Err(Refused::Silent("guest-shutdown"))
    ));
    assert!(begun.elapsed() < Duration::from_secs(45));
    peer.through("guest-get-fsinfo").await;

    // Nor is a promise.
    let asked = wish(&agent, Wish::Reboot);
    peer.until("guest-shutdown").await;
    peer.say(b"{\"return\": {}}\n").await;
    assert!(matches!(
        asked.await.unwrap(),
        Err(Refused::Silent("guest-shutdown"))
    ));
    peer.through("guest-get-fsinfo").await;

    // What is frozen is thawed for it; then it is declined.
    let frozen = wish(&agent, Wish::Freeze(None));
    peer.through("guest-fsfreeze-freeze").await;
    frozen.await.unwrap().unwrap();
    let asked = wish(&agent, Wish::Reboot);
    peer.through("guest-fsfreeze-thaw").await;
    peer.through("guest-shutdown").await;
    assert!(matches!(asked.await.unwrap(), Err(Refused::Declined { .. })));

    // One that ends the machine is one.
    let asked = wish(&agent, Wish::Reboot);
    peer.until("guest-shutdown").await;
    enter(&machine, State::Ended);
    asked.await.unwrap().unwrap();
    advance(HOUR).await;
    assert!(!agent.said().connected);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lacks_commands_is_one() {
    let (agent, mut peer, _machine) = bed();
    loop {
        let (name, arguments) = peer.hear().await;
        let known = ["guest-sync-delimited", "guest-info", "guest-fsfreeze-status"];
        let answered = if known.contains(&name.as_str()) {
            name.as_str()
        } else {
            "guest-x"
        };
        peer.reply(answered, &arguments).await;
        if name == "guest-get-fsinfo" {
            break;
        }
    }
    sleep(Duration::from_secs(1)).await;
    let said = agent.said();
    assert!(said.connected && said.os == Os::default() && said.interfaces.is_empty());
}
