//! A disk comes over the web whole, however the server and the wire behave.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest, Sha256};

/// How the server behaves.
#[derive(Clone, Copy, Default)]
struct Ways {
    /// It gives ranges.
    ranges: bool,
    /// It ends the first connection, and then every so-many-th, in the middle.
    cuts: Option<usize>,
    /// It wants this name and password.
    secret: Option<&'static str>,
    /// Every answer is of another file.
    changes: bool,
}

/// Serves `file` on loopback; gives its address, and counts requests.
fn serve(file: Vec<u8>, ways: Ways) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk", listener.local_addr().unwrap());
    let (file, count) = (Arc::new(file), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (file, count) = (file.clone(), counted.clone());
            thread::spawn(move || {
                let _ = answer(&stream.unwrap(), &file, ways, &count);
            });
        }
    });
    (url, count)
}

fn answer(mut stream: &TcpStream, file: &[u8], ways: Ways, count: &AtomicUsize) -> std::io::Result<()> {
    let request: Vec<String> = BufReader::new(stream)
        .lines()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let number = count.fetch_add(1, Ordering::SeqCst);
    let header = |name: &str| {
        let lines = request.iter().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    if ways
        .secret
        .is_some_and(|secret| header("authorization").as_deref() != Some(secret))
    {
        return write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let range = header("range").filter(|_| ways.ranges);
    let (status, from, to) = match range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
    {
        Some((from, to)) => {
            let to = to.parse().map_or(file.len(), |to: usize| to + 1).min(file.len());
            ("206 Partial Content", from.parse().unwrap(), to)
        }
        None => ("200 OK", 0, file.len()),
    };
    let version = if ways.changes { number } else { 0 };
    let body = &file[from..to];
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\nETag: \"{version}\"\r\nConnection: close\r\n\r\n",
        body.len(),
        to - 1,
        file.len()
    )?;
    let cut = ways.cuts.is_some_and(|every| number.is_multiple_of(every));
    stream.write_all(if cut { &body[..body.len() / 2] } else { body })
}

struct Import {
    output: Output,
    dir: tempfile::TempDir,
}

impl Import {
    fn new(url: &str, more: &[&str], environment: &[(&str, &str)]) -> Import {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_nacelle-importer"))
            .args([url, "--size", "67108864", "--to"])
            .arg(path("disk.img"))
            .arg("--scratch")
            .arg(dir.path())
            .arg("--termination-log")
            .arg(path("why"))
            .args(more)
            .envs(environment.iter().copied())
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        Import { output, dir }
    }

    fn gives(&self, wanted: &[u8]) {
        assert!(
            self.output.status.success(),
            "{}",
            String::from_utf8_lossy(&self.output.stderr)
        );
        let found = fs::read(self.dir.path().join("disk.img")).unwrap();
        assert!(found[..wanted.len()] == *wanted, "the disk differs");
        let said = String::from_utf8_lossy(&self.output.stdout);
        assert!(said.ends_with("progress 100.0%\n"), "{said}");
    }

    fn fails(&self, why: &str) {
        assert!(!self.output.status.success());
        let said = fs::read_to_string(self.dir.path().join("why")).unwrap();
        assert!(said.contains(why), "{said}");
    }
}

fn disk(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn sum(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{digest}")
}

#[test]
fn ranges_are_fetched_beside_each_other_and_put_together_in_order() {
    let disk = disk((21 << 20) + 512);
    let ways = Ways {
        ranges: true,
        ..Ways::default()
    };
    let (url, requests) = serve(disk.clone(), ways);
    Import::new(&url, &["--checksum", &sum(&disk)], &[]).gives(&disk);
    // One that finds out, one for each part.
    assert_eq!(requests.load(Ordering::SeqCst), 1 + 6);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_was() {
    let disk = disk(13 << 20);
    let ways = Ways {
        ranges: true,
        cuts: Some(3),
        ..Ways::default()
    };
    let (url, _) = serve(disk.clone(), ways);
    Import::new(&url, &["--checksum", &sum(&disk)], &[]).gives(&disk);
}

#[test]
fn a_server_without_ranges_will_do_even_if_it_breaks_off() {
    let disk = disk(5 << 20);
    let (url, _) = serve(disk.clone(), Ways::default());
    Import::new(&url, &["--checksum", &sum(&disk)], &[]).gives(&disk);
    let ways = Ways {
        cuts: Some(2),
        ..Ways::default()
    };
    let (url, requests) = serve(disk.clone(), ways);
    Import::new(&url, &[], &[]).gives(&disk);
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_not_what_was_announced_is_no_disk() {
    let disk = disk(1 << 20);
    let ways = Ways {
        ranges: true,
        ..Ways::default()
    };
    let (url, _) = serve(disk.clone(), ways);
    Import::new(&url, &["--checksum", &sum(b"another")], &[]).fails("checksum mismatch");
    let (url, _) = serve(
        self::disk(9 << 20),
        Ways {
            ranges: true,
            changes: true,
            ..Ways::default()
        },
    );
    Import::new(&url, &[], &[]).fails("the file changed while it was fetched");
}

#[test]
fn who_has_the_password_is_served_and_the_others_are_told_at_once() {
    let disk = disk(1 << 20);
    // "name:word"
    let ways = Ways {
        ranges: true,
        secret: Some("Basic bmFtZTp3b3Jk"),
        ..Ways::default()
    };
    let (url, requests) = serve(disk.clone(), ways);
    Import::new(&url, &[], &[]).fails("401");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    Import::new(
        &url,
        &[],
        &[("NACELLE_USER", "name"), ("NACELLE_PASSWORD", "word")],
    )
    .gives(&disk);
    Import::new(&url, &["--header", "Authorization: Basic bmFtZTp3b3Jk"], &[]).gives(&disk);
}

/// A registry on loopback with one image: an index, a manifest, two layers of which the upper has no disk.
fn registry(disk: &[u8], damaged: bool) -> String {
    let layer = |name: &str, content: &[u8]| {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
        tar.into_inner().unwrap().finish().unwrap()
    };
    let (lower, upper) = (layer("./disk/image.any", disk), layer("etc/hosts", b"one"));
    let kind = "application/vnd.oci.image";
    let named = |type_: &str, bytes: &[u8], more: &str| {
        let (sum, len) = (sum(bytes), bytes.len());
        format!("{{\"mediaType\":\"{kind}.{type_}\",\"digest\":\"{sum}\",\"size\":{len}{more}}}")
    };
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}.manifest.v1+json\",\"config\":{},\"layers\":[{},{}]}}",
        named("config.v1+json", b"{}", ""),
        named("layer.v1.tar+gzip", &lower, ""),
        named("layer.v1.tar+gzip", &upper, "")
    );
    let platform = ",\"platform\":{\"architecture\":\"amd64\",\"os\":\"linux\"}";
    let index = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}.index.v1+json\",\"manifests\":[{}]}}",
        named("manifest.v1+json", manifest.as_bytes(), platform)
    );
    let mut content = [
        ("manifests/1".to_owned(), "index.v1+json", index.into_bytes()),
        (
            format!("manifests/{}", sum(manifest.as_bytes())),
            "manifest.v1+json",
            manifest.into_bytes(),
        ),
        (format!("blobs/{}", sum(&upper)), "layer.v1.tar+gzip", upper),
        (format!("blobs/{}", sum(&lower)), "layer.v1.tar+gzip", lower),
    ];
    if damaged {
        let last = &mut content[3].2;
        let middle = last.len() / 2;
        last[middle] ^= 1;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("docker://{}/org/disk:1", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            let mut lines = BufReader::new(&stream);
            lines.read_line(&mut request).unwrap();
            while lines.read_line(&mut String::new()).unwrap() > 2 {}
            let path = request
                .split(' ')
                .nth(1)
                .unwrap()
                .trim_start_matches("/v2/org/disk/")
                .to_owned();
            let found = content.iter().find(|(name, ..)| *name == path);
            let (status, type_, body) = match found {
                Some((_, type_, body)) => ("200 OK", *type_, body.as_slice()),
                None if path == "/v2/" => ("200 OK", "", &b"{}"[..]),
                None => ("404 Not Found", "", &b"{}"[..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}.{type_}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    image
}

#[test]
fn the_disk_of_a_container_image_is_found_in_whichever_layer_it_is() {
    let disk = disk(3 << 20);
    Import::new(&registry(&disk, false), &[], &[]).gives(&disk);
    Import::new(&registry(&disk, false), &["--architecture", "arm64"], &[]).fails("not made for arm64");
    assert!(
        !Import::new(&registry(&disk, true), &[], &[])
            .output
            .status
            .success()
    );
    Import::new(&registry(&disk, false).replace("disk:1", "disk:2"), &[], &[])
        .fails("cannot fetch the image");
}
