//! Compiles the library that nodes of some tests are started with: see `disk/disk.c`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=disk/disk.c");
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    let library = Path::new(&variable("OUT_DIR")).join("libdisk.so");
    let mut command: Command = cc::Build::new().opt_level(2).get_compiler().to_command();
    command.args(["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "disk/disk.c", "-ldl", "-lpthread", "-o"]);
    let status = command.arg(&library).status().expect("the C compiler can be run");
    assert!(status.success(), "disk/disk.c does not compile");
    println!("cargo:rustc-env=LOCKSTEP_DISK_LIBRARY={}", library.display());
}
