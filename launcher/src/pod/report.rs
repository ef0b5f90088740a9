//! What the controller is told of the machine: its whole state at each change, by HTTPS, with the pod's own token.
//!
//! ```text
//! the machine's state --watch--> task: send the newest --+-- 204: wait for the next change
//!                                          ^             |-- 429, 5xx, no answer: again, from 1 s to 30 s
//!                                          |             |-- 401, 403: again when the kubelet has renewed the token
//!                                          +-------------+-- 404, 409, 410: the instance is not ours any more, no more
//! ```
//! A guest runs whether or not its reports arrive.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::arrival::Arrival;
use super::credentials::Synchronized;
use super::departure::Departure;
use super::start::Start;
use crate::admit::State;
use crate::agent::{self, FreezeStatus, Os, Said, Text};
use crate::driver::{End, Plugged, Status};
use crate::exit::Chain;
use crate::net::pod::{OWN_PORTS, UPLINK};
use crate::net::{Net, pod as pod_net};
use crate::{Result, memory};

/// The first pause before a report is sent again, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a token is looked at that was refused.
const LOOK: Duration = Duration::from_secs(1);
/// Time for one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Time for the last report; the pod's end says the same.
const LAST: Duration = Duration::from_secs(3);

/// What the controller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the machine is doing: see docs/pod.md.
    pub state: &'static str,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// What its agent says, while that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Guest>,
    /// Whether the guest's users have their keys and passwords, once that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Synchronized>,
    /// Disks that were attached while it ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugged: Vec<Plugged>,
    /// Where this pod waits for its machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrival: Option<Arrival>,
    /// The machine leaves for another pod, or was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub departure: Option<Departure>,
    /// How long its start took, once, to who wants to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// What a guest's agent says, as `status` of an instance has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    #[serde(rename = "guestOSInfo")]
    guest_os_info: Os,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs_freeze_status: Option<FreezeStatus>,
}

impl Guest {
    fn of(said: &Said) -> Option<Guest> {
        said.connected.then(|| Guest {
            guest_os_info: said.os.clone(),
            fs_freeze_status: said.fs_freeze_status,
        })
    }
}

/// An interface as `status.interfaces` of an instance has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    name: String,
    mac: String,
    ip_addresses: Vec<String>,
    queue_count: u16,
    pod_interface_name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface_name: Option<Text>,
    info_source: &'static str,
    /// The guest has the pod's address itself.
    #[serde(skip)]
    bridged: bool,
}

impl Interface {
    /// With what the agent says of the interface that has this MAC address: others are the guest's own affair.
    fn with(mut self, said: &Said) -> Interface {
        let same = |interface: &&agent::Interface| {
            interface
                .mac
                .as_deref()
                .is_some_and(|mac| mac.eq_ignore_ascii_case(&self.mac))
        };
        let Some(found) = said.interfaces.iter().find(same) else {
            return self;
        };
        self.interface_name = Some(found.interface_name.clone());
        self.info_source = "domain, guest-agent";
        if self.bridged && !self.ip_addresses.is_empty() {
            // The pod's come first: they are no guest's to choose, and by the first one it is reached.
            let listed = found
                .ip_addresses
                .iter()
                .filter_map(|said| said.ip_address.parse::<IpAddr>().ok());
            for address in listed.map(|address| address.to_string()) {
                if !self.ip_addresses.contains(&address) {
                    self.ip_addresses.push(address);
                }
            }
        }
        self
    }
}

/// The interfaces of a machine whose pod has `addresses`: with either binding, that is where the guest is reached.
pub(super) fn interfaces(nets: &[Net], made: &[pod_net::Interface], addresses: &[String]) -> Vec<Interface> {
    let interfaces = nets.iter().zip(made).map(|(net, made)| Interface {
        name: net.name.clone(),
        mac: made.mac.map(|byte| format!("{byte:02x}")).join(":"),
        ip_addresses: addresses.to_vec(),
        queue_count: net.queue_pairs,
        pod_interface_name: UPLINK,
        interface_name: None,
        info_source: "domain",
        bridged: made.bridged,
    });
    interfaces.collect()
}

impl Report {
    /// What is told of a machine with this status, whose agent says that; its end has a report of its own ([`Last`]).
    pub(super) fn of(
        status: &Status,
        said: &Said,
        interfaces: &[Interface],
        departure: Option<Departure>,
    ) -> Option<Report> {
        let failed = status.disk_error.as_deref();
        let (state, reason) = match status.state {
            // What moves or is saved runs meanwhile.
            State::Running | State::Migrating | State::Saving => ("Running", ""),
            State::Paused if failed.is_some() => ("Paused", "PausedIOError"),
            State::Paused => ("Paused", "PausedByUser"),
            State::Stopping => ("Stopping", ""),
            // The other pod tells of it, or it runs here again.
            State::HandedOver => ("HandedOver", ""),
            State::Ended => return None,
        };
        Some(Report {
            state,
            reason,
            message: match state {
                "Paused" => failed.unwrap_or_default().to_owned(),
                _ => String::new(),
            },
            interfaces: interfaces.iter().map(|known| known.clone().with(said)).collect(),
            agent: Guest::of(said),
            credentials: None,
            plugged: status.plugged.clone(),
            arrival: None,
            departure,
            start: None,
        })
    }

    /// What is told of a machine that is waited for.
    pub(super) fn awaited(arrival: Arrival) -> Report {
        Report {
            state: "Arriving",
            reason: "",
            message: String::new(),
            interfaces: Vec::new(),
            agent: None,
            credentials: None,
            plugged: Vec::new(),
            arrival: Some(arrival),
            departure: None,
            start: None,
        }
    }
}

/// How a machine ended, or why it never began.
pub(super) struct Last {
    state: &'static str,
    reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Last {
    pub(super) fn of(end: &Result<End>) -> Last {
        let (state, reason) = match end {
            Ok(End::PoweredOff) => ("Succeeded", "GuestShutdown"),
            Ok(End::Reset) => ("Succeeded", "GuestReset"),
            Ok(End::Saved) => ("Succeeded", "Saved"),
            Ok(End::Moved | End::HandedOn) => ("Succeeded", "Moved"),
            Ok(End::Killed) => ("Failed", "Killed"),
            Ok(End::GraceExpired) => ("Failed", "GracePeriodExpired"),
            Ok(End::Watchdog) => ("Failed", "WatchdogExpired"),
            Ok(End::Failed(_)) => ("Failed", "MachineFailed"),
            Err(_) => ("Failed", "StartFailed"),
        };
        let message = match end {
            Ok(end) => Chain(end).to_string(),
            Err(error) => Chain(error).to_string(),
        };
        Last {
            state,
            reason,
            message,
        }
    }

    pub(super) fn report(self, interfaces: Vec<Interface>) -> Report {
        Report {
            state: self.state,
            reason: self.reason,
            message: self.message,
            interfaces,
            agent: None,
            credentials: None,
            plugged: Vec::new(),
            arrival: None,
            departure: None,
            start: None,
        }
    }
}

/// Where reports go, and who sends them. The files are read anew for each attempt: the kubelet changes them.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// `report.json`.
    pub document: PathBuf,
    /// The token.
    pub token: PathBuf,
    /// Connect from the ports that are ours.
    pub own_ports: bool,
    /// Who the machine is.
    pub namespace: String,
    /// Who the machine is.
    pub name: String,
}

/// `report.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    url: String,
    server_name: String,
    ca: String,
    /// Whether somebody wants to know how long starts take.
    #[serde(default)]
    start: bool,
}

impl Way {
    /// Whether somebody wants to know how long starts take.
    pub fn wants_start(&self) -> bool {
        let text = fs::read_to_string(&self.document).unwrap_or_default();
        serde_json::from_str::<Document>(&text).is_ok_and(|document| document.start)
    }
}

/// Sends reports, the newest first and none that is outdated.
pub(super) struct Reporter {
    newest: watch::Sender<Option<Report>>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Sends what it is told by a task of this runtime.
    pub fn start(way: Way) -> Reporter {
        let (newest, reports) = watch::channel(None);
        let task = tokio::spawn(send_all(way, reports));
        Reporter { newest, task }
    }

    /// Has `report` sent, unless it says what the last one said.
    pub fn tell(&self, report: Report) {
        self.newest.send_if_modified(|newest| {
            let changed = newest.as_ref() != Some(&report);
            *newest = Some(report);
            changed
        });
    }

    /// Has the last report sent, and gives it a little time.
    pub async fn finish(self, report: Report) {
        self.tell(report);
        let Reporter { newest, task } = self;
        drop(newest);
        if timeout(LAST, task).await.is_err() {
            log::warn!("the controller did not hear of the machine's end in time; the pod's end tells it");
        }
    }
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is done.
    Done,
    /// Try again after a pause.
    Again,
    /// Try again with another token.
    NewToken,
    /// Nobody wants to hear from this pod.
    Stop,
}

fn next(status: StatusCode) -> Next {
    match status.as_u16() {
        200..300 => Next::Done,
        401 | 403 => Next::NewToken,
        404 | 409 | 410 => Next::Stop,
        _ => Next::Again,
    }
}

async fn send_all(way: Way, mut reports: watch::Receiver<Option<Report>>) {
    let mut attempts = 0;
    while reports.changed().await.is_ok() {
        let mut pause = PAUSE;
        loop {
            let newest = reports.borrow_and_update().clone();
            let Some(report) = newest else { break };
            attempts += 1;
            let token = fs::read_to_string(&way.token).unwrap_or_default();
            let sent = timeout(ATTEMPT, send(&way, &report, &token, attempts)).await;
            let sent = sent.unwrap_or_else(|_| Err("no answer in time".into()));
            let after = match &sent {
                Ok(status) => next(*status),
                Err(_) => Next::Again,
            };
            match &sent {
                Ok(status) if after != Next::Done => {
                    log::warn!("the controller answered a report with {status}")
                }
                Err(error) => log::warn!("the controller cannot be told {}: {error}", report.state),
                Ok(_) => {}
            }
            match after {
                Next::Done => {
                    // What a TLS connection takes is not needed until the next one.
                    memory::give_back();
                    break;
                }
                Next::Stop => return,
                Next::Again => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Next::NewToken => {
                    while fs::read_to_string(&way.token).unwrap_or_default() == token {
                        sleep(LOOK).await;
                    }
                }
            }
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn send(way: &Way, report: &Report, token: &str, attempt: usize) -> Result<StatusCode, Failure> {
    let document: Document = serde_json::from_slice(&fs::read(&way.document)?)?;
    let url: Uri = document.url.parse()?;
    let host = url.host().ok_or("the url in report.json has no host")?;
    // A name is refused: the pod's DNS is the guest's to choose.
    let address: IpAddr = host.trim_matches(['[', ']']).parse()?;
    let address = SocketAddr::new(address, url.port_u16().unwrap_or(443));

    let stream = connect(address, way.own_ports, attempt).await?;
    let server = ServerName::try_from(document.server_name.clone())?;
    let stream = TlsConnector::from(Arc::new(trusting(&document.ca)?))
        .connect(server, stream)
        .await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!(
            "/report/v1/namespaces/{}/virtualmachineinstances/{}",
            way.namespace, way.name
        ))
        .header(HOST, document.server_name)
        .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(report)?)))?;
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer?.status())
}

/// Connects to the controller, where the guest has the pod's address from a port that it does not have.
async fn connect(address: SocketAddr, own_ports: bool, attempt: usize) -> std::io::Result<TcpStream> {
    if !own_ports {
        return TcpStream::connect(address).await;
    }
    let (socket, from): (_, IpAddr) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
    };
    // Each attempt has another: the one before may not be quite closed.
    let port = OWN_PORTS
        .clone()
        .cycle()
        .nth(attempt % OWN_PORTS.len())
        .unwrap_or(*OWN_PORTS.start());
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(from, port))?;
    socket.connect(address).await
}

/// TLS that trusts the certificates of `ca` alone.
fn trusting(ca: &str) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests;
