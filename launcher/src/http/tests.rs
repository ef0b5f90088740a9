use std::collections::BTreeSet;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use nacelle_vmm::config::{BalloonConfig, DeviceConfig, DeviceKind, Transport};
use nacelle_vmm::migrate::Phase;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::admit::State;
use crate::driver::End;
use crate::manage::client::request;
use crate::testing::{COUNTER, PARROT, Served, guest_agent, receive};

const OPENAPI: &str = include_str!("../../openapi.json");

fn with_balloon(config: &mut nacelle_vmm::VmConfig) {
    config.devices.push(DeviceConfig::new(
        "balloon",
        DeviceKind::Balloon(BalloonConfig::default()),
    ));
}

/// Status and body of an answer.
async fn ask(served: &Served, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = request(method, path, Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let answer = served.client.send(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn hear(stream: &mut (impl tokio::io::AsyncRead + Unpin), words: &str) {
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), words);
}

/// The documented routes: method, path, operation.
fn documented(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
        })
        .collect()
}

/// Follows a local reference.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// Holds `body` against what the document says of `status` at `operation`.
fn conforms(document: &Value, operation: &Value, status: u16, body: &Value) -> Result<(), String> {
    let response = &operation["responses"][status.to_string()];
    if response.is_null() {
        return Err(format!("{status} is not documented: {body}"));
    }
    let media = &resolve(document, response)["content"]["application/json"];
    let schema = json!({
        "$ref": media["schema"]["$ref"],
        "components": document["components"],
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator
        .validate(body)
        .map_err(|error| format!("{error}: {body}"))
}

#[test]
fn the_document_names_every_route_and_no_other() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let documented: BTreeSet<_> = documented(&document)
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let routed: BTreeSet<_> = route::ROUTES
        .iter()
        .map(|(method, path, _)| (method.to_string(), path.to_string()))
        .collect();
    assert_eq!(documented, routed);
}

#[tokio::test]
async fn every_route_answers_as_documented() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let served = Served::start(COUNTER, with_balloon);
    let bare = Served::start(COUNTER, |_| {});
    let talks = Served::with_agent(COUNTER, |_| {}, Some(guest_agent()));
    while ask(&talks, "GET", "/v1/machine/agent", "").await.1["hostname"].is_null() {
        sleep(Duration::from_millis(1)).await;
    }
    let long = format!("\"{}\"", "x".repeat(5000));
    let wrong = r#"{"bites": 1}"#;
    let plugs = Served::start(COUNTER, |config| config.transport = Transport::Pci);
    let file = plugs.directory.join("data.img");
    std::fs::write(&file, [0; 4096]).unwrap();
    let data = json!({"disk": {"name": "data"}, "file": file}).to_string();
    let nowhere = r#"{"migration": "m", "certificate": "none", "migrate": {"to": "127.0.0.1:1"}}"#;
    let exchanges = [
        (&served, "GET", "/v1/machine", "", 200),
        (&served, "GET", "/v1/machine", "{}", 400),
        (&served, "GET", "/v1/machine/stats", "", 200),
        (&served, "GET", "/v1/machine/stats", "{}", 400),
        (&served, "GET", "/v1/machine/console", "", 426),
        (&served, "GET", "/v1/machine/console", "{}", 400),
        (&bare, "PUT", "/v1/machine/balloon", r#"{"bytes": 0}"#, 404),
        (
            &served,
            "PUT",
            "/v1/machine/balloon",
            r#"{"bytes": 1048576}"#,
            200,
        ),
        (&served, "PUT", "/v1/machine/balloon", "", 400),
        (&served, "PUT", "/v1/machine/balloon", wrong, 400),
        (
            &served,
            "PUT",
            "/v1/machine/balloon",
            r#"{"bytes": 99999999999}"#,
            400,
        ),
        (&served, "PUT", "/v1/machine/balloon", &long, 413),
        (&plugs, "PUT", "/v1/machine/detach", r#"{"disk": "data"}"#, 404),
        (&plugs, "PUT", "/v1/machine/attach", &data, 200),
        // Who asks twice has it once.
        (&plugs, "PUT", "/v1/machine/attach", &data, 200),
        (&plugs, "GET", "/v1/machine", "", 200),
        (
            &plugs,
            "PUT",
            "/v1/machine/snapshot",
            r#"{"directory": "/tmp/x"}"#,
            409,
        ),
        (&plugs, "PUT", "/v1/machine/attach", "", 400),
        (&plugs, "PUT", "/v1/machine/attach", wrong, 400),
        (
            &plugs,
            "PUT",
            "/v1/machine/attach",
            r#"{"disk": {"name": "other"}, "file": "/nowhere"}"#,
            400,
        ),
        (
            &plugs,
            "PUT",
            "/v1/machine/attach",
            r#"{"disk": {"name": "other"}, "handover": "00"}"#,
            400,
        ),
        (&plugs, "PUT", "/v1/machine/attach", &long, 413),
        (&plugs, "PUT", "/v1/machine/detach", r#"{"disk": "data"}"#, 202),
        (&plugs, "PUT", "/v1/machine/detach", r#"{"disk": "data"}"#, 202),
        // This guest does not listen: the disk of that name is on its way out.
        (&plugs, "PUT", "/v1/machine/attach", &data, 409),
        (&plugs, "PUT", "/v1/machine/detach", "", 400),
        (&plugs, "PUT", "/v1/machine/detach", wrong, 400),
        (&plugs, "PUT", "/v1/machine/detach", &long, 413),
        (&plugs, "PUT", "/v1/machine/reset", "", 200),
        (&plugs, "PUT", "/v1/machine/pause", "", 200),
        (&plugs, "PUT", "/v1/machine/detach", r#"{"disk": "data"}"#, 409),
        (&served, "PUT", "/v1/machine/upgrade", "", 400),
        (
            &served,
            "PUT",
            "/v1/machine/upgrade",
            r#"{"binary": "/nacelle"}"#,
            400,
        ),
        (&served, "PUT", "/v1/machine/upgrade", &long, 413),
        (&talks, "GET", "/v1/machine/agent", "", 200),
        (&bare, "GET", "/v1/machine/agent", "", 200),
        (&bare, "GET", "/v1/machine/agent", "{}", 400),
        (&bare, "PUT", "/v1/machine/agent/freeze", "", 409),
        (&talks, "PUT", "/v1/machine/agent/freeze", "", 200),
        (
            &talks,
            "PUT",
            "/v1/machine/agent/freeze",
            r#"{"unfreezeTimeout": "1m30s"}"#,
            200,
        ),
        (
            &talks,
            "PUT",
            "/v1/machine/agent/freeze",
            r#"{"unfreezeTimeout": "0s"}"#,
            200,
        ),
        (
            &talks,
            "PUT",
            "/v1/machine/agent/freeze",
            r#"{"unfreezeTimeout": "soon"}"#,
            400,
        ),
        (&talks, "PUT", "/v1/machine/agent/freeze", wrong, 400),
        (&talks, "PUT", "/v1/machine/agent/freeze", &long, 413),
        (&talks, "GET", "/v1/machine/agent", "", 200),
        (&talks, "PUT", "/v1/machine/agent/unfreeze", "", 200),
        (&talks, "PUT", "/v1/machine/agent/unfreeze", "{}", 400),
        (&bare, "PUT", "/v1/machine/agent/unfreeze", "", 409),
        (&talks, "PUT", "/v1/machine/agent/ping", "", 200),
        (&bare, "PUT", "/v1/machine/agent/ping", "", 409),
        (&bare, "PUT", "/v1/machine/agent/ping", "{}", 400),
        (
            &talks,
            "PUT",
            "/v1/machine/agent/exec",
            r#"{"command": ["true"]}"#,
            200,
        ),
        (
            &talks,
            "PUT",
            "/v1/machine/agent/exec",
            r#"{"command": ["false"]}"#,
            500,
        ),
        (&talks, "PUT", "/v1/machine/agent/exec", r#"{"command": []}"#, 400),
        (&talks, "PUT", "/v1/machine/agent/exec", "", 400),
        (&talks, "PUT", "/v1/machine/agent/exec", &long, 413),
        (
            &bare,
            "PUT",
            "/v1/machine/agent/exec",
            r#"{"command": ["true"]}"#,
            409,
        ),
        // By its power button: the agent declines.
        (&talks, "PUT", "/v1/machine/softreboot", "", 202),
        (&bare, "PUT", "/v1/machine/softreboot", "", 202),
        (&bare, "PUT", "/v1/machine/softreboot", "{}", 400),
        (
            &bare,
            "PUT",
            "/v1/machine/depart/prepare",
            r#"{"migration": "m"}"#,
            200,
        ),
        (&bare, "PUT", "/v1/machine/depart/prepare", wrong, 400),
        (&bare, "PUT", "/v1/machine/depart/prepare", &long, 413),
        (&bare, "PUT", "/v1/machine/depart", wrong, 400),
        (&bare, "PUT", "/v1/machine/depart", &long, 413),
        (&bare, "GET", "/v1/machine/departure", "", 200),
        (&bare, "PUT", "/v1/machine/depart", nowhere, 202),
        (&bare, "GET", "/v1/machine/departure", "", 200),
        (&bare, "GET", "/v1/machine/departure", "{}", 400),
        (&served, "PUT", "/v1/machine/pause", "", 200),
        (&served, "PUT", "/v1/machine/pause", "{}", 400),
        (&served, "PUT", "/v1/machine/softreboot", "", 409),
        (&served, "PUT", "/v1/machine/reset", "", 409),
        (&served, "PUT", "/v1/machine/reboot", "", 409),
        (&served, "PUT", "/v1/machine/balloon", r#"{"bytes": 0}"#, 409),
        (&served, "PUT", "/v1/machine/resume", "", 200),
        (&served, "PUT", "/v1/machine/resume", "{}", 400),
        (&served, "PUT", "/v1/machine/reset", "", 200),
        (&served, "PUT", "/v1/machine/reset", "{}", 400),
        (&served, "PUT", "/v1/machine/reboot", "{}", 400),
        (&served, "PUT", "/v1/machine/reboot", "", 202),
        (&served, "PUT", "/v1/machine/stop", wrong, 400),
        (&served, "PUT", "/v1/machine/stop", &long, 413),
        (&served, "PUT", "/v1/machine/stop", "", 202),
        (
            &served,
            "PUT",
            "/v1/machine/stop",
            r#"{"gracePeriodSeconds": 3000}"#,
            202,
        ),
        (&served, "PUT", "/v1/machine/pause", "", 409),
        (&served, "PUT", "/v1/machine/resume", "", 409),
        (&served, "PUT", "/v1/machine/kill", "{}", 400),
        (&served, "PUT", "/v1/machine/kill", "", 200),
    ];
    let operations = documented(&document);
    let mut seen = BTreeSet::new();
    for (served, method, path, body, expected) in exchanges {
        let (status, answer) = ask(served, method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        let (_, _, operation) = operations
            .iter()
            .find(|(with, at, _)| with == method && at == path)
            .unwrap();
        if let Err(difference) = conforms(&document, operation, status, &answer) {
            panic!("{method} {path}: {difference}");
        }
        if status >= 400 {
            let failure: api::Failure = serde_json::from_value(answer).unwrap();
            assert_eq!(failure.code.status(), status);
        }
        seen.insert((operation["operationId"].clone().to_string(), status.to_string()));
    }
    migrations(&document, &mut seen).await;
    // Every documented answer was given, but for an upgrade (tested on its own) and what comes of a machine that
    // ends or breaks meanwhile.
    for (_, _, operation) in &operations {
        for status in operation["responses"].as_object().unwrap().keys() {
            let given = seen.contains(&(operation["operationId"].to_string(), status.clone()));
            // A new program goes on with a whole process: launcher/tests/upgrade.rs.
            let elsewhere = ["101", "410", "500", "504"].contains(&status.as_str())
                || operation["operationId"] == "upgrade" && status != "400";
            assert!(given || elsewhere, "{} {status}", operation["operationId"]);
        }
    }
}

/// Every answer that has to do with a migration.
async fn migrations(document: &Value, seen: &mut BTreeSet<(String, String)>) {
    let operations = documented(document);
    let mut check = |path: &str, (status, answer): (u16, Value)| {
        let (_, _, operation) = operations.iter().find(|(_, at, _)| at == path).unwrap();
        if let Err(difference) = conforms(document, operation, status, &answer) {
            panic!("{path}: {difference}");
        }
        seen.insert((operation["operationId"].clone().to_string(), status.to_string()));
        (status, answer)
    };
    const MIGRATE: &str = "/v1/machine/migrate";
    const MIGRATION: &str = "/v1/machine/migration";
    const CANCEL: &str = "/v1/machine/migrate-cancel";
    const RECOVER: &str = "/v1/machine/migrate-recover";
    let served = Served::start(COUNTER, |_| {});
    let path = served.directory.join("in");
    let to = json!({ "to": format!("unix:{}", path.display()), "downtimeMilliseconds": 2000 }).to_string();
    let long = format!("\"{}\"", "x".repeat(5000));
    for (method, at, body, expected) in [
        ("GET", MIGRATION, "", 409),
        ("GET", MIGRATION, "{}", 400),
        ("PUT", CANCEL, "", 409),
        ("PUT", CANCEL, "{}", 400),
        ("PUT", RECOVER, "", 409),
        ("PUT", RECOVER, "{}", 400),
        ("PUT", MIGRATE, "", 400),
        ("PUT", MIGRATE, r#"{"to": "nowhere"}"#, 400),
        ("PUT", MIGRATE, r#"{"to": "unix:/x", "streams": 99}"#, 400),
        ("PUT", MIGRATE, &long, 413),
        // Nobody listens there.
        ("PUT", MIGRATE, &to, 500),
    ] {
        let answer = check(at, ask(&served, method, at, body).await);
        assert_eq!(answer.0, expected, "{method} {at} {body}: {}", answer.1);
    }

    const SNAPSHOT: &str = "/v1/machine/snapshot";
    let place = |name: &str| json!({ "directory": served.directory.join(name) }).to_string();
    for (body, expected) in [
        ("", 400),
        (r#"{"directory": "here"}"#, 400),
        (r#"{"directory": "/proc/snapshot"}"#, 500),
        (&long, 413),
        (&place("snapshot"), 200),
        // It is not written over.
        (&place("snapshot"), 500),
    ] {
        let answer = check(SNAPSHOT, ask(&served, "PUT", SNAPSHOT, body).await);
        assert_eq!(answer.0, expected, "{body}: {}", answer.1);
    }
    assert!(served.directory.join("snapshot/machine.json").exists());
    ask(&served, "PUT", "/v1/machine/pause", "").await;
    assert_eq!(
        check(SNAPSHOT, ask(&served, "PUT", SNAPSHOT, &place("other")).await).0,
        409
    );
    ask(&served, "PUT", "/v1/machine/resume", "").await;

    // Somebody who never answers.
    let silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let moving = ask(&served, "PUT", MIGRATE, &to);
    let meanwhile = async {
        let mut answer = (409, Value::Null);
        while answer.0 == 409 {
            answer = ask(&served, "GET", MIGRATION, "").await;
        }
        let cancelled = ask(&served, "PUT", CANCEL, "").await;
        (answer, ask(&served, "PUT", MIGRATE, &to).await, cancelled)
    };
    let (moved, (under_way, again, cancelled)) = tokio::join!(moving, meanwhile);
    assert_eq!(check(MIGRATION, under_way).0, 200);
    assert_eq!(check(MIGRATE, again).0, 409);
    assert_eq!(check(CANCEL, cancelled).0, 200);
    let (status, answer) = check(MIGRATE, moved);
    assert_eq!(
        (status, &answer["message"]),
        (500, &json!("the migration was cancelled"))
    );
    drop(silent);
    std::fs::remove_file(&path).unwrap();

    // Somebody who is told to go on, and does not.
    let target = receive(&path, Some(Phase::Resume));
    let answer = check(MIGRATE, ask(&served, "PUT", MIGRATE, &to).await);
    assert_eq!(answer.0, 500);
    assert!(
        answer.1["message"]
            .as_str()
            .unwrap()
            .starts_with("the machine was handed over")
    );
    assert!(target.join().is_err());
    let (_, answer) = ask(&served, "PUT", "/v1/machine/resume", "").await;
    assert_eq!(answer["code"], "Denied", "{answer}");
    let (status, answer) = check(RECOVER, ask(&served, "PUT", RECOVER, "").await);
    assert_eq!((status, &answer["state"]), (200, &json!("Running")));

    // Somebody who takes it.
    let target = receive(&path, None);
    let answer = check(MIGRATE, ask(&served, "PUT", MIGRATE, &to).await);
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert!(matches!(served.end.await.unwrap(), End::Moved));
    let mut arrived = target.join().unwrap().unwrap();
    let mut heard = [0; 30];
    std::io::Read::read_exact(&mut arrived.console, &mut heard).unwrap();
    assert!(
        heard
            .windows(2)
            .all(|pair| pair[1] == pair[0] + 1 || pair == b"za"),
        "{heard:?}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_told_apart_from_what_is_used_wrongly() {
    let served = Served::start(COUNTER, |_| {});
    let (status, answer) = ask(&served, "GET", "/v1/machines", "").await;
    assert_eq!((status, &answer["code"]), (404, &json!("NotFound")));
    let wrong = request("POST", "/v1/machine/pause", Bytes::new()).unwrap();
    let answer = served.client.send(wrong).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["allow"]),
        (405, &"PUT".parse().unwrap())
    );
}

#[tokio::test]
async fn the_console_is_a_stream_that_a_newer_client_takes_over() {
    let served = Served::start(PARROT, |_| {});
    let mut older = served.client.console().await.unwrap();
    older.write_all(b"hello").await.unwrap();
    hear(&mut older, ">hello").await;
    let mut newer = served.client.console().await.unwrap();
    hear(&mut newer, ">hello").await;
    assert_eq!(older.read(&mut [0]).await.unwrap(), 0);
    newer.write_all(b"yP").await.unwrap();
    hear(&mut newer, "yP").await;
    assert_eq!(newer.read(&mut [0]).await.unwrap(), 0);
    assert!(matches!(served.end.await.unwrap(), End::PoweredOff));
}

#[tokio::test]
async fn the_socket_is_gone_when_the_machine_has_ended() {
    let served = Served::start(PARROT, |_| {});
    let mut console = served.client.console().await.unwrap();
    hear(&mut console, ">").await;
    let stopping: api::Machine = served.client.put("/v1/machine/stop").await.unwrap();
    assert!(matches!(stopping.state, State::Stopping | State::Ended));
    assert!(matches!(served.end.await.unwrap(), End::PoweredOff));
    assert!(!served.directory.join("ledger.sock").exists());
    served.client.ended().await;
    let error = served
        .client
        .get::<api::Machine>("/v1/machine")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }));
}

#[tokio::test]
async fn who_kills_a_machine_still_hears_that_it_was_done() {
    let served = Served::start(COUNTER, |_| {});
    let ended: api::Machine = served.client.put("/v1/machine/kill").await.unwrap();
    assert_eq!(ended.state, State::Ended);
    assert!(matches!(served.end.await.unwrap(), End::Killed));
}

#[tokio::test]
async fn more_clients_than_are_served_at_once_wait_their_turn() {
    let served = Served::start(COUNTER, |_| {});
    let path = served.directory.join("ledger.sock");
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(UnixStream::connect(&path).await.unwrap());
    }
    let waiting = served.client.get::<api::Machine>("/v1/machine");
    tokio::pin!(waiting);
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("served beyond the limit"),
        () = sleep(Duration::from_millis(100)) => {}
    }
    drop(idle);
    assert_eq!(waiting.await.unwrap().name, "ledger");
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let served = Served::start(COUNTER, |_| {});
    let path = served.directory.join("ledger.sock");
    let mut silent = UnixStream::connect(&path).await.unwrap();
    let mut halting = UnixStream::connect(&path).await.unwrap();
    halting
        .write_all(b"GET /v1/machine HTTP/1.1\r\nHost")
        .await
        .unwrap();
    // From here on waiting takes no time.
    tokio::time::pause();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    halting.read_to_end(&mut rest).await.unwrap();
}

/// The last departure, when it is over.
async fn departed(served: &Served) -> Value {
    loop {
        let (_, answer) = ask(served, "GET", "/v1/machine/departure", "").await;
        if answer["departure"]["state"] != "Moving" {
            return answer;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_departure_is_begun_once_and_one_that_fails_leaves_the_machine_running() {
    let served = Served::start(COUNTER, |_| {});
    let prepare = async |migration: &str| {
        let body = json!({"migration": migration}).to_string();
        ask(&served, "PUT", "/v1/machine/depart/prepare", &body).await.1["certificate"].clone()
    };
    let first = prepare("m").await;
    assert_eq!(
        prepare("m").await,
        first,
        "asked again, as by a controller that was killed"
    );
    assert_ne!(prepare("n").await, first, "another migration has another key");
    let depart = async |migration: &str| {
        let migrate = json!({"to": "127.0.0.1:1"});
        let body = json!({"migration": migration, "certificate": first, "migrate": migrate}).to_string();
        ask(&served, "PUT", "/v1/machine/depart", &body).await
    };
    assert_eq!(depart("m").await.0, 202);
    let over = departed(&served).await;
    assert_eq!(over["departure"]["state"], "Failed", "{over}");
    assert_eq!(over["state"], "Running");
    assert_eq!(depart("m").await.0, 202);
    assert_eq!(departed(&served).await, over, "it is not begun again");
}
