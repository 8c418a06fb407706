//! Links that fall silent, and other sides that are not who they should be.

use std::time::Duration;

use bytes::Bytes;
use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{BUILD, Connection, WireError};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, timeout};

use crate::link::{Link, Way};
use crate::{conversation, interrupt, noise, run, shell};

#[test]
fn an_idle_link_is_not_silent_and_nearly_free() {
    run(async {
        let ((_kernel, left), (_agent, right)) = conversation();
        let way = Way {
            delay: Duration::from_millis(10),
            ..Way::default()
        };
        let (link, a, b) = Link::new(way, way, 1000);
        let up = left.up();
        assert!(!*up.borrow());
        let both = async { tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1)) };
        assert!(timeout(Duration::from_secs(60), both).await.is_err());
        let passed = link.passed[0].load(std::sync::atomic::Ordering::Relaxed);
        assert!(passed < 1500, "{passed} bytes in a minute");
        let round_trip = left.rtt().unwrap().as_millis();
        assert!((20..25).contains(&round_trip), "{round_trip} ms");
    });
}

#[test]
fn a_link_that_falls_silent_is_found() {
    run(async {
        for (seconds, limit) in [(8, None), (2, Some(Duration::from_secs(2)))] {
            let ((kernel, left), (_agent, right)) = conversation();
            let left = match limit {
                Some(limit) => left.with_silence(limit),
                None => left,
            };
            // Little more than the greetings goes through.
            let frozen = |bytes| Way {
                freeze: Some(bytes),
                ..Way::default()
            };
            let (_link, a, b) = Link::new(frozen(1000), frozen(130), 100);
            // Far more than goes through: the writer is stuck, too.
            kernel.sender.queue(shell(1, vec![noise(1 << 20, 1)]));
            let up = left.up();
            let start = Instant::now();
            let other = tokio::spawn(async move { right.carry(b.0, b.1).await });
            let outcome = left.carry(a.0, a.1).await;
            assert!(
                matches!(outcome, Err(WireError::Silent { seconds: said }) if said == seconds),
                "{outcome:?}"
            );
            let elapsed = start.elapsed().as_secs();
            assert!((seconds..=seconds + 2).contains(&elapsed), "{elapsed} s");
            assert!(!*up.borrow());
            let _ = other.await;
        }
    });
}

#[test]
fn a_greeting_that_never_comes_is_missed() {
    run(async {
        let ((_kernel, left), _) = conversation();
        let (near, _far) = tokio::io::duplex(1000);
        let (reader, writer) = tokio::io::split(near);
        let outcome = left.carry(reader, writer).await;
        assert!(
            matches!(outcome, Err(WireError::Silent { .. })),
            "{outcome:?}"
        );
    });
}

#[test]
fn a_second_byte_stream_replaces_the_first() {
    run(async {
        let ((kernel, left), (mut agent, right)) = conversation();
        let frozen = Way {
            freeze: Some(300_000),
            ..Way::default()
        };
        let (_first, a, b) = Link::new(frozen, Way::default(), 1 << 16);
        kernel.sender.queue(shell(1, vec![noise(1 << 20, 1)]));
        let old = tokio::spawn({
            let (left, right) = (left.clone(), right.clone());
            async move { tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1)) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        let (_second, a, b) = Link::new(Way::default(), Way::default(), 1 << 16);
        tokio::spawn({
            let (left, right) = (left.clone(), right.clone());
            async move { tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1)) }
        });
        let got = agent.receiver.recv().await.unwrap().unwrap();
        assert!(got == shell(1, vec![noise(1 << 20, 1)]));
        let (old_left, old_right) = old.await.unwrap();
        assert!(matches!(old_left, Err(WireError::Replaced)), "{old_left:?}");
        assert!(
            matches!(old_right, Err(WireError::Replaced)),
            "{old_right:?}"
        );
        assert!(start.elapsed() < Duration::from_millis(100));
        assert!(*left.up().borrow());
    });
}

#[test]
fn a_greeting_that_comes_late_changes_nothing() {
    run(async {
        let ((kernel, left), (mut agent, right)) = conversation();
        let mut got = Vec::new();
        let mut late = Vec::new();
        for round in 0..4 {
            if round == 1 {
                // A byte stream on which the kernel greets and nobody answers, for now.
                let (near, mut far) = tokio::io::duplex(1000);
                let (reader, writer) = tokio::io::split(near);
                let carrying = left.carry(reader, writer);
                assert!(timeout(Duration::from_secs(1), carrying).await.is_err());
                far.read_to_end(&mut late).await.unwrap();
            }
            if round == 3 {
                let (mut near, far) = tokio::io::duplex(1000);
                near.write_all(&late).await.unwrap();
                let (reader, writer) = tokio::io::split(far);
                let outcome = right.carry(reader, writer).await;
                assert!(matches!(outcome, Err(WireError::Replaced)), "{outcome:?}");
            }
            let (link, a, b) = Link::new(Way::default(), Way::default(), 1000);
            for index in 0..5 {
                kernel.sender.queue(interrupt(10 * round + index));
            }
            let receive = async {
                // The last is on its way when the link is cut.
                while got.len() < 5 * round as usize + 4 {
                    got.push(agent.receiver.recv().await.unwrap().unwrap());
                }
                link.cut();
            };
            let _ = tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1), receive);
        }
        let (_link, a, b) = Link::new(Way::default(), Way::default(), 1000);
        kernel.sender.finish();
        agent.sender.finish();
        let (a, b) = tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1));
        assert!(a.is_ok() && b.is_ok());
        while let Some(message) = agent.receiver.recv().await {
            got.push(message.unwrap());
        }
        let all = (0..4).flat_map(|round| (0..5).map(move |index| interrupt(10 * round + index)));
        assert_eq!(got, all.collect::<Vec<_>>());
    });
}

#[test]
fn closing_ends_everything_on_this_side() {
    run(async {
        let ((mut kernel, left), (_agent, right)) = conversation();
        let (_link, a, b) = Link::new(Way::default(), Way::default(), 1000);
        let carrying = tokio::spawn({
            let left = left.clone();
            async move { left.carry(a.0, a.1).await }
        });
        let other = tokio::spawn(async move { right.carry(b.0, b.1).await });
        // More than waits: somebody is stuck in the middle of it.
        let sender = kernel.sender.clone();
        let stuck =
            tokio::spawn(
                async move { while sender.send(shell(1, vec![noise(1 << 20, 1)])).await {} },
            );
        tokio::time::sleep(Duration::from_secs(1)).await;
        left.close();
        assert!(carrying.await.unwrap().is_ok());
        stuck.await.unwrap();
        assert!(!kernel.sender.send(interrupt(1)).await);
        assert!(kernel.receiver.recv().await.is_none());
        assert!(matches!(other.await.unwrap(), Err(error) if error.is_lost_link()));
        let (near, _far) = tokio::io::duplex(1000);
        let (reader, writer) = tokio::io::split(near);
        assert!(left.carry(reader, writer).await.is_ok());
    });
}

#[test]
fn another_conversation_is_refused() {
    run(async {
        let ((_kernel, left), _) = conversation();
        let (_agent, right) = Connection::<FromAgent, ToAgent>::resumable(*b"a conversation 2");
        let (_link, a, b) = Link::new(Way::default(), Way::default(), 1000);
        let (a, b) = tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1));
        assert!(matches!(a, Err(WireError::OtherConversation)), "{a:?}");
        assert!(matches!(b, Err(WireError::OtherConversation)), "{b:?}");
    });
}

#[test]
fn one_who_has_forgotten_is_refused_and_the_right_one_is_not() {
    run(async {
        let ((kernel, left), (mut agent, right)) = conversation();
        kernel.sender.queue(interrupt(1));
        let way = Way::default();
        let (first, a, b) = Link::new(way, way, 1000);
        let got = async {
            let got = agent.receiver.recv().await;
            first.cut();
            got
        };
        let (_, _, got) = tokio::join!(left.carry(a.0, a.1), right.carry(b.0, b.1), got);
        assert_eq!(got.unwrap().unwrap(), interrupt(1));
        kernel.sender.queue(interrupt(2));

        // An agent that was started anew, with the same name.
        let (_, (_other, stranger)) = conversation();
        let (_second, a, b) = Link::new(way, way, 1000);
        let (a, b) = tokio::join!(left.carry(a.0, a.1), stranger.carry(b.0, b.1));
        assert!(matches!(a, Err(WireError::Forgotten)), "{a:?}");
        assert!(matches!(b, Err(WireError::Forgotten)), "{b:?}");

        // And a kernel that was.
        let ((_other, stranger), _) = conversation();
        let (_third, a, b) = Link::new(way, way, 1000);
        let (a, b) = tokio::join!(stranger.carry(a.0, a.1), right.carry(b.0, b.1));
        assert!(matches!(a, Err(WireError::Forgotten)), "{a:?}");
        assert!(matches!(b, Err(WireError::Forgotten)), "{b:?}");

        let (_fourth, a, b) = Link::new(way, way, 1000);
        tokio::select! {
            _ = left.carry(a.0, a.1) => unreachable!(),
            _ = right.carry(b.0, b.1) => unreachable!(),
            got = agent.receiver.recv() => assert_eq!(got.unwrap().unwrap(), interrupt(2)),
        }
    });
}

#[test]
fn one_side_that_does_not_resume_is_refused() {
    run(async {
        let ((_kernel, left), _) = conversation();
        let (_link, a, b) = Link::new(Way::default(), Way::default(), 1000);
        let (a, b) = tokio::join!(
            left.carry(a.0, a.1),
            Connection::<FromAgent, ToAgent>::start(b.0, b.1)
        );
        assert!(matches!(a, Err(WireError::Unresumable)), "{a:?}");
        assert!(matches!(b, Err(WireError::Unresumable)), "{b:?}");
    });
}

/// What one side says and another hears who says only this.
async fn hear(bytes: &[u8]) -> (Result<(), WireError>, Option<Result<FromAgent, WireError>>) {
    let ((mut kernel, left), _) = conversation();
    kernel
        .sender
        .queue(shell(1, vec![Bytes::from_static(b"1 + 1")]));
    let (near, mut far): (_, DuplexStream) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(near);
    let mut greeting = b"Last login: today\n\0cellferry\n\0\0\0\x03".to_vec();
    greeting.push(u8::try_from(BUILD.len()).unwrap());
    greeting.extend_from_slice(BUILD.as_bytes());
    greeting.extend_from_slice(b"\x01a conversation 1");
    greeting.extend_from_slice(&[7; 16]);
    greeting.extend_from_slice(&[0; 16]);
    greeting.extend_from_slice(&1_u64.to_be_bytes());
    greeting.extend_from_slice(&[0; 3 * 8]);
    greeting.extend_from_slice(bytes);
    far.write_all(&greeting).await.unwrap();
    let outcome = tokio::join!(left.carry(reader, writer), async {
        far.shutdown().await.unwrap();
        let mut answers = Vec::new();
        let _ = far.read_to_end(&mut answers).await;
    })
    .0;
    left.close();
    (outcome, kernel.receiver.recv().await)
}

fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = stream.to_be_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn whoever_breaks_the_rules_is_refused() {
    run(async {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let million = 1_000_000_u64.to_be_bytes();
        let ended = [frame(0, 3, b""), frame(1, 1, b"late")].concat();
        let open = [frame(1, 0, b"begun"), frame(0, 3, b"")].concat();
        for (what, bytes) in [
            ("an unknown kind", frame(0, 9, b"")),
            ("an empty part", frame(1, 0, b"")),
            ("too long", frame(1, 0, &vec![0; (64 << 10) + 1])),
            ("credit for nothing", frame(7, 2, &[0, 1, 0, 0])),
            ("short credit", frame(2, 2, &[0, 1])),
            ("an acknowledgement of the future", frame(0, 4, &million)),
            ("an answer to no ping", frame(0, 6, &u64::MAX.to_be_bytes())),
            ("a bomb", frame(1, 0x80, &bomb)),
            ("not compressed", frame(1, 0x81, b"hello")),
            ("a compressed end", frame(0, 0x83, b"")),
            ("after the end", ended),
            ("an end in the middle", open),
        ] {
            let (outcome, received) = hear(&bytes).await;
            assert!(
                matches!(outcome, Err(WireError::Malformed(_))),
                "{what}: {outcome:?}"
            );
            match received {
                Some(Err(WireError::Malformed(_))) => {}
                // The direction had ended in good order.
                None if what == "after the end" => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        let (outcome, received) = hear(&frame(1, 1, b"\0\0\0\x01\xff")).await;
        assert!(matches!(outcome, Err(WireError::Ended)), "{outcome:?}");
        assert!(
            matches!(received, Some(Err(WireError::Header(_)))),
            "{received:?}"
        );
    });
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        frames in prop::collection::vec(
            (0_u32..3, prop_oneof![0_u8..8, 0x80_u8..0x88], prop::collection::vec(any::<u8>(), 0..20)),
            0..20,
        ),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        run(async move {
            let mut bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(stream, kind, payload)| frame(*stream, *kind, payload))
                .collect();
            bytes.extend_from_slice(&garbage);
            assert!(hear(&bytes).await.0.is_err());
        });
    }
}
