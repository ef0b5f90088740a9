//! A disk comes from a real S3 server, to who has the secret.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use std::process::{Command, Output};
use std::thread;

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;

/// Serves the buckets in `root` on loopback; its address.
fn serve(root: &std::path::Path) -> String {
    let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single("alice", "in wonderland"));
    let service = builder.build();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service.clone()));
            }
        });
    });
    url
}

fn import(from: &str, to: &std::path::Path, secret: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacelle-importer"));
    command
        .args([
            from,
            "--size",
            "33554432",
            "--termination-log",
            "/dev/null",
            "--to",
        ])
        .arg(to)
        .env("NO_PROXY", "*");
    if let Some(secret) = secret {
        command.envs([("NACELLE_USER", "alice"), ("NACELLE_PASSWORD", secret)]);
    }
    command.output().unwrap()
}

#[test]
fn an_object_is_fetched_by_who_has_the_secret_and_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let buckets = dir.path().join("buckets");
    std::fs::create_dir_all(buckets.join("images/linux")).unwrap();
    let disk: Vec<u8> = (0..10_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(buckets.join("images/linux/disk 1.img"), &disk).unwrap();
    let from = format!("s3:{}/images/linux/disk%201.img", serve(&buckets));
    let to = dir.path().join("disk.img");
    let done = import(&from, &to, Some("in wonderland"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let found = std::fs::read(&to).unwrap();
    assert!(found.len() == 32 << 20 && found.starts_with(&disk));
    for secret in [Some("elsewhere"), None] {
        let done = import(&from, &to, secret);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains("403"), "{said}");
        assert!(!said.contains("Signature"), "{said}");
    }
}
