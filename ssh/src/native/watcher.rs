//! What happens on a connection without being asked for, and how the rest hears of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::ask::{Ask, Question};
use crate::auth;
use crate::config::Host;
use crate::error::HostKeyError;
use crate::host_key::{Confidence, Known};

/// What the handler of a connection tells the rest.
#[derive(Default)]
pub(crate) struct Events {
    /// Why the connection ended.
    pub(super) ended: watch::Sender<Option<String>>,
    /// What the server said when it last refused to open a channel.
    pub(super) refusal: Mutex<Option<String>>,
    /// How far the host is trusted, once it has shown its key.
    pub(super) confidence: Mutex<Option<Confidence>>,
    /// Whether the user is being asked something, which stops the clock.
    asking: watch::Sender<bool>,
}

impl Events {
    /// Why the connection ended, if it has.
    pub(crate) fn end(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Returns when the clock, which stands still while the user is asked, has run out.
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut asking = self.asking.subscribe();
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
}

/// The user, with the clock stopped while they think.
#[derive(Clone)]
pub(super) struct Clocked {
    pub(super) ask: Arc<dyn Ask>,
    pub(super) events: Arc<Events>,
}

#[async_trait]
impl Ask for Clocked {
    async fn ask(&self, question: Question) -> Option<Zeroizing<String>> {
        self.events.asking.send_replace(true);
        let answer = self.ask.ask(question).await;
        self.events.asking.send_replace(false);
        answer
    }

    fn tell(&self, text: &str) {
        self.ask.tell(text);
    }
}

/// The client's side of what the server says of its own accord.
pub(crate) struct Watcher {
    pub(super) host: Host,
    pub(super) known: Known,
    pub(super) ask: Clocked,
    pub(super) events: Arc<Events>,
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
        let verdict = self.known.check(&self.host, offered, &self.ask).await;
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
        self.events.ended.send_replace(Some(why));
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
