//! Who may send a machine here, or take one from here: whoever has a certificate of the authority that both
//! sides trust. TLS 1.3, both sides show one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::storage::paths;
use crate::{Error, Result};

/// Where certificates are, on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Directory with ca.pem, cert.pem and key.pem, for HOST:PORT [default: nacelle/tls in the user's
    /// configuration directory]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
}

/// PEM files: the authority's certificate, ours, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files(PathBuf);

impl TlsArgs {
    /// The files that are meant.
    ///
    /// # Errors
    /// When the environment names no place for them.
    pub fn files(&self) -> Result<Files> {
        let directory = match &self.tls {
            Some(given) => std::path::absolute(given).map_err(Error::file("find", given))?,
            None => paths::config()?.join("tls"),
        };
        Ok(Files(directory))
    }
}

impl Files {
    /// Those in `directory`.
    pub fn new(directory: &Path) -> Files {
        Files(directory.to_owned())
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>> {
        let path = self.0.join(name);
        let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
        let certificates: Vec<_> = read.map_err(|error| unreadable(&path, error))?;
        match certificates.is_empty() {
            true => Err(wrong(&path, "there is no certificate in it")),
            false => Ok(certificates),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let path = self.0.join("key.pem");
        PrivateKeyDer::from_pem_file(&path).map_err(|error| unreadable(&path, error))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("ca.pem")? {
            roots
                .add(certificate)
                .map_err(|error| wrong(&self.0.join("ca.pem"), error))?;
        }
        Ok(Arc::new(roots))
    }

    /// What a source needs.
    ///
    /// # Errors
    /// When a file is not there or not what it must be.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map(|config| {
                config
                    .with_root_certificates(self.roots()?)
                    .with_client_auth_cert(self.certificates("cert.pem")?, self.key()?)
                    .map_err(|error| wrong(&self.0.join("cert.pem"), error))
            })
            .map_err(|error| wrong(&self.0, error))?;
        Ok(Arc::new(config?))
    }

    /// What a target needs.
    ///
    /// # Errors
    /// When a file is not there or not what it must be.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(|error| wrong(&self.0.join("ca.pem"), error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| wrong(&self.0, error))?
            .with_client_cert_verifier(clients)
            .with_single_cert(self.certificates("cert.pem")?, self.key()?)
            .map_err(|error| wrong(&self.0.join("cert.pem"), error))?;
        // Nobody resumes a session; and a source that closes a stream on which it had nothing to hear would reset it, with
        // what it sent, where tickets lie unread (RFC 1122, 4.2.2.13).
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// A source's side of a connection to `host`.
pub(super) fn to(config: &Arc<ClientConfig>, host: &str) -> std::io::Result<ClientConnection> {
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)
}

/// A target's side of a connection.
pub(super) fn from(config: &Arc<ServerConfig>) -> std::io::Result<ServerConnection> {
    ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)
}

fn unreadable(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    match error {
        rustls::pki_types::pem::Error::Io(source) => Error::File {
            what: "read, for TLS (docs/migration.md says how to make it),",
            path: path.to_owned(),
            source,
        },
        other => wrong(path, other),
    }
}

fn wrong(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Usage(format!("{} cannot be used for TLS: {reason}", path.display()))
}
