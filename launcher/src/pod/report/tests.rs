use std::sync::Mutex;

use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper::{Response, body::Incoming};
use nacelle_vmm::Error as VmmError;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const SERVER: &str = "nacelle-controller.nacelle.svc";

/// A request as the controller sees it: path, authorization, body.
type Asked = (String, String, Value);

/// A controller that answers with the statuses it is given, then always with 204.
struct Controller {
    asked: mpsc::UnboundedReceiver<Asked>,
    home: tempfile::TempDir,
}

impl Controller {
    async fn start(statuses: &[u16]) -> Controller {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec![SERVER.to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let document = json!({
            "url": format!("https://{}", listener.local_addr().unwrap()),
            "serverName": SERVER,
            "ca": cert.pem(),
        });
        fs::write(home.path().join("report.json"), document.to_string()).unwrap();
        fs::write(home.path().join("token"), "first\n").unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let statuses: Arc<Mutex<Vec<u16>>> = Arc::new(Mutex::new(statuses.iter().rev().copied().collect()));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let answer = service_fn(|request: Request<Incoming>| {
                    let (tell, statuses) = (tell.clone(), Arc::clone(&statuses));
                    async move {
                        let path = request.uri().path().to_owned();
                        let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let _ = tell.send((path, token, serde_json::from_slice(&body).unwrap()));
                        let status = statuses.lock().unwrap().pop().unwrap_or(204);
                        Ok::<_, std::convert::Infallible>(
                            Response::builder()
                                .status(status)
                                .body(Full::new(Bytes::new()))
                                .unwrap(),
                        )
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            }
        });
        Controller { asked, home }
    }

    fn reporter(&self) -> Reporter {
        Reporter::start(Way {
            document: self.home.path().join("report.json"),
            token: self.home.path().join("token"),
            own_ports: false,
            namespace: "team".into(),
            name: "ledger".into(),
        })
    }

    async fn hears(&mut self) -> Asked {
        timeout(PATIENCE, self.asked.recv()).await.unwrap().unwrap()
    }

    /// The state that it is told next.
    async fn state(&mut self) -> String {
        self.hears().await.2["state"].as_str().unwrap().to_owned()
    }
}

fn status(state: State) -> Status {
    Status {
        state,
        resets: 0,
        panicked: false,
        disk_error: None,
        plugged: Vec::new(),
    }
}

fn report(state: State) -> Report {
    Report::of(&status(state), &Said::default(), &[], None).unwrap()
}

#[test]
fn who_paused_it_is_told() {
    let by_user = report(State::Paused);
    assert_eq!((by_user.reason, by_user.message.as_str()), ("PausedByUser", ""));
    let failed = |state| {
        let status = Status {
            disk_error: Some("disk data: No space left on device".into()),
            ..status(state)
        };
        let report = Report::of(&status, &Said::default(), &[], None).unwrap();
        (report.state, report.reason, report.message)
    };
    let message = "disk data: No space left on device".to_owned();
    assert_eq!(failed(State::Paused), ("Paused", "PausedIOError", message));
    // While it moves it runs, and nobody has to do anything yet.
    assert_eq!(failed(State::Migrating), ("Running", "", String::new()));
}

/// The interface of a pod with two addresses.
fn known(bridged: bool) -> Vec<Interface> {
    let net = Net {
        name: "default".into(),
        binding: crate::net::Binding::Bridge,
        mac: [2, 0, 0, 0, 0, 9],
        mac_given: false,
        queue_pairs: 2,
    };
    let made = pod_net::Interface {
        ipv6: None,
        network: "default".into(),
        tap: "tap0".into(),
        mac: [2, 0, 0, 0, 0, 10],
        mtu: 1500,
        lease: crate::net::Lease {
            server: Ipv4Addr::new(10, 0, 2, 1),
            address: "10.0.2.2/24".parse().unwrap(),
            router: None,
            routes: Vec::new(),
        },
        bridged,
    };
    interfaces(&[net], &[made], &["10.244.1.7".into(), "fd00::7".into()])
}

#[test]
fn what_the_agent_says_is_told_of_interfaces_that_the_machine_has() {
    let said = |text: &str| serde_json::from_str::<Said>(text).unwrap();
    let told = |bridged, said: &Said| {
        let report = Report::of(&status(State::Running), said, &known(bridged), None).unwrap();
        serde_json::to_value(report).unwrap()
    };
    let nothing = told(true, &Said::default());
    assert_eq!(nothing["agent"], Value::Null);
    assert_eq!(nothing["interfaces"][0]["infoSource"], "domain");

    let all = said(
        r#"{"connected": true, "os": {"name": "Debian", "prettyName": "Debian 12"}, "fsFreezeStatus": "thawed",
        "interfaces": [{"interfaceName": "lo", "mac": "00:00:00:00:00:00", "ipAddresses": [{"ipAddress": "127.0.0.1"}]},
        {"interfaceName": "ens3", "mac": "02:00:00:00:00:0A", "ipAddresses": [{"ipAddress": "10.0.2.2"},
            {"ipAddress": "10.244.1.7"}, {"ipAddress": "nonsense"}, {"ipAddress": "fe80::1"}]},
        {"interfaceName": "br0", "mac": "02:00:00:00:00:0a", "ipAddresses": [{"ipAddress": "10.9.9.9"}]}]}"#,
    );
    let masqueraded = told(false, &all);
    assert_eq!(
        masqueraded["agent"],
        json!({"guestOSInfo": {"name": "Debian", "prettyName": "Debian 12"}, "fsFreezeStatus": "thawed"})
    );
    let expected = json!([{
        "name": "default", "mac": "02:00:00:00:00:0a", "ipAddresses": ["10.244.1.7", "fd00::7"], "queueCount": 2,
        "podInterfaceName": "eth0", "interfaceName": "ens3", "infoSource": "domain, guest-agent",
    }]);
    assert_eq!(masqueraded["interfaces"], expected);
    let addresses = json!(["10.244.1.7", "fd00::7", "10.0.2.2", "fe80::1"]);
    assert_eq!(told(true, &all)["interfaces"][0]["ipAddresses"], addresses);
}

#[tokio::test]
async fn the_controller_is_told_who_and_what() {
    let mut controller = Controller::start(&[]).await;
    let reporter = controller.reporter();
    reporter.tell(Report::of(&status(State::Running), &Said::default(), &known(false), None).unwrap());
    let (path, token, body) = controller.hears().await;
    assert_eq!(path, "/report/v1/namespaces/team/virtualmachineinstances/ledger");
    assert_eq!(token, "Bearer first");
    let expected = json!({
        "state": "Running", "reason": "", "message": "",
        "interfaces": [{
            "name": "default", "mac": "02:00:00:00:00:0a", "ipAddresses": ["10.244.1.7", "fd00::7"],
            "queueCount": 2, "podInterfaceName": "eth0", "infoSource": "domain",
        }],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn what_is_not_heard_is_said_again_and_only_the_newest() {
    let mut controller = Controller::start(&[503]).await;
    let reporter = controller.reporter();
    reporter.tell(report(State::Running));
    assert_eq!(controller.state().await, "Running");
    reporter.tell(report(State::Paused));
    reporter.tell(report(State::Stopping));
    assert_eq!(controller.state().await, "Stopping");
    // It says nothing twice.
    reporter.tell(report(State::Stopping));
    reporter
        .finish(Last::of(&Ok(End::PoweredOff)).report(Vec::new()))
        .await;
    assert_eq!(controller.state().await, "Succeeded");
}

#[tokio::test]
async fn a_token_that_is_refused_is_not_used_again() {
    let mut controller = Controller::start(&[401]).await;
    let reporter = controller.reporter();
    reporter.tell(report(State::Running));
    assert_eq!(controller.hears().await.1, "Bearer first");
    assert!(
        timeout(Duration::from_millis(1500), controller.asked.recv())
            .await
            .is_err()
    );
    fs::write(controller.home.path().join("token"), "second\n").unwrap();
    assert_eq!(controller.hears().await.1, "Bearer second");
}

#[tokio::test]
async fn an_instance_that_is_gone_is_not_reported_on() {
    let mut controller = Controller::start(&[410]).await;
    let reporter = controller.reporter();
    reporter.tell(report(State::Running));
    controller.state().await;
    reporter
        .finish(Last::of(&Ok(End::Killed)).report(Vec::new()))
        .await;
    assert!(controller.asked.try_recv().is_err());
}

#[tokio::test]
async fn only_the_controllers_own_certificate_and_a_plain_address_will_do() {
    let controller = Controller::start(&[]).await;
    let way = Way {
        document: controller.home.path().join("report.json"),
        token: controller.home.path().join("token"),
        own_ports: false,
        namespace: "team".into(),
        name: "ledger".into(),
    };
    let mut document: Value = serde_json::from_slice(&fs::read(&way.document).unwrap()).unwrap();
    let good = document.clone();
    let other = generate_simple_self_signed(vec![SERVER.to_owned()]).unwrap();
    for (field, value) in [
        ("ca", other.cert.pem()),
        ("serverName", "somebody.else".to_owned()),
        ("url", "https://nacelle-controller.nacelle.svc".to_owned()),
    ] {
        document[field] = value.into();
        fs::write(&way.document, document.to_string()).unwrap();
        assert!(
            send(&way, &report(State::Running), "t", 0).await.is_err(),
            "{field}"
        );
        document = good.clone();
    }
    fs::write(&way.document, good.to_string()).unwrap();
    assert_eq!(send(&way, &report(State::Running), "t", 0).await.unwrap(), 204);
}

#[test]
fn each_answer_has_its_consequence() {
    for (status, after) in [
        (204, Next::Done),
        (200, Next::Done),
        (401, Next::NewToken),
        (403, Next::NewToken),
        (404, Next::Stop),
        (409, Next::Stop),
        (410, Next::Stop),
        (429, Next::Again),
        (500, Next::Again),
        (503, Next::Again),
        (302, Next::Again),
    ] {
        assert_eq!(next(StatusCode::from_u16(status).unwrap()), after, "{status}");
    }
}

#[test]
fn each_end_is_a_success_or_a_failure_of_the_instance() {
    let failed = || VmmError::Capability("x");
    let cases = [
        (Ok(End::PoweredOff), "Succeeded", "GuestShutdown"),
        (Ok(End::Reset), "Succeeded", "GuestReset"),
        (Ok(End::Saved), "Succeeded", "Saved"),
        (Ok(End::Moved), "Succeeded", "Moved"),
        (Ok(End::Killed), "Failed", "Killed"),
        (Ok(End::GraceExpired), "Failed", "GracePeriodExpired"),
        (Ok(End::Watchdog), "Failed", "WatchdogExpired"),
        (Ok(End::Failed(failed())), "Failed", "MachineFailed"),
        (Err(crate::Error::Usage("wrong".into())), "Failed", "StartFailed"),
    ];
    for (end, state, reason) in cases {
        let last = Last::of(&end);
        assert_eq!((last.state, last.reason), (state, reason), "{end:?}");
        assert!(!last.message.is_empty());
    }
}
