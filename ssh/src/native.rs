//! Ssh spoken by russh.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handle, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf,
    Disconnect,
};
use russh::{cipher, compression};
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot, watch};

use crate::Options;
use crate::ask::Ask;
use crate::auth;
use crate::config::{Destination, Host, Route, resolve};
use crate::dial::{self, ProxyCommand, Stream};
use crate::error::{HostKeyError, SshError};
use crate::host_key::{Confidence, Known};
use crate::process::{Chunks, Ended, Exit, Process, fed_reader};

/// An authenticated connection.
pub(crate) struct Link {
    host: String,
    handle: Handle<Watcher>,
    events: Arc<Events>,
    /// The hop that this connection goes through.
    via: Option<Box<Link>>,
    /// What the stream goes through.
    _proxy: Option<ProxyCommand>,
}

/// What the handler of a connection tells the rest.
#[derive(Default)]
pub(crate) struct Events {
    /// Why the connection ended.
    end: watch::Sender<Option<String>>,
    /// What the server said when it last refused to open a channel.
    refusal: Mutex<Option<String>>,
    /// Whether the user is being asked about a host key, which stops the clock.
    asking: watch::Sender<bool>,
    confidence: Mutex<Option<Confidence>>,
}

impl Events {
    /// Why the connection ended, if it has.
    pub(crate) fn end(&self) -> Option<String> {
        self.end.borrow().clone()
    }
}

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
    let watcher = Watcher {
        host: host.clone(),
        known,
        ask: Arc::clone(ask),
        events: Arc::clone(&events),
    };
    let exchange = tokio::select! {
        exchange = client::connect_stream(config, stream, watcher) => exchange,
        () = stalled(&events, limit) => {
            return Err(SshError::Timeout {
                host: host.name.clone(),
                address: host.address(),
                what: "finish the key exchange",
                limit,
            });
        }
    };
    let mut handle = match exchange {
        Ok(handle) => handle,
        Err(WatcherError::HostKey(error)) => return Err(SshError::HostKey(error)),
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
    auth::authenticate(&mut handle, host, confidence, &events, ask.as_ref()).await?;
    Ok(Link {
        host: host.name.clone(),
        handle,
        events,
        via,
        _proxy: proxy,
    })
}

/// Returns when the clock, which stands still while the user is asked, has run out.
async fn stalled(events: &Events, limit: Duration) {
    let mut asking = events.asking.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(limit) => return,
            _ = asking.wait_for(|asking| *asking) => {}
        }
        if asking.wait_for(|asking| !asking).await.is_err() {
            return;
        }
    }
}

fn config(host: &Host, known: &Known) -> client::Config {
    let (key, certificates) = known.algorithms(&host.trust);
    let mut preferred = russh::Preferred {
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
        ..russh::Preferred::DEFAULT
    };
    // What is worth it is compressed already.
    preferred.compression = vec![compression::NONE].into();
    client::Config {
        preferred,
        keepalive_interval: host.keepalive.map(|keepalive| keepalive.interval),
        keepalive_max: host.keepalive.map_or(0, |keepalive| keepalive.unanswered),
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
        Ok(started(read, write))
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
        Ok(channel.into_stream())
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
            let mut end = self.events.end.subscribe();
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
                    let _ = self.events.end.subscribe().wait_for(Option::is_some).await;
                }
            };
            let _ = tokio::time::timeout(LIMIT, goodbye).await;
            if let Some(via) = &self.via {
                via.disconnect().await;
            }
        })
    }
}

/// Hands a channel on which a command runs to its user.
fn started(read: ChannelReadHalf, write: ChannelWriteHalf<Msg>) -> Process {
    let (out, stdout) = fed_reader();
    let (complaints, stderr) = fed_reader();
    let (exit, ended) = oneshot::channel();
    let (input_dropped, no_more_input) = oneshot::channel();
    let (alive, gone) = oneshot::channel::<()>();
    let stdin = Input {
        writer: Box::new(write.make_writer()),
        gone: Box::pin(async {
            let _ = gone.await;
        }),
        is_gone: false,
        dropped: Some(input_dropped),
    };
    let relay = Relay {
        read,
        write: Arc::new(write),
        out: Some(out),
        complaints: Some(complaints),
        exit: Some(exit),
    };
    tokio::spawn(async move {
        relay.run(no_more_input).await;
        drop(alive);
    });
    Process {
        stdin: Box::new(stdin),
        stdout,
        stderr,
        exit: Ended::new(ended),
    }
}

/// Sorts what comes over a channel.
struct Relay {
    read: ChannelReadHalf,
    write: Arc<ChannelWriteHalf<Msg>>,
    out: Option<Chunks>,
    complaints: Option<Chunks>,
    exit: Option<oneshot::Sender<Exit>>,
}

impl Relay {
    async fn run(mut self, no_more_input: oneshot::Receiver<()>) {
        let mut no_more_input = Some(no_more_input);
        loop {
            let message = tokio::select! {
                message = self.read.wait() => message,
                _ = async { if let Some(dropped) = &mut no_more_input { let _ = dropped.await; } }, if no_more_input.is_some() => {
                    no_more_input = None;
                    // Not waited for: the connection may in turn be waiting for this loop to read.
                    let write = Arc::clone(&self.write);
                    tokio::spawn(async move { write.eof().await });
                    continue;
                }
                () = nobody(self.out.as_ref(), self.complaints.as_ref(), self.exit.as_mut()), if no_more_input.is_none() => break,
            };
            match message {
                Some(ChannelMsg::Data { data }) => deliver(self.out.as_ref(), data).await,
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    deliver(self.complaints.as_ref(), data).await
                }
                Some(ChannelMsg::Eof) => (self.out, self.complaints) = (None, None),
                Some(ChannelMsg::ExitStatus { exit_status }) => self.ended(Exit::Code(exit_status)),
                Some(ChannelMsg::ExitSignal {
                    signal_name,
                    error_message,
                    ..
                }) => {
                    let name = match signal_name {
                        russh::Sig::Custom(name) => name,
                        known => format!("{known:?}"),
                    };
                    self.ended(Exit::Signal {
                        name,
                        message: error_message,
                    });
                }
                Some(ChannelMsg::Close) => {
                    (self.out, self.complaints) = (None, None);
                    break;
                }
                Some(_) => {}
                None => break,
            }
        }
        drop(self.read);
        let _ = self.write.close().await;
        // Whoever still reads must not take a lost connection for the end of the output.
        for reader in [self.out, self.complaints].into_iter().flatten() {
            let _ = reader
                .send(Err(io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "the ssh connection is gone",
                )))
                .await;
        }
    }

    fn ended(&mut self, exit: Exit) {
        if let Some(sender) = self.exit.take() {
            let _ = sender.send(exit);
        }
    }
}

/// Passes a chunk on. That nobody wants it is no matter.
async fn deliver(reader: Option<&Chunks>, data: Bytes) {
    if let Some(reader) = reader {
        let _ = reader.send(Ok(data)).await;
    }
}

/// Returns when nobody is left who would take anything from the command.
async fn nobody(
    out: Option<&Chunks>,
    complaints: Option<&Chunks>,
    exit: Option<&mut oneshot::Sender<Exit>>,
) {
    async fn unread(reader: Option<&mpsc::Sender<io::Result<Bytes>>>) {
        if let Some(reader) = reader {
            reader.closed().await;
        }
    }
    unread(out).await;
    unread(complaints).await;
    if let Some(exit) = exit {
        exit.closed().await;
    }
}

/// The stdin of a command.
struct Input {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Ready when the channel is no more: russh would wait for room in its window for ever.
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_gone: bool,
    /// Dropped with this, which ends the command's input.
    dropped: Option<oneshot::Sender<()>>,
}

impl Input {
    fn or_gone<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            return poll;
        }
        self.is_gone = self.is_gone || self.gone.as_mut().poll(cx).is_ready();
        if self.is_gone {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        } else {
            Poll::Pending
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let poll = Pin::new(&mut self.writer).poll_write(cx, buf);
        self.or_gone(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The relay sends the end after all that is on its way.
        self.dropped = None;
        Poll::Ready(Ok(()))
    }
}

/// The client's side of what the server says of its own accord.
pub(crate) struct Watcher {
    host: Host,
    known: Known,
    ask: Arc<dyn Ask>,
    events: Arc<Events>,
}

/// What ends a key exchange.
#[derive(Debug)]
pub(crate) enum WatcherError {
    Russh(russh::Error),
    HostKey(HostKeyError),
}

impl From<russh::Error> for WatcherError {
    fn from(error: russh::Error) -> Self {
        Self::Russh(error)
    }
}

impl client::Handler for Watcher {
    type Error = WatcherError;

    async fn check_server_key(
        &mut self,
        offered: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        self.events.asking.send_replace(true);
        let verdict = self
            .known
            .check(&self.host, offered, self.ask.as_ref())
            .await;
        self.events.asking.send_replace(false);
        let confidence = verdict.map_err(WatcherError::HostKey)?;
        *self
            .events
            .confidence
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(confidence);
        Ok(true)
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), Self::Error> {
        self.ask.tell(&auth::printable(banner));
        Ok(())
    }

    async fn channel_open_failure(
        &mut self,
        _: ChannelId,
        _: ChannelOpenFailure,
        description: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        *self
            .events
            .refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(auth::printable(description));
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let why = match &reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                format!("the server said: {}", auth::printable(&said.message))
            }
            DisconnectReason::Error(WatcherError::Russh(error)) => match error {
                russh::Error::Disconnect | russh::Error::HUP => "the server hung up".to_owned(),
                russh::Error::KeepaliveTimeout => {
                    "the server no longer answers (ServerAliveInterval)".to_owned()
                }
                other => other.to_string(),
            },
            DisconnectReason::Error(WatcherError::HostKey(error)) => error.to_string(),
        };
        self.events.end.send_replace(Some(why));
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }

    // A server has no business opening channels here: nothing is forwarded. To drop the handle is to refuse.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}
