//! What a token says and how it is signed: a JSON Web Token (RFC 7519) with HMAC SHA-256. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use ring::hmac;
use serde::{Deserialize, Serialize};

/// How long an upload may be begun with it.
const LIFE: SignedDuration = SignedDuration::from_mins(5);
/// Clocks of two replicas differ by less.
const SKEW: SignedDuration = SignedDuration::from_secs(10);
/// The only header that there is.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
/// Who makes them, for what.
const ISSUER: &str = "nacelle-upload";
/// Bytes that one may have.
const LIMIT: usize = 2048;

/// The claim that may be filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    exp: i64,
    /// Namespace of the claim.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another of the same name is not meant.
    pub uid: String,
}

impl Claims {
    /// For a claim, from now on.
    pub fn new(namespace: &str, name: &str, uid: &str, now: Timestamp) -> Self {
        Claims {
            iss: ISSUER.to_owned(),
            exp: (now + LIFE).as_second(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// The token.
    pub fn signed(&self, key: &[u8]) -> Result<String, serde_json::Error> {
        let text = format!(
            "{}.{}",
            BASE64.encode(HEADER),
            BASE64.encode(serde_json::to_vec(self)?)
        );
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
        Ok(format!("{text}.{}", BASE64.encode(signature)))
    }
}

/// Reads a token that one of these keys has signed.
///
/// # Errors
/// It is none, or its time is over.
pub fn verified<'a>(
    token: &str,
    mut keys: impl Iterator<Item = &'a [u8]>,
    now: Timestamp,
) -> Result<Claims, &'static str> {
    let wrong = "the token is not one of this cluster's";
    if token.len() > LIMIT {
        return Err(wrong);
    }
    let (text, signature) = token.rsplit_once('.').ok_or(wrong)?;
    let (header, payload) = text.split_once('.').ok_or(wrong)?;
    let signature = BASE64.decode(signature).map_err(|_| wrong)?;
    let signs = |key| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::verify(&key, text.as_bytes(), &signature).is_ok()
    };
    if header != BASE64.encode(HEADER) || !keys.any(signs) {
        return Err(wrong);
    }
    let payload = BASE64.decode(payload).map_err(|_| wrong)?;
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| wrong)?;
    if claims.iss != ISSUER {
        return Err(wrong);
    }
    if claims.exp < (now - SKEW).as_second() {
        return Err("the token's time is over; ask for another");
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_minutes_as_it_was_signed() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let claims = Claims::new("n", "a", "u", now);
        let token = claims.signed(b"one").unwrap();
        let read = |token: &str, keys: &[&'static [u8]], at| verified(token, keys.iter().copied(), at);
        assert_eq!(read(&token, &[b"one"], now), Ok(claims.clone()));
        assert_eq!(read(&token, &[b"two", b"one"], now + LIFE), Ok(claims.clone()));
        assert!(
            read(&token, &[b"one"], now + LIFE + SKEW * 2)
                .unwrap_err()
                .contains("time is over")
        );
        assert!(read(&token, &[b"two"], now).is_err());
        assert!(read(&token, &[], now).is_err());

        let parts: Vec<_> = token.split('.').collect();
        let other = Claims::new("n", "b", "u", now);
        let other = BASE64.encode(serde_json::to_vec(&other).unwrap());
        let unsigned = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let mut issued = claims;
        issued.iss = "another".into();
        for forged in [
            format!("{}.{other}.{}", parts[0], parts[2]),
            format!("{unsigned}.{}.", parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}.{}", parts[2]),
            issued.signed(b"one").unwrap(),
            String::new(),
            "..".into(),
            "a".repeat(LIMIT * 2),
        ] {
            assert!(read(&forged, &[b"one"], now).is_err(), "{forged}");
        }
    }
}
