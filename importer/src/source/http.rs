//! The web: RFC 9110. Where the server gives ranges, several are fetched beside each other and delivered in order; where a
//! connection breaks, it goes on from there.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{
    AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE,
};
use reqwest::{Certificate, Url};

use crate::progress::Progress;
use crate::{Error, Result};

/// Connections at once, and bytes that each asks for.
const CONNECTIONS: usize = 4;
const PART: u64 = 4 << 20;
/// How long a server may take to answer, or to send the next bytes.
const SILENCE: Duration = Duration::from_secs(60);
/// Times that nothing new comes before it is given up, and the longest wait between two of them.
const ATTEMPTS: u32 = 10;
const LONGEST: Duration = Duration::from_secs(10);

/// What is fetched.
pub struct Options {
    /// Its address.
    pub url: String,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// Headers, `Name: value`.
    pub headers: Vec<String>,
    /// Authorities in PEM that are trusted beside the known ones.
    pub authorities: Vec<Vec<u8>>,
    /// Nobody's certificate is looked at.
    pub insecure: bool,
    /// Connections at once; none is as many as is good.
    pub connections: Option<usize>,
}

/// A file on the web, found.
#[derive(Clone)]
struct Remote {
    client: Client,
    url: Url,
    /// What must not change while it is fetched.
    version: Option<HeaderValue>,
}

/// Why a request failed, and whether it is any use to try again.
struct Failure {
    reason: String,
    lasting: bool,
}

/// Opens a file on the web as a stream.
///
/// # Errors
/// The options make no sense, or the server does not give the file.
pub fn open(options: &Options, progress: &Progress) -> Result<Box<dyn Read>> {
    let url = Url::parse(&options.url).map_err(|error| failed(&options.url, error.to_string()))?;
    let shown = shown(&url);
    let fail = |reason: String| failed(&shown, reason);
    let client = client(options).map_err(&fail)?;
    let mut remote = Remote {
        client,
        url,
        version: None,
    };
    let response = patiently(|| remote.get(0, Some(1))).map_err(|failure| fail(failure.reason))?;
    let headers = response.headers();
    remote.version = version(headers);
    if response.status() != StatusCode::PARTIAL_CONTENT {
        if let Some(len) = response.content_length() {
            progress.expect(len);
        }
        // One connection, from the beginning.
        return Ok(Box::new(Single {
            remote,
            response: Some(response),
            at: 0,
            failures: 0,
        }));
    }
    let total = headers
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok()?.rsplit_once('/')?.1.parse::<u64>().ok())
        .ok_or_else(|| fail("it does not say how long the file is".into()))?;
    progress.expect(total);
    let count = options.connections.unwrap_or(CONNECTIONS).max(1);
    let parts = (0..count)
        .map(|lane| {
            let (sender, receiver) = sync_channel(1);
            let remote = remote.clone();
            thread::Builder::new()
                .name(format!("fetch{lane}"))
                .spawn(move || fetch(&remote, lane, count, total, &sender))
                .map_err(|error| fail(error.to_string()))?;
            Ok(receiver)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Parts {
        parts,
        next: 0,
        part: Vec::new(),
        at: 0,
        left: total,
    }))
}

fn failed(what: &str, reason: String) -> Error {
    Error::Source {
        what: what.to_owned(),
        reason,
    }
}

/// An address without a password or the signature of a query.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

fn client(options: &Options) -> Result<Client, String> {
    let mut headers = HeaderMap::new();
    for header in &options.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or("a header is NAME: VALUE, and one of them is not")?;
        let name: HeaderName = name
            .trim()
            .parse()
            .map_err(|_| format!("{name:?} is no name of a header"))?;
        let mut value: HeaderValue = value
            .trim()
            .parse()
            .map_err(|_| format!("the value of the header {name} has characters that it may not have"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    if let Some((name, password)) = &options.user {
        use base64::Engine as _;
        let both = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        let value = HeaderValue::from_str(&format!("Basic {both}"));
        let mut value = value.map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = Client::builder()
        .default_headers(headers)
        .connect_timeout(SILENCE)
        .timeout(SILENCE)
        .user_agent(concat!("nacelle-importer/", env!("CARGO_PKG_VERSION")));
    let mut certificates = Vec::new();
    for pem in &options.authorities {
        let bundle =
            Certificate::from_pem_bundle(pem).map_err(|error| format!("an authority is no PEM: {error}"))?;
        certificates.extend(bundle);
    }
    if !certificates.is_empty() {
        builder = builder.tls_certs_merge(certificates);
    }
    if options.insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(|error| chain(&error))
}

/// An error with its causes: what reqwest says of itself is little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What changes when the file does.
fn version(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

impl Remote {
    /// Asks for `len` bytes from `from`, or for all that follow.
    fn get(&self, from: u64, len: Option<u64>) -> Result<Response, Failure> {
        let range = match len {
            Some(len) => format!("bytes={from}-{}", from.saturating_add(len - 1)),
            None => format!("bytes={from}-"),
        };
        let response = self.client.get(self.url.clone()).header(RANGE, range).send();
        let response = response.map_err(|error| Failure {
            // Of the client itself, not of the way to the server.
            lasting: error.is_builder() || error.is_redirect(),
            reason: chain(&error.without_url()),
        })?;
        let status = response.status();
        if !status.is_success() {
            let again = status.is_server_error()
                || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            return Err(Failure {
                reason: format!("the server says {status}"),
                lasting: !again,
            });
        }
        if self.version.is_some() && version(response.headers()) != self.version {
            return Err(Failure {
                reason: "the file changed while it was fetched".into(),
                lasting: true,
            });
        }
        Ok(response)
    }
}

/// Tries until it is done, or cannot be.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut failures = 0;
    loop {
        match attempt() {
            Err(failure) if !failure.lasting && failures < ATTEMPTS => {
                failures += 1;
                wait(failures, &failure.reason);
            }
            done => return done,
        }
    }
}

fn wait(failures: u32, reason: &str) {
    let wait = Duration::from_millis(250)
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST);
    eprintln!("{reason}; attempt {failures} of {ATTEMPTS} follows in {wait:?}");
    thread::sleep(wait);
}

type Part = Result<Vec<u8>, String>;

/// Fetches every part that is this lane's, until nobody wants more.
fn fetch(remote: &Remote, lane: usize, lanes: usize, total: u64, parts: &SyncSender<Part>) {
    for from in (0..total).step_by(PART as usize).skip(lane).step_by(lanes) {
        let part = part(remote, from, PART.min(total - from));
        let failed = part.is_err();
        if parts.send(part.map_err(|failure| failure.reason)).is_err() || failed {
            return;
        }
    }
}

/// One part, however often the connection breaks in it.
fn part(remote: &Remote, from: u64, len: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(len as usize);
    let mut failures = 0;
    loop {
        let have = bytes.len() as u64;
        let more = remote.get(from + have, Some(len - have)).and_then(|response| {
            if response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(Failure {
                    reason: "the server gives ranges no more".into(),
                    lasting: true,
                });
            }
            let read = response.take(len - have).read_to_end(&mut bytes);
            read.map_err(|error| Failure {
                reason: chain(&error),
                lasting: false,
            })
        });
        let now = bytes.len() as u64;
        if now == len {
            return Ok(bytes);
        }
        if now > have {
            failures = 0;
        }
        failures += 1;
        match more {
            Err(failure) if failure.lasting || failures > ATTEMPTS => return Err(failure),
            Ok(_) if failures > ATTEMPTS => {
                return Err(Failure {
                    reason: format!("the file ends at byte {}", from + now),
                    lasting: true,
                });
            }
            Err(failure) => wait(failures, &failure.reason),
            Ok(_) => wait(failures, "the connection ended too soon"),
        }
    }
}

/// Parts in order.
struct Parts {
    parts: Vec<Receiver<Part>>,
    next: usize,
    part: Vec<u8>,
    at: usize,
    left: u64,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.part.len() {
            if self.left == 0 {
                return Ok(0);
            }
            let lane = self.parts.get(self.next).map(Receiver::recv);
            let Some(Ok(part)) = lane else {
                return Err(io::Error::other("a connection ended without a word"));
            };
            self.part = part.map_err(io::Error::other)?;
            self.left = self.left.saturating_sub(self.part.len() as u64);
            self.at = 0;
            self.next = (self.next + 1) % self.parts.len();
        }
        let count = self.part.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// A file from a server that gives no ranges: after a break it is read again, up to where it broke.
struct Single {
    remote: Remote,
    response: Option<Response>,
    at: u64,
    failures: u32,
}

impl Single {
    fn again(&mut self) -> io::Result<Response> {
        let mut response =
            patiently(|| self.remote.get(0, None)).map_err(|failure| io::Error::other(failure.reason))?;
        let skipped = io::copy(&mut (&mut response).take(self.at), &mut io::sink())?;
        if skipped < self.at {
            return Err(io::Error::other("the file is shorter than it was"));
        }
        Ok(response)
    }
}

impl Read for Single {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = match &mut self.response {
                Some(response) => response.read(buffer),
                None => match self.again() {
                    Ok(response) => {
                        self.response = Some(response);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match got {
                Ok(count) => {
                    self.at += count as u64;
                    if count > 0 {
                        self.failures = 0;
                    }
                    return Ok(count);
                }
                Err(error) => {
                    self.response = None;
                    self.failures += 1;
                    if self.failures > ATTEMPTS {
                        return Err(error);
                    }
                    wait(self.failures, &chain(&error));
                }
            }
        }
    }
}
