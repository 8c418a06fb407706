//! The configuration as OpenSSH's own program reads it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::settings::Settings;
use super::{Destination, parser};
use crate::environment::Environment;
use crate::error::SshError;

/// `Match exec` and `CanonicalizeHostname` may take their time, but not for ever.
const LIMIT: Duration = Duration::from_secs(20);

/// Asks `ssh -G`.
pub(super) async fn ask(
    program: &Path,
    environment: &Environment,
    destination: &Destination,
    file: Option<&PathBuf>,
) -> Result<Settings, SshError> {
    let failed = |reason: String| SshError::Config {
        host: destination.host.clone(),
        reason,
    };
    let mut command = Command::new(program);
    command
        .arg("-G")
        .args(arguments(environment, destination, file));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .map_err(|_| {
            failed(format!(
                "`ssh -G` gave no answer within {} s",
                LIMIT.as_secs()
            ))
        })?
        .map_err(|error| failed(format!("{} cannot be run: {error}", program.display())))?;
    if !output.status.success() {
        let said = words(&output.stderr);
        if let Some((_, hop)) = said.split_once("jumphost loop via ") {
            let host = destination.host.clone();
            return Err(SshError::JumpLoop {
                chain: format!("{host} → {hop}"),
                host,
            });
        }
        return Err(failed(said));
    }
    let mut settings = Settings::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        // `ssh -G` does not quote; a known hosts file with a space in its name is lost on it, too.
        if parser::is_list(key) {
            value
                .split_whitespace()
                .for_each(|value| settings.add(key, value));
        } else {
            settings.add(key, value);
        }
    }
    Ok(settings)
}

/// What names the host and the configuration on the command line of `ssh`.
pub(crate) fn arguments(
    environment: &Environment,
    destination: &Destination,
    file: Option<&PathBuf>,
) -> Vec<String> {
    let mut arguments = Vec::new();
    let own = environment.ssh_dir().join("config");
    match file {
        Some(file) => arguments.extend(["-F".to_owned(), file.display().to_string()]),
        None if environment.is_of_account() => {}
        None if own.exists() => arguments.extend(["-F".to_owned(), own.display().to_string()]),
        None => arguments.extend(["-F".to_owned(), "none".to_owned()]),
    }
    if let Some(user) = &destination.user {
        arguments.extend(["-l".to_owned(), user.clone()]);
    }
    if let Some(port) = destination.port {
        arguments.extend(["-p".to_owned(), port.to_string()]);
    }
    arguments.extend(["--".to_owned(), destination.host.clone()]);
    arguments
}

/// What a program printed, on one line.
pub(crate) fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
