//! Which request does what. The table is held against `openapi.json` by a test.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Machine;
use super::api::{self, Code, Failure};
use crate::admit::{Command, Denied};
use crate::agent;
use crate::driver::{Answer, Refused, Saving};
use crate::exit::Chain;
use crate::upgrade::Heir;

/// Name of the console's protocol: bytes, both ways.
pub const CONSOLE_PROTOCOL: &str = "nacelle-console";
/// Most bytes of a request's body.
const BODY_MAX: usize = 4096;
/// Time for a request's body.
const BODY: Duration = Duration::from_secs(5);
/// Time for a command. It is not taken back after that.
const COMMAND: Duration = Duration::from_secs(60);
/// Time for what the guest agent is asked, which may have been asked for something else before: it has a time of its own
/// for each, which stands still while the guest does.
const AGENT: Duration = Duration::from_secs(240);

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Status,
    Stats,
    Console,
    Pause,
    Resume,
    Stop,
    Kill,
    Reset,
    Reboot,
    Balloon,
    Migrate,
    Migration,
    CancelMigration,
    TakeBack,
    Prepare,
    Depart,
    Departure,
    Snapshot,
    Attach,
    Detach,
    Upgrade,
    Agent,
    Freeze,
    Unfreeze,
    Ping,
    Exec,
    SoftReboot,
}

/// Every route: method, path, action.
pub(super) const ROUTES: [(&str, &str, Action); 27] = [
    ("GET", "/v1/machine", Action::Status),
    ("GET", "/v1/machine/stats", Action::Stats),
    ("GET", "/v1/machine/console", Action::Console),
    ("PUT", "/v1/machine/pause", Action::Pause),
    ("PUT", "/v1/machine/resume", Action::Resume),
    ("PUT", "/v1/machine/stop", Action::Stop),
    ("PUT", "/v1/machine/kill", Action::Kill),
    ("PUT", "/v1/machine/reset", Action::Reset),
    ("PUT", "/v1/machine/reboot", Action::Reboot),
    ("PUT", "/v1/machine/balloon", Action::Balloon),
    ("PUT", "/v1/machine/migrate", Action::Migrate),
    ("GET", "/v1/machine/migration", Action::Migration),
    ("PUT", "/v1/machine/migrate-cancel", Action::CancelMigration),
    ("PUT", "/v1/machine/migrate-recover", Action::TakeBack),
    ("PUT", "/v1/machine/depart/prepare", Action::Prepare),
    ("PUT", "/v1/machine/depart", Action::Depart),
    ("GET", "/v1/machine/departure", Action::Departure),
    ("PUT", "/v1/machine/snapshot", Action::Snapshot),
    ("PUT", "/v1/machine/attach", Action::Attach),
    ("PUT", "/v1/machine/detach", Action::Detach),
    ("PUT", "/v1/machine/upgrade", Action::Upgrade),
    ("GET", "/v1/machine/agent", Action::Agent),
    ("PUT", "/v1/machine/agent/freeze", Action::Freeze),
    ("PUT", "/v1/machine/agent/unfreeze", Action::Unfreeze),
    ("PUT", "/v1/machine/agent/ping", Action::Ping),
    ("PUT", "/v1/machine/agent/exec", Action::Exec),
    ("PUT", "/v1/machine/softreboot", Action::SoftReboot),
];

/// What every request needs.
pub(super) struct Context {
    pub name: String,
    pub machine: Machine,
}

pub(super) type Reply = Response<Full<Bytes>>;

/// Answers a request, whatever it is.
pub(super) async fn answer(
    context: Arc<Context>,
    mut request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let answer = match route(method, path) {
        Ok(action) => context.act(action, &mut request).await,
        Err(None) => Err(Failure::new(
            Code::NotFound,
            format!("there is nothing at {path}"),
            "openapi.json lists what there is",
        )),
        Err(Some(allowed)) => {
            let message = format!("{path} does not take {method}");
            let failure = Failure::new(Code::MethodNotAllowed, message, format!("use {allowed}"));
            let mut reply = failed(&failure);
            reply
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allowed));
            Ok(reply)
        }
    };
    Ok(answer.unwrap_or_else(|failure| failed(&failure)))
}

/// What a request wants; otherwise the method that its path takes, if there is such a path.
fn route(method: &str, path: &str) -> Result<Action, Option<&'static str>> {
    match ROUTES.iter().find(|(_, at, _)| *at == path) {
        Some((with, _, action)) if *with == method => Ok(*action),
        Some((with, _, _)) => Err(Some(with)),
        None => Err(None),
    }
}

impl Context {
    async fn act(&self, action: Action, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let takes_body = [
            Action::Stop,
            Action::Balloon,
            Action::Migrate,
            Action::Prepare,
            Action::Depart,
            Action::Snapshot,
            Action::Attach,
            Action::Detach,
            Action::Upgrade,
            Action::Freeze,
            Action::Exec,
        ];
        if !takes_body.contains(&action) && !request.body().is_end_stream() {
            let message = format!("{} takes no body", request.uri().path());
            return Err(Failure::new(Code::Invalid, message, "send none"));
        }
        let command = match action {
            Action::Status => return Ok(self.status(StatusCode::OK)),
            Action::Console => return self.console(request),
            Action::Migrate => return self.migrate(request).await,
            Action::Migration => return self.migration(),
            Action::Prepare => return self.prepare(request).await,
            Action::Depart => return self.depart(request).await,
            Action::Departure => return self.departure(),
            Action::Snapshot => return self.snapshot(request).await,
            Action::Attach => return self.attach(request).await,
            Action::Detach => return self.detach(request).await,
            Action::Upgrade => return self.upgrade(request).await,
            Action::Agent => return Ok(json(StatusCode::OK, &self.machine.agent.said())),
            Action::Freeze => return self.freeze(request).await,
            Action::Unfreeze => {
                patient(self.machine.agent.unfreeze()).await?;
                return Ok(self.status(StatusCode::OK));
            }
            Action::Ping => {
                patient(self.machine.agent.ping()).await?;
                return Ok(self.status(StatusCode::OK));
            }
            Action::Exec => return self.exec(request).await,
            Action::SoftReboot => {
                if self.rebooted_by_agent().await? {
                    return Ok(self.status(StatusCode::ACCEPTED));
                }
                self.reboot()
            }
            Action::Reboot => self.reboot(),
            Action::CancelMigration => Command::CancelMigration,
            Action::TakeBack => Command::TakeBack,
            Action::Stats => Command::Stats,
            Action::Pause => Command::Pause,
            Action::Resume => Command::Resume,
            Action::Kill => Command::Kill,
            Action::Reset => Command::Reset,
            Action::Stop => {
                let stop: api::Stop = body(request).await?.unwrap_or_default();
                Command::Stop {
                    grace: stop
                        .grace_period_seconds
                        .map_or(self.machine.grace_period, |s| Duration::from_secs(s.into())),
                }
            }
            Action::Balloon => {
                let needed =
                    || Failure::new(Code::Invalid, "the body is empty", r#"send {"bytes": 268435456}"#);
                let balloon: api::Balloon = body(request).await?.ok_or_else(needed)?;
                if balloon.bytes > self.machine.memory {
                    return Err(Failure::new(
                        Code::Invalid,
                        format!("{} bytes are more than the guest has", balloon.bytes),
                        format!("the guest has {} bytes", self.machine.memory),
                    ));
                }
                Command::Balloon { bytes: balloon.bytes }
            }
        };
        let answer = timeout(COMMAND, self.machine.driver.ask(command));
        let late = || {
            Failure::new(
                Code::Timeout,
                format!("the machine has not done it in {} s", COMMAND.as_secs()),
                "it may still do it",
            )
        };
        match (command, answer.await.map_err(|_| late())??) {
            (_, Answer::Stats(stats)) => Ok(json(StatusCode::OK, &process(*stats).map_err(Refused::Failed)?)),
            (Command::Stop { .. } | Command::Reboot { .. }, Answer::Done) => {
                Ok(self.status(StatusCode::ACCEPTED))
            }
            (command, Answer::Done | Answer::Moved(_) | Answer::Saved(_)) => {
                if command == Command::TakeBack
                    && let Some(departures) = &self.machine.departures
                {
                    departures.taken_back();
                }
                Ok(self.status(StatusCode::OK))
            }
        }
    }

    /// Moves the machine; answered when it has moved, however long that takes.
    async fn migrate(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let needed = || {
            Failure::new(
                Code::Invalid,
                "the body is empty",
                r#"send {"to": "unix:/run/in"}"#,
            )
        };
        let asked: api::Migrate = body(request).await?.ok_or_else(needed)?;
        let invalid = |reason| Failure::new(Code::Invalid, reason, "openapi.json shows what it may be");
        let plan = asked.plan().map_err(invalid)?;
        match self.machine.driver.migrate(plan).await? {
            Answer::Moved(report) => Ok(json(StatusCode::OK, &api::Migrated::from(report))),
            Answer::Done | Answer::Stats(_) | Answer::Saved(_) => Ok(self.status(StatusCode::OK)),
        }
    }

    /// Has another program go on with the machine; answered when it does.
    async fn upgrade(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let invalid = |message: String, hint: &str| Failure::new(Code::Invalid, message, hint);
        let asked: Option<api::Upgrade> = body(request).await?;
        let hint = r#"send {"binary": "/usr/bin/nacelle"}"#;
        let asked = asked.ok_or_else(|| invalid("the body is empty".into(), hint))?;
        let Some(estate) = self.machine.estate.clone() else {
            let message = "a pod's program is its image's".into();
            return Err(invalid(message, "move the machine to a pod of the new image"));
        };
        if !asked.binary.is_absolute() {
            let message = format!("{} is not an absolute path", asked.binary.display());
            return Err(invalid(message, "begin it with /"));
        }
        let binary = asked.binary;
        match self.machine.driver.hand_over(Heir::new(estate, binary)).await? {
            Answer::Moved(report) => Ok(json(StatusCode::OK, &api::Migrated::from(report))),
            Answer::Done | Answer::Stats(_) | Answer::Saved(_) => Ok(self.status(StatusCode::OK)),
        }
    }

    /// Writes a snapshot; answered when it is written, however long that takes.
    async fn snapshot(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let needed = || {
            Failure::new(
                Code::Invalid,
                "the body is empty",
                r#"send {"directory": "/srv/snapshot"}"#,
            )
        };
        let asked: api::Snapshot = body(request).await?.ok_or_else(needed)?;
        if !asked.directory.is_absolute() {
            let message = format!("{} is not an absolute path", asked.directory.display());
            return Err(Failure::new(Code::Invalid, message, "begin it with /"));
        }
        let saving = Saving {
            directory: asked.directory.clone(),
            incremental: asked.incremental,
            track: asked.track,
            then: asked.then,
        };
        let answer = self.machine.driver.snapshot(saving).await?;
        let kept = self.machine.origin.keep(&asked.directory);
        kept.map_err(|error| Refused::Failed(nacelle_vmm::Error::Cannot(Chain(&error).to_string())))?;
        match answer {
            Answer::Saved(report) => Ok(json(StatusCode::OK, &api::Saved::from(report))),
            Answer::Done | Answer::Stats(_) | Answer::Moved(_) => Ok(self.status(StatusCode::OK)),
        }
    }

    /// Freezes the guest's file systems; answered when they are, however long that takes.
    async fn freeze(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let asked: api::Freeze = body(request).await?.unwrap_or_default();
        patient(self.machine.agent.freeze(asked.timeout()?)).await?;
        Ok(self.status(StatusCode::OK))
    }

    /// Runs a command in the guest; answered when it has ended, and with a failure unless its status is 0.
    async fn exec(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        let hint = r#"send {"command": ["test", "-e", "/run/ready"]}"#;
        let needed = || Failure::new(Code::Invalid, "there is no command", hint);
        let asked: api::Exec = body(request).await?.ok_or_else(needed)?;
        if asked.command.is_empty() {
            return Err(needed());
        }
        let time = Duration::from_secs(asked.timeout_seconds.into());
        patient(self.machine.agent.exec(asked.command, time)).await?;
        Ok(self.status(StatusCode::OK))
    }

    /// The guest is asked by its power button, and switched on again when it is off.
    fn reboot(&self) -> Command {
        Command::Reboot {
            within: self.machine.grace_period,
        }
    }

    /// Whether the guest began anew because its agent was asked to.
    async fn rebooted_by_agent(&self) -> Result<bool, Failure> {
        match timeout(COMMAND, self.machine.agent.reboot()).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(agent::Refused::Denied(denied))) => Err(Refused::from(denied).into()),
            Ok(Err(agent::Refused::NotConnected)) => Ok(false),
            Ok(Err(refused)) => {
                log::info!("the guest is rebooted by its power button: {refused}");
                Ok(false)
            }
            Err(_) => Ok(false),
        }
    }

    fn migration(&self) -> Result<Reply, Failure> {
        match self.machine.driver.moving() {
            Some(moving) => Ok(json(StatusCode::OK, &api::Migration::from(moving))),
            None => Err(Refused::Denied(Denied::NotMigrating).into()),
        }
    }

    pub(super) fn status(&self, code: StatusCode) -> Reply {
        let status = self.machine.driver.status();
        json(
            code,
            &api::Machine {
                name: self.name.clone(),
                state: status.state,
                pid: std::process::id(),
                uptime_seconds: self.machine.started.elapsed().as_secs(),
                vcpus: self.machine.vcpus,
                memory: self.machine.memory,
                resets: status.resets,
                guest_panicked: status.panicked,
                disk_error: status.disk_error,
                plugged: status.plugged,
            },
        )
    }

    /// Makes the connection the console's stream.
    fn console(&self, request: &mut Request<Incoming>) -> Result<Reply, Failure> {
        if !asks_for(request.headers(), CONSOLE_PROTOCOL) {
            return Err(Failure::new(
                Code::UpgradeRequired,
                "the console is a stream of bytes",
                format!("send Connection: Upgrade and Upgrade: {CONSOLE_PROTOCOL}"),
            ));
        }
        let upgrade = hyper::upgrade::on(request);
        let console = self.machine.console.clone();
        tokio::spawn(async move {
            match upgrade.await {
                Ok(stream) => drop(console.attach(Box::new(TokioIo::new(stream))).await),
                Err(error) => log::debug!("a console's connection: {error}"),
            }
        });
        let mut reply = Response::new(Full::default());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(CONSOLE_PROTOCOL));
        Ok(reply)
    }
}

/// What the agent was asked, unless it takes longer than any that it does.
async fn patient(asked: impl Future<Output = Result<(), agent::Refused>>) -> Result<(), Failure> {
    let late = |_| {
        let message = format!("the guest agent has not done it in {} s", AGENT.as_secs());
        Failure::new(Code::Timeout, message, "it may still do it")
    };
    Ok(timeout(AGENT, asked).await.map_err(late)??)
}

/// Both headers of an upgrade to `protocol` are there (RFC 9110, §7.8).
fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    let has = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, protocol)
}

/// The body of a request, `None` when it is empty.
pub(super) async fn body<T: DeserializeOwned>(request: &mut Request<Incoming>) -> Result<Option<T>, Failure> {
    let limited = Limited::new(request.body_mut(), BODY_MAX).collect();
    let late = |_| Failure::new(Code::Timeout, "the body did not come", "send it at once");
    let bytes = match timeout(BODY, limited).await.map_err(late)? {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(Failure::new(
                Code::TooLarge,
                format!("the body is longer than {BODY_MAX} bytes"),
                "openapi.json shows what it may be",
            ));
        }
        Err(error) => {
            return Err(Failure::new(
                Code::Invalid,
                format!("the body cannot be read: {error}"),
                "send it again",
            ));
        }
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Failure::new(
            Code::Invalid,
            format!("the body is not what it must be: {error}"),
            "openapi.json shows what it may be",
        )
    })
}

/// The machine's counters with those of the process.
pub(crate) fn process(stats: nacelle_vmm::Stats) -> nacelle_vmm::Result<api::Stats> {
    let statm = std::fs::read_to_string("/proc/self/statm")
        .map_err(nacelle_vmm::Error::io("read /proc/self/statm"))?;
    // The second word is the resident pages (proc(5)).
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0u64);
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
    let milliseconds = u64::try_from(cpu.tv_nsec / 1_000_000).unwrap_or(0);
    Ok(api::Stats {
        machine: stats,
        resident: pages * rustix::param::page_size() as u64,
        cpu_milliseconds: seconds * 1000 + milliseconds,
    })
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    // Our own types have no map keys but strings: this does not fail.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut reply = Response::new(Full::new(bytes.into()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn failed(failure: &Failure) -> Reply {
    let status = StatusCode::from_u16(failure.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, failure)
}
