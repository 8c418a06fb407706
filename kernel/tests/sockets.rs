//! A bound kernel against scripted clients: over real ZeroMQ, and over raw bytes where a ZeroMQ
//! library would not misbehave as we need it to.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::connection::{ConnectionFile, Transport};
use cellferry_kernel::iopub::QUEUE_LIMIT;
use cellferry_kernel::message::Message;
use cellferry_kernel::signing::Signer;
use cellferry_kernel::{Author, Channel, Frontend, bind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerSocket, ReqSocket, Socket, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqMessage,
};

const KEY: &[u8] = b"the key of the tests";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it did not happen in time")
}

/// Waits for a condition that other tasks bring about.
async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn connection(transport: Transport) -> ConnectionFile {
    let [shell_port, control_port, stdin_port, iopub_port, hb_port] =
        std::array::from_fn(|_| free_port());
    ConnectionFile {
        transport,
        shell_port,
        control_port,
        stdin_port,
        iopub_port,
        hb_port,
        key: KEY.to_vec(),
        jupyter_session: None,
    }
}

struct Bed {
    file: ConnectionFile,
    kernel: Frontend,
    client: Author,
    signer: Signer,
}

impl Bed {
    async fn new() -> Self {
        Self::on(Transport::Tcp("127.0.0.1".to_owned())).await
    }

    async fn on(transport: Transport) -> Self {
        let file = connection(transport);
        Self {
            kernel: bind(&file).await.unwrap(),
            file,
            client: Author::new(),
            signer: Signer::new(KEY),
        }
    }

    async fn dealer(&self, identity: &str) -> DealerSocket {
        let mut options = SocketOptions::default();
        options.peer_identity(identity.parse::<PeerIdentity>().unwrap());
        let mut dealer = DealerSocket::with_options(options);
        let endpoint = self.file.endpoint(self.file.shell_port);
        soon(dealer.connect(&endpoint)).await.unwrap();
        dealer
    }

    async fn subscriber(&self) -> SubSocket {
        let mut subscriber = SubSocket::new();
        let endpoint = self.file.endpoint(self.file.iopub_port);
        soon(subscriber.connect(&endpoint)).await.unwrap();
        soon(subscriber.subscribe("")).await.unwrap();
        let welcome = self.next(&mut subscriber).await;
        assert_eq!(welcome.parse_header().unwrap().msg_type, "iopub_welcome");
        assert_eq!(&welcome.parent_header[..], b"{}");
        assert_eq!(
            welcome.parse_content::<Value>().unwrap(),
            json!({"subscription": ""})
        );
        subscriber
    }

    fn request(&self, code: &str) -> ZmqMessage {
        let mut message = self
            .client
            .message("execute_request", None, &json!({"code": code}));
        message.identities.clear();
        ZmqMessage::try_from(message.encode(&self.signer)).unwrap()
    }

    async fn next(&self, socket: &mut impl SocketRecv) -> Message {
        let frames = soon(socket.recv()).await.unwrap().into_vec();
        Message::decode(frames, &self.signer).unwrap()
    }

    /// The next request, and a reply to it with `text`.
    async fn serve(&mut self, text: &str) -> Message {
        let incoming = soon(self.kernel.requests.recv()).await.unwrap();
        self.reply(&incoming.message, text);
        incoming.message
    }

    fn reply(&self, request: &Message, text: &str) {
        let mut reply = self
            .client
            .message("execute_reply", Some(request), &json!({"text": text}));
        reply.identities = request.identities.clone();
        self.kernel.outbox.send(Channel::Shell, reply);
    }

    fn publish(&self, msg_type: &str, text: &str) {
        let message = self.client.message(msg_type, None, &json!({"text": text}));
        self.kernel.outbox.publish(message);
    }

    async fn round_trip(&mut self, dealer: &mut DealerSocket) {
        dealer.send(self.request("1")).await.unwrap();
        let request = self.serve("one").await;
        assert_eq!(
            request.parse_content::<Value>().unwrap(),
            json!({"code": "1"})
        );
        let reply = self.next(dealer).await;
        assert_eq!(reply.parent_header, request.header);
    }

    async fn heartbeat(&self) {
        let mut heart = ReqSocket::new();
        let endpoint = self.file.endpoint(self.file.hb_port);
        soon(heart.connect(&endpoint)).await.unwrap();
        soon(heart.send("ping".into())).await.unwrap();
        let back = soon(heart.recv()).await.unwrap().into_vec();
        assert_eq!(back, [Bytes::from_static(b"ping")]);
    }

    /// A client that speaks ZMTP by hand and reads only what it must.
    async fn raw(&self, port: u16, socket_type: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut greeting = [0u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
        ready.push(u8::try_from(socket_type.len()).unwrap());
        ready.extend_from_slice(socket_type.as_bytes());
        stream.write_all(&greeting).await.unwrap();
        stream
            .write_all(&[4, u8::try_from(ready.len()).unwrap()])
            .await
            .unwrap();
        stream.write_all(&ready).await.unwrap();
        soon(stream.read_exact(&mut greeting)).await.unwrap();
        stream
    }
}

#[tokio::test]
async fn requests_are_answered_and_the_heart_beats() {
    let mut bed = Bed::new().await;
    let mut dealer = bed.dealer("a").await;
    bed.round_trip(&mut dealer).await;
    bed.heartbeat().await;
}

#[tokio::test]
async fn a_request_of_many_megabytes_with_buffers_arrives_whole() {
    let mut bed = Bed::new().await;
    let mut dealer = bed.dealer("a").await;
    let mut message = bed
        .client
        .message("comm_msg", None, &json!({"text": "x".repeat(3 << 20)}));
    message.identities.clear();
    message.buffers = vec![Bytes::from(vec![7; 5 << 20]), Bytes::new()];
    let frames = message.clone().encode(&bed.signer);
    dealer.send(frames.try_into().unwrap()).await.unwrap();
    let arrived = soon(bed.kernel.requests.recv()).await.unwrap().message;
    assert_eq!(arrived.buffers, message.buffers);
    assert_eq!(arrived.content, message.content);
}

#[tokio::test]
async fn forged_and_malformed_messages_are_ignored() {
    let mut bed = Bed::new().await;
    let mut dealer = bed.dealer("a").await;
    let mut forged = bed.client.message("execute_request", None, &json!({}));
    forged.identities.clear();
    let mut list = forged.clone();
    list.content = Bytes::from_static(b"[]");
    for frames in [
        forged.encode(&Signer::new(b"another key")),
        list.encode(&bed.signer),
        vec![Bytes::from_static(b"<IDS|MSG>")],
        vec![Bytes::new()],
        vec![Bytes::from_static(b"no"), Bytes::from_static(b"message")],
    ] {
        dealer.send(frames.try_into().unwrap()).await.unwrap();
    }
    bed.round_trip(&mut dealer).await;
    assert!(bed.kernel.requests.try_recv().is_err());
}

#[tokio::test]
async fn garbage_on_every_port_harms_nobody() {
    let mut bed = Bed::new().await;
    let mut dealer = bed.dealer("a").await;
    let mut subscriber = bed.subscriber().await;
    let ports = [
        bed.file.shell_port,
        bed.file.control_port,
        bed.file.stdin_port,
        bed.file.iopub_port,
        bed.file.hb_port,
    ];
    for port in ports {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &[0; 100]] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            // The end, or an error if the kernel closed with our bytes unread.
            let _ = soon(stream.read_to_end(&mut Vec::new())).await;
        }
        let kind = if port == bed.file.iopub_port {
            "SUB"
        } else {
            "DEALER"
        };
        // A frame that says it is a petabyte long, one with unknown flags, a command cut short.
        let petabyte = [&[2u8][..], &(1u64 << 50).to_be_bytes(), b"x"].concat();
        for garbage in [&petabyte[..], &[0xf8, 1, 1], &[4, 1, 200, 0, 0]] {
            let mut stream = bed.raw(port, kind).await;
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = soon(stream.read_to_end(&mut Vec::new())).await;
        }
    }
    bed.round_trip(&mut dealer).await;
    bed.heartbeat().await;
    bed.publish("stream", "still here");
    assert_eq!(
        bed.next(&mut subscriber)
            .await
            .parse_header()
            .unwrap()
            .msg_type,
        "stream"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_replies_and_delays_nobody() {
    let mut bed = Bed::new().await;
    let mut stalled = bed.raw(bed.file.shell_port, "DEALER").await;
    for frame in bed.request("1").into_vec() {
        let last = frame.starts_with(b"{\"code\"");
        let length = u64::try_from(frame.len()).unwrap().to_be_bytes();
        stalled
            .write_all(&[if last { 2 } else { 3 }])
            .await
            .unwrap();
        stalled.write_all(&length).await.unwrap();
        stalled.write_all(&frame).await.unwrap();
    }
    let request = bed.serve("first").await;
    let large = "x".repeat(1 << 20);
    for _ in 0..100 {
        bed.reply(&request, &large);
        assert!(bed.kernel.outbox.queued(Channel::Shell) <= QUEUE_LIMIT);
    }
    let mut dealer = bed.dealer("live").await;
    bed.round_trip(&mut dealer).await;
    drop(stalled);
    let outbox = bed.kernel.outbox.clone();
    until(|| outbox.queued(Channel::Shell) == 0).await;
}

#[tokio::test]
async fn a_client_that_comes_again_takes_over_its_identity() {
    let mut bed = Bed::new().await;
    let mut first = bed.dealer("same").await;
    bed.round_trip(&mut first).await;
    let mut second = bed.dealer("same").await;
    bed.round_trip(&mut second).await;
    drop(first);
    bed.round_trip(&mut second).await;
}

#[tokio::test]
async fn a_stalled_subscriber_is_told_what_it_missed_and_the_others_miss_nothing() {
    let bed = Bed::new().await;
    let mut live = bed.subscriber().await;
    let mut stalled = bed.raw(bed.file.iopub_port, "SUB").await;
    stalled.write_all(&[0, 1, 1]).await.unwrap();
    let publisher = bed.kernel.outbox.publisher().clone();
    until(|| publisher.subscribers() == 2).await;
    let large = "x".repeat(1 << 20);
    for number in 0..100 {
        bed.publish("stream", &format!("{number} {large}"));
        let message = bed.next(&mut live).await;
        let content = message.parse_content::<Value>().unwrap();
        assert!(
            content["text"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{number} "))
        );
        assert!(publisher.queued() <= 2 * QUEUE_LIMIT);
    }
    bed.publish("status", "idle");
    let all = soon(async {
        let mut all = Vec::new();
        let mut part = vec![0; 1 << 20];
        // Its idle comes last, after the note.
        while !all.ends_with(b"{\"text\":\"idle\"}") {
            let length = stalled.read(&mut part).await.unwrap();
            assert!(length > 0, "closed");
            all.extend_from_slice(&part[..length]);
        }
        all
    })
    .await;
    assert!(all.len() < 70 << 20, "{} bytes", all.len());
    let tail = String::from_utf8_lossy(&all[all.len() - 4000..]).into_owned();
    assert!(tail.contains("messages ("), "{tail}");
    assert!(tail.contains("were dropped"), "{tail}");
}

#[tokio::test]
async fn a_subscriber_that_vanishes_is_forgotten() {
    let bed = Bed::new().await;
    let vanishing = bed.subscriber().await;
    let mut live = bed.subscriber().await;
    drop(vanishing);
    let publisher = bed.kernel.outbox.publisher().clone();
    until(|| publisher.subscribers() == 1).await;
    bed.publish("stream", "x");
    bed.next(&mut live).await;
    soon(bed.kernel.outbox.flush(Duration::from_secs(9))).await;
    assert_eq!(publisher.queued(), 0);
}

#[test]
fn ipc_works_and_leaves_no_file_and_minds_no_left_over_one() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("kernel").display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let file = connection(Transport::Ipc(prefix.clone()));
        // What a killed kernel leaves: a file, and nobody who listens.
        let path = format!("{prefix}-{}", file.shell_port);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let mut bed = Bed {
            kernel: bind(&file).await.unwrap(),
            file,
            client: Author::new(),
            signer: Signer::new(KEY),
        };
        let mut dealer = bed.dealer("a").await;
        bed.round_trip(&mut dealer).await;
        bed.subscriber().await;
        bed.heartbeat().await;
    });
    drop(runtime);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut file = connection(Transport::Tcp("127.0.0.1".to_owned()));
    file.iopub_port = taken.local_addr().unwrap().port();
    let error = bind(&file).await.unwrap_err().to_string();
    assert!(error.contains("iopub"), "{error}");
    assert!(error.contains(&file.iopub_port.to_string()), "{error}");
}
