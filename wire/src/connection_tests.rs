use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use bytes::Bytes;

use super::*;
use crate::BUILD;
use crate::envelope::encode;
use crate::outgoing::WINDOW;
use crate::protocol::{Channel, FromAgent, ToAgent, WorkerId};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

type Pair = (
    Connection<ToAgent, FromAgent>,
    Connection<FromAgent, ToAgent>,
);

async fn pair(buffer: usize) -> Pair {
    let (left, right) = tokio::io::duplex(buffer);
    let (left_read, left_write) = tokio::io::split(left);
    let (right_read, right_write) = tokio::io::split(right);
    let (left, right) = tokio::join!(
        Connection::start(left_read, left_write),
        Connection::start(right_read, right_write)
    );
    (left.unwrap(), right.unwrap())
}

fn shell(worker: u32, parts: Vec<Bytes>) -> ToAgent {
    ToAgent::Send {
        worker: WorkerId(worker),
        channel: Channel::Shell,
        parts,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn messages_arrive_whole_and_in_order(
        sizes in prop::collection::vec((0u32..3, prop::collection::vec(0usize..200_000, 0..5)), 1..12),
        buffer in 64usize..100_000,
    ) {
        runtime().block_on(async move {
            let (left, mut right) = pair(buffer).await;
            let sent: Vec<ToAgent> = sizes
                .iter()
                .enumerate()
                .map(|(index, (worker, sizes))| {
                    let fill = u8::try_from(index).unwrap();
                    shell(*worker, sizes.iter().map(|size| Bytes::from(vec![fill; *size])).collect())
                })
                .collect();
            let outgoing = sent.clone();
            let sender = left.sender.clone();
            let sending = tokio::spawn(async move {
                for message in outgoing {
                    assert!(sender.send(message).await);
                }
            });
            let mut got = Vec::new();
            while got.len() < sent.len() {
                got.push(right.receiver.recv().await.unwrap().unwrap());
            }
            sending.await.unwrap();
            for worker in 0..3 {
                let of = |messages: &[ToAgent]| -> Vec<ToAgent> {
                    messages.iter().filter(|message| message.stream() == worker + 1).cloned().collect()
                };
                assert_eq!(of(&got), of(&sent));
            }
        });
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(garbage in prop::collection::vec(any::<u8>(), 0..2000)) {
        runtime().block_on(async move {
            let (left, mut right) = tokio::io::duplex(1 << 16);
            let (reader, writer) = tokio::io::split(left);
            let starting = tokio::spawn(Connection::<ToAgent, FromAgent>::start(reader, writer));
            let mut hello = b"noise from a shell\n".to_vec();
            hello.extend_from_slice(&greeting(BUILD));
            hello.push(0);
            hello.extend_from_slice(&garbage);
            right.write_all(&hello).await.unwrap();
            let mut connection = starting.await.unwrap().unwrap();
            right.shutdown().await.unwrap();
            while let Some(Ok(_)) = connection.receiver.recv().await {}
        });
    }
}

#[test]
fn an_interrupt_overtakes_a_transfer_that_nobody_consumes() {
    runtime().block_on(async {
        let (left, mut right) = pair(4096).await;
        let sender = left.sender.clone();
        tokio::spawn(async move {
            sender
                .send(shell(1, vec![Bytes::from(vec![7; 50 << 20])]))
                .await;
            for _ in 0..100 {
                sender
                    .send(shell(1, vec![Bytes::from(vec![8; 1 << 20])]))
                    .await;
            }
        });
        tokio::task::yield_now().await;
        left.sender
            .send(ToAgent::Interrupt {
                worker: WorkerId(1),
            })
            .await;
        let first = right.receiver.recv().await.unwrap().unwrap();
        assert_eq!(
            first,
            ToAgent::Interrupt {
                worker: WorkerId(1)
            }
        );
    });
}

#[test]
fn a_receiver_that_does_not_consume_stops_the_sender() {
    runtime().block_on(async {
        let (left, mut right) = pair(1 << 16).await;
        let mut sent = 0;
        let fill = async {
            loop {
                left.sender
                    .send(shell(1, vec![Bytes::from(vec![0; 1 << 20])]))
                    .await;
                sent += 1;
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(300), fill)
                .await
                .is_err()
        );
        assert!(
            sent <= 2 * WINDOW / (1 << 20) + 2,
            "{sent} messages were taken"
        );
        // Other streams still flow, and consuming lets the first one go on.
        left.sender.send(shell(2, Vec::new())).await;
        let mut received = 0;
        let mut other = false;
        while received < sent || !other {
            match right.receiver.recv().await.unwrap().unwrap() {
                ToAgent::Send {
                    worker: WorkerId(2),
                    ..
                } => other = true,
                _ => received += 1,
            }
        }
    });
}

#[test]
fn a_receiver_that_consumes_slowly_never_holds_more_than_a_window() {
    runtime().block_on(async {
        let (left, mut right) = pair(1 << 16).await;
        let sender = left.sender.clone();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        tokio::spawn(async move {
            while sender
                .send(shell(1, vec![Bytes::from(vec![0; 100_000])]))
                .await
            {
                count.fetch_add(100_000, Ordering::Relaxed);
            }
        });
        for consumed in 0..200 {
            // All that can come has come when the sender stands still.
            let mut before = usize::MAX;
            while before != sent.load(Ordering::Relaxed) {
                before = sent.load(Ordering::Relaxed);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
            let beyond = before - consumed * 100_000;
            // A window at the sender, one at the receiver, and a message in the middle.
            assert!(
                beyond <= 2 * WINDOW + 200_000,
                "{beyond} bytes after {consumed} messages"
            );
            right.receiver.recv().await.unwrap().unwrap();
        }
    });
}

#[test]
fn what_is_held_stops_its_own_stream_until_it_is_let_go() {
    runtime().block_on(async {
        let (left, mut right) = pair(1 << 16).await;
        let sender = left.sender.clone();
        let flood = tokio::spawn(async move {
            for _ in 0..200 {
                sender
                    .send(shell(1, vec![Bytes::from(vec![0; 100_000])]))
                    .await;
            }
        });
        let mut held = Vec::new();
        let mut bytes = 0;
        while bytes + 100_000 <= WINDOW - 200_000 {
            let (message, one) = right.receiver.recv_held().await.unwrap().unwrap();
            assert_eq!(message.stream(), 2);
            held.push(one);
            bytes += 100_000;
        }
        // At most a window of it can be here, and another stream passes.
        left.sender
            .send(shell(2, vec![Bytes::from(vec![1; 100_000])]))
            .await;
        loop {
            let (message, one) = right.receiver.recv_held().await.unwrap().unwrap();
            if message.stream() == 3 {
                break;
            }
            held.push(one);
            assert!(held.len() * 100_000 <= WINDOW);
        }
        assert!(!flood.is_finished());
        let mut count = held.len();
        drop(held);
        while count < 200 {
            right.receiver.recv_held().await.unwrap().unwrap();
            count += 1;
        }
        flood.await.unwrap();
    });
}

/// A greeting up to the program's build.
fn greeting(build: &str) -> Vec<u8> {
    let mut greeting = b"\0cellferry\n\0\0\0\x03".to_vec();
    greeting.push(u8::try_from(build.len()).unwrap());
    greeting.extend_from_slice(build.as_bytes());
    greeting
}

#[test]
fn another_build_is_refused_by_name() {
    runtime().block_on(async {
        let (version, wire) = BUILD.split_once('+').unwrap();
        for (build, fits) in [
            (format!("9.9.9+{wire}"), true),
            (format!("{version}+00000000"), false),
            (version.to_owned(), false),
            (String::new(), false),
        ] {
            let (left, mut right) = tokio::io::duplex(1 << 16);
            let (reader, writer) = tokio::io::split(left);
            right.write_all(&greeting(&build)).await.unwrap();
            right.write_all(&[0]).await.unwrap();
            match Connection::<ToAgent, FromAgent>::start(reader, writer).await {
                Ok(_) => assert!(fits, "{build}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(
                        !fits && said.contains(&build) && said.contains(BUILD),
                        "{said}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_shell_that_only_talks_is_not_an_agent() {
    runtime().block_on(async {
        let (left, mut right) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(left);
        right
            .write_all(&b"This account is closed.\n".repeat(4000))
            .await
            .unwrap();
        let error = Connection::<ToAgent, FromAgent>::start(reader, writer)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("This account is closed."), "{error}");
        let mut greeting = Vec::new();
        right.read_to_end(&mut greeting).await.unwrap();
        assert!(greeting.starts_with(b"\0cellferry"));
    });
}

#[test]
fn a_sender_that_ignores_its_credit_is_refused() {
    runtime().block_on(async {
        let (left, right) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(left);
        let starting = tokio::spawn(Connection::<ToAgent, FromAgent>::start(reader, writer));
        let (_answers, mut hostile) = tokio::io::split(right);
        hostile.write_all(&greeting(BUILD)).await.unwrap();
        hostile.write_all(&[0]).await.unwrap();
        let mut connection = starting.await.unwrap().unwrap();
        tokio::spawn(async move {
            // Whole messages without end, of which none is consumed.
            let mut hostile = FramedWrite::new(hostile, FrameCodec);
            loop {
                let message = FromAgent::Received {
                    worker: WorkerId(7),
                    channel: Channel::Iopub,
                    parts: vec![Bytes::from(vec![0; 1 << 20])],
                };
                let chunks = encode(message).unwrap();
                let count = chunks.len();
                for (index, payload) in chunks.into_iter().enumerate() {
                    let frame = Frame::Data {
                        stream: 8,
                        last: index + 1 == count,
                        squeezed: false,
                        payload,
                    };
                    if hostile.send(frame).await.is_err() {
                        return;
                    }
                }
            }
        });
        connection.sender.closed().await;
        let mut last = None;
        while let Some(message) = connection.receiver.recv().await {
            last = Some(message);
        }
        let error = last.unwrap().unwrap_err().to_string();
        assert!(error.contains("more than was granted"), "{error}");
    });
}
