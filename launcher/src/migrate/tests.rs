use std::io::{Read, Write};
use std::path::Path;

use nacelle_vmm::migrate::{Cancel, Stream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::address::Address;
use super::stream::{Connector, Listener};
use super::tls::Files;
use super::*;

/// An authority; `files` has it make a certificate for `localhost`.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority(Issuer::new(params, key), certificate)
    }

    fn files(&self, directory: &Path, trusted: &Authority) -> Files {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::create_dir_all(directory).unwrap();
        for (name, text) in [
            ("ca.pem", &trusted.1),
            ("cert.pem", &certificate.pem()),
            ("key.pem", &key.serialize_pem()),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        Files::new(directory)
    }
}

fn plan(to: &str, tls: Option<Files>) -> Plan {
    Plan {
        to: to.parse().unwrap(),
        tls: tls.map(Credentials::Files),
        options: Options::default(),
        copied: Vec::new(),
    }
}

/// The whole word that comes, however often the stream says that it takes longer.
fn word(stream: &mut dyn Stream) -> String {
    let mut bytes = [0; 5];
    let mut got = 0;
    while got < bytes.len() {
        match stream.read(&mut bytes[got..]) {
            Ok(count) => got += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn only_who_has_a_certificate_of_the_same_authority_may_send_a_machine() {
    let home = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(), Authority::new());
    let files = |name: &str, by: &Authority, trusted: &Authority| by.files(&home.path().join(name), trusted);
    let good = files("good", &ours, &ours);
    let at: Address = "localhost:0".parse().unwrap();
    let listener = Listener::bind(&at, || files("target", &ours, &ours).server(), Cancel::new()).unwrap();
    let port = listener.address().rsplit_once(':').unwrap().1.to_owned();
    let target = std::thread::spawn(move || {
        // Whoever may not is sent away, and the wait goes on.
        let mut stream = listener.accept().unwrap();
        let heard = word(&mut *stream);
        stream.write_all(b"world").unwrap();
        stream.flush().unwrap();
        heard
    });
    let to = format!("localhost:{port}");
    let connect = |files| Connector::new(&plan(&to, Some(files))).unwrap().connect();

    // Someone with another authority's certificate who trusts ours, and the other way round.
    let mut odd = connect(files("stranger", &others, &ours));
    if let Ok(stream) = &mut odd {
        // TLS 1.3 tells a client only with the first answer that it is refused.
        let refused = stream.write_all(b"hello").and_then(|()| stream.flush());
        let mut byte = [0];
        let mut read = stream.read(&mut byte);
        while matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock) {
            read = stream.read(&mut byte);
        }
        assert!(refused.is_err() || !matches!(read, Ok(1)));
    }
    assert!(connect(files("suspicious", &ours, &others)).is_err());
    assert!(
        std::net::TcpStream::connect(&to)
            .unwrap()
            .write_all(b"no TLS")
            .is_ok()
    );

    let mut stream = connect(good).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.flush().unwrap();
    assert_eq!(word(&mut *stream), "world");
    assert_eq!(target.join().unwrap(), "hello");
}

#[test]
fn pods_trust_each_others_keys_and_no_others() {
    let address = std::net::IpAddr::from([127, 0, 0, 1]);
    let target = Pair::new("m", Some(address)).unwrap();
    let [source, stranger] = [(); 2].map(|()| Arc::new(Pair::new("m", None).unwrap()));
    let elsewhere = Pair::new("m", Some(address)).unwrap();
    let at = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&at, || target.server(source.certificate()), Cancel::new()).unwrap();
    let to = listener.address();
    let waits = std::thread::spawn(move || word(&mut *listener.accept().unwrap()));
    let connect = |pair: &Arc<Pair>, peer: &Pair| {
        let credentials = Credentials::Pair(Arc::clone(pair), peer.certificate().to_owned());
        let plan = Plan {
            tls: Some(credentials),
            ..plan(&to, None)
        };
        Connector::new(&plan).unwrap().connect()
    };
    // Names and authorities are the same: only the key tells them apart.
    assert!(connect(&source, &elsewhere).is_err(), "another target");
    if let Ok(mut stream) = connect(&stranger, &target) {
        let _ = stream.write_all(b"wrong").and_then(|()| stream.flush());
    }
    let mut stream = connect(&source, &target).unwrap();
    stream.write_all(b"right").unwrap();
    stream.flush().unwrap();
    assert_eq!(waits.join().unwrap(), "right");
    assert!(!format!("{source:?}").contains("PRIVATE"));
}

#[test]
fn a_stream_on_which_its_source_hears_nothing_ends_and_is_not_reset() {
    let home = tempfile::tempdir().unwrap();
    let files = Authority::new();
    let files = files.files(home.path(), &files);
    let (here, at) = (files.clone(), "localhost:0".parse().unwrap());
    let listener = Listener::bind(&at, || here.server(), Cancel::new()).unwrap();
    let port = listener.address().rsplit_once(':').unwrap().1.to_owned();
    let (accepted, ready) = std::sync::mpsc::channel();
    let target = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap();
        accepted.send(()).unwrap();
        let heard = word(&mut *stream);
        loop {
            match stream.read(&mut [0]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                end => return (heard, end.unwrap()),
            }
        }
    });
    let plan = plan(&format!("localhost:{port}"), Some(files));
    let mut stream = Connector::new(&plan).unwrap().connect().unwrap();
    stream.write_all(b"hello").unwrap();
    stream.flush().unwrap();
    ready.recv().unwrap();
    drop(stream);
    assert_eq!(target.join().unwrap(), ("hello".to_owned(), 0));
}

#[test]
fn a_network_is_crossed_by_tls_or_not_at_all() {
    let error = Connector::new(&plan("localhost:1", None))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("by TLS only"), "{error}");
    let home = tempfile::tempdir().unwrap();
    let nothing = Files::new(home.path());
    let error = Connector::new(&plan("localhost:1", Some(nothing)))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("ca.pem") && error.contains("docs/migration.md"),
        "{error}"
    );
}

#[test]
fn a_socket_of_this_host_is_the_users_alone_and_goes_with_its_listener() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("in");
    let to = format!("unix:{}", path.display());
    let cancel = Cancel::new();
    let listener = Listener::bind(&to.parse().unwrap(), || unreachable!(), cancel.clone()).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut stream = Connector::new(&plan(&to, None)).unwrap().connect().unwrap();
    stream.write_all(b"hello").unwrap();
    assert_eq!(word(&mut *listener.accept().unwrap()), "hello");
    cancel.cancel();
    assert!(listener.accept().is_err());
    drop(listener);
    assert!(!path.exists());
}
