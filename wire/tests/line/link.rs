//! Byte streams with a rate and a delay, which can be cut after so many bytes or frozen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// One direction of a link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// Bytes a second; without limit if absent.
    pub rate: Option<f64>,
    /// From one end to the other.
    pub delay: Duration,
    /// After so many bytes both directions end.
    pub cut: Option<usize>,
    /// After so many bytes nothing comes through any more, but nothing ends.
    pub freeze: Option<usize>,
}

/// What one side reads from and writes to.
pub type End = (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>);

/// A link between two ends, with a router that drops nothing, however much it must queue.
pub struct Link {
    /// Bytes that came through, forth and back.
    pub passed: [Arc<AtomicUsize>; 2],
    cut: watch::Sender<bool>,
    delay: Arc<Mutex<Duration>>,
}

impl Link {
    pub fn new(forth: Way, back: Way, buffer: usize) -> (Self, End, End) {
        let (left, left_far) = tokio::io::duplex(buffer);
        let (right, right_far) = tokio::io::duplex(buffer);
        let (left_out, left_in) = tokio::io::split(left_far);
        let (right_out, right_in) = tokio::io::split(right_far);
        let (cut, _) = watch::channel(false);
        let passed: [Arc<AtomicUsize>; 2] = Default::default();
        let delay = Arc::new(Mutex::new(Duration::ZERO));
        for (way, source, sink, passed) in [
            (forth, left_out, right_in, passed[0].clone()),
            (back, right_out, left_in, passed[1].clone()),
        ] {
            let mut is_cut = cut.subscribe();
            let cut = cut.clone();
            let delay = delay.clone();
            tokio::spawn(async move {
                tokio::select! {
                    // Dropping the pump is what ends the streams.
                    _ = is_cut.wait_for(|cut| *cut) => {}
                    () = pump(way, &delay, source, sink, &passed) => {
                        if way.cut.is_some_and(|cut| passed.load(Ordering::Relaxed) >= cut) {
                            cut.send_replace(true);
                        }
                    }
                }
            });
        }
        (
            Self { passed, cut, delay },
            tokio::io::split(left),
            tokio::io::split(right),
        )
    }

    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// From now on everything takes so much longer, each way.
    pub fn delay(&self, more: Duration) {
        *self.delay.lock().unwrap() = more;
    }
}

async fn pump(
    way: Way,
    delay: &Mutex<Duration>,
    mut source: ReadHalf<DuplexStream>,
    mut sink: WriteHalf<DuplexStream>,
    passed: &AtomicUsize,
) {
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let take = async move {
        let mut free = Instant::now();
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = source.read(&mut buffer).await {
            free = free.max(Instant::now());
            if let Some(rate) = way.rate {
                free += Duration::from_secs_f64(length as f64 / rate);
            }
            let _ = queue.send((
                free + way.delay + *delay.lock().unwrap(),
                buffer[..length].to_vec(),
            ));
        }
    };
    let give = async move {
        if way.cut == Some(0) {
            return;
        }
        while let Some((due, mut bytes)) = queued.recv().await {
            sleep_until(due).await;
            let before = passed.load(Ordering::Relaxed);
            if let Some(cut) = way.cut {
                bytes.truncate(cut - before);
            }
            if let Some(freeze) = way.freeze {
                bytes.truncate(freeze - before);
            }
            if sink.write_all(&bytes).await.is_err() {
                return;
            }
            passed.fetch_add(bytes.len(), Ordering::Relaxed);
            if way.cut == Some(before + bytes.len()) {
                return;
            }
        }
        if way.freeze.is_some() {
            std::future::pending::<()>().await;
        }
        let _ = sink.shutdown().await;
    };
    tokio::join!(take, give);
}
