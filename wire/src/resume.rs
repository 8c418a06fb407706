//! A conversation that goes on over one byte stream after another: what was received, what is kept, and what is
//! due to be sent about it.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::WireError;
use crate::frame::{Frame, HEAD};
use crate::handshake::Conversation;
use crate::kept::{Kept, Numbered};
use crate::outgoing::{Chunk, Outgoing, Pick, Room};
use crate::pace::{MOST, Pace};
use crate::squeeze::SQUEEZE_MIN;

/// So many received bytes are acknowledged at once: half of what a sender can at least have on its way.
const ACK_BYTES: usize = crate::pace::LEAST / 2;

/// Anything received is acknowledged after so long.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// The longest time between two pings.
const PING: Duration = Duration::from_secs(2);

/// The most frames that are kept; a correct receiver acknowledges long before.
const KEPT_LIMIT: usize = 1 << 16;

/// The state of a conversation beyond its queues.
#[derive(Debug)]
pub struct Resume {
    /// The conversation, chosen by who began it.
    id: [u8; 16],
    /// This end of it: another after each start of the program.
    ours: Uuid,
    /// The other end, once it has greeted.
    theirs: Option<Uuid>,
    /// Counts byte streams; a stream with a lower number than this is dead.
    stream: u64,
    /// The other end's number of the last byte stream on which both agreed.
    their_stream: u64,
    /// Ends the byte stream that is in use when it is dropped.
    stop: Option<oneshot::Sender<()>>,
    up: watch::Sender<bool>,
    kept: Kept,
    /// How many frames that count have been received.
    received: u64,
    /// The number of our last frame, once it is sent.
    finish: Option<u64>,
    /// Whether the other side's last frame has been received.
    finished: bool,
    ack: Ack,
    pong: Option<u64>,
    ping_at: Instant,
    ping_every: Duration,
    /// When anything came last.
    heard: Option<Instant>,
    /// The start of the byte stream, from which pings count.
    start: Instant,
    pace: Pace,
    round_trip: Option<Duration>,
}

/// What is to be acknowledged.
#[derive(Debug, Default)]
struct Ack {
    /// What the other side has been told.
    told: u64,
    bytes: usize,
    /// When it is due, if anything is.
    due: Option<Instant>,
    /// Whether a frame has just been sent that it can go with.
    ride: bool,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Next {
    /// Send this.
    Send(Frame),
    /// Compress this and send it: the frame of this number.
    Squeeze(u64, Chunk),
    /// Nothing before this moment.
    Wait(Instant),
    /// All is sent and received.
    Over,
}

impl Resume {
    pub fn new(id: [u8; 16]) -> Self {
        let now = Instant::now();
        Self {
            id,
            ours: Uuid::new_v4(),
            theirs: None,
            stream: 0,
            their_stream: 0,
            stop: None,
            up: watch::Sender::new(false),
            kept: Kept::default(),
            received: 0,
            finish: None,
            finished: false,
            ack: Ack::default(),
            pong: None,
            ping_at: now,
            ping_every: PING,
            heard: None,
            start: now,
            pace: Pace::new(now),
            round_trip: None,
        }
    }

    /// Says when there is a byte stream that carries the conversation.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// The round trip time, smoothed.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Something has come.
    pub fn hears(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// When that was last.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// The byte streams so far are dead: nothing more is taken from them or given to them. Returns the number of the
    /// new one, what to greet with, and what ends when it is dead in its turn.
    pub fn attach(&mut self) -> (u64, Conversation, oneshot::Receiver<()>) {
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        self.stream += 1;
        self.up.send_replace(false);
        let greeting = Conversation {
            id: self.id,
            ours: self.ours,
            theirs: self.theirs,
            stream: self.stream,
            received: self.received,
            kept: self.kept.first(),
            sent: self.kept.next(),
        };
        (self.stream, greeting, stopped)
    }

    /// Ends the byte stream that is in use.
    pub fn detach(&mut self) {
        self.stream += 1;
        self.stop = None;
        self.up.send_replace(false);
    }

    /// Whether a byte stream is the one in use.
    pub fn is_current(&self, stream: u64) -> bool {
        self.stream == stream
    }

    /// A byte stream has ended; another may already be in use.
    pub fn ended(&mut self, stream: u64) {
        if self.is_current(stream) {
            self.detach();
        }
    }

    /// The other side has greeted, too: what it lacks is put back to be sent again.
    ///
    /// Both sides see the same facts, so both come to the same verdict.
    pub fn agree(
        &mut self,
        greeting: &Conversation,
        outgoing: &mut Outgoing,
        silence: Duration,
    ) -> Result<(), WireError> {
        if greeting.id != self.id {
            return Err(WireError::OtherConversation);
        }
        let knows_us = greeting.theirs.is_none_or(|ours| ours == self.ours);
        let known = self.theirs.is_none_or(|theirs| theirs == greeting.ours);
        if knows_us && known && greeting.stream <= self.their_stream {
            // An old greeting that was long on its way: what it says no longer holds.
            return Err(WireError::Replaced);
        }
        let fits = (greeting.kept..=greeting.sent).contains(&self.received)
            && self.kept.fits(greeting.received);
        if !(knows_us && known && fits) {
            return Err(WireError::Forgotten);
        }
        self.theirs = Some(greeting.ours);
        self.their_stream = greeting.stream;
        self.kept.ack(greeting.received)?;
        while let Some(frame) = self.kept.pop() {
            match frame {
                Numbered::Chunk(chunk) => outgoing.put_back(chunk),
                Numbered::Credit { stream, bytes } => outgoing.grant(stream, bytes),
                Numbered::Finish => self.finish = None,
            }
        }
        let now = Instant::now();
        self.ack = Ack {
            told: self.received,
            ..Ack::default()
        };
        self.pong = None;
        self.heard = Some(now);
        self.start = now;
        self.ping_at = now;
        self.ping_every = PING.min(silence / 4);
        self.pace = Pace::new(now);
        self.up.send_replace(true);
        Ok(())
    }

    /// A frame that counts has been received.
    pub fn count(&mut self, wire: usize, now: Instant) {
        self.received += 1;
        self.ack.bytes += wire;
        self.ack.due.get_or_insert(now + ACK_DELAY);
        if self.ack.bytes >= ACK_BYTES {
            self.ack.due = Some(now);
        }
    }

    /// Whether the other side has ended its direction. Credit may still come.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The other side has ended its direction.
    pub fn finished(&mut self, now: Instant) {
        self.finished = true;
        self.ack.due = Some(now);
    }

    /// An acknowledgement has come.
    pub fn acked(&mut self, count: u64, now: Instant) -> Result<(), WireError> {
        let acked = self.kept.ack(count)?;
        if let Some(sent) = acked.sent {
            self.pace.acked(acked.wire, sent, now);
        }
        Ok(())
    }

    /// A ping has come; only the latest is answered.
    pub fn ping(&mut self, number: u64) {
        self.pong = Some(number);
    }

    /// The answer to a ping has come.
    pub fn pong(&mut self, number: u64, now: Instant) -> Result<(), WireError> {
        let round_trip = (now - self.start)
            .checked_sub(Duration::from_micros(number))
            .ok_or(WireError::Malformed("pong: to no ping"))?;
        self.pace.round_trip(round_trip, now);
        // As TCP smooths it (RFC 6298).
        self.round_trip = Some(match self.round_trip {
            Some(before) => (7 * before + round_trip) / 8,
            None => round_trip,
        });
        Ok(())
    }

    /// Whether all that we sent, and that it was all, has been acknowledged.
    pub fn is_delivered(&self) -> bool {
        self.finish.is_some_and(|finish| finish < self.kept.first())
    }

    /// Whether both directions have ended.
    pub fn is_over(&self) -> bool {
        self.finished && self.is_delivered()
    }

    /// What to do next. `finishing`: when the queues are empty, that is the end.
    pub fn next(&mut self, outgoing: &mut Outgoing, finishing: bool, now: Instant) -> Next {
        if let Some(number) = self.pong.take() {
            return Next::Send(Frame::Pong(number));
        }
        if now >= self.ping_at {
            self.ping_at = now + self.ping_every;
            let micros = (now - self.start).as_micros();
            return Next::Send(Frame::Ping(u64::try_from(micros).unwrap_or_default()));
        }
        if self.ack.due.is_some_and(|due| self.ack.ride || now >= due) {
            self.ack = Ack {
                told: self.received,
                ..Ack::default()
            };
            return Next::Send(Frame::Ack(self.received));
        }
        if let Some(next) = self.next_numbered(outgoing, finishing, now) {
            self.ack.ride = true;
            return next;
        }
        self.ack.ride = false;
        if self.is_over() && self.ack.told == self.received {
            return Next::Over;
        }
        let mut until = self.ping_at;
        if let Some(due) = self.ack.due {
            until = until.min(due);
        }
        let room = self.pace.next_room();
        if room > now {
            until = until.min(room);
        }
        Next::Wait(until)
    }

    fn next_numbered(
        &mut self,
        outgoing: &mut Outgoing,
        finishing: bool,
        now: Instant,
    ) -> Option<Next> {
        if self.kept.len() >= KEPT_LIMIT {
            return None;
        }
        if let Some((stream, bytes)) = outgoing.next_grant() {
            self.keep(Numbered::Credit { stream, bytes }, HEAD + 4, now);
            return Some(Next::Send(Frame::Credit { stream, bytes }));
        }
        // What compresses well is still kept as it is.
        let fits = self.kept.bytes() < MOST;
        let room = Room {
            small: fits && self.pace.has_room_for_small(),
            bulk: fits && self.pace.has_room(now),
        };
        match outgoing.pick(room) {
            Pick::Chunk(chunk) => {
                let squeeze = chunk.payload.len() >= SQUEEZE_MIN
                    && self.pace.is_worth_squeezing()
                    && outgoing.tries_to_squeeze(chunk.stream);
                let number = self.keep(
                    Numbered::Chunk(chunk.clone()),
                    HEAD + chunk.payload.len(),
                    now,
                );
                Some(if squeeze {
                    Next::Squeeze(number, chunk)
                } else {
                    Next::Send(chunk.into_frame(None))
                })
            }
            Pick::Full => {
                self.pace.was_full();
                None
            }
            Pick::Nothing if finishing && self.finish.is_none() && outgoing.is_empty() => {
                self.finish = Some(self.keep(Numbered::Finish, HEAD, now));
                Some(Next::Send(Frame::Finish))
            }
            Pick::Nothing => {
                self.pace.was_empty();
                None
            }
        }
    }

    fn keep(&mut self, what: Numbered, wire: usize, now: Instant) -> u64 {
        self.pace.sent(wire, now);
        self.kept.push(what, wire, now)
    }

    /// The frame of this number takes `wire` bytes.
    pub fn shrunk(&mut self, number: u64, wire: usize) {
        let less = self.kept.shrink(number, wire);
        self.pace.shrunk(less);
    }

    /// The conversation is over for good: nothing is kept, and no byte stream carries it.
    pub fn give_up(&mut self) {
        self.kept = Kept::default();
        self.detach();
    }
}
