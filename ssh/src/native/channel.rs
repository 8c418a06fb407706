//! A channel on which a command runs, as streams.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use super::outbox::{Gate, Gated};
use crate::process::{Ended, Exit, Feed, Process};

/// Hands a channel on which a command runs to its user.
pub(super) fn started(read: ChannelReadHalf, write: ChannelWriteHalf<Msg>, gate: Gate) -> Process {
    let (out, stdout) = Feed::new();
    let (complaints, stderr) = Feed::new();
    let (exit, ended) = oneshot::channel();
    let (input_dropped, no_more_input) = oneshot::channel();
    let (alive, gone) = oneshot::channel::<()>();
    let stdin = Input {
        writer: Box::new(Gated::new(write.make_writer(), gate)),
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
    out: Option<Feed>,
    complaints: Option<Feed>,
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
        for feed in [self.out, self.complaints].into_iter().flatten() {
            feed.fail(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the ssh connection is gone",
            ));
        }
    }

    fn ended(&mut self, exit: Exit) {
        if let Some(sender) = self.exit.take() {
            let _ = sender.send(exit);
        }
    }
}

/// Passes a chunk on.
async fn deliver(feed: Option<&Feed>, data: Bytes) {
    if let Some(feed) = feed {
        feed.deliver(data).await;
    }
}

/// Returns when nobody is left who would take anything from the command.
async fn nobody(
    out: Option<&Feed>,
    complaints: Option<&Feed>,
    exit: Option<&mut oneshot::Sender<Exit>>,
) {
    for feed in [out, complaints].into_iter().flatten() {
        feed.unread().await;
    }
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
