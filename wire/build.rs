//! Names the build: a digest of the sources of this crate. Two programs whose wires differ in anything then know it, and
//! nobody has to remember to count a version up.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let mut paths: Vec<PathBuf> = std::fs::read_dir("src")?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut digest = blake3::Hasher::new();
    for path in paths {
        digest.update(&std::fs::read(path)?);
    }
    let digest = digest.finalize().to_hex();
    println!("cargo::rustc-env=CELLFERRY_WIRE={}", &digest[..8]);
    Ok(())
}
