//! Values between the kernel and an agent that is a program of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cellferry_wire::protocol::{FromAgent, PIECE, ToAgent};

use crate::common::*;

/// Bytes that are not all alike, so that a piece lost, doubled or swapped shows.
pub fn content(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

/// Sends a value to the agent.
pub async fn give(connection: &Remote, transfer: u64, content: &Bytes) {
    let size = content.len() as u64;
    connection
        .sender
        .send(ToAgent::Receive { transfer, size })
        .await;
    let mut rest = content.clone();
    while !rest.is_empty() {
        let bytes = rest.split_to(rest.len().min(PIECE));
        connection
            .sender
            .send(ToAgent::Data { transfer, bytes })
            .await;
    }
}

/// What comes of a transfer until it is whole or has failed.
pub async fn get(connection: &mut Remote, transfer: u64) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    loop {
        match next(connection).await {
            FromAgent::Data {
                transfer: of,
                bytes,
            } if of == transfer => {
                assert!(bytes.len() <= PIECE);
                all.extend_from_slice(&bytes);
            }
            FromAgent::Sent { transfer: of, size } if of == transfer => {
                assert_eq!(size, all.len() as u64);
                return Ok(all);
            }
            FromAgent::TransferFailed {
                transfer: of,
                reason,
            } if of == transfer => {
                return Err(reason);
            }
            other => panic!("not of transfer {transfer}: {other:?}"),
        }
    }
}

fn values(segments: &str) -> usize {
    std::fs::read_dir(segments).unwrap().count()
}

#[tokio::test]
async fn values_of_all_sizes_come_back_as_they_were() {
    let (_child, mut connection, hello) = program().await;
    for (transfer, size) in [(1, 0), (2, 1), (3, PIECE), (4, PIECE + 1), (5, 200_000_000)] {
        let content = content(size);
        give(&connection, transfer, &content).await;
        assert_eq!(next(&mut connection).await, FromAgent::Stored { transfer });
        let path = Path::new(&hello.segment_dir).join(transfer.to_string());
        assert!(
            std::fs::read(&path).unwrap() == content,
            "{size} bytes are others"
        );
        connection.sender.send(ToAgent::Fetch { transfer }).await;
        assert!(get(&mut connection, transfer).await.unwrap() == content);
    }
    let transfers = vec![1, 2, 3, 4, 5];
    connection.sender.send(ToAgent::Forget { transfers }).await;
    eventually("the values are removed", || values(&hello.segment_dir) == 0).await;
}

#[tokio::test]
async fn values_and_their_directory_are_the_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_child, mut connection, hello) = program().await;
    give(&connection, 1, &content(10)).await;
    next(&mut connection).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let segments = Path::new(&hello.segment_dir);
    assert_eq!((mode(segments), mode(&segments.join("1"))), (0o700, 0o600));
    assert_eq!(mode(Path::new(&hello.run_dir)), 0o700);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let (_child, mut connection, hello) = program().await;
    connection.sender.send(ToAgent::Fetch { transfer: 7 }).await;
    let reason = get(&mut connection, 7).await.unwrap_err();
    assert!(
        reason.contains(&format!("{}/7`: No such file", hello.segment_dir)),
        "{reason}"
    );
}

#[tokio::test]
async fn a_value_without_room_fails_at_once_and_leaves_nothing() {
    // A limit on the size of files is the one full disk that needs no privilege.
    let (_child, mut connection, hello) = program_under("ulimit -f 1024").await;
    let size = 2 << 20;
    connection
        .sender
        .send(ToAgent::Receive { transfer: 1, size })
        .await;
    match next(&mut connection).await {
        FromAgent::TransferFailed {
            transfer: 1,
            reason,
        } => {
            assert!(reason.contains("File too large"), "{reason}");
        }
        other => panic!("it failed not: {other:?}"),
    }
    assert_eq!(values(&hello.segment_dir), 0);
    // What still comes of it is ignored, and the next one is not held up.
    for _ in 0..2 {
        let bytes = content(PIECE);
        connection
            .sender
            .send(ToAgent::Data { transfer: 1, bytes })
            .await;
    }
    give(&connection, 2, &content(1000)).await;
    assert_eq!(
        next(&mut connection).await,
        FromAgent::Stored { transfer: 2 }
    );
}

#[tokio::test]
async fn more_bytes_than_announced_are_refused() {
    let (_child, mut connection, hello) = program().await;
    connection
        .sender
        .send(ToAgent::Receive {
            transfer: 1,
            size: 10,
        })
        .await;
    let bytes = content(11);
    connection
        .sender
        .send(ToAgent::Data { transfer: 1, bytes })
        .await;
    assert!(matches!(
        next(&mut connection).await,
        FromAgent::TransferFailed { transfer: 1, .. }
    ));
    assert_eq!(values(&hello.segment_dir), 0);
}

#[tokio::test]
async fn a_transfer_that_is_forgotten_half_way_leaves_nothing() {
    let (_child, mut connection, hello) = program().await;
    connection
        .sender
        .send(ToAgent::Receive {
            transfer: 1,
            size: 100,
        })
        .await;
    let path = Path::new(&hello.segment_dir).join("1");
    eventually("it is begun", || path.exists()).await;
    let transfers = vec![1];
    connection.sender.send(ToAgent::Forget { transfers }).await;
    eventually("it is removed", || !path.exists()).await;
    // Nothing is said of it.
    give(&connection, 2, &content(1)).await;
    assert_eq!(
        next(&mut connection).await,
        FromAgent::Stored { transfer: 2 }
    );
}

#[tokio::test]
async fn a_transfer_that_was_forgotten_before_it_came_is_not_begun() {
    let (_child, mut connection, hello) = program().await;
    let transfers = vec![1];
    connection.sender.send(ToAgent::Forget { transfers }).await;
    give(&connection, 1, &content(5)).await;
    give(&connection, 2, &content(1)).await;
    assert_eq!(
        next(&mut connection).await,
        FromAgent::Stored { transfer: 2 }
    );
    assert_eq!(values(&hello.segment_dir), 1);
}

#[tokio::test]
async fn an_interrupt_passes_a_gigabyte_on_its_way() {
    let (_child, mut connection, hello) = program().await;
    connection
        .sender
        .send(ToAgent::StartWorker {
            worker: WORKER,
            spec: spec(),
        })
        .await;
    while !matches!(next(&mut connection).await, FromAgent::WorkerUp { .. }) {}
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("in");
    // The time of the interrupt is taken where it arrives, and the worker tells it.
    let code = format!(
        "import time\ntry:\n    open({mark:?}, 'w').close()\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print(time.time(), flush=True)"
    );
    connection.sender.send(execute("a", &code)).await;
    let (sender, size) = (connection.sender.clone(), 1_000_000_000);
    let sending = tokio::spawn(async move {
        sender.send(ToAgent::Receive { transfer: 1, size }).await;
        let bytes = content(1_000_000);
        for _ in 0..size / 1_000_000 {
            let bytes = bytes.clone();
            sender.send(ToAgent::Data { transfer: 1, bytes }).await;
        }
    });
    let part = Path::new(&hello.segment_dir).join("1");
    let started = Instant::now();
    while !(mark.exists() && part.exists()) {
        assert!(started.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let interrupted = std::time::SystemTime::now();
    connection
        .sender
        .send(ToAgent::Interrupt { worker: WORKER })
        .await;
    let (mut stored, mut arrived) = (None, None);
    while stored.is_none() || arrived.is_none() {
        match next(&mut connection).await {
            FromAgent::Stored { transfer: 1 } => stored = Some(std::time::SystemTime::now()),
            FromAgent::Received { parts, .. } if json_of(&parts[0])["msg_type"] == "stream" => {
                let text = json_of(&parts[3])["text"].as_str().unwrap().to_owned();
                let seconds: f64 = text.trim().parse().unwrap();
                arrived = Some(std::time::UNIX_EPOCH + Duration::from_secs_f64(seconds));
            }
            FromAgent::TransferFailed { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
    sending.await.unwrap();
    let (stored, arrived) = (stored.unwrap(), arrived.unwrap());
    assert!(
        arrived < stored,
        "the transfer was over before the interrupt came"
    );
    let waited = arrived.duration_since(interrupted).unwrap();
    assert!(waited < Duration::from_millis(200), "{waited:?}");
}
