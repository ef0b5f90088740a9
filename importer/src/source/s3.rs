//! Objects in S3 are files on the web whose address is signed: for a week, which is the longest that there is. They are
//! fetched as others are, in ranges beside each other.

use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer;
use reqwest::{Method, Url};
use tokio::runtime::Builder;

use crate::{Error, Result};

/// How long an address is good.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The region of servers that have none.
const REGION: &str = "us-east-1";

/// The address on the web of the object at `url`, which is ENDPOINT/BUCKET/OBJECT; signed for who has a name and a secret.
///
/// # Errors
/// It is no address of an object.
pub fn signed(url: &str, user: Option<&(String, String)>) -> Result<String> {
    let fail = |reason: String| Error::Source {
        what: "the object".to_owned(),
        reason,
    };
    let object = Object::parse(url).map_err(&fail)?;
    let Some((name, secret)) = user else {
        return Ok(format!("{}/{}/{}", object.endpoint, object.bucket, object.key));
    };
    let store = AmazonS3Builder::new()
        .with_endpoint(&object.endpoint)
        .with_allow_http(true)
        .with_region(object.region)
        .with_bucket_name(object.bucket)
        .with_access_key_id(name)
        .with_secret_access_key(secret)
        .build()
        .map_err(|error| fail(error.to_string()))?;
    let path = Path::from_url_path(&object.key).map_err(|error| fail(error.to_string()))?;
    let runtime = Builder::new_current_thread()
        .build()
        .map_err(|error| fail(error.to_string()))?;
    let signed = runtime.block_on(store.signed_url(Method::GET, &path, LIFE));
    Ok(signed.map_err(|error| fail(error.to_string()))?.into())
}

/// Where an object lies.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    endpoint: String,
    region: String,
    bucket: String,
    /// As in an address.
    key: String,
}

impl Object {
    fn parse(url: &str) -> Result<Object, String> {
        let wrong = || "an address of S3 is https://ENDPOINT/BUCKET/OBJECT".to_owned();
        // `s3:` says nothing of the wire, which is HTTPS then.
        let url = url
            .strip_prefix("s3://")
            .map_or_else(|| url.to_owned(), |rest| format!("https://{rest}"));
        let url = Url::parse(&url).map_err(|_| wrong())?;
        let host = url
            .host_str()
            .filter(|_| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(wrong)?;
        let (bucket, key) = url
            .path()
            .trim_start_matches('/')
            .split_once('/')
            .ok_or_else(wrong)?;
        if bucket.is_empty() || key.is_empty() {
            return Err(wrong());
        }
        Ok(Object {
            endpoint: url.origin().ascii_serialization(),
            region: region(host).to_owned(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// What the name of one of Amazon's servers says.
fn region(host: &str) -> &str {
    let named = host
        .strip_suffix(".cn")
        .unwrap_or(host)
        .strip_suffix(".amazonaws.com");
    let last = named.and_then(|name| name.rsplit('.').next());
    match last.map(|name| name.strip_prefix("s3-").unwrap_or(name)) {
        None | Some("s3") => REGION,
        Some(region) => region,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_server_bucket_and_object() {
        for (url, endpoint, region, bucket, key) in [
            (
                "https://s3.eu-west-1.amazonaws.com/b/a/disk.img",
                "https://s3.eu-west-1.amazonaws.com",
                "eu-west-1",
                "b",
                "a/disk.img",
            ),
            (
                "s3://s3.amazonaws.com/b/k",
                "https://s3.amazonaws.com",
                "us-east-1",
                "b",
                "k",
            ),
            (
                "https://s3-us-west-2.amazonaws.com/b/k",
                "https://s3-us-west-2.amazonaws.com",
                "us-west-2",
                "b",
                "k",
            ),
            (
                "https://s3.dualstack.cn-north-1.amazonaws.com.cn/b/k",
                "https://s3.dualstack.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "b",
                "k",
            ),
            (
                "http://minio.storage:9000/b/a%20b",
                "http://minio.storage:9000",
                "us-east-1",
                "b",
                "a%20b",
            ),
        ] {
            let found = Object::parse(url).unwrap();
            let found = (&*found.endpoint, &*found.region, &*found.bucket, &*found.key);
            assert_eq!(found, (endpoint, region, bucket, key), "{url}");
        }
        for url in ["https://a/b", "https://a/b/", "ftp://a/b/c", "a/b/c"] {
            assert!(Object::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn who_has_no_secret_asks_without_a_signature() {
        assert_eq!(signed("http://a:9/b/c", None).unwrap(), "http://a:9/b/c");
    }
}
