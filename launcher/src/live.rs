//! A machine that runs, and its process: served on its socket, told what this process is told, until it ends.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admit::{Command, Denied};
use crate::agent::Agent;
use crate::convert::Plan;
use crate::driver::{Driver, End, Refused};
use crate::exit::Chain;
use crate::http::socket::Endpoint;
use crate::http::{self, Machine};
use crate::terminal::{self, Attached, Happened};
use crate::upgrade::Estate;
use crate::{Error, Result, Status, memory};

/// How long after its console a machine that ends is heard of.
const SETTLE: Duration = Duration::from_millis(500);

/// A machine that runs.
pub struct Live<'a> {
    /// What it is.
    pub plan: &'a Plan,
    /// Tells it what to do.
    pub driver: Driver,
    /// How it ended, once it has.
    pub ended: oneshot::Receiver<End>,
    /// The port of its guest agent.
    pub agent: Option<UnixStream>,
    /// Its socket.
    pub endpoint: Endpoint,
    /// Ends when all that the guest said is told.
    pub said: JoinHandle<()>,
    /// What it has beside.
    pub estate: Arc<Estate>,
}

impl Live<'_> {
    /// Serves it until it has ended.
    ///
    /// # Errors
    /// When it cannot be served.
    pub async fn attend(self, terminal: &mut Option<Attached>, signals: &mut Signals) -> Result<End> {
        let plan = self.plan;
        let agent = Agent::start(self.agent, &self.driver);
        let machine = Machine {
            driver: self.driver.clone(),
            agent: agent.map_err(Error::io("use the port of the guest agent"))?,
            console: self.estate.console.clone(),
            vcpus: plan.cpus.count().unwrap_or(1),
            memory: plan.memory.size,
            grace_period: Duration::from_secs(plan.grace_period),
            started: self.estate.started,
            origin: self.estate.origin.clone(),
            volumes: None,
            estate: Some(Arc::clone(&self.estate)),
            departures: None,
        };
        let listener = http::Listener::Unix(self.endpoint);
        let server = tokio::spawn(http::serve(listener, plan.names.name.clone(), machine));
        memory::give_back();
        log::debug!("{} is started", plan.names.name);
        let end = attend(plan, &self.driver, self.ended, terminal, signals).await;
        if let Ok(Err(error)) = server.await {
            log::warn!("{}", Chain(&error));
        }
        if matches!(end, End::HandedOn) && self.estate.terminal.is_some() {
            // Another process may say there what comes next.
            let _ = timeout(SETTLE, self.said).await;
        }
        Ok(end)
    }
}

/// The status that a machine's end leads to; `handed_on` where somebody waits for who has it now.
///
/// # Errors
/// When it failed.
pub fn status(name: &str, end: End, handed_on: bool) -> Result<Status> {
    match end {
        End::PoweredOff | End::Reset => Ok(Status::Done),
        End::Saved => {
            log::info!("{name} has ended: its snapshot is written");
            Ok(Status::Done)
        }
        End::HandedOn if handed_on => Ok(Status::HandedOn),
        End::Moved | End::HandedOn => {
            log::info!("{name} was moved and runs elsewhere");
            Ok(Status::Done)
        }
        End::Killed | End::GraceExpired | End::Watchdog => {
            log::warn!("{name}: {end}");
            Ok(Status::Killed)
        }
        End::Failed(source) => Err(Error::Machine {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Waits for the machine's end, and asks for it when it is told to.
async fn attend(
    plan: &Plan,
    driver: &Driver,
    mut ended: oneshot::Receiver<End>,
    terminal: &mut Option<Attached>,
    signals: &mut Signals,
) -> End {
    let mut asked = 0;
    loop {
        tokio::select! {
            end = &mut ended => return end.unwrap_or(End::Killed),
            () = signals.next() => {}
            happened = terminal::next(terminal) => if happened == Happened::Closed {
                // The end of a machine closes its console, too.
                match timeout(SETTLE, &mut ended).await {
                    Ok(end) => return end.unwrap_or(End::Killed),
                    Err(_) => log::info!("another terminal has the console now (nacelle console takes it back)"),
                }
                continue;
            },
        }
        asked += 1;
        stop(driver, plan, asked);
    }
}

/// The signals by which a command is told to end: SIGTERM, SIGINT, SIGHUP.
pub struct Signals([Signal; 3]);

impl Signals {
    /// Hears of them from now on.
    ///
    /// # Errors
    /// When they cannot be handled.
    pub fn catch() -> Result<Signals> {
        let catch = |kind| signal(kind).map_err(Error::io("handle signals"));
        Ok(Signals([
            catch(SignalKind::terminate())?,
            catch(SignalKind::interrupt())?,
            catch(SignalKind::hangup())?,
        ]))
    }

    /// Returns at the next one.
    pub async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Asks the guest to power off; asked again, does not wait for it.
fn stop(driver: &Driver, plan: &Plan, asked: u32) {
    let name = &plan.names.name;
    let command = if asked == 1 {
        let grace = Duration::from_secs(plan.grace_period);
        log::info!(
            "stopping {name}: the guest has {} s to power off; once more kills it",
            plan.grace_period
        );
        Command::Stop { grace }
    } else {
        Command::Kill
    };
    let (driver, name) = (driver.clone(), name.clone());
    tokio::spawn(async move {
        match driver.ask(command).await {
            Ok(_) | Err(Refused::Denied(Denied::Ended)) => {}
            Err(Refused::Denied(denied)) => {
                log::warn!("{name} is not stopped: {denied}; {}", denied.hint());
            }
            Err(refused) => log::warn!("{name} is not stopped: {}", Chain(&refused)),
        }
    });
}
