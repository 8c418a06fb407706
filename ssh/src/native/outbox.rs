//! What waits between russh and the network: little, and never in the way of what comes from there.
//!
//! russh's loop takes all that its channels have for it, and reads nothing until that is written. On a slow link
//! it would be deaf for as long as a batch takes. So its stream takes what is written to it at once and passes it on while
//! russh reads; and while something waits there, channels take no more from those who write to them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much a channel may be given before russh has passed on anything of it. Two such batches keep both threads busy.
/// Bytes.
const BATCH: usize = 128 << 10;

/// What waits here at most, however much russh has to say by itself. Bytes.
const MOST: usize = 1 << 20;

/// Says when channels may take more. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How much russh has written that the network has not taken. Bytes.
    waiting: usize,
    /// How often russh has written.
    batches: u64,
    /// Who would give more.
    held: Vec<Waker>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, waiting: usize, wrote: bool) {
        let mut state = self.lock();
        state.waiting = waiting;
        state.batches += u64::from(wrote);
        if waiting == 0 || wrote {
            for waker in std::mem::take(&mut state.held) {
                waker.wake();
            }
        }
    }
}

/// russh's stream.
pub(super) struct Outbox<S> {
    stream: S,
    waiting: BytesMut,
    gate: Gate,
}

impl<S: AsyncWrite + Unpin> Outbox<S> {
    pub(super) fn new(stream: S, gate: Gate) -> Self {
        Self {
            stream,
            waiting: BytesMut::new(),
            gate,
        }
    }

    /// Passes on as much of what waits as the network takes.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let drained = loop {
            match Pin::new(&mut self.stream).poll_write(cx, &self.waiting) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.waiting.advance(written),
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            if self.waiting.is_empty() {
                break Poll::Ready(Ok(()));
            }
        };
        self.gate.set(self.waiting.len(), false);
        drained
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Outbox<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // russh reads whenever it has nothing else to do. An error shows when it writes next, or reads.
        let _ = self.poll_drain(cx);
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outbox<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let drained = self.poll_drain(cx);
        if self.waiting.len() >= MOST {
            ready!(drained)?;
        } else if let Poll::Ready(drained) = drained {
            drained?;
        }
        let mut left = buf;
        // What need not wait is not copied.
        while self.waiting.is_empty() && !left.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, left) {
                Poll::Ready(Ok(written @ 1..)) => left = &left[written..],
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        self.waiting.extend_from_slice(left);
        self.gate.set(self.waiting.len(), true);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_drain(cx) {
            // It goes on when russh reads.
            Poll::Pending => Poll::Ready(Ok(())),
            Poll::Ready(drained) => {
                drained?;
                Pin::new(&mut self.stream).poll_flush(cx)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What is written to a channel, as long as the gate is open.
pub(super) struct Gated<W> {
    channel: W,
    gate: Gate,
    /// What has been given since russh wrote last, and when that was.
    given: usize,
    batch: u64,
}

impl<W> Gated<W> {
    pub(super) fn new(channel: W, gate: Gate) -> Self {
        Self {
            channel,
            gate,
            given: 0,
            batch: 0,
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.gate.lock();
        if state.batches != self.batch {
            (self.batch, self.given) = (state.batches, 0);
        }
        if state.waiting == 0 && self.given < BATCH {
            return Poll::Ready(());
        }
        if !state.held.iter().any(|held| held.will_wake(cx.waker())) {
            state.held.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Gated<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx));
        let written = ready!(Pin::new(&mut self.channel).poll_write(cx, buf));
        if let Ok(written) = written {
            self.given += written;
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_shutdown(cx)
    }
}

impl<W: AsyncRead + Unpin> AsyncRead for Gated<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn what_the_network_does_not_take_holds_up_neither_reading_nor_order() {
        let (near, far) = duplex(1000);
        let (mut reading, mut writing) = split(Outbox::new(near, Gate::default()));
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        timeout(MOMENT, writing.write_all(&content))
            .await
            .unwrap()
            .unwrap();
        timeout(MOMENT, writing.flush()).await.unwrap().unwrap();
        let (mut from, mut to) = split(far);
        to.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        timeout(MOMENT, reading.read_exact(&mut heard))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&heard, b"hello");
        // It goes on while somebody reads.
        let reader = tokio::spawn(async move { reading.read_u8().await });
        let mut came = vec![0; content.len()];
        from.read_exact(&mut came).await.unwrap();
        assert!(came == content);
        reader.abort();
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_goes_before_the_end() {
        let (near, mut far) = duplex(1000);
        let mut outbox = Outbox::new(near, Gate::default());
        outbox.write_all(&vec![1; MOST + 1000]).await.unwrap();
        assert!(poll!(Box::pin(outbox.write_all(&[2]))).is_pending());
        let mut came = Vec::new();
        let (closed, read) = tokio::join!(outbox.shutdown(), far.read_to_end(&mut came));
        closed.unwrap();
        read.unwrap();
        assert_eq!(came.len(), MOST + 1000);
    }

    #[tokio::test]
    async fn a_channel_takes_no_more_while_something_waits_or_russh_has_not_taken_the_last() {
        let (near, mut far) = duplex(1000);
        let gate = Gate::default();
        let (mut reading, mut writing) = split(Outbox::new(near, gate.clone()));
        let (channel, mut russh) = duplex(usize::MAX >> 1);
        let mut gated = Gated::new(channel, gate);
        gated.write_all(&vec![1; BATCH]).await.unwrap();
        assert!(poll!(Box::pin(gated.write_all(&[1]))).is_pending());
        // russh passes it on, but the network does not take it.
        let mut batch = vec![0; BATCH];
        russh.read_exact(&mut batch).await.unwrap();
        writing.write_all(&batch).await.unwrap();
        assert!(poll!(Box::pin(gated.write_all(&[1]))).is_pending());
        let reader = tokio::spawn(async move { reading.read_u8().await });
        let giving = tokio::spawn(async move { gated.write_all(&vec![1; BATCH]).await });
        far.read_exact(&mut batch).await.unwrap();
        timeout(Duration::from_secs(10), giving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        reader.abort();
    }
}
