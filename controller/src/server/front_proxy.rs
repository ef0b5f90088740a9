//! The API server speaks for its users: it proves who it is by a certificate, and names the user in headers.
//! What these are is said in `kube-system/extension-apiserver-authentication`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use axum::http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A user, as the API server names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else its authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Whose word on users is taken, and in which headers it stands.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    roots: RootCertStore,
    allowed_names: Vec<String>,
    user_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// Reads what the API server published.
    ///
    /// # Errors
    /// It cannot be asked, or did not publish it: then the aggregation layer is off.
    pub async fn read(client: &Client) -> Result<Self> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let map = api
            .get("extension-apiserver-authentication")
            .await
            .context("reading kube-system/extension-apiserver-authentication")?;
        Self::parse(&map.data.unwrap_or_default())
    }

    fn parse(data: &BTreeMap<String, String>) -> Result<Self> {
        let list = |key: &str| -> Result<Vec<String>> {
            let text = data.get(key).map_or("[]", String::as_str);
            serde_json::from_str(text).with_context(|| format!("{key} of extension-apiserver-authentication"))
        };
        let bundle = data.get("requestheader-client-ca-file").context(
            "the API server has no requestheader-client-ca-file: its aggregation layer is off, which this needs",
        )?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate?)?;
        }
        Ok(FrontProxy {
            roots,
            allowed_names: list("requestheader-allowed-names")?,
            user_headers: list("requestheader-username-headers")?,
            group_headers: list("requestheader-group-headers")?,
            extra_prefixes: list("requestheader-extra-headers-prefix")?,
        })
    }

    pub(super) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    /// Whether this certificate, which TLS has verified, is a front proxy's.
    pub(super) fn allows(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        self.allowed_names.is_empty()
            || certificate.subject().iter_common_name().any(|name| {
                name.as_str()
                    .is_ok_and(|name| self.allowed_names.iter().any(|allowed| allowed == name))
            })
    }

    /// The user that a request of the front proxy is about.
    pub fn user(&self, headers: &HeaderMap) -> Option<User> {
        let values = |names: &[String]| -> Vec<String> {
            names
                .iter()
                .flat_map(|name| headers.get_all(name.as_str()))
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect()
        };
        let name = values(&self.user_headers)
            .into_iter()
            .find(|name| !name.is_empty())?;
        let mut extra = BTreeMap::<_, Vec<_>>::new();
        for (header, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|prefix| {
                let header = header.as_str();
                header
                    .get(..prefix.len())?
                    .eq_ignore_ascii_case(prefix)
                    .then(|| header.get(prefix.len()..))
                    .flatten()
            });
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra
                    .entry(percent_decoded(key))
                    .or_default()
                    .push(value.to_owned());
            }
        }
        Some(User {
            name,
            groups: values(&self.group_headers),
            extra,
        })
    }
}

/// Keys of extras may hold what a header's name may not; the API server escapes it.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_from_the_headers_that_the_api_server_named() {
        let proxy = FrontProxy {
            roots: RootCertStore::empty(),
            allowed_names: vec![],
            user_headers: vec!["X-Remote-User".into()],
            group_headers: vec!["X-Remote-Group".into()],
            extra_prefixes: vec!["X-Remote-Extra-".into()],
        };
        let mut headers = HeaderMap::new();
        assert_eq!(proxy.user(&headers), None, "without a name there is no user");
        headers.insert("x-remote-user", "alice".parse().unwrap());
        headers.append("x-remote-group", "dev".parse().unwrap());
        headers.append("x-remote-group", "system:authenticated".parse().unwrap());
        headers.append("x-remote-extra-example.com%2fscope", "a".parse().unwrap());
        let user = proxy.user(&headers).unwrap();
        assert_eq!(user.name, "alice");
        assert_eq!(user.groups, ["dev", "system:authenticated"]);
        assert_eq!(user.extra["example.com/scope"], ["a"]);
    }

    #[test]
    fn what_is_published_wrongly_is_an_error_that_names_it() {
        let mut data = BTreeMap::new();
        assert!(
            FrontProxy::parse(&data)
                .unwrap_err()
                .to_string()
                .contains("aggregation layer is off")
        );
        data.insert("requestheader-client-ca-file".to_owned(), String::new());
        data.insert("requestheader-allowed-names".to_owned(), "front".to_owned());
        let error = FrontProxy::parse(&data).unwrap_err();
        assert!(
            error.to_string().contains("requestheader-allowed-names"),
            "{error}"
        );
    }
}
