//! Compiles the kernels of cards, for builds with the feature `cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernels are.
const SOURCES: &str = "src/compute/backend/cuda";

/// The oldest card with bfloat16 and asynchronous copies.
const OLDEST: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=NVCC");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for name in ["rowwise", "attention"] {
        compile(&Path::new(SOURCES).join(format!("{name}.cu")), &out.join(format!("{name}.fatbin")));
    }
}

/// The cards to compile for: the oldest to support, and Hopper. Drivers translate the code of the oldest for all newer ones.
fn cards() -> Vec<String> {
    let given = env::var("CUDA_COMPUTE_CAP").ok().and_then(|value| value.trim().parse().ok());
    let oldest: u32 = given.unwrap_or(OLDEST);
    assert!(oldest >= OLDEST, "CUDA_COMPUTE_CAP is {oldest}: the oldest supported card has 80 (Ampere)");
    let both = format!("arch=compute_{oldest},code=[compute_{oldest},sm_{oldest}]");
    let hopper = (oldest < 90).then(|| "arch=compute_90,code=sm_90".to_owned());
    std::iter::once(both).chain(hopper).collect()
}

fn compile(source: &Path, target: &Path) {
    let home = env::var_os("CUDA_HOME").map(PathBuf::from);
    let in_home = home.map(|home| home.join("bin/nvcc")).filter(|path| path.exists());
    let compiler = env::var_os("NVCC").map(PathBuf::from).or(in_home).unwrap_or_else(|| "nvcc".into());
    let mut command = Command::new(&compiler);
    command.args(["-fatbin", "-O3", "-std=c++17"]);
    for card in cards() {
        command.arg("-gencode").arg(card);
    }
    let done = command.arg("-o").arg(target).arg(source).status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} did not compile {}: {status}", compiler.display(), source.display()),
        Err(error) => panic!("{} did not start: {error}; docs/gpu.md says how to get it", compiler.display()),
    }
}
