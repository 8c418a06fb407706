//! A shell command on a far host, reached as the user's own OpenSSH set-up would reach it.
//!
//! Owns the way there: `~/.ssh/config`, jump hosts, host keys, authentication, and channels that run commands.
//! What runs there, and what is said over its stdin and stdout, is the caller's.
//!
//! Each connection lives on a thread of its own, so encryption does not hold up the caller's event loop, and
//! helper processes die with it.

mod ask;
mod askpass;
mod auth;
mod client;
mod config;
mod dial;
mod environment;
mod error;
mod host_key;
mod native;
mod openssh;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use ask::{Ask, Question};
pub use askpass::askpass_main;
pub use client::Client;
pub use config::Host;
pub use environment::Environment;
pub use error::{AuthFailure, HostKeyError, SshError};
pub use process::{Ended, Exit, Process, Stderr, Stdin, Stdout};
pub use zeroize::Zeroizing;

/// Who speaks the ssh protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// This program itself, with russh.
    #[default]
    Russh,
    /// The system's `ssh` program, for what russh cannot do: smart cards, security keys, Kerberos.
    OpenSsh,
}

/// Where to connect, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// An alias of the user's configuration, or `user@host:port`, or `ssh://user@host:port`.
    pub host: String,
    /// Goes before what `host` and the configuration say.
    pub user: Option<String>,
    /// Goes before what `host` and the configuration say.
    pub port: Option<u16>,
    /// Read instead of `~/.ssh/config` and the system's, as `ssh -F` does.
    pub config: Option<PathBuf>,
    /// Who speaks the protocol.
    pub transport: Transport,
    /// How long reaching the host and the key exchange may take, for each hop, if the configuration has no
    /// `ConnectTimeout`. Time that the user takes to answer does not count.
    pub connect_timeout: Duration,
    /// An existing directory for sockets of the openssh transport, by default the system's for temporary files.
    /// Its path must be short: a socket's may have some 100 bytes.
    pub runtime_dir: Option<PathBuf>,
    /// Whose set-up it is.
    pub environment: Environment,
}

impl Options {
    /// Connects to `host` as the user of this process would.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            user: None,
            port: None,
            config: None,
            transport: Transport::default(),
            connect_timeout: Duration::from_secs(30),
            runtime_dir: None,
            environment: Environment::of_process(),
        }
    }
}

/// Connects and logs in. `ask` is asked for passphrases, passwords, second factors and about unknown host keys.
///
/// Dropping the future gives the attempt up.
///
/// # Errors
/// Every way in which a host may not be reached or not be trusted, or may not let the user in; see [`SshError`].
pub async fn connect(options: &Options, ask: Arc<dyn Ask>) -> Result<Client, SshError> {
    client::connect(options.clone(), ask).await
}
