//! What a client sends becomes a disk when all of it came, and not before.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacelle_importer::source::upload::NAME;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// An importer that waits for an upload.
struct Importer {
    child: Child,
    port: u16,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

/// An authority.
fn authority() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

impl Importer {
    fn new() -> Importer {
        let (issuer, pem) = authority();
        // Free, and free again.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nacelle-importer"))
            .args(["upload", "--size", "4194304", "--port", &port.to_string(), "--to"])
            .arg(dir.path().join("disk.img"))
            .arg("--scratch")
            .arg(dir.path())
            .arg("--termination-log")
            .arg(dir.path().join("why"))
            .env("NACELLE_CLIENTS", pem)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.find_map(|line| line.unwrap().strip_prefix("listens ").map(str::to_owned));
        let certificate = STANDARD.decode(said.unwrap()).unwrap().into();
        // It may speak on.
        std::thread::spawn(move || lines.for_each(drop));
        Importer {
            child,
            port,
            certificate,
            issuer,
            dir,
        }
    }

    /// Connects with a certificate of `issuer`, or with none.
    fn connects(&self, issuer: Option<&Issuer<'_, KeyPair>>) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match issuer {
            None => builder.with_no_client_auth(),
            Some(issuer) => {
                let key = KeyPair::generate().unwrap();
                let mut params = CertificateParams::default();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                let certificate = params.signed_by(&key, issuer).unwrap();
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate.der().clone()], key)
                    .unwrap()
            }
        };
        let connection = ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap();
        StreamOwned::new(connection, TcpStream::connect(("127.0.0.1", self.port)).unwrap())
    }

    /// Begins to upload `len` bytes.
    fn begins(&self, path: &str, len: usize, kind: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut stream = self.connects(Some(&self.issuer));
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\r\n"
        )
        .unwrap();
        stream
    }

    /// Uploads it all; what is answered.
    fn uploads(&self, path: &str, body: &[u8], kind: &str) -> String {
        let mut stream = self.begins(path, body.len(), kind);
        // It may not want all of it.
        let _ = stream.write_all(body);
        heard(stream)
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk.img")).unwrap_or_default()
    }
}

impl Drop for Importer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer.
fn heard(mut stream: StreamOwned<ClientConnection, TcpStream>) -> String {
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

fn disk() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn an_upload_that_breaks_off_is_begun_again_and_only_a_whole_one_counts() {
    let mut importer = Importer::new();
    let disk = disk();
    let mut cut = importer.begins("/v1beta1/upload", disk.len(), "a/b");
    cut.write_all(&disk[..700_000]).unwrap();
    // While it goes on there is no other.
    let said = importer.uploads("/v1beta1/upload", &disk, "a/b");
    assert!(
        said.starts_with("HTTP/1.1 503") && said.contains("another upload"),
        "{said}"
    );
    drop(cut);
    // What is no disk is said to be none, as soon as the other has gone.
    let said = loop {
        let said = importer.uploads("/v1beta1/upload-async", b"", "a/b");
        if !said.starts_with("HTTP/1.1 503") {
            break said;
        }
    };
    assert!(
        said.starts_with("HTTP/1.1 400") && said.contains("it is empty"),
        "{said}"
    );
    let said = importer.uploads("/v1beta1/upload", &vec![1; 5 << 20], "a/b");
    assert!(said.contains("A larger PVC is required"), "{said}");
    assert!(importer.child.try_wait().unwrap().is_none());

    // As browsers send it.
    let mut form = b"--XX\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\nno\r\n--XX\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"
        .to_vec();
    form.extend(&disk);
    let kind = "multipart/form-data; boundary=XX";
    let said = importer.uploads("/v1beta1/upload-form", &form, kind);
    assert!(
        said.starts_with("HTTP/1.1 400") && said.contains("broke off"),
        "{said}"
    );
    form.extend(b"\r\n--XX--\r\n");
    let said = importer.uploads("/v1beta1/upload-form-async", &form, kind);
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(importer.child.wait().unwrap().success());
    let found = importer.disk();
    assert_eq!(found.len(), 4 << 20);
    assert!(found[..disk.len()] == disk && found[disk.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn who_has_no_certificate_of_the_authority_uploads_nothing() {
    let mut importer = Importer::new();
    let (stranger, _) = authority();
    for issuer in [None, Some(&stranger)] {
        let mut stream = importer.connects(issuer);
        let _ = write!(
            stream,
            "POST /v1beta1/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        );
        assert_eq!(heard(stream), "");
    }
    assert!(importer.disk().is_empty());
    let said = importer.uploads("/v1beta1/upload", &disk(), "a/b");
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(importer.child.wait().unwrap().success());
}
