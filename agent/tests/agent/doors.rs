//! Values from one agent to another, by the door of either.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cellferry_wire::protocol::{FromAgent, Hello, PIECE, Secret, ToAgent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::time::timeout;

use crate::common::*;
use crate::transfers::{content, give};

/// An agent, and the kernel's side of it.
struct Side {
    _child: Child,
    connection: Remote,
    hello: Hello,
}

impl Side {
    async fn start() -> Self {
        Self::of(program().await)
    }

    fn of((child, connection, hello): (Child, Remote, Hello)) -> Self {
        Self {
            _child: child,
            connection,
            hello,
        }
    }

    async fn send(&self, command: ToAgent) {
        assert!(self.connection.sender.send(command).await);
    }

    async fn next(&mut self) -> FromAgent {
        next(&mut self.connection).await
    }

    async fn door(&mut self, secret: &Secret) -> Vec<SocketAddr> {
        let secret = secret.clone();
        self.send(ToAgent::OpenDoor { secret }).await;
        match self.next().await {
            FromAgent::Door { addresses } => addresses,
            other => panic!("no door: {other:?}"),
        }
    }

    async fn put(&mut self, transfer: u64, content: &Bytes) {
        give(&self.connection, transfer, content).await;
        assert_eq!(self.next().await, FromAgent::Stored { transfer });
    }

    async fn pull(&self, transfer: u64, size: usize, from: &[SocketAddr], secret: &Secret) {
        self.send(ToAgent::Pull {
            transfer,
            size: size as u64,
            from: from.to_vec(),
            secret: secret.clone(),
        })
        .await;
    }

    async fn push(&self, transfer: u64, to: &[SocketAddr], secret: &Secret) {
        self.send(ToAgent::Push {
            transfer,
            to: to.to_vec(),
            secret: secret.clone(),
        })
        .await;
    }

    /// Why a transfer with another agent failed, and whether that was reached.
    async fn failure(&mut self) -> (String, bool) {
        match self.next().await {
            FromAgent::DirectFailed {
                reason, reached, ..
            } => (reason, reached),
            other => panic!("no failure: {other:?}"),
        }
    }

    fn has(&self, transfer: u64, content: &Bytes) -> bool {
        let path = Path::new(&self.hello.segment_dir).join(transfer.to_string());
        std::fs::read(path).is_ok_and(|found| found == *content)
    }

    fn values(&self) -> usize {
        std::fs::read_dir(&self.hello.segment_dir).unwrap().count()
    }
}

fn secret(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

/// Something between an agent and a door: passes on what comes from the door, up to so many bytes, and keeps all it saw;
/// and so many bytes of what the agent says, after which it hangs.
async fn between(door: SocketAddr, limit: usize, hang: u64) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    tokio::spawn(async move {
        let (visitor, _) = listener.accept().await.unwrap();
        let door = TcpStream::connect(door).await.unwrap();
        let (from_visitor, mut to_visitor) = visitor.into_split();
        let (mut from_door, mut to_door) = door.into_split();
        let asking = tokio::spawn(async move {
            let mut some = from_visitor.take(hang);
            let _ = tokio::io::copy(&mut some, &mut to_door).await;
            if some.limit() == 0 {
                std::future::pending::<()>().await;
            }
        });
        let (mut passed, mut buffer) = (0, vec![0; 1 << 16]);
        while passed < limit {
            let read = from_door.read(&mut buffer).await.unwrap_or(0);
            if read == 0 || to_visitor.write_all(&buffer[..read]).await.is_err() {
                break;
            }
            passed += read;
            record.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
        asking.abort();
    });
    (address, seen)
}

#[tokio::test]
async fn values_go_either_way_and_come_as_they_were() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    assert!(!door.is_empty());
    assert!(door.iter().all(|address| !address.ip().is_loopback()));
    for (index, size) in [0, 1, PIECE + 1, 50_000_000].into_iter().enumerate() {
        let content = content(size);
        let (pulled, pushed) = (2 * index as u64, 2 * index as u64 + 1);
        there.put(pulled, &content).await;
        here.pull(pulled, size, &door, &secret(1)).await;
        assert_eq!(here.next().await, FromAgent::Stored { transfer: pulled });
        assert!(here.has(pulled, &content), "{size} bytes pulled");
        here.put(pushed, &content).await;
        here.push(pushed, &door, &secret(1)).await;
        assert_eq!(there.next().await, FromAgent::Stored { transfer: pushed });
        assert!(there.has(pushed, &content), "{size} bytes pushed");
    }
    // The same door as long as it is open, another secret another door.
    assert_eq!(there.door(&secret(1)).await, door);
    assert_ne!(there.door(&secret(2)).await, door);
}

#[tokio::test]
async fn one_value_goes_to_many_at_once() {
    let mut there = Side::start().await;
    let door = there.door(&secret(1)).await;
    let content = content(20_000_000);
    there.put(1, &content).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        let other = Side::start().await;
        other.pull(1, content.len(), &door, &secret(1)).await;
        others.push(other);
    }
    for other in &mut others {
        assert_eq!(other.next().await, FromAgent::Stored { transfer: 1 });
        assert!(other.has(1, &content));
    }
}

#[tokio::test]
async fn a_wrong_secret_gets_and_brings_nothing() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let content = content(1000);
    there.put(1, &content).await;
    here.pull(1, 1000, &door, &secret(2)).await;
    let (reason, reached) = here.failure().await;
    assert!(!reached, "{reason}");
    assert!(reason.contains(&door[0].to_string()), "{reason}");
    here.put(2, &content).await;
    here.push(2, &door, &secret(2)).await;
    assert!(!here.failure().await.1);
    assert_eq!((here.values(), there.values()), (1, 1));
    // The door serves on.
    here.pull(1, 1000, &door, &secret(1)).await;
    assert_eq!(here.next().await, FromAgent::Stored { transfer: 1 });
}

#[tokio::test]
async fn strangers_are_few_at_once_sent_away_in_time_and_harm_nobody() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let content = content(1000);
    there.put(1, &content).await;
    let mut strangers = Vec::new();
    for index in 0..300 {
        let mut stranger = TcpStream::connect(door[0]).await.unwrap();
        // Some say nothing, some talk nonsense.
        if index % 2 == 0 {
            let _ = stranger.write_all(&[index as u8; 4000]).await;
        }
        strangers.push(stranger);
    }
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", there.hello.pid))
            .unwrap()
            .count()
    };
    assert!(open() < 100, "{} files are open", open());
    for mut stranger in strangers {
        let gone = async {
            let mut buffer = [0; 100];
            while stranger.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        };
        timeout(LIMIT, gone).await.unwrap();
    }
    here.pull(1, 1000, &door, &secret(1)).await;
    assert_eq!(here.next().await, FromAgent::Stored { transfer: 1 });
}

#[tokio::test]
async fn a_cut_pull_leaves_nothing_and_may_be_tried_again() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let content = content(20_000_000);
    there.put(1, &content).await;
    let (cut, _) = between(door[0], 5_000_000, u64::MAX).await;
    here.pull(1, content.len(), &[cut], &secret(1)).await;
    let (reason, reached) = here.failure().await;
    assert!(reached, "{reason}");
    assert_eq!(here.values(), 0);
    here.pull(1, content.len(), &door, &secret(1)).await;
    assert_eq!(here.next().await, FromAgent::Stored { transfer: 1 });
    assert!(here.has(1, &content));
}

#[tokio::test]
async fn a_cut_push_leaves_nothing_and_may_come_another_way() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let content = content(20_000_000);
    here.put(1, &content).await;
    // What the door says is cut after its greeting and its first answer.
    let (cut, _) = between(door[0], 49, u64::MAX).await;
    here.push(1, &[cut], &secret(1)).await;
    assert!(here.failure().await.1);
    // Whether the other agent has noticed or not, what the kernel sends counts.
    give(&there.connection, 1, &content).await;
    assert_eq!(there.next().await, FromAgent::Stored { transfer: 1 });
    assert!(there.has(1, &content));
}

#[tokio::test]
async fn a_push_that_hangs_gives_way_to_what_the_kernel_sends() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let content = content(20_000_000);
    here.put(1, &content).await;
    let (hangs, _) = between(door[0], usize::MAX, 5_000_000).await;
    here.push(1, &[hangs], &secret(1)).await;
    let part = Path::new(&there.hello.segment_dir).join("1");
    eventually("it is begun", || part.exists()).await;
    give(&there.connection, 1, &content).await;
    assert_eq!(there.next().await, FromAgent::Stored { transfer: 1 });
    assert!(there.has(1, &content));
    assert!(here.failure().await.1);
}

#[tokio::test]
async fn nobody_between_two_agents_can_read_a_value() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    let mark = b"what only the user may read";
    let content = Bytes::from(mark.repeat(10_000));
    there.put(1, &content).await;
    let (address, seen) = between(door[0], usize::MAX, u64::MAX).await;
    here.pull(1, content.len(), &[address], &secret(1)).await;
    assert_eq!(here.next().await, FromAgent::Stored { transfer: 1 });
    assert!(here.has(1, &content));
    let seen = seen.lock().unwrap();
    assert!(seen.len() > content.len());
    assert!(!seen.windows(mark.len()).any(|window| window == mark));
}

#[tokio::test]
async fn what_the_other_agent_lacks_is_named() {
    let (mut here, mut there) = (Side::start().await, Side::start().await);
    let door = there.door(&secret(1)).await;
    here.pull(9, 10, &door, &secret(1)).await;
    let (reason, reached) = here.failure().await;
    assert!(reached && reason.contains("/9`: No such file"), "{reason}");
    there.put(9, &content(11)).await;
    here.pull(9, 10, &door, &secret(1)).await;
    let (reason, _) = here.failure().await;
    assert!(reason.contains("11 bytes instead of 10"), "{reason}");
    // One that is only coming there is not given.
    there
        .send(ToAgent::Receive {
            transfer: 10,
            size: 5,
        })
        .await;
    let coming = Path::new(&there.hello.segment_dir).join("10");
    eventually("it is begun", || coming.exists()).await;
    here.pull(10, 5, &door, &secret(1)).await;
    let (reason, _) = here.failure().await;
    assert!(reason.contains("does not have all of it yet"), "{reason}");
}

#[tokio::test]
async fn a_full_disk_on_either_side_is_named_by_the_side_that_asked() {
    let mut small = Side::of(program_under("ulimit -f 1024").await);
    let mut large = Side::start().await;
    let content = content(2 << 20);
    large.put(1, &content).await;
    let door = large.door(&secret(1)).await;
    small.pull(1, content.len(), &door, &secret(1)).await;
    let (reason, reached) = small.failure().await;
    assert!(reached && reason.contains("File too large"), "{reason}");
    let door = small.door(&secret(2)).await;
    large.push(1, &door, &secret(2)).await;
    let (reason, reached) = large.failure().await;
    assert!(reached && reason.contains("File too large"), "{reason}");
    assert_eq!(small.values(), 0);
}

#[tokio::test]
async fn a_door_that_is_not_there_is_told_within_seconds() {
    let mut here = Side::start().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    // One that accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [closed, silent.local_addr().unwrap()];
    here.pull(1, 10, &addresses, &secret(1)).await;
    let (reason, reached) = timeout(Duration::from_secs(10), here.failure())
        .await
        .unwrap();
    assert!(!reached);
    for address in addresses {
        assert!(reason.contains(&address.to_string()), "{reason}");
    }
}

#[tokio::test]
async fn a_forgotten_pull_is_given_up_without_a_word() {
    let mut here = Side::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    here.pull(1, 10, &[address], &secret(1)).await;
    let (mut stream, _) = silent.accept().await.unwrap();
    let transfers = vec![1];
    here.send(ToAgent::Forget { transfers }).await;
    let mut rest = Vec::new();
    timeout(Duration::from_secs(4), stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    here.put(2, &content(1)).await;
}
