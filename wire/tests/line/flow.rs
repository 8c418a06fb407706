//! How fast things go, how long what matters waits, and how much memory that takes. Time is virtual.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cellferry_wire::protocol::{Channel, FromAgent, ToAgent, WorkerId};
use tokio::time::{Instant, sleep, timeout};

use crate::link::{Link, Way};
use crate::{Agent, Kernel, conversation, interrupt, noise, output, run, shell, text};

const MB: usize = 1 << 20;

fn way(rate: f64, delay: u64) -> Way {
    Way {
        rate: Some(rate),
        delay: Duration::from_millis(delay),
        ..Way::default()
    }
}

/// Two sides that talk over a link.
fn talk(way: Way) -> (Kernel, Agent, Link) {
    let ((kernel, left), (agent, right)) = conversation();
    let (link, a, b) = Link::new(way, way, 256 << 10);
    tokio::spawn({
        let left = left.clone();
        async move { left.carry(a.0, a.1).await }
    });
    tokio::spawn({
        let right = right.clone();
        async move { right.carry(b.0, b.1).await }
    });
    ((kernel, left), (agent, right), link)
}

/// How long each message took that was sent every 100 ms during a transfer.
#[derive(Debug, Default)]
struct Delays(Vec<Duration>);

impl Delays {
    fn add(&mut self, sent: &[Instant], index: u32) {
        self.0.push(sent[index as usize].elapsed());
    }

    fn worst(&self) -> Duration {
        self.0.iter().copied().max().unwrap()
    }
}

#[test]
fn interrupts_and_output_overtake_a_transfer_on_a_slow_link() {
    run(async {
        // 100 Mbit/s, 20 ms there and back, and a router that queues everything.
        let (rate, one_way) = (12.5e6, 10);
        let ((mut kernel, _left), (mut agent, _right), _link) = talk(way(rate, one_way));
        const SIZE: usize = 200 * MB;
        let start = Instant::now();
        kernel.sender.queue(shell(1, vec![noise(SIZE, 1)]));
        let sent = Arc::new(std::sync::Mutex::new(Vec::new()));
        tokio::spawn({
            let (sent, sender) = (sent.clone(), kernel.sender.clone());
            async move {
                for index in 0.. {
                    sleep(Duration::from_millis(100)).await;
                    sent.lock().unwrap().push(Instant::now());
                    sender.queue(interrupt(index));
                    sender.queue(shell(2, vec![Bytes::copy_from_slice(&index.to_be_bytes())]));
                }
            }
        });
        let echo = agent.sender.clone();
        let (mut interrupts, mut outputs, mut echoes) =
            (Delays::default(), Delays::default(), Delays::default());
        let took = loop {
            tokio::select! {
                message = agent.receiver.recv() => match message.unwrap().unwrap() {
                    ToAgent::Interrupt { worker: WorkerId(index) } => {
                        interrupts.add(&sent.lock().unwrap(), index);
                        echo.queue(output(index, Vec::new()));
                    }
                    ToAgent::Send { worker: WorkerId(1), parts, .. } => {
                        assert!(parts[0] == noise(SIZE, 1));
                        break start.elapsed();
                    }
                    ToAgent::Send { parts, .. } => {
                        let index = u32::from_be_bytes(parts[0][..].try_into().unwrap());
                        outputs.add(&sent.lock().unwrap(), index);
                    }
                    other => panic!("{other:?}"),
                },
                message = kernel.receiver.recv() => match message.unwrap().unwrap() {
                    FromAgent::Received { worker: WorkerId(index), channel: Channel::Iopub, .. } => {
                        echoes.add(&sent.lock().unwrap(), index);
                    }
                    other => panic!("{other:?}"),
                },
            }
        };
        assert!(interrupts.0.len() > 100);
        assert!(outputs.0.len() > 100);
        let limit = Duration::from_millis(100 + one_way);
        assert!(
            interrupts.worst() < limit,
            "interrupts: {:?}",
            interrupts.worst()
        );
        assert!(outputs.worst() < limit, "outputs: {:?}", outputs.worst());
        assert!(
            echoes.worst() < limit + Duration::from_millis(one_way + 10),
            "{:?}",
            echoes.worst()
        );
        let least = SIZE as f64 / rate;
        assert!(
            took.as_secs_f64() < 1.05 * least,
            "{took:?}, at least {least} s"
        );
    });
}

#[test]
fn a_link_that_slows_down_is_noticed() {
    run(async {
        // 1 Gbit/s, then, after a reconnection, 50 Mbit/s: nothing that was in flight holds up what matters.
        let ((kernel, left), (mut agent, right)) = conversation();
        kernel.sender.queue(shell(1, vec![noise(200 * MB, 1)]));
        let fast = way(125e6, 20);
        let (_first, a, b) = Link::new(fast, fast, 256 << 10);
        let both = async { tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1)) };
        assert!(timeout(Duration::from_millis(800), both).await.is_err());
        let slow = way(6.25e6, 20);
        let (_second, a, b) = Link::new(slow, slow, 256 << 10);
        kernel.sender.queue(interrupt(1));
        let both = async { tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1)) };
        let start = Instant::now();
        tokio::select! {
            _ = both => unreachable!(),
            got = agent.receiver.recv() => assert_eq!(got.unwrap().unwrap(), interrupt(1)),
        }
        // Two greetings, one way each, and the interrupt.
        assert!(
            start.elapsed() < Duration::from_millis(60),
            "{:?}",
            start.elapsed()
        );
    });
}

#[test]
fn a_long_fat_link_is_filled() {
    run(async {
        // 1 Gbit/s, 200 ms there and back: 25 MB are on their way.
        let rate = 125e6;
        let ((kernel, _left), (mut agent, _right), _link) = talk(way(rate, 100));
        let sender = kernel.sender.clone();
        tokio::spawn(async move {
            let part = noise(10 * MB, 1);
            while sender.send(shell(1, vec![part.clone()])).await {}
        });
        for _ in 0..50 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        let start = Instant::now();
        for _ in 0..100 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        let reached = 1000.0 * MB as f64 / start.elapsed().as_secs_f64();
        assert!(
            reached > 0.85 * rate,
            "{reached:.2e} of {rate:.2e} bytes a second"
        );
    });
}

#[test]
fn a_change_of_the_path_is_lived_with() {
    run(async {
        // The same link with more delay than the window allows for; only a new look at the round trip helps.
        let ((kernel, left), (mut agent, right)) = conversation();
        let sender = kernel.sender.clone();
        tokio::spawn(async move {
            let part = noise(MB, 1);
            while sender.send(shell(1, vec![part.clone()])).await {}
        });
        let rate = 12.5e6;
        let (link, a, b) = Link::new(way(rate, 5), way(rate, 5), 256 << 10);
        tokio::spawn({
            let left = left.clone();
            async move { left.carry(a.0, a.1).await }
        });
        tokio::spawn({
            let right = right.clone();
            async move { right.carry(b.0, b.1).await }
        });
        for _ in 0..20 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        link.delay(Duration::from_millis(150));
        let later = Instant::now() + Duration::from_secs(15);
        while Instant::now() < later {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        let start = Instant::now();
        for _ in 0..60 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        let reached = 60.0 * MB as f64 / start.elapsed().as_secs_f64();
        assert!(
            reached > 0.6 * rate,
            "{reached:.2e} of {rate:.2e} bytes a second"
        );
    });
}

/// Bytes that know whether anybody still has them.
struct Counted(Bytes, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

#[test]
fn what_is_kept_is_bounded_and_let_go() {
    run(async {
        let ((kernel, _left), (mut agent, _right), link) = talk(way(12.5e6, 10));
        let held = Arc::new(AtomicUsize::new(0));
        let mut most = 0;
        let content = noise(MB, 1);
        let senders: Vec<_> = (1..=2)
            .map(|worker| {
                let (sender, held, content) =
                    (kernel.sender.clone(), held.clone(), content.clone());
                tokio::spawn(async move {
                    for _ in 0..60 {
                        held.fetch_add(content.len(), Ordering::Relaxed);
                        let part = Bytes::from_owner(Counted(content.clone(), held.clone()));
                        sender.send(shell(worker, vec![part])).await;
                    }
                })
            })
            .collect();
        for _ in 0..100 {
            agent.receiver.recv().await.unwrap().unwrap();
            most = most.max(held.load(Ordering::Relaxed));
        }
        // For each stream what waits and one message more, and at most 2 MB in flight in their messages.
        assert!(most <= 2 * (4 + 1 + 1) * MB + 4 * MB, "{most} bytes");
        for _ in 0..20 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
        for sender in senders {
            sender.await.unwrap();
        }
        sleep(Duration::from_millis(100)).await;
        assert_eq!(held.load(Ordering::Relaxed), 0);

        // Without a link, no more than what may wait is taken.
        link.cut();
        let fill = async {
            loop {
                held.fetch_add(content.len(), Ordering::Relaxed);
                let part = Bytes::from_owner(Counted(content.clone(), held.clone()));
                kernel.sender.send(shell(1, vec![part])).await;
            }
        };
        assert!(timeout(Duration::from_secs(5), fill).await.is_err());
        assert!(held.load(Ordering::Relaxed) <= 5 * MB);
    });
}

#[test]
fn a_receiver_that_does_not_consume_stops_one_stream() {
    run(async {
        let ((kernel, _left), (mut agent, _right), _link) = talk(way(1e9, 1));
        let sent = Arc::new(AtomicUsize::new(0));
        let (sender, count) = (kernel.sender.clone(), sent.clone());
        tokio::spawn(async move {
            let part = noise(MB, 1);
            while sender.send(shell(1, vec![part.clone()])).await {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        sleep(Duration::from_secs(20)).await;
        let stopped = sent.load(Ordering::Relaxed);
        assert!(stopped <= 10, "{stopped} MB were taken");
        kernel.sender.send(shell(2, Vec::new())).await;
        let start = Instant::now();
        let mut first = 0;
        loop {
            match agent.receiver.recv().await.unwrap().unwrap() {
                ToAgent::Send {
                    worker: WorkerId(2),
                    ..
                } => break,
                _ => first += 1,
            }
        }
        assert!(start.elapsed() < Duration::from_millis(100));
        assert!(first >= 4);
        for _ in 0..50 {
            agent.receiver.recv().await.unwrap().unwrap();
        }
    });
}

/// How many bytes a transfer takes on a link of this rate, of how many, and how long.
async fn transfer(rate: f64, content: Bytes) -> (f64, Duration) {
    let ((kernel, _left), (mut agent, _right), link) = talk(way(rate, 5));
    let start = Instant::now();
    for _ in 0..10 {
        kernel.sender.queue(shell(1, vec![content.clone()]));
    }
    for _ in 0..10 {
        let got = agent.receiver.recv().await.unwrap().unwrap();
        assert!(got == shell(1, vec![content.clone()]));
    }
    let passed = link.passed[0].load(Ordering::Relaxed);
    (passed as f64 / (10 * content.len()) as f64, start.elapsed())
}

#[test]
fn slow_links_are_given_less_where_that_is_possible() {
    run(async {
        let (share, took) = transfer(10e6, text(10 * MB)).await;
        assert!(share < 0.4, "{share} of the bytes");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let (share, took) = transfer(10e6, noise(10 * MB, 1)).await;
        assert!((1.0..1.01).contains(&share), "{share} of the bytes");
        assert!(took < Duration::from_secs(12), "{took:?}");
    });
}
