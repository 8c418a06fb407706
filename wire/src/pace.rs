//! How much may be on its way at once, so that what matters never queues long behind a transfer.
//!
//! What TCP and routers have taken cannot be overtaken. So no more bulk is given to the link than keeps it busy:
//! its rate times the round trip without queues plus [`QUEUE`], measured from acknowledgements, as BBR does
//! (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): the rate is the largest of
//! the last rounds, the round trip the smallest of the last ten seconds, looked for with the link nearly empty if it
//! was not seen by itself. After a pause it is not given a whole window at once, but over a round trip. The end of
//! the first ramp, and forgetting old rates when the queue is long, go by delay, as in HyStart++ (RFC 9406) and
//! LEDBAT (RFC 6817).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::frame::CHUNK;

/// The least that may be on its way, in bytes.
pub const LEAST: usize = 256 << 10;

/// The most that may be on its way, in bytes.
pub const MOST: usize = 64 << 20;

/// How long the queue may be that keeps the link busy: it covers late acknowledgements and uneven rates.
const QUEUE: Duration = Duration::from_millis(40);

/// The shortest time over which a rate is measured.
const ROUND: Duration = Duration::from_millis(20);

/// Of so many rounds, the fastest counts.
const ROUNDS: usize = 8;

/// While the ramp lasts, so many round trips' worth may be on its way. It doubles every two round trips or faster.
const RAMP: u32 = 3;

/// A smallest round trip older than this is looked for again.
const BASE_AGE: Duration = Duration::from_secs(10);

/// A link slower than this, in bytes a second, is worth compressing for: zstd at level 1 is well above.
const SLOW: f64 = 150e6;

/// The window of one byte stream.
#[derive(Debug)]
pub struct Pace {
    in_flight: usize,
    delivered: u64,
    /// Nothing is on its way, because there was nothing to send.
    idle: bool,
    window: usize,
    /// No more than a window is sent in the shortest round trip: bytes a second.
    speed: f64,
    /// When what was sent is as much as that speed allows.
    drained: Instant,
    /// The smallest round trip, and when it was seen.
    base: Option<(Duration, Instant)>,
    /// Bytes a second of the last rounds.
    rates: VecDeque<f64>,
    round: Round,
    ramping: bool,
    probe: Option<Probe>,
}

/// A time over which the rate is measured.
#[derive(Debug)]
struct Round {
    start: Instant,
    /// What had been delivered at its start.
    delivered: u64,
    /// Whether the window held something back, so that the link was busy.
    full: bool,
    /// The smallest round trip in it.
    least: Option<Duration>,
}

/// The look for the smallest round trip.
#[derive(Clone, Copy, Debug)]
enum Probe {
    /// Until next to nothing is on its way, or small chunks keep that from coming about.
    Draining(Instant),
    /// Until a frame sent since then is acknowledged.
    Since(Instant),
}

impl Pace {
    /// Nothing is known.
    pub fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            delivered: 0,
            idle: true,
            window: LEAST,
            speed: f64::INFINITY,
            drained: now,
            base: None,
            rates: VecDeque::new(),
            round: Round::new(now, 0),
            ramping: true,
            probe: None,
        }
    }

    /// Whether a chunk may be sent. One more chunk than fits is let through.
    pub fn has_room(&self, now: Instant) -> bool {
        let window = if self.probe.is_some() {
            CHUNK
        } else {
            self.window
        };
        self.in_flight < window && self.next_room() <= now
    }

    /// When there is room again, should there be none because too much was sent just now.
    pub fn next_room(&self) -> Instant {
        self.drained.checked_sub(QUEUE).unwrap_or(self.drained)
    }

    /// Whether a small chunk may be sent.
    pub fn has_room_for_small(&self) -> bool {
        self.in_flight < self.window + LEAST
    }

    /// Something has been held back.
    pub fn was_full(&mut self) {
        self.round.full = true;
    }

    /// There is nothing to send.
    pub fn was_empty(&mut self) {
        self.idle = self.in_flight == 0;
    }

    /// Whether the link is slow and busy, so that compressing costs no time.
    pub fn is_worth_squeezing(&self) -> bool {
        let slow = self.rate().is_some_and(|rate| rate < SLOW);
        slow && self.in_flight >= self.window / 2
    }

    /// Bytes have been sent.
    pub fn sent(&mut self, wire: usize, now: Instant) {
        if std::mem::take(&mut self.idle) {
            self.round = Round::new(now, self.delivered);
        }
        self.in_flight += wire;
        self.drained = self.drained.max(now) + self.time_of(wire);
    }

    /// Some that were counted as sent are not.
    pub fn shrunk(&mut self, less: usize) {
        self.in_flight = self.in_flight.saturating_sub(less);
        self.drained -= self.time_of(less);
    }

    /// A round trip was seen, at whatever length of the queue.
    pub fn round_trip(&mut self, round_trip: Duration, now: Instant) {
        if self.base.is_none_or(|(base, _)| round_trip <= base) {
            self.base = Some((round_trip, now));
        }
    }

    /// Bytes have arrived, the last of them sent at `sent`.
    pub fn acked(&mut self, wire: usize, sent: Instant, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(wire);
        self.delivered += wire as u64;
        let round_trip = now - sent;
        self.round_trip(round_trip, now);
        self.round.least = Some(
            self.round
                .least
                .map_or(round_trip, |least| least.min(round_trip)),
        );
        self.look_for_base(round_trip, sent, now);
        let Some((base, _)) = self.base else {
            return;
        };
        // A late answer to a few bytes says nothing about the link.
        if self.round.full && round_trip > base + QUEUE {
            self.ramping = false;
        }
        if now - self.round.start >= base.max(ROUND) {
            self.end_round(base, now);
        }
    }

    fn look_for_base(&mut self, round_trip: Duration, sent: Instant, now: Instant) {
        match self.probe {
            None => {
                let old = self.base.is_some_and(|(_, seen)| now - seen > BASE_AGE);
                if old && self.in_flight > 0 {
                    let base = self.base.map_or(QUEUE, |(base, _)| base);
                    self.probe = Some(Probe::Draining(now + 4 * (base + QUEUE)));
                }
            }
            Some(Probe::Draining(until)) if self.in_flight < CHUNK || now > until => {
                self.probe = Some(Probe::Since(now));
            }
            Some(Probe::Since(start)) if sent >= start => {
                // What was taken for a queue is the path, which became longer: what the link can do is found anew.
                self.ramping |= self.base.is_some_and(|(base, _)| round_trip > base + QUEUE);
                self.base = Some((round_trip, now));
                self.probe = None;
            }
            Some(_) => {}
        }
    }

    fn end_round(&mut self, base: Duration, now: Instant) {
        let seconds = (now - self.round.start).as_secs_f64();
        let rate = (self.delivered - self.round.delivered) as f64 / seconds;
        let congested = self
            .round
            .least
            .is_some_and(|least| least > base + 2 * QUEUE);
        if congested {
            // The queue is longer than what we meant it to be: the link has become slower than it was.
            self.rates.clear();
        }
        if self.round.full || self.rate().is_none_or(|fastest| rate > fastest) {
            self.rates.push_back(rate);
            if self.rates.len() > ROUNDS {
                self.rates.pop_front();
            }
        }
        let mut span = base + QUEUE;
        if self.ramping {
            span = span.max(RAMP * base);
        }
        let window = self.rate().unwrap_or_default() * span.as_secs_f64();
        // The cast saturates.
        self.window = (window as usize).clamp(LEAST, MOST);
        self.speed = self.window as f64 / base.as_secs_f64();
        self.round = Round::new(now, self.delivered);
    }

    /// How long sending so many bytes takes.
    fn time_of(&self, bytes: usize) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.speed).unwrap_or_default()
    }

    /// Bytes a second.
    fn rate(&self) -> Option<f64> {
        self.rates.iter().copied().reduce(f64::max)
    }
}

impl Round {
    fn new(start: Instant, delivered: u64) -> Self {
        Self {
            start,
            delivered,
            full: false,
            least: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transfer over a link with a queue that drops nothing.
    struct Link {
        /// Bytes a second.
        rate: f64,
        /// There and back, without queue.
        base: Duration,
        now: Instant,
        /// When the link has sent what it was given.
        free: Instant,
        /// Chunks on their way: when they were sent, and when they are acknowledged.
        flying: VecDeque<(Instant, Instant)>,
        pace: Pace,
    }

    impl Link {
        fn new(rate: f64, base: u64) -> Self {
            let now = Instant::now();
            Self {
                rate,
                base: Duration::from_micros(base),
                now,
                free: now,
                flying: VecDeque::new(),
                pace: Pace::new(now),
            }
        }

        /// Sends as much as is allowed, in chunks, for so long. Returns the longest wait for an acknowledgement, and
        /// the rate that was reached.
        fn run(&mut self, time: Duration) -> (Duration, f64) {
            let start = self.now;
            let (mut worst, mut chunks) = (Duration::ZERO, 0);
            while self.now < start + time {
                while self.pace.has_room(self.now) {
                    self.free =
                        self.free.max(self.now) + Duration::from_secs_f64(CHUNK as f64 / self.rate);
                    self.flying.push_back((self.now, self.free + self.base));
                    self.pace.sent(CHUNK, self.now);
                }
                self.pace.was_full();
                let room = self.pace.next_room();
                if room > self.now && self.flying.front().is_none_or(|(_, due)| *due > room) {
                    self.now = room;
                    continue;
                }
                // Two at a time, as the other side does it, if they come together.
                let (mut sent, first) = self.flying.pop_front().unwrap();
                self.now = first;
                let mut acked = CHUNK;
                let soon = first + Duration::from_millis(15);
                if let Some((second, due)) = self.flying.pop_front_if(|(_, due)| *due < soon) {
                    (sent, self.now, acked) = (second, due, 2 * CHUNK);
                }
                worst = worst.max(self.now - sent);
                chunks += acked / CHUNK;
                self.pace.acked(acked, sent, self.now);
            }
            let reached = (chunks * CHUNK) as f64 / (self.now - start).as_secs_f64();
            (worst, reached)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_link_is_filled_and_its_queue_is_short() {
        // Bytes a second, and microseconds.
        for rate in [5e6, 12.5e6, 125e6, 400e6] {
            for base in [100, 5_000, 20_000, 100_000] {
                let mut link = Link::new(rate, base);
                let (worst, _) = link.run(5 * SECOND);
                let ramp = RAMP * link.base + 2 * QUEUE + 2 * SECOND.mul_f64(LEAST as f64 / rate);
                assert!(
                    worst < link.base + ramp,
                    "{rate} {base}: {worst:?} at first"
                );
                let (worst, reached) = link.run(25 * SECOND);
                // The least window, or what is meant; and some chunks' time for what is not exact.
                let time_of = |bytes: usize| SECOND.mul_f64(bytes as f64 / rate);
                let queue = QUEUE.max(time_of(LEAST)) + time_of(4 * CHUNK) + QUEUE / 4;
                // A link that was empty is filled faster than it sends.
                assert!(
                    worst < link.base + QUEUE + queue,
                    "{rate} {base}: {worst:?} later"
                );
                assert!(reached > 0.9 * rate, "{rate} {base}: {reached}");
                assert_eq!(link.pace.is_worth_squeezing(), rate < SLOW, "{rate} {base}");
            }
        }
    }

    #[test]
    fn a_fast_link_close_by_is_not_held_back() {
        let mut link = Link::new(5e9, 100);
        link.run(SECOND / 2);
        let (_, reached) = link.run(SECOND);
        assert!(reached > 1.5e9, "{reached}");
    }

    #[test]
    fn a_link_that_becomes_slow_is_followed_at_once() {
        let mut link = Link::new(125e6, 20_000);
        link.run(5 * SECOND);
        link.rate = 12.5e6;
        // What is on its way takes ten times as long now.
        link.run(2 * SECOND);
        let (worst, reached) = link.run(5 * SECOND);
        assert!(worst < link.base + 2 * QUEUE, "{worst:?}");
        assert!(reached > 0.9 * link.rate, "{reached}");
    }

    #[test]
    fn a_path_that_becomes_longer_is_seen() {
        let mut link = Link::new(12.5e6, 20_000);
        link.run(5 * SECOND);
        link.base = Duration::from_millis(300);
        link.run(25 * SECOND);
        let (worst, reached) = link.run(20 * SECOND);
        assert!(reached > 0.85 * link.rate, "{reached}");
        assert!(worst < link.base + 3 * QUEUE, "{worst:?}");
    }
}
