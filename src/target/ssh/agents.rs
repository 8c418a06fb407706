//! The agent programs that we bring along, one for each kind of machine.

use std::path::PathBuf;

/// Names another directory of agents.
const VARIABLE: &str = "CELLFERRY_AGENTS";

/// The program's name in the directory of its architecture.
const PROGRAM: &str = "cellferry-agent";

/// The architectures for which agents are built, as `uname -m` says them.
pub const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// An agent's program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The architecture it is for.
    pub architecture: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// The BLAKE3 hash of its bytes, in hexadecimal.
    pub hash: String,
}

/// The agents that this installation has.
pub fn programs() -> Vec<Program> {
    let directories = directories();
    let find = |architecture: &'static str| {
        let paths = directories
            .iter()
            .map(|directory| directory.join(architecture).join(PROGRAM));
        paths.into_iter().find_map(|path| {
            let bytes = std::fs::read(&path).ok()?;
            let hash = blake3::hash(&bytes).to_hex().to_string();
            Some(Program {
                architecture,
                path,
                hash,
            })
        })
    };
    ARCHITECTURES.into_iter().filter_map(find).collect()
}

/// Where agents are looked for: the directory that the environment names, or that of our own installation.
pub fn directories() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return vec![named.into()];
    }
    let program = std::env::current_exe().ok();
    let prefix = program
        .as_ref()
        .and_then(|program| program.parent()?.parent());
    prefix
        .map(|prefix| prefix.join("share/cellferry/agents"))
        .into_iter()
        .collect()
}
