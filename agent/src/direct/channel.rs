//! A TCP connection between two agents that know the same secret, encrypted.
//!
//! It speaks the [Noise protocol](https://noiseprotocol.org/noise.html), `Noise_NNpsk0_25519_AESGCM_SHA256`, the secret being the
//! pre-shared key. A challenge answered with a hash of the secret would prove as much, but leave the values themselves, which
//! are the user's, open to all who can listen or interfere on the way; and a secret that leaks later must not open what was
//! recorded earlier, so each connection has keys of its own, from ephemeral Diffie-Hellman.
//!
//! AES-GCM of ring: on processors with instructions for AES it is the fastest of Noise's ciphers by a factor of two.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cellferry_wire::BUILD;
use cellferry_wire::protocol::Secret;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snow::TransportState;
use snow::resolvers::{DefaultResolver, FallbackResolver, RingResolver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::growing::Growing;
use crate::tickets::Ticket;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// A message of the handshake: an ephemeral key and the tag of an empty payload.
const GREETING: usize = 32 + 16;

/// The largest message of Noise, and what of it is payload.
const MESSAGE: usize = 65535;
const PAYLOAD: usize = MESSAGE - 16;

/// How much is read, encrypted and written at once.
const BATCH: usize = 16;

/// The largest request or answer, in bytes.
const SMALL: usize = 4096;

/// After so many messages each key is replaced: of AES-GCM, one should not be used for much more than 100 GB.
const REKEY: u64 = if cfg!(test) { 8 } else { 1 << 20 };

/// How long the other side may neither send nor take anything.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the other side may take to notice that this one will have no more.
const LAST: Duration = Duration::from_secs(2);

/// How often a transfer that stands still looks whether it has been given up.
const LOOK: Duration = Duration::from_millis(500);

/// A connection after the greetings.
#[derive(Debug)]
pub struct Greeted {
    stream: tokio::net::TcpStream,
    noise: TransportState,
}

/// A connection whose other side knows the secret. All it does may block.
#[derive(Debug)]
pub struct Channel {
    stream: TcpStream,
    noise: TransportState,
    sent: u64,
    received: u64,
    /// Bytes that have come and are not decrypted yet: those from `begin` to `end`.
    coming: Vec<u8>,
    begin: usize,
    end: usize,
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn builder<'a>(secret: &'a Secret, prologue: &'a [u8]) -> Result<snow::Builder<'a>, snow::Error> {
    // Ring has no Diffie-Hellman that keeps its key, which Noise needs.
    let resolver = FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver));
    snow::Builder::with_resolver(PATTERN.parse()?, Box::new(resolver))
        .prologue(prologue)?
        .psk(0, secret.bytes())
}

/// Both sides must mean the same by what they say.
fn prologue() -> Vec<u8> {
    format!("cellferry door {BUILD}").into_bytes()
}

/// Greets a door. The other side has proved that it knows the secret once this returns.
pub async fn initiate(mut stream: tokio::net::TcpStream, secret: &Secret) -> io::Result<Channel> {
    let mut noise = builder(secret, &prologue())
        .and_then(snow::Builder::build_initiator)
        .map_err(broken)?;
    let mut greeting = [0; GREETING];
    noise.write_message(&[], &mut greeting).map_err(broken)?;
    stream.write_all(&greeting).await?;
    stream.read_exact(&mut greeting).await?;
    noise.read_message(&greeting, &mut []).map_err(broken)?;
    let noise = noise.into_transport_mode().map_err(broken)?;
    Channel::new(Greeted { stream, noise }, 0)
}

/// Answers a visitor's greeting, which may be another's, recorded: only its request proves that it knows the secret.
pub async fn respond(mut stream: tokio::net::TcpStream, secret: &Secret) -> io::Result<Greeted> {
    let mut noise = builder(secret, &prologue())
        .and_then(snow::Builder::build_responder)
        .map_err(broken)?;
    let mut greeting = [0; GREETING];
    stream.read_exact(&mut greeting).await?;
    noise.read_message(&greeting, &mut []).map_err(broken)?;
    noise.write_message(&[], &mut greeting).map_err(broken)?;
    stream.write_all(&greeting).await?;
    let noise = noise.into_transport_mode().map_err(broken)?;
    Ok(Greeted { stream, noise })
}

impl Greeted {
    /// The visitor's request. It has proved that it knows the secret once this returns.
    pub async fn request<T: DeserializeOwned>(mut self) -> io::Result<(T, Channel)> {
        let length = usize::from(self.stream.read_u16().await?);
        if length > SMALL {
            return Err(broken("a request is too long"));
        }
        let (mut message, mut request) = ([0; SMALL], [0; SMALL]);
        self.stream.read_exact(&mut message[..length]).await?;
        let read = self.noise.read_message(&message[..length], &mut request);
        let request = &request[..read.map_err(broken)?];
        Ok((serde_json::from_slice(request)?, Channel::new(self, 1)?))
    }
}

impl Channel {
    fn new(greeted: Greeted, received: u64) -> io::Result<Self> {
        let Greeted { stream, noise } = greeted;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(LOOK))?;
        Ok(Self {
            stream,
            noise,
            sent: 0,
            received,
            coming: vec![0; BATCH * (MESSAGE + 2)],
            begin: 0,
            end: 0,
        })
    }

    /// Says something short.
    pub fn tell(&mut self, what: &impl Serialize, ticket: &Ticket) -> io::Result<()> {
        let text = serde_json::to_vec(what)?;
        let mut message = vec![0; 2 + text.len() + 16];
        self.encrypt(&text, &mut message)?;
        self.write(&message, ticket)
    }

    /// Hears something short.
    pub fn hear<T: DeserializeOwned>(&mut self, ticket: &Ticket) -> io::Result<T> {
        let mut text = vec![0; PAYLOAD];
        loop {
            if let Some(read) = self.decrypt(&mut text)? {
                return Ok(serde_json::from_slice(&text[..read])?);
            }
            self.fill(ticket)?;
        }
    }

    /// Whether the other side has said something.
    pub fn has_heard(&self) -> bool {
        let mut readable = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        self.begin < self.end || poll(&mut readable, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends `size` bytes of a file; stops early if the other side says something.
    pub fn send(&mut self, file: &mut impl Read, size: u64, ticket: &Ticket) -> io::Result<()> {
        let mut plain = vec![0; BATCH * PAYLOAD];
        let mut encrypted = vec![0; BATCH * (MESSAGE + 2)];
        let mut left = size;
        while left > 0 && !self.has_heard() {
            let batch = usize::try_from(left).map_or(plain.len(), |left| left.min(plain.len()));
            file.read_exact(&mut plain[..batch])?;
            let mut end = 0;
            for payload in plain[..batch].chunks(PAYLOAD) {
                end += self.encrypt(payload, &mut encrypted[end..])?;
            }
            self.write(&encrypted[..end], ticket)?;
            left -= batch as u64;
        }
        Ok(())
    }

    /// Receives a file.
    pub fn receive(&mut self, growing: &mut Growing, ticket: &Ticket) -> Result<(), String> {
        let mut plain = vec![0; BATCH * PAYLOAD];
        while growing.left() > 0 {
            let mut end = 0;
            // There is room for as many messages as can have come.
            while let Some(read) = self.decrypt(&mut plain[end..]).map_err(lost)? {
                end += read;
            }
            if end > 0 {
                growing.write(&plain[..end])?;
            } else {
                self.fill(ticket).map_err(lost)?;
            }
        }
        Ok(())
    }

    /// Waits until the other side has closed the connection, too, and drops what it still sends: a connection that
    /// is closed with something unread may lose what was said last.
    pub fn close(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let begun = Instant::now();
        while begun.elapsed() < LAST {
            match self.stream.read(&mut self.coming) {
                Ok(1..) => {}
                Err(error) if is_pause(&error) => {}
                _ => return,
            }
        }
    }

    /// Encrypts a message with its length before it; returns the length of both.
    fn encrypt(&mut self, payload: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let length = self
            .noise
            .write_message(payload, &mut out[2..])
            .map_err(broken)?;
        out[..2].copy_from_slice(&u16::try_from(length).map_err(broken)?.to_be_bytes());
        self.sent += 1;
        if self.sent.is_multiple_of(REKEY) {
            self.noise.rekey_outgoing();
        }
        Ok(2 + length)
    }

    /// Decrypts the next message, if all of it has come.
    fn decrypt(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        let come = &self.coming[self.begin..self.end];
        let Some((length, rest)) = come.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let read = self.noise.read_message(message, out).map_err(broken)?;
        self.begin += 2 + length;
        self.received += 1;
        if self.received.is_multiple_of(REKEY) {
            self.noise.rekey_incoming();
        }
        Ok(Some(read))
    }

    /// Waits for more to come.
    fn fill(&mut self, ticket: &Ticket) -> io::Result<()> {
        self.coming.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let read = patiently(ticket, || self.stream.read(&mut self.coming[self.end..]))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8], ticket: &Ticket) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = patiently(ticket, || self.stream.write(bytes))?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// Why a value did not come whole, for the user.
pub fn lost(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other agent closed the connection".to_owned(),
        _ => format!("the connection to the other agent broke: {error}"),
    }
}

/// Tries again until something passes, the transfer is given up, or the other side has been silent for too long.
fn patiently(ticket: &Ticket, mut pass: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let begun = Instant::now();
    loop {
        match pass() {
            Err(error) if is_pause(&error) => {}
            passed => return passed,
        }
        if ticket.is_cancelled() {
            return Err(io::Error::other("it was given up"));
        }
        if begun.elapsed() > SILENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nothing has passed for {} s", SILENCE.as_secs()),
            ));
        }
    }
}

/// Whether only the time to look has come.
fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tickets::{Tickets, Way};

    fn secret(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    async fn pair(ours: u8, theirs: u8) -> (io::Result<Channel>, io::Result<Greeted>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::join!(
            async {
                initiate(
                    tokio::net::TcpStream::connect(address).await?,
                    &secret(ours),
                )
                .await
            },
            async { respond(listener.accept().await?.0, &secret(theirs)).await }
        )
    }

    #[tokio::test]
    async fn a_file_passes_though_keys_are_replaced_on_the_way() {
        let (visitor, door) = pair(1, 1).await;
        let (mut visitor, door) = (visitor.unwrap(), door.unwrap());
        let content: Vec<u8> = (0..40 * PAYLOAD as u32 + 7)
            .map(|i| (i % 251) as u8)
            .collect();
        let (size, copy) = (content.len() as u64, content.clone());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1");
        let asking = tokio::task::spawn_blocking(move || {
            let ticket = Tickets::default().begin(1, Way::Away).unwrap();
            visitor.tell(&"give", &ticket).unwrap();
            let mut growing = Growing::segment(path.clone(), size).unwrap();
            visitor.receive(&mut growing, &ticket).unwrap();
            growing.finish().unwrap();
            std::fs::read(path).unwrap()
        });
        let (asked, mut channel): (String, _) = door.request().await.unwrap();
        assert_eq!(asked, "give");
        tokio::task::spawn_blocking(move || {
            let ticket = Tickets::default().begin(1, Way::Away).unwrap();
            channel.send(&mut &content[..], size, &ticket).unwrap();
            assert!(channel.sent > 4 * REKEY);
        })
        .await
        .unwrap();
        assert!(asking.await.unwrap() == copy);
    }

    #[tokio::test]
    async fn another_secret_opens_nothing_on_either_side() {
        let (visitor, door) = pair(1, 2).await;
        assert!(visitor.is_err() && door.is_err());
    }

    #[tokio::test]
    async fn a_recorded_greeting_is_no_proof() {
        let recorded = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
            let visit = tokio::spawn(async move { initiate(stream.await?, &secret(1)).await });
            let mut greeting = [0; GREETING];
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut greeting).await.unwrap();
            drop(stream);
            assert!(visit.await.unwrap().is_err());
            greeting
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut thief = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        thief.write_all(&recorded).await.unwrap();
        let greeted = respond(listener.accept().await.unwrap().0, &secret(1)).await;
        thief.write_all(&[0, 32]).await.unwrap();
        thief.write_all(&[7; 32]).await.unwrap();
        assert!(greeted.unwrap().request::<String>().await.is_err());
    }
}
