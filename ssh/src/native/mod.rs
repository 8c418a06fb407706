//! Ssh spoken by russh.

mod channel;
mod outbox;
mod watcher;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use russh::client::{self, Handle};
use russh::{ChannelMsg, ChannelOpenFailure, Disconnect, cipher, compression};

use crate::Options;
use crate::ask::Ask;
use crate::auth;
use crate::config::{Destination, Host, Route, resolve};
use crate::dial::{self, ProxyCommand, Stream};
use crate::error::SshError;
use crate::host_key::{Confidence, Known};
use crate::process::Process;
use outbox::{Gate, Gated, Outbox};
use watcher::{Clocked, WatcherError};
pub(crate) use watcher::{Events, Watcher};

/// How often the server is asked for a sign of life, and how many of those it may leave unanswered, unless the user's
/// configuration says it (`ServerAliveInterval`, `ServerAliveCountMax`): a command that waits for hours must notice that its
/// connection is gone.
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(5), 3);

/// An authenticated connection.
pub(crate) struct Link {
    host: String,
    handle: Handle<Watcher>,
    events: Arc<Events>,
    /// Whether channels may take more.
    gate: Gate,
    /// The hop that this connection goes through.
    via: Option<Box<Link>>,
    /// What the stream goes through.
    _proxy: Option<ProxyCommand>,
}

/// How long the server may take to let somebody in, as sshd's LoginGraceTime has it by default: some wait there until a
/// second factor is confirmed on a phone.
const LOGIN: Duration = Duration::from_secs(120);

/// Connects, checks the host's key and logs in. Jump hosts come first.
pub(crate) async fn open(
    options: &Options,
    host: &Host,
    ask: Arc<dyn Ask>,
) -> Result<Link, SshError> {
    via(options, host, &ask, Vec::new()).await
}

/// Boxed, since each hop may have hops of its own. `chain` is what has led here.
fn via<'a>(
    options: &'a Options,
    host: &'a Host,
    ask: &'a Arc<dyn Ask>,
    mut chain: Vec<String>,
) -> BoxFuture<'a, Result<Link, SshError>> {
    Box::pin(async move {
        let me = format!("{}@{}", host.user, host.address());
        let in_circle = chain.contains(&me);
        chain.push(me);
        if in_circle {
            return Err(SshError::JumpLoop {
                host: host.name.clone(),
                chain: chain.join(" → "),
            });
        }
        let limit = host.connect_timeout.unwrap_or(options.connect_timeout);
        match &host.route {
            Route::Direct => {
                handshake(host, dial::tcp(host, limit).await?, None, None, ask, limit).await
            }
            Route::Command(command) => {
                let (stream, proxy) = dial::proxy_command(host, command)?;
                handshake(host, stream, None, Some(proxy), ask, limit).await
            }
            Route::Jumps(jumps) => {
                let (last, before) = split_jumps(jumps, host)?;
                let failed = |source: SshError| match source {
                    SshError::JumpLoop { .. } => source,
                    source => SshError::Jump {
                        host: host.name.clone(),
                        hop: last.to_string(),
                        source: Box::new(source),
                    },
                };
                let mut hop = resolve(&options.environment, last, options.config.as_ref())
                    .await
                    .map_err(failed)?;
                if !before.is_empty() {
                    hop.route = Route::Jumps(before.to_vec());
                }
                let link = via(options, &hop, ask, chain).await.map_err(failed)?;
                let stream = link
                    .forward(&host.hostname, host.port, limit)
                    .await
                    .map_err(failed)?;
                handshake(host, stream, Some(Box::new(link)), None, ask, limit).await
            }
        }
    })
}

fn split_jumps<'a>(
    jumps: &'a [Destination],
    host: &Host,
) -> Result<(&'a Destination, &'a [Destination]), SshError> {
    jumps.split_last().ok_or_else(|| SshError::Config {
        host: host.name.clone(),
        reason: "ProxyJump names no host".to_owned(),
    })
}

async fn handshake<S: Stream + 'static>(
    host: &Host,
    stream: S,
    via: Option<Box<Link>>,
    proxy: Option<ProxyCommand>,
    ask: &Arc<dyn Ask>,
    limit: Duration,
) -> Result<Link, SshError> {
    let known = Known::load(host)?;
    let config = Arc::new(config(host, &known));
    let events = Arc::new(Events::default());
    let ask = Clocked {
        ask: Arc::clone(ask),
        events: Arc::clone(&events),
    };
    let watcher = Watcher {
        host: host.clone(),
        known,
        ask: ask.clone(),
        events: Arc::clone(&events),
    };
    let timeout = |what, limit| SshError::Timeout {
        host: host.name.clone(),
        address: host.address(),
        what,
        limit,
    };
    let gate = Gate::default();
    let stream = Outbox::new(stream, gate.clone());
    let exchange = tokio::select! {
        exchange = client::connect_stream(config, stream, watcher) => exchange,
        () = events.stalled(limit) => return Err(timeout("finish the key exchange", limit)),
    };
    let mut handle = match exchange {
        Ok(handle) => handle,
        Err(WatcherError::HostKey(error)) => return Err(error.into()),
        Err(WatcherError::Russh(error)) => {
            return Err(match proxy {
                Some(proxy) if is_end(&error) => proxy.failure().await,
                _ => exchange_error(host, &error),
            });
        }
    };
    let confidence = *events
        .confidence
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let confidence = confidence.unwrap_or(Confidence::NoSecrets);
    tokio::select! {
        entered = auth::authenticate(&mut handle, host, confidence, &events, &ask) => entered?,
        () = events.stalled(LOGIN) => return Err(timeout("finish the login", LOGIN)),
    }
    Ok(Link {
        host: host.name.clone(),
        handle,
        events,
        gate,
        via,
        _proxy: proxy,
    })
}

fn config(host: &Host, known: &Known) -> client::Config {
    let (key, certificates) = known.algorithms(&host.trust);
    let preferred = russh::Preferred {
        key: key.into(),
        host_key_certificates: certificates.into(),
        // AES-GCM is several times as fast as ChaCha20 on machines with AES instructions, which is nearly all.
        cipher: vec![
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]
        .into(),
        // What is worth it is compressed already.
        compression: vec![compression::NONE].into(),
        ..russh::Preferred::DEFAULT
    };
    client::Config {
        preferred,
        keepalive_interval: Some(
            host.keepalive
                .map_or(KEEPALIVE.0, |keepalive| keepalive.interval),
        ),
        keepalive_max: host
            .keepalive
            .map_or(KEEPALIVE.1, |keepalive| keepalive.unanswered),
        ..client::Config::default()
    }
}

fn is_end(error: &russh::Error) -> bool {
    matches!(
        error,
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_)
    )
}

fn exchange_error(host: &Host, error: &russh::Error) -> SshError {
    if let russh::Error::NoCommonAlgo { kind, theirs, .. } = error {
        return SshError::Algorithms {
            host: host.name.clone(),
            kind: format!("{kind:?} algorithm"),
            theirs: theirs.join(", "),
        };
    }
    let reason = match error {
        error if is_end(error) => {
            "it hung up; does it limit who may connect (MaxStartups, fail2ban, hosts.deny)?"
                .to_owned()
        }
        russh::Error::Version => "what answers there is no ssh server".to_owned(),
        russh::Error::WrongServerSig => "it cannot prove that its host key is its own".to_owned(),
        other => other.to_string(),
    };
    SshError::Handshake {
        host: host.name.clone(),
        address: host.address(),
        reason,
    }
}

impl Link {
    /// Runs a command. Returns when the server has said that it does.
    pub(crate) async fn exec(&self, command: &str) -> Result<Process, SshError> {
        let channel = self
            .handle
            .channel_open_session()
            .await
            .map_err(|error| self.channel_error(error))?;
        let (mut read, write) = channel.split();
        write
            .exec(true, command)
            .await
            .map_err(|error| self.channel_error(error))?;
        loop {
            match read.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::Failure) => {
                    let reason =
                        "it does not run commands for this user; does sshd allow more than sftp?"
                            .to_owned();
                    return Err(SshError::Refused {
                        host: self.host.clone(),
                        reason,
                    });
                }
                Some(_) => {}
                None => return Err(self.channel_error(russh::Error::Disconnect)),
            }
        }
        Ok(channel::started(read, write, self.gate.clone()))
    }

    /// A stream from there to another host.
    async fn forward(
        &self,
        hostname: &str,
        port: u16,
        limit: Duration,
    ) -> Result<impl Stream + 'static, SshError> {
        let opening =
            self.handle
                .channel_open_direct_tcpip(hostname, u32::from(port), "127.0.0.1", 0);
        let channel = match tokio::time::timeout(limit, opening).await {
            Ok(opened) => opened.map_err(|error| match self.channel_error(error) {
                SshError::Refused { host, reason } => SshError::Refused {
                    host,
                    reason: format!("it cannot reach {hostname}:{port}: {reason}"),
                },
                other => other,
            })?,
            Err(_) => {
                return Err(SshError::Timeout {
                    host: self.host.clone(),
                    address: format!("{hostname}:{port}"),
                    what: "connect onwards",
                    limit,
                });
            }
        };
        Ok(Gated::new(channel.into_stream(), self.gate.clone()))
    }

    fn channel_error(&self, error: russh::Error) -> SshError {
        let host = self.host.clone();
        match error {
            russh::Error::ChannelOpenFailure(kind) => {
                let said = self
                    .events
                    .refusal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                let said = said
                    .filter(|said| !said.is_empty())
                    .unwrap_or_else(|| format!("{kind:?}"));
                let hint = match kind {
                    ChannelOpenFailure::ConnectFailed => {
                        "sshd's MaxSessions limits how many commands run at once over a connection"
                    }
                    ChannelOpenFailure::AdministrativelyProhibited => {
                        "sshd's configuration forbids it (AllowTcpForwarding, PermitOpen, MaxSessions)"
                    }
                    _ => "sshd could not open a channel",
                };
                SshError::Refused {
                    host,
                    reason: format!("{said}; {hint}"),
                }
            }
            other => {
                let reason = self.events.end().unwrap_or_else(|| other.to_string());
                SshError::Closed { host, reason }
            }
        }
    }

    /// Waits for the end of this connection or of a hop before it.
    pub(crate) fn closed(&self) -> BoxFuture<'_, String> {
        Box::pin(async move {
            let mut end = self.events.ended.subscribe();
            let own = async {
                match end.wait_for(Option::is_some).await {
                    Ok(why) => why.clone().unwrap_or_default(),
                    Err(_) => "it ended".to_owned(),
                }
            };
            match &self.via {
                None => own.await,
                Some(via) => tokio::select! {
                    why = own => why,
                    why = via.closed() => format!("the jump host `{}` is gone: {why}", via.host),
                },
            }
        })
    }

    /// Says goodbye, and waits a moment until it is said.
    pub(crate) fn disconnect(&self) -> BoxFuture<'_, ()> {
        const LIMIT: Duration = Duration::from_secs(1);
        Box::pin(async move {
            let goodbye = async {
                if self
                    .handle
                    .disconnect(Disconnect::ByApplication, "", "")
                    .await
                    .is_ok()
                {
                    let _ = self
                        .events
                        .ended
                        .subscribe()
                        .wait_for(Option::is_some)
                        .await;
                }
            };
            let _ = tokio::time::timeout(LIMIT, goodbye).await;
            if let Some(via) = &self.via {
                via.disconnect().await;
            }
        })
    }
}
