//! What carries a conversation that outlives its byte streams: greeting, reading and writing over one of them
//! after another.

use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::codec::Decoder;

use crate::WireError;
use crate::frame::{Frame, FrameCodec, HEAD};
use crate::handshake::{Conversation, Greeted, greet};
use crate::resume::{Next, Resume};
use crate::shared::{Shared, State};
use crate::squeeze::{Squeezer, Unsqueezer};
use crate::writer::Writer;

/// How long nothing may come from the other side, unless the caller says otherwise.
const SILENCE: Duration = Duration::from_secs(8);

/// How long the other side has for its first greeting: it may have to start, and a login shell before it.
const FIRST_GREETING: Duration = Duration::from_secs(60);

/// How long it has for each after that.
const GREETING: Duration = Duration::from_secs(20);

/// After the end, how long the other side has to close the byte stream.
const LINGER: Duration = Duration::from_secs(1);

/// A conversation that can be carried by one byte stream after another. Clones share it; when all are dropped, it is
/// closed.
///
/// Each frame is kept until the other side has acknowledged it. When a byte stream breaks, both sides say in the
/// next greeting how many frames they have; what one lacks, the other sends again, and nothing twice.
#[derive(Clone, Debug)]
pub struct Line {
    held: Arc<Held>,
    silence: Duration,
}

#[derive(Debug)]
struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Tells the state that a byte stream is no longer used, however that came about.
struct Carried<'a> {
    shared: &'a Shared,
    stream: u64,
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        if let Some(resume) = &mut self.shared.lock().resume {
            resume.ended(self.stream);
        }
        // It may have taken a wake-up that was meant for the stream after it.
        self.shared.ready.notify_one();
    }
}

impl Line {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            held: Arc::new(Held(shared)),
            silence: SILENCE,
        }
    }

    /// How long nothing at all may come from the other side, instead of 8 s. It is asked for a sign of life four times as
    /// often, at least every 2 s.
    #[must_use]
    pub fn with_silence(mut self, limit: Duration) -> Self {
        self.silence = limit;
        self
    }

    /// Greets the other side, then carries the conversation over this byte stream until that ends. Text before the
    /// other side's greeting, as login shells print it, is skipped.
    ///
    /// `Ok` means that the conversation has ended: both sides have called [`Sender::finish`](crate::Sender::finish)
    /// and all has been delivered, or [`Line::close`] was called here. (To carry it again is allowed, and lets the
    /// other side know that, if it lost the link before it did.) After an error that
    /// [is a lost link](WireError::is_lost_link), it goes on with the next byte stream that is carried. A byte stream
    /// that is given while another is in use replaces that one. Dropping the future drops the byte stream, no more.
    ///
    /// # Errors
    /// - [`WireError::Io`], [`WireError::Ended`], [`WireError::Silent`]: the link is lost.
    /// - [`WireError::Replaced`]: another byte stream has taken over.
    /// - [`WireError::NoGreeting`], [`WireError::Build`], [`WireError::Unresumable`]: not an agent, not of this build,
    ///   or not started to resume links.
    /// - [`WireError::OtherConversation`], [`WireError::Forgotten`]: not the one this conversation was with. What
    ///   was not delivered is kept, in case another byte stream leads to the right one.
    /// - [`WireError::Malformed`]: the other side breaks the rules. The receiver gets the same error, and the
    ///   conversation is closed.
    pub async fn carry<R, W>(&self, reader: R, writer: W) -> Result<(), WireError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let shared = &*self.held.0;
        let (stream, greeting, stopped) = {
            let mut state = shared.lock();
            if state.closed {
                return Ok(());
            }
            resume(&mut state)?.attach()
        };
        let carried = Carried { shared, stream };
        let outcome = tokio::select! {
            biased;
            _ = stopped => Err(WireError::Replaced),
            outcome = self.run(stream, &greeting, reader, writer) => outcome,
        };
        drop(carried);
        let mut state = shared.lock();
        match outcome {
            Err(WireError::Replaced) if state.closed => {
                drop(state);
                shared.close();
                Ok(())
            }
            Err(WireError::Malformed(what)) => {
                state.end_arrivals(Some(WireError::Malformed(what)));
                drop(state);
                shared.close();
                Err(WireError::Malformed(what))
            }
            outcome => outcome,
        }
    }

    /// Gives the conversation up: senders return false, the receiver gives `None` after what has already come, and
    /// [`Line::carry`] returns. The other side is not told.
    pub fn close(&self) {
        self.held.0.close();
    }

    /// The round trip time, smoothed, of the byte stream in use or of the one before; absent before the first.
    pub fn rtt(&self) -> Option<Duration> {
        self.held.0.lock().resume.as_ref()?.round_trip()
    }

    /// When anything came from the other side last; absent if nothing ever did.
    pub fn heard(&self) -> Option<Instant> {
        self.held.0.lock().resume.as_ref()?.heard()
    }

    /// True while a byte stream carries the conversation: from the greetings to its end.
    pub fn up(&self) -> watch::Receiver<bool> {
        match &self.held.0.lock().resume {
            Some(resume) => resume.up(),
            None => watch::Sender::new(false).subscribe(),
        }
    }

    async fn run<R, W>(
        &self,
        stream: u64,
        greeting: &Conversation,
        mut reader: R,
        mut writer: W,
    ) -> Result<(), WireError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let shared = &*self.held.0;
        let limit = match greeting.theirs {
            None => FIRST_GREETING,
            Some(_) => GREETING,
        };
        let greeted = timeout(limit, greet(&mut reader, &mut writer, Some(greeting)));
        let Greeted {
            conversation,
            beyond,
        } = greeted.await.map_err(|_| silent(limit))??;
        {
            let mut guard = current(shared, stream)?;
            let state = &mut *guard;
            if let (Some(resume), Some(theirs)) = (&mut state.resume, conversation) {
                resume.agree(&theirs, &mut state.outgoing, self.silence)?;
            }
        }
        let mut reading = pin!(read(shared, stream, self.silence, reader, beyond));
        let writing = pin!(write(shared, stream, writer));
        let written = tokio::select! {
            read = &mut reading => return read,
            written = writing => written,
        };
        match written {
            // The other side closes once it knows, too.
            Ok(()) => {
                let _ = timeout(LINGER, reading).await;
                Ok(())
            }
            // What has already come may complete the conversation.
            Err(error) => match reading.await {
                Ok(()) => Ok(()),
                Err(fault @ WireError::Malformed(_)) => Err(fault),
                Err(_) => Err(error),
            },
        }
    }
}

fn silent(limit: Duration) -> WireError {
    WireError::Silent {
        seconds: limit.as_secs_f64().ceil() as u64,
    }
}

/// The state, if this byte stream is the one in use.
fn current(shared: &Shared, stream: u64) -> Result<MutexGuard<'_, State>, WireError> {
    let mut state = shared.lock();
    if resume(&mut state)?.is_current(stream) {
        Ok(state)
    } else {
        Err(WireError::Replaced)
    }
}

fn resume(state: &mut State) -> Result<&mut Resume, WireError> {
    state.resume.as_mut().ok_or(WireError::Replaced)
}

async fn write<W: AsyncWrite + Unpin>(
    shared: &Shared,
    stream: u64,
    writer: W,
) -> Result<(), WireError> {
    let mut writer = Writer::new(writer);
    let mut squeezer = Squeezer::default();
    loop {
        let next = {
            let mut guard = current(shared, stream)?;
            let State {
                resume,
                outgoing,
                finishing,
                ..
            } = &mut *guard;
            let resume = resume.as_mut().ok_or(WireError::Replaced)?;
            resume.next(outgoing, *finishing, Instant::now())
        };
        match next {
            Next::Send(frame) => {
                shared.room.notify_waiters();
                writer.feed(frame).await?;
            }
            Next::Squeeze(number, chunk) => {
                shared.room.notify_waiters();
                let squeezed = squeezer.squeeze(&chunk.payload);
                {
                    let mut state = current(shared, stream)?;
                    state.outgoing.squeezed(chunk.stream, squeezed.is_some());
                    if let Some(squeezed) = &squeezed {
                        resume(&mut state)?.shrunk(number, HEAD + squeezed.len());
                    }
                }
                writer.feed(chunk.into_frame(squeezed)).await?;
            }
            Next::Wait(until) => {
                writer.flush().await?;
                tokio::select! {
                    () = shared.ready.notified() => {}
                    () = sleep_until(until) => {}
                }
            }
            Next::Over => {
                writer.flush().await?;
                let _ = writer.close().await;
                return Ok(());
            }
        }
    }
}

async fn read<R: AsyncRead + Unpin>(
    shared: &Shared,
    stream: u64,
    silence: Duration,
    mut reader: R,
    mut buffer: BytesMut,
) -> Result<(), WireError> {
    let mut codec = FrameCodec;
    let mut unsqueezer = Unsqueezer::default();
    let mut heard = Instant::now();
    loop {
        loop {
            let before = buffer.len();
            let Some(frame) = codec.decode(&mut buffer)? else {
                break;
            };
            let wire = before - buffer.len();
            let frame = unsqueeze(&mut unsqueezer, frame)?;
            accept(shared, &mut *current(shared, stream)?, frame, wire)?;
        }
        shared.ready.notify_one();
        let read = match timeout_at(heard + silence, reader.read_buf(&mut buffer)).await {
            Err(_) => return Err(silent(silence)),
            Ok(read) => read,
        };
        if matches!(read, Ok(1..)) {
            heard = Instant::now();
            resume(&mut *current(shared, stream)?)?.hears(heard);
        } else {
            let over = resume(&mut *current(shared, stream)?)?.is_over();
            return match read {
                _ if over => Ok(()),
                Ok(_) => Err(WireError::Ended),
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// What a frame changes. Whatever it is, the writer may have something to do about it.
fn accept(shared: &Shared, state: &mut State, frame: Frame, wire: usize) -> Result<(), WireError> {
    let now = Instant::now();
    let speaks = matches!(frame, Frame::Data { .. } | Frame::Finish);
    if speaks && resume(state)?.is_finished() {
        return Err(WireError::Malformed("frame: after the end"));
    }
    match frame {
        Frame::Data {
            stream,
            last,
            payload,
            ..
        } => {
            resume(state)?.count(wire, now);
            if !state.accept(stream, last, payload)? {
                // Nobody receives any more: the conversation is given up.
                state.closed = true;
                return Err(WireError::Replaced);
            }
        }
        Frame::Credit { stream, bytes } => {
            resume(state)?.count(wire, now);
            state.outgoing.credit(stream, bytes)?;
        }
        Frame::Finish => {
            if state.incoming.is_partial() {
                return Err(WireError::Malformed("message: it ends in the middle"));
            }
            let resume = resume(state)?;
            resume.count(wire, now);
            resume.finished(now);
            state.end_arrivals(None);
        }
        Frame::Ack(count) => {
            resume(state)?.acked(count, now)?;
            // Somebody may wait until all is delivered.
            shared.room.notify_waiters();
        }
        Frame::Ping(number) => resume(state)?.ping(number),
        Frame::Pong(number) => resume(state)?.pong(number, now)?,
    }
    Ok(())
}

/// The frame with its payload uncompressed.
fn unsqueeze(unsqueezer: &mut Unsqueezer, frame: Frame) -> Result<Frame, WireError> {
    Ok(match frame {
        Frame::Data {
            stream,
            last,
            squeezed: true,
            payload,
        } => Frame::Data {
            stream,
            last,
            squeezed: false,
            payload: unsqueezer.unsqueeze(&payload)?,
        },
        frame => frame,
    })
}
