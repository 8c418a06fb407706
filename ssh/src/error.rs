//! Why a host could not be reached, trusted or entered, in words for its user.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Where a user turns when russh cannot do what their set-up needs.
const OPENSSH_HINT: &str =
    "set `transport = \"openssh\"` for this target to use the system's `ssh` program";

/// Why there is no connection, or no command running over it.
#[derive(Debug, Error)]
pub enum SshError {
    /// What is given as a host is none.
    #[error("`{host}` is not a host: {reason}")]
    Destination {
        /// As given.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration cannot be read or understood.
    #[error("the ssh configuration of `{host}` cannot be used: {reason}")]
    Config {
        /// The host it was read for.
        host: String,
        /// File, line, and what is wrong there.
        reason: String,
    },
    /// The configuration asks for something that this transport cannot do.
    #[error(
        "the ssh configuration of `{host}` sets {setting}, which is not supported here; {OPENSSH_HINT}"
    )]
    Unsupported {
        /// The host.
        host: String,
        /// The keyword and its value.
        setting: String,
    },
    /// The host's name has no address.
    #[error("the name `{hostname}` of host `{host}` cannot be resolved: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// The name that was looked up.
        hostname: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No TCP connection came about.
    #[error("cannot connect to `{host}` at {address}: {}", connect_reason(.source))]
    Connect {
        /// The host.
        host: String,
        /// Host name and port.
        address: String,
        /// What the system said of the last address tried.
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error("`{host}` at {address} did not {what} within {}; is it up, and does a firewall let ssh through?", seconds(.limit))]
    Timeout {
        /// The host.
        host: String,
        /// Host name and port.
        address: String,
        /// What it failed to do.
        what: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// The `ProxyCommand` failed.
    #[error("the ProxyCommand of `{host}` ({command}) {reason}")]
    ProxyCommand {
        /// The host.
        host: String,
        /// The command, expanded.
        command: String,
        /// What went wrong, with what it printed.
        reason: String,
    },
    /// A hop on the way failed.
    #[error("the jump host `{hop}` on the way to `{host}` failed: {source}")]
    Jump {
        /// Where the way was to lead.
        host: String,
        /// The hop.
        hop: String,
        /// What happened there.
        source: Box<SshError>,
    },
    /// The chain of jump hosts comes back to itself.
    #[error(
        "the jump hosts of `{host}` go in a circle: {chain}; mend ProxyJump in the ssh configuration"
    )]
    JumpLoop {
        /// The host.
        host: String,
        /// The chain, with arrows.
        chain: String,
    },
    /// The two sides cannot agree on how to encrypt or sign.
    #[error("`{host}` and this program have no common {kind} (it offers {theirs}); {OPENSSH_HINT}")]
    Algorithms {
        /// The host.
        host: String,
        /// What has to be agreed on.
        kind: String,
        /// The server's list.
        theirs: String,
    },
    /// The key exchange failed otherwise.
    #[error("`{host}` at {address} does not speak ssh as expected: {reason}")]
    Handshake {
        /// The host.
        host: String,
        /// Host name and port.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The host is not, or cannot be, trusted.
    #[error(transparent)]
    HostKey(Box<HostKeyError>),
    /// The server did not let the user in.
    #[error(transparent)]
    Auth(#[from] Box<AuthFailure>),
    /// The connection is gone.
    #[error("the connection to `{host}` is closed: {reason}")]
    Closed {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The server did not open a channel or did not start the command.
    #[error("`{host}` refused to run a command: {reason}")]
    Refused {
        /// The host.
        host: String,
        /// What it said, and what to look at.
        reason: String,
    },
    /// The system's `ssh` program is missing.
    #[error(
        "`transport = \"openssh\"` of `{host}` needs the `ssh` program, and there is none on PATH: install OpenSSH's client"
    )]
    NoProgram {
        /// The host.
        host: String,
    },
    /// The system's `ssh` program failed.
    #[error("`ssh` could not connect to `{host}`: {output}")]
    OpenSsh {
        /// The host.
        host: String,
        /// What it printed, or how it ended.
        output: String,
    },
    /// This machine lacks something: a thread, a pipe, a directory.
    #[error("cannot {what} for the connection to `{host}`: {source}")]
    Local {
        /// The host.
        host: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<HostKeyError> for SshError {
    fn from(error: HostKeyError) -> Self {
        Self::HostKey(Box::new(error))
    }
}

/// Why a host's key is not accepted.
#[derive(Debug, Error)]
pub enum HostKeyError {
    /// Another key is known for the host.
    #[error(
        "THE HOST KEY OF `{host}` HAS CHANGED: {file}:{line} has the key {known}, and the host now shows {offered}. Either \
         the host was set up anew, or somebody is listening in. If its administrator confirms the new key, remove the old one \
         with `ssh-keygen -f '{file}' -R '{host}'` and run again"
    )]
    Changed {
        /// The name looked up, `[name]:port` unless the port is 22.
        host: String,
        /// The file with the known key.
        file: String,
        /// Its line, from 1.
        line: usize,
        /// Type and fingerprint of the known key.
        known: String,
        /// Type and fingerprint of the host's key.
        offered: String,
    },
    /// The key is marked as revoked.
    #[error(
        "the {key_type} key {fingerprint} of `{host}` is marked as revoked at {file}:{line}; do not connect until its administrator has explained it"
    )]
    Revoked {
        /// The name looked up.
        host: String,
        /// The type of the revoked key.
        key_type: String,
        /// Its fingerprint.
        fingerprint: String,
        /// The file that says so.
        file: String,
        /// Its line, from 1.
        line: usize,
    },
    /// The key is not known, and the user did not vouch for it.
    #[error("the {key_type} key {fingerprint} of `{host}` is not known, and {why}")]
    Unknown {
        /// The name looked up.
        host: String,
        /// The type of the host's key.
        key_type: String,
        /// Its fingerprint.
        fingerprint: String,
        /// Why it was not accepted, and what to do.
        why: String,
    },
    /// The host's certificate is from a known authority, but not valid for this host now.
    #[error("the certificate of `{host}` cannot be accepted: {reason}")]
    Certificate {
        /// The name looked up.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of known hosts cannot be read. It may hold the key that would have to be refused.
    #[error("the known hosts in {} cannot be read: {source}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why the server did not let the user in: what was tried and what it would take.
#[derive(Debug, Error)]
#[error("`{host}` does not let `{user}` in: {}", self.details())]
pub struct AuthFailure {
    /// The host.
    pub host: String,
    /// The user name tried there.
    pub user: String,
    /// Each key and method tried or left out, with its outcome, in order.
    pub tried: Vec<String>,
    /// The methods that the server would still take.
    pub allowed: Vec<String>,
    /// What the server said when it hung up, if it did.
    pub disconnect: Option<String>,
    /// What to do about it.
    pub advice: Vec<String>,
}

impl AuthFailure {
    fn details(&self) -> String {
        let mut parts = Vec::new();
        if let Some(disconnect) = &self.disconnect {
            parts.push(format!("it hung up ({disconnect})"));
        }
        if self.tried.is_empty() {
            parts.push("there was nothing to try".to_owned());
        } else {
            parts.push(format!("tried {}", self.tried.join("; ")));
        }
        if !self.allowed.is_empty() {
            parts.push(format!("it accepts {}", self.allowed.join(", ")));
        }
        parts.extend(self.advice.iter().cloned());
        parts.join(". ")
    }
}

/// The hint at the other transport, for advice.
pub(crate) fn openssh_hint() -> &'static str {
    OPENSSH_HINT
}

fn connect_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: nothing listens there; is sshd running, and is the port right?"
                .to_owned()
        }
        io::ErrorKind::TimedOut => {
            "nothing came back; is the host up, and does a firewall let ssh through?".to_owned()
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("{error}; is this machine on the right network or VPN?")
        }
        _ => error.to_string(),
    }
}

fn seconds(limit: &Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}
