//! How a host is reached by ssh: what a target of type `ssh`, or `ssh:` before a host's name, says of it.

use std::path::PathBuf;
use std::time::Duration;

/// The keys of the table.
pub(super) const KEYS: [&str; 14] = [
    "type",
    "host",
    "user",
    "port",
    "ssh_config",
    "transport",
    "patience",
    "python",
    "conda",
    "setup",
    "workdir",
    "workers",
    "env",
    "gpus",
];

/// What stands before the alias of a host that is a target without a definition.
pub(super) const PREFIX: &str = "ssh:";

/// How long a location may be out of reach before it counts as lost, unless its target says otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A host that is reached by ssh. What is not given here comes from ssh's own configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// An alias of `~/.ssh/config`, a host name, or `user@host:port`.
    pub host: String,
    /// The user there.
    pub user: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The file to read instead of `~/.ssh/config`, as `ssh -F` does.
    pub config: Option<PathBuf>,
    /// Whether the system's `ssh` program carries the bytes, instead of our own client.
    pub openssh: bool,
    /// How long it may be out of reach before it counts as lost.
    pub patience: Duration,
}

impl Ssh {
    /// The host that the user's own ssh configuration calls so.
    pub(super) fn alias(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            user: None,
            port: None,
            config: None,
            openssh: false,
            patience: PATIENCE,
        }
    }
}

/// Whether ssh could take it for a host: nothing that it would take for an option, or a shell for words.
pub(super) fn is_host(host: &str) -> bool {
    !host.is_empty()
        && !host.starts_with('-')
        && !host.contains(|c: char| {
            c.is_whitespace() || c.is_control() || "'\"`$\\;&<>|(){}".contains(c)
        })
}
