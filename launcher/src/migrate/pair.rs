//! What a pod shows the pod that its machine goes to, or comes from: a key that never leaves this process, and a certificate
//! of its own making that the controller carries to the other side. Each side trusts that one certificate and no other.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, Result};

/// A key and its certificate, for one migration.
pub struct Pair {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    pem: String,
}

// The key is nobody's to read.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.pem)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// A new one, for the side of `migration` that is reached at `address`, if it is.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(migration: &str, address: Option<IpAddr>) -> Result<Pair> {
        let made = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(DnType::CommonName, format!("migration {migration}"));
            params.subject_alt_names = address.map(SanType::IpAddress).into_iter().collect();
            // It ends with the process, and hosts' clocks differ: no dates (RFC 5280, 4.1.2.5).
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(9999, 12, 31);
            let certificate = params.self_signed(&key)?;
            Ok((key, certificate))
        };
        let (key, certificate) = made().map_err(|error: rcgen::Error| unusable(error))?;
        Ok(Pair {
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            pem: certificate.pem(),
            certificate: certificate.into(),
        })
    }

    /// The certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    fn own(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            vec![self.certificate.clone()],
            PrivateKeyDer::from(self.key.clone_key()),
        )
    }

    /// What a source needs to go to who has the certificate `peer`.
    ///
    /// # Errors
    /// When `peer` is no certificate.
    pub fn client(&self, peer: &str) -> Result<Arc<ClientConfig>> {
        let roots = only(peer)?;
        let (chain, key) = self.own();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .and_then(|config| {
                config
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
            });
        Ok(Arc::new(config.map_err(unusable)?))
    }

    /// What a target needs to take a machine from who has the certificate `peer`.
    ///
    /// # Errors
    /// When `peer` is no certificate.
    pub fn server(&self, peer: &str) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(only(peer)?, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let (chain, key) = self.own();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|config| {
                config
                    .with_client_cert_verifier(clients)
                    .with_single_cert(chain, key)
            })
            .map_err(unusable)?;
        // As for files: nobody resumes a session, and unread tickets would reset the stream of a source.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// Trusts `peer` alone.
fn only(peer: &str) -> Result<Arc<RootCertStore>> {
    let certificate = CertificateDer::from_pem_slice(peer.as_bytes()).map_err(unusable)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(unusable)?;
    Ok(Arc::new(roots))
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::Usage(format!("the certificate of a migration cannot be used: {error}"))
}
