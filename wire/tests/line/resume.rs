//! Everything arrives once and in order, wherever links are cut.

use std::time::Duration;

use bytes::Bytes;
use cellferry_wire::protocol::{Channel, FromAgent, ToAgent, WorkerId};
use cellferry_wire::{Line, Receiver, Sender, WireError};
use proptest::prelude::*;

use crate::link::{End, Link, Way};
use crate::{conversation, interrupt, noise, output, run, shell, text};

/// Carries both sides over a link until neither can; true if the conversation is over on both.
async fn carry_both(left: &Line, right: &Line, (a, b): (End, End)) -> bool {
    let (a, b) = tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1));
    for outcome in [&a, &b] {
        if let Err(error) = outcome {
            assert!(
                error.is_lost_link() || matches!(error, WireError::Replaced),
                "{error}"
            );
        }
    }
    a.is_ok() && b.is_ok()
}

async fn receive_to_agent(mut receiver: Receiver<ToAgent>) -> Vec<ToAgent> {
    let mut got = Vec::new();
    while let Some(message) = receiver.recv().await {
        got.push(message.unwrap());
    }
    got
}

async fn receive_from_agent(mut receiver: Receiver<FromAgent>) -> Vec<FromAgent> {
    let mut got = Vec::new();
    while let Some(message) = receiver.recv().await {
        got.push(message.unwrap());
    }
    got
}

async fn send_to_agent(sender: Sender<ToAgent>, messages: Vec<ToAgent>) {
    for message in messages {
        assert!(sender.send(message).await);
    }
    sender.finish();
    sender.closed().await;
}

async fn send_from_agent(sender: Sender<FromAgent>, messages: Vec<FromAgent>) {
    for message in messages {
        assert!(sender.send(message).await);
    }
    sender.finish();
    sender.closed().await;
}

fn worker_of(message: &ToAgent) -> Option<u32> {
    match message {
        ToAgent::Send {
            worker,
            channel: Channel::Shell,
            ..
        } => Some(worker.0),
        _ => None,
    }
}

/// A link of the property test: how it is cut, and what it is like.
#[derive(Clone, Copy, Debug)]
struct Fault {
    forth: usize,
    back: usize,
    /// It freezes, and the next one comes before anybody has noticed.
    freezes: bool,
    rate: Option<f64>,
    buffer: usize,
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let position = || prop_oneof![0_usize..400, 0_usize..20_000, 0_usize..3_000_000];
    let fault = (
        position(),
        position(),
        prop::bool::weighted(0.2),
        prop::option::of(1e6..5e7_f64),
        1_usize..200_000,
    )
        .prop_map(|(forth, back, freezes, rate, buffer)| Fault {
            forth,
            back,
            freezes,
            rate,
            buffer,
        });
    prop::collection::vec(fault, 0..25)
}

/// Messages: a worker (0 for stream 0 where there is one), the size of each part, and whether they compress.
fn messages() -> impl Strategy<Value = Vec<(u32, Vec<usize>, bool)>> {
    let size = prop_oneof![
        Just(0_usize),
        0_usize..200,
        0_usize..200_000,
        0_usize..3_000_000
    ];
    let message = (0_u32..4, prop::collection::vec(size, 0..4), any::<bool>());
    prop::collection::vec(message, 0..14)
}

fn parts(sizes: &[usize], compress: bool, seed: usize) -> Vec<Bytes> {
    let part = |size: &usize| {
        if compress {
            let whole = text(size + seed);
            whole.slice(seed..)
        } else {
            noise(*size, seed as u64)
        }
    };
    sizes.iter().map(part).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_message_arrives_once_and_in_order(
        forth in messages(),
        back in messages(),
        faults in faults(),
    ) {
        run(async move {
            let ((kernel, left), (agent, right)) = conversation();
            let forth: Vec<ToAgent> = forth
                .iter()
                .enumerate()
                .map(|(index, (worker, sizes, compress))| match worker {
                    0 => interrupt(u32::try_from(index).unwrap()),
                    worker => shell(*worker, parts(sizes, *compress, index)),
                })
                .collect();
            let back: Vec<FromAgent> = back
                .iter()
                .enumerate()
                .map(|(index, (worker, sizes, compress))| output(*worker, parts(sizes, *compress, index)))
                .collect();
            let sending = tokio::spawn(send_to_agent(kernel.sender.clone(), forth.clone()));
            let answering = tokio::spawn(send_from_agent(agent.sender.clone(), back.clone()));
            let arriving = tokio::spawn(receive_to_agent(agent.receiver));
            let returning = tokio::spawn(receive_from_agent(kernel.receiver));

            for fault in faults {
                let way = |bytes| Way {
                    rate: fault.rate,
                    delay: Duration::from_millis(5),
                    cut: (!fault.freezes).then_some(bytes),
                    freeze: fault.freezes.then_some(bytes),
                };
                let (_link, a, b) = Link::new(way(fault.forth), way(fault.back), fault.buffer);
                let (left, right) = (left.clone(), right.clone());
                let carried = tokio::spawn(async move { carry_both(&left, &right, (a, b)).await });
                if fault.freezes {
                    // Some time later, somebody starts the next.
                    let _ = tokio::time::timeout(Duration::from_millis(300), carried).await;
                } else {
                    carried.await.unwrap();
                }
            }
            let (_link, a, b) = Link::new(Way::default(), Way::default(), 1 << 16);
            assert!(carry_both(&left, &right, (a, b)).await);

            sending.await.unwrap();
            answering.await.unwrap();
            let (arrived, returned) = (arriving.await.unwrap(), returning.await.unwrap());
            for worker in [None, Some(1), Some(2), Some(3)] {
                let of = |messages: &[ToAgent]| -> Vec<ToAgent> {
                    messages.iter().filter(|message| worker_of(message) == worker).cloned().collect()
                };
                assert!(of(&arrived) == of(&forth), "stream of {worker:?}");
            }
            for worker in 0..4 {
                let of = |messages: &[FromAgent]| -> Vec<FromAgent> {
                    let is_of = |message: &&FromAgent| {
                        matches!(message, FromAgent::Received { worker: WorkerId(id), .. } if *id == worker)
                    };
                    messages.iter().filter(is_of).cloned().collect()
                };
                assert!(of(&returned) == of(&back), "stream of worker {worker}");
            }
        });
    }
}

/// A short exchange whose first link is cut at one position, and whose second is whole. Returns how many bytes
/// went forth and back over the first.
async fn short_exchange(forth: Way, back: Way) -> [usize; 2] {
    let ((kernel, left), (agent, right)) = conversation();
    let sending = tokio::spawn(send_to_agent(
        kernel.sender.clone(),
        vec![shell(1, vec![Bytes::from_static(b"1 + 1")]), interrupt(1)],
    ));
    let returning = tokio::spawn(receive_from_agent(kernel.receiver));
    let serving = tokio::spawn(async move {
        let got = receive_to_agent(agent.receiver).await;
        let answer = vec![output(1, vec![Bytes::from_static(b"2")])];
        send_from_agent(agent.sender, answer).await;
        got
    });
    let (link, a, b) = Link::new(forth, back, 64);
    let over = carry_both(&left, &right, (a, b)).await;
    if !over {
        let (_link, a, b) = Link::new(Way::default(), Way::default(), 64);
        assert!(carry_both(&left, &right, (a, b)).await);
    }
    sending.await.unwrap();
    assert_eq!(serving.await.unwrap().len(), 2);
    assert_eq!(returning.await.unwrap().len(), 1);
    link.passed
        .map(|passed| passed.load(std::sync::atomic::Ordering::Relaxed))
}

#[test]
fn the_end_is_orderly_wherever_the_link_is_cut() {
    run(async {
        let [forth, back] = short_exchange(Way::default(), Way::default()).await;
        assert!(forth > 200 && back > 200);
        let cut = |bytes| Way {
            cut: Some(bytes),
            ..Way::default()
        };
        for position in 0..=forth {
            short_exchange(cut(position), Way::default()).await;
        }
        for position in 0..=back {
            short_exchange(Way::default(), cut(position)).await;
        }
    });
}

#[test]
fn an_end_without_faults_is_told_at_once() {
    run(async {
        let start = tokio::time::Instant::now();
        short_exchange(Way::default(), Way::default()).await;
        assert!(
            start.elapsed() < Duration::from_millis(50),
            "{:?}",
            start.elapsed()
        );
    });
}
