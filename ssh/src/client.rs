//! A connection and the thread it lives on.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::ask::Ask;
use crate::config::{Destination, Host, resolve};
use crate::error::SshError;
use crate::native;
use crate::openssh;
use crate::process::Process;
use crate::{Options, Transport};

/// A connection to a host. Dropping it ends the connection and the commands on it, a moment later; a program that is
/// about to exit calls [`Client::disconnect`], so that nothing is left of the openssh transport's private directory.
#[derive(Debug)]
pub struct Client {
    host: Host,
    orders: mpsc::UnboundedSender<Order>,
    /// Why there is no connection any more.
    closed: watch::Receiver<Option<String>>,
}

/// What the connection's thread is asked to do.
#[derive(Debug)]
enum Order {
    Exec {
        command: String,
        reply: oneshot::Sender<Result<Process, SshError>>,
    },
    Disconnect,
}

/// Who speaks the protocol.
enum Link {
    Native(Box<native::Link>),
    OpenSsh(openssh::Link),
}

pub(crate) async fn connect(options: Options, ask: Arc<dyn Ask>) -> Result<Client, SshError> {
    let name = options.host.clone();
    let local = |what: &'static str| {
        let host = name.clone();
        move |source| SshError::Local { host, what, source }
    };
    let (ready, outcome) = oneshot::channel();
    let (orders, inbox) = mpsc::unbounded_channel();
    let (closing, closed) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(local("start an event loop"))?;
    std::thread::Builder::new()
        .name(format!("ssh {}", options.host))
        .spawn(move || {
            runtime.block_on(live(&options, ask, ready, inbox, closing));
            // A name that is still being looked up must not keep the thread.
            runtime.shutdown_background();
        })
        .map_err(local("start a thread"))?;
    let host = match outcome.await {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(SshError::Closed {
                host: name,
                reason: "its thread ended unexpectedly".to_owned(),
            });
        }
    };
    Ok(Client {
        host,
        orders,
        closed,
    })
}

/// The life of a connection, from the first look at the configuration to its end.
async fn live(
    options: &Options,
    ask: Arc<dyn Ask>,
    mut ready: oneshot::Sender<Result<Host, SshError>>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    closing: watch::Sender<Option<String>>,
) {
    let opened = tokio::select! {
        opened = open(options, ask) => opened,
        () = ready.closed() => return,
    };
    let (host, link) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(host)).is_err() {
        link.disconnect().await;
        return;
    }
    let link = Arc::new(link);
    let why = loop {
        tokio::select! {
            why = link.closed() => break why,
            order = orders.recv() => match order {
                Some(Order::Exec { command, reply }) => {
                    let link = Arc::clone(&link);
                    tokio::spawn(async move {
                        let _ = reply.send(link.exec(&command).await);
                    });
                }
                Some(Order::Disconnect) | None => {
                    link.disconnect().await;
                    break "it was closed here".to_owned();
                }
            },
        }
    };
    closing.send_replace(Some(why));
}

async fn open(options: &Options, ask: Arc<dyn Ask>) -> Result<(Host, Link), SshError> {
    let mut destination =
        Destination::parse(&options.host).map_err(|reason| SshError::Destination {
            host: options.host.clone(),
            reason,
        })?;
    if let Some(user) = &options.user {
        destination.user = Some(user.clone());
    }
    if let Some(port) = options.port {
        destination.port = Some(port);
    }
    let host = resolve(&options.environment, &destination, options.config.as_ref()).await?;
    let link = match options.transport {
        Transport::Russh => Link::Native(Box::new(native::open(options, &host, ask).await?)),
        Transport::OpenSsh => Link::OpenSsh(openssh::open(options, &destination, ask).await?),
    };
    Ok((host, link))
}

impl Link {
    async fn exec(&self, command: &str) -> Result<Process, SshError> {
        match self {
            Self::Native(link) => link.exec(command).await,
            Self::OpenSsh(link) => link.exec(command).await,
        }
    }

    async fn closed(&self) -> String {
        match self {
            Self::Native(link) => link.closed().await,
            Self::OpenSsh(link) => link.closed().await,
        }
    }

    async fn disconnect(&self) {
        match self {
            Self::Native(link) => link.disconnect().await,
            Self::OpenSsh(link) => link.disconnect().await,
        }
    }
}

impl Client {
    /// Runs a command there, through the user's login shell.
    ///
    /// # Errors
    /// If the connection is gone, or the server refuses to open a channel or to run commands.
    pub async fn exec(&self, command: &str) -> Result<Process, SshError> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Exec {
            command: command.to_owned(),
            reply,
        };
        if self.orders.send(order).is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        Err(SshError::Closed {
            host: self.host.name.clone(),
            reason: self.closed().await,
        })
    }

    /// Waits for the end of the connection, and says why it came.
    pub async fn closed(&self) -> String {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "its thread ended".to_owned(),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.orders.is_closed() || self.closed.borrow().is_some()
    }

    /// Ends the connection, and waits until it has ended.
    pub async fn disconnect(&self) {
        let _ = self.orders.send(Order::Disconnect);
        self.closed().await;
    }

    /// What the host's name stands for.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
