//! Links the freestanding program with a script of its own and nothing else.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/machine/entry.s");
    let script = format!("-Wl,-T,{directory}/link.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,norelro",
        // Nothing in the file lies where it does for the sake of pages.
        "-Wl,-z,max-page-size=16",
        &script,
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
