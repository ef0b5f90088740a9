//! The certificates of the HTTPS server: an authority and a server certificate of our own, in a Secret.
//!
//! Every replica looks every minute (`--certificates-every`) what is due (`due`, pure) and does it; the Secret's
//! version decides who was first. A new authority is published beside the old one, and signs only from the next renewal
//! on: by then everybody who has to trust it has been told.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::pem::Pem;

use crate::secret::{self, Shared};

/// The Secret.
const NAME: &str = "nacelle-controller-certs";
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How long an authority is good, and how long before that it gets a successor.
const AUTHORITY: (i32, i32) = (30, 10);
/// The same of a server certificate.
const SERVER: (i32, i32) = (7, 2);

/// Certificates and keys, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// Authorities, the newest first: what clients shall trust.
    pub authorities: String,
    authority_key: String,
    /// The server's certificate.
    pub certificate: String,
    /// And its key.
    pub key: String,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Everything,
    Authority,
    Server,
}

fn due(material: Option<&Material>, name: &str, now: Timestamp) -> Due {
    let Some(material) = material else {
        return Due::Everything;
    };
    let ends = |pem: &str| blocks(pem).first().and_then(|block| end(block));
    let named = blocks(&material.certificate)
        .first()
        .is_some_and(|block| is_for(block, name));
    let (Some(authority), Some(server), true) =
        (ends(&material.authorities), ends(&material.certificate), named)
    else {
        return Due::Everything;
    };
    if authority < now {
        Due::Everything
    } else if authority < now + DAY * AUTHORITY.1 {
        Due::Authority
    } else if server < now + DAY * SERVER.1 {
        Due::Server
    } else {
        Due::Nothing
    }
}

fn renewed(material: Option<&Material>, due: &Due, name: &str, now: Timestamp) -> Result<Material> {
    match (due, material) {
        (Due::Authority, Some(old)) => {
            let (new, key) = authority(now)?;
            let kept = blocks(&old.authorities)
                .into_iter()
                .filter(|block| end(block).is_some_and(|end| end > now));
            Ok(Material {
                authorities: std::iter::once(new).chain(kept).collect(),
                authority_key: key,
                ..old.clone()
            })
        }
        (Due::Server, Some(old)) => {
            let newest = blocks(&old.authorities).into_iter().next().unwrap_or_default();
            let (certificate, key) = server(&newest, &old.authority_key, name, now)?;
            Ok(Material {
                certificate,
                key,
                ..old.clone()
            })
        }
        (Due::Nothing, Some(old)) => Ok(old.clone()),
        (_, _) => {
            let (authorities, authority_key) = authority(now)?;
            let (certificate, key) = server(&authorities, &authority_key, name, now)?;
            Ok(Material {
                authorities,
                authority_key,
                certificate,
                key,
            })
        }
    }
}

fn authority(now: Timestamp) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let name = format!("nacelle-controller@{}", now.as_second());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, now, AUTHORITY.0)?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn server(authority: &str, authority_key: &str, name: &str, now: Timestamp) -> Result<(String, String)> {
    let issuer = Issuer::from_ca_cert_pem(authority, KeyPair::from_pem(authority_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned(), format!("{name}.cluster.local")])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid(&mut params, now, SERVER.0)?;
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// A certificate by which we are known to a pod that trusts our authorities, and its key; for an upload.
pub struct Shown {
    /// In PEM.
    pub certificate: String,
    /// In PEM.
    pub key: String,
}

/// Makes one.
///
/// # Errors
/// The authority's key is none.
pub fn client(material: &Material, now: Timestamp) -> Result<Shown> {
    let newest = blocks(&material.authorities)
        .into_iter()
        .next()
        .unwrap_or_default();
    let issuer = Issuer::from_ca_cert_pem(&newest, KeyPair::from_pem(&material.authority_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "nacelle-controller");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    valid(&mut params, now, 1)?;
    Ok(Shown {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

fn valid(params: &mut CertificateParams, now: Timestamp, days: i32) -> Result<()> {
    let day = |at: Timestamp| -> Result<_> {
        let date = at.to_zoned(k8s_openapi::jiff::tz::TimeZone::UTC).date();
        let (year, month, day) = (
            date.year(),
            u8::try_from(date.month())?,
            u8::try_from(date.day())?,
        );
        Ok(rcgen::date_time_ymd(year.into(), month, day))
    };
    // By the day; clocks differ.
    params.not_before = day(now - DAY)?;
    params.not_after = day(now + DAY * (days + 1))?;
    Ok(())
}

/// The certificates of a bundle, each as PEM.
fn blocks(pem: &str) -> Vec<String> {
    let mark = "-----END CERTIFICATE-----\n";
    pem.split_inclusive(mark)
        .filter(|block| block.ends_with(mark))
        .map(str::to_owned)
        .collect()
}

fn end(pem: &str) -> Option<Timestamp> {
    let (pem, _) = Pem::read(std::io::Cursor::new(pem.as_bytes())).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

fn is_for(pem: &str, name: &str) -> bool {
    let Ok((pem, _)) = Pem::read(std::io::Cursor::new(pem.as_bytes())) else {
        return false;
    };
    pem.parse_x509().is_ok_and(|certificate| {
        certificate
            .subject()
            .iter_common_name()
            .any(|common| common.as_str() == Ok(name))
    })
}

/// Reads the Secret, does what is due, and gives what is there then.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn ensure(client: &Client, namespace: &str, name: &str) -> Result<Material> {
    let look = |secret: Option<&Secret>| {
        let now = Timestamp::now();
        let material = secret.and_then(read);
        let due = due(material.as_ref(), name, now);
        if let (Due::Nothing, Some(value)) = (&due, &material) {
            return Ok(Shared {
                value: value.clone(),
                data: None,
            });
        }
        log::info!("certificates: {due:?} is due");
        let new = renewed(material.as_ref(), &due, name, now)?;
        let data = Some(write(&new));
        Ok(Shared { value: new, data })
    };
    secret::ensure(client, namespace, (NAME, "the certificates' Secret"), look).await
}

fn read(secret: &Secret) -> Option<Material> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Material {
        authorities: text("ca.crt")?,
        authority_key: text("ca.key")?,
        certificate: text("tls.crt")?,
        key: text("tls.key")?,
    })
}

fn write(material: &Material) -> BTreeMap<String, ByteString> {
    [
        ("ca.crt", &material.authorities),
        ("ca.key", &material.authority_key),
        ("tls.crt", &material.certificate),
        ("tls.key", &material.key),
    ]
    .into_iter()
    .map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "c.nacelle.svc";

    fn day(days: i32) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + DAY * days
    }

    #[test]
    fn a_server_certificate_is_renewed_alone_and_an_authority_gets_its_successor_in_time() {
        let first = renewed(None, &Due::Everything, NAME, day(0)).unwrap();
        assert_eq!(due(None, NAME, day(0)), Due::Everything);
        assert_eq!(due(Some(&first), NAME, day(0)), Due::Nothing);
        assert_eq!(due(Some(&first), NAME, day(5)), Due::Nothing);
        assert_eq!(due(Some(&first), NAME, day(7)), Due::Server);
        assert_eq!(due(Some(&first), "other.svc", day(0)), Due::Everything);

        let second = renewed(Some(&first), &Due::Server, NAME, day(20)).unwrap();
        assert_eq!(second.authorities, first.authorities);
        assert_ne!(second.certificate, first.certificate);
        assert_eq!(due(Some(&second), NAME, day(22)), Due::Authority);

        // The old authority stays beside the new one, and what it signed in use.
        let third = renewed(Some(&second), &Due::Authority, NAME, day(22)).unwrap();
        assert_eq!(blocks(&third.authorities).len(), 2);
        assert!(third.authorities.ends_with(&first.authorities));
        assert_eq!(third.certificate, second.certificate);
        let fourth = renewed(Some(&third), &Due::Server, NAME, day(26)).unwrap();
        assert_ne!(fourth.certificate, second.certificate);
        let fifth = renewed(Some(&fourth), &Due::Authority, NAME, day(45)).unwrap();
        assert_eq!(blocks(&fifth.authorities).len(), 2, "what has expired is dropped");
        assert_eq!(due(Some(&fifth), NAME, day(200)), Due::Everything);
    }
}
