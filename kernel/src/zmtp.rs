//! ZMTP 3 with the NULL mechanism, the accepting side: listening, greeting, frames.
//!
//! It owns the bytes on the wire and their limits, and leaves what a message means to the sockets
//! above. Source: ZMTP 3.1 (<https://rfc.zeromq.org/spec/37/>).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener};

/// How long a peer may take to greet; the default of libzmq.
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// The largest READY command, in bytes.
const READY_LIMIT: usize = 4 << 10;

/// What a frame costs beyond its bytes, so that many empty frames count too.
const FRAME_COST: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a peer sends, or gets.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// A multipart message.
    Message(Vec<Bytes>),
    /// The body of a command: its name's length, its name, its data.
    Command(Bytes),
}

impl Packet {
    /// What it holds, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Message(frames) => frames.iter().map(|frame| frame.len() + FRAME_COST).sum(),
            Self::Command(body) => body.len() + FRAME_COST,
        }
    }

    /// The PONG for this packet, if it is a PING.
    pub(crate) fn pong(&self) -> Option<Self> {
        let Self::Command(body) = self else {
            return None;
        };
        let ping = command(body, b"PING")?;
        // Two bytes of time to live, then a context of at most 16 bytes, which goes back.
        let context = ping.get(2..).unwrap_or_default();
        let mut pong = BytesMut::from(&b"\x04PONG"[..]);
        pong.extend_from_slice(&context[..context.len().min(16)]);
        Some(Self::Command(pong.freeze()))
    }
}

/// The data of a command, if it is the named one.
pub(crate) fn command(body: &Bytes, name: &[u8]) -> Option<Bytes> {
    let length = usize::from(*body.first()?);
    let found = body.get(1..=length)?;
    (found == name).then(|| body.slice(1 + length..))
}

/// Where peers connect. A Unix socket's file goes when the listener does.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removed when dropped")] SocketFile,
    ),
}

#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on a `tcp://` or `ipc://` endpoint.
    pub(crate) async fn bind(endpoint: &str) -> io::Result<Self> {
        if let Some(path) = endpoint.strip_prefix("ipc://") {
            let path = Path::new(path);
            let listener = match UnixListener::bind(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)?
                }
                outcome => outcome?,
            };
            return Ok(Self::Unix(listener, SocketFile(path.to_owned())));
        }
        let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
        Ok(Self::Tcp(TcpListener::bind(address).await?))
    }

    /// The next connection; waits out what is wrong with the machine, such as too many open files.
    pub(crate) async fn accept(&self, channel: &str) -> Connection {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    Connection::new(reader, writer)
                }),
                Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    let (reader, writer) = stream.into_split();
                    Connection::new(reader, writer)
                }),
            };
            match accepted {
                Ok(connection) => return connection,
                Err(error) => {
                    tracing::warn!("cannot accept a connection to {channel}: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Whether a socket's file outlived its kernel: nobody listens there. A restarted kernel finds
/// such files when the one before was killed.
fn is_left_over(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A peer's connection.
pub(crate) struct Connection {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

impl Connection {
    fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Reader(BufReader::new(Box::new(reader))),
            writer: Writer {
                stream: Box::new(writer),
                small: BytesMut::new(),
            },
        }
    }

    /// Exchanges greetings and READY as a socket of type `own`, with a peer of one of the types
    /// `theirs`; returns the peer's identity, which may be empty.
    pub(crate) async fn greet(&mut self, own: &str, theirs: &[&str]) -> io::Result<Bytes> {
        tokio::time::timeout(GREETING_LIMIT, self.exchange(own, theirs))
            .await
            .unwrap_or_else(|_| Err(bad("no greeting in time")))
    }

    async fn exchange(&mut self, own: &str, theirs: &[&str]) -> io::Result<Bytes> {
        let mut greeting = [0u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.writer.stream.write_all(&greeting).await?;
        // The rest comes only once the peer has seen what we speak, so the version goes first.
        self.reader.0.read_exact(&mut greeting[..11]).await?;
        if greeting[0] != 0xff || greeting[9] & 1 == 0 || greeting[10] < 3 {
            return Err(bad("not ZMTP 3"));
        }
        self.reader.0.read_exact(&mut greeting[11..]).await?;
        if &greeting[12..32] != b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
            return Err(bad("a security mechanism other than NULL"));
        }
        let mut ready = BytesMut::from(&b"\x05READY\x0bSocket-Type\0\0\0"[..]);
        ready.extend_from_slice(&[u8::try_from(own.len()).unwrap_or_default()]);
        ready.extend_from_slice(own.as_bytes());
        self.writer.write(&Packet::Command(ready.freeze())).await?;
        let Packet::Command(body) = self.reader.read(READY_LIMIT).await? else {
            return Err(bad("no READY"));
        };
        let properties = command(&body, b"READY").ok_or_else(|| bad("no READY"))?;
        let (mut socket_type, mut identity) = (Bytes::new(), Bytes::new());
        for_each_property(properties, |name, value| {
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                socket_type = value;
            } else if name.eq_ignore_ascii_case(b"Identity") {
                identity = value;
            }
        })?;
        if !theirs.iter().any(|known| known.as_bytes() == socket_type) {
            return Err(bad("a socket of a type that does not fit"));
        }
        Ok(identity)
    }
}

fn for_each_property(mut data: Bytes, mut take: impl FnMut(&[u8], Bytes)) -> io::Result<()> {
    let cut = || bad("a READY that is cut off");
    while data.has_remaining() {
        let length = usize::from(data.get_u8());
        if data.len() < length + 4 {
            return Err(cut());
        }
        let name = data.split_to(length);
        let length = usize::try_from(data.get_u32()).map_err(|_| cut())?;
        if data.len() < length {
            return Err(cut());
        }
        take(&name, data.split_to(length));
    }
    Ok(())
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Reads packets.
pub(crate) struct Reader(BufReader<Box<dyn AsyncRead + Send + Unpin>>);

impl Reader {
    /// The next message or command; an error if it is larger than `limit` bytes. What a peer
    /// announces is not allocated before it comes.
    pub(crate) async fn read(&mut self, limit: usize) -> io::Result<Packet> {
        let mut frames = Vec::new();
        let mut left = limit;
        loop {
            let flags = self.0.read_u8().await?;
            if flags > (MORE | LONG | COMMAND) || flags & COMMAND != 0 && flags & MORE != 0 {
                return Err(bad("a frame with flags that ZMTP does not know"));
            }
            let length = if flags & LONG != 0 {
                self.0.read_u64().await?
            } else {
                u64::from(self.0.read_u8().await?)
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            left = left
                .checked_sub(length)
                .and_then(|left| left.checked_sub(FRAME_COST))
                .ok_or_else(|| bad("a message that is too large"))?;
            let body = self.body(length).await?;
            if flags & COMMAND != 0 {
                return Ok(Packet::Command(body));
            }
            frames.push(body);
            if flags & MORE == 0 {
                return Ok(Packet::Message(frames));
            }
        }
    }

    async fn body(&mut self, length: usize) -> io::Result<Bytes> {
        const AT_ONCE: usize = 1 << 20;
        let mut body = Vec::with_capacity(length.min(AT_ONCE));
        (&mut self.0)
            .take(length as u64)
            .read_to_end(&mut body)
            .await?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(body))
    }
}

/// Writes packets.
pub(crate) struct Writer {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    small: BytesMut,
}

impl Writer {
    /// Writes a packet: small frames together, large ones straight from their buffers.
    pub(crate) async fn write(&mut self, packet: &Packet) -> io::Result<()> {
        const COPY: usize = 16 << 10;
        let (frames, kind) = match packet {
            Packet::Message(frames) => (frames.as_slice(), 0),
            Packet::Command(body) => (std::slice::from_ref(body), COMMAND),
        };
        self.small.clear();
        for (index, frame) in frames.iter().enumerate() {
            let more = if index + 1 < frames.len() { MORE } else { 0 };
            match u8::try_from(frame.len()) {
                Ok(length) => self.small.extend_from_slice(&[kind | more, length]),
                Err(_) => {
                    self.small.extend_from_slice(&[kind | more | LONG]);
                    self.small
                        .extend_from_slice(&(frame.len() as u64).to_be_bytes());
                }
            }
            if frame.len() <= COPY {
                self.small.extend_from_slice(frame);
            } else {
                self.stream.write_all(&self.small).await?;
                self.small.clear();
                self.stream.write_all(frame).await?;
            }
        }
        self.stream.write_all(&self.small).await?;
        self.stream.flush().await
    }
}
