//! Builds the firmware, which is part of `nacelle`: a program for the bare machine, with flags and a profile of its
//! own, and so by a cargo of its own. And makes client and server of the kubelet's device plugin API, whose messages are
//! in `src/node/api.rs`; it is small and does not change, so nobody needs `protoc`.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use tonic_build::manual::{Builder, Method, Service};

/// Named, so that the flags are for the program alone and not for what builds it (procedural macros).
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A fixed address, no instruction beyond the first 64-bit processors', no tables for unwinding.
const FLAGS: &str = "-Crelocation-model=static -Ctarget-cpu=x86-64 -Cforce-unwind-tables=no";

fn main() -> Result<(), Box<dyn Error>> {
    device_plugin_api();
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("..");
    for source in ["firmware", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let target = PathBuf::from(env::var("OUT_DIR")?).join("firmware");
    let status = Command::new(env::var("CARGO")?)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "nacelle-firmware",
            "--bin",
            "nacelle-firmware",
        ])
        .args([
            "--features",
            "image",
            "--profile",
            "firmware",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(root)
        .env("RUSTFLAGS", FLAGS)
        // What the cargo around was told, or is (clippy), is not for this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .status()?;
    if !status.success() {
        return Err(format!("the firmware (firmware/) is not built: {status}").into());
    }
    let built = target.join(TARGET).join("firmware/nacelle-firmware");
    println!("cargo:rustc-env=NACELLE_FIRMWARE={}", built.display());
    Ok(())
}

fn device_plugin_api() {
    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::node::api::{input}"))
            .output_type(format!("crate::node::api::{output}"))
            .codec_path("tonic_prost::ProstCodec")
    };
    let registration = Service::builder()
        .package("v1beta1")
        .name("Registration")
        .method(method("register", "Register", "RegisterRequest", "Empty").build())
        .build();
    let plugin = Service::builder()
        .package("v1beta1")
        .name("DevicePlugin")
        .method(
            method(
                "get_device_plugin_options",
                "GetDevicePluginOptions",
                "Empty",
                "Options",
            )
            .build(),
        )
        .method(
            method("list_and_watch", "ListAndWatch", "Empty", "Devices")
                .server_streaming()
                .build(),
        )
        .method(method("allocate", "Allocate", "AllocateRequest", "AllocateResponse").build())
        .build();
    Builder::new().compile(&[registration, plugin]);
}
