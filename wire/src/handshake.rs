//! The greeting: both sides say who they are, and refuse what they do not know, by name.

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::WireError;

/// The version of the program, and after a `+` the build of its wire, eight hexadecimal digits: the frames and messages
/// of both sides must be of the same.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("CELLFERRY_WIRE"));

/// The version of the greeting itself, which hardly ever changes.
const GREETING: u32 = 3;

const MAGIC: &[u8] = b"\0cellferry\n";

/// How much a login shell may print before the other side's greeting.
const NOISE: usize = 64 << 10;

/// The stream is all there is: nothing is resumed.
const PLAIN: u8 = 0;
/// A [`Conversation`] follows.
const RESUMABLE: u8 = 1;

/// What a side knows of a conversation that outlives its byte streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Which.
    pub id: [u8; 16],
    /// The end that greets.
    pub ours: Uuid,
    /// The other end, if it has ever greeted. Never nil.
    pub theirs: Option<Uuid>,
    /// Counts the byte streams that the end that greets was given, from 1.
    pub stream: u64,
    /// How many frames that count have been received.
    pub received: u64,
    /// The number of the first frame that can still be sent again.
    pub kept: u64,
    /// How many frames that count have been sent.
    pub sent: u64,
}

impl Conversation {
    const LENGTH: usize = 3 * 16 + 4 * 8;

    fn write(&self, out: &mut Vec<u8>) {
        out.put_slice(&self.id);
        out.put_slice(self.ours.as_bytes());
        out.put_slice(self.theirs.unwrap_or_default().as_bytes());
        out.put_u64(self.stream);
        out.put_u64(self.received);
        out.put_u64(self.kept);
        out.put_u64(self.sent);
    }

    fn read(source: &mut BytesMut) -> Self {
        let mut id = [0; 16];
        source.copy_to_slice(&mut id);
        let ours = Uuid::from_u128(source.get_u128());
        let theirs = Uuid::from_u128(source.get_u128());
        Self {
            id,
            ours,
            theirs: (!theirs.is_nil()).then_some(theirs),
            stream: source.get_u64(),
            received: source.get_u64(),
            kept: source.get_u64(),
            sent: source.get_u64(),
        }
    }
}

/// What came from the other side.
#[derive(Debug)]
pub struct Greeted {
    /// What it knows of the conversation; there if, and only if, we said what we know.
    pub conversation: Option<Conversation>,
    /// What was read beyond the greeting.
    pub beyond: BytesMut,
}

/// Greets, and waits for the other side's greeting.
pub async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    conversation: Option<&Conversation>,
) -> Result<Greeted, WireError> {
    let mut hello = MAGIC.to_vec();
    hello.put_u32(GREETING);
    hello.put_u8(u8::try_from(BUILD.len()).unwrap_or_default());
    hello.put_slice(BUILD.as_bytes());
    match conversation {
        None => hello.put_u8(PLAIN),
        Some(conversation) => {
            hello.put_u8(RESUMABLE);
            conversation.write(&mut hello);
        }
    }
    writer.write_all(&hello).await?;
    writer.flush().await?;

    let mut seen = BytesMut::new();
    let mut searched = 0;
    let start = loop {
        let found = seen[searched..]
            .windows(MAGIC.len())
            .position(|window| window == MAGIC);
        if let Some(start) = found {
            break searched + start;
        }
        if seen.len() > NOISE {
            return Err(no_greeting(&seen));
        }
        searched = seen.len().saturating_sub(MAGIC.len() - 1);
        if reader.read_buf(&mut seen).await? == 0 {
            return Err(end_of(&seen));
        }
    };
    seen.advance(start + MAGIC.len());
    fill(reader, &mut seen, 5).await?;
    let version = seen.get_u32();
    let length = usize::from(seen.get_u8());
    fill(reader, &mut seen, length).await?;
    let theirs = String::from_utf8_lossy(&seen.split_to(length)).into_owned();
    if version != GREETING || wire(&theirs) != wire(BUILD) {
        return Err(WireError::Build {
            theirs,
            ours: BUILD,
        });
    }
    fill(reader, &mut seen, 1).await?;
    let conversation = match (seen.get_u8(), conversation) {
        (PLAIN, None) => None,
        (RESUMABLE, Some(_)) => {
            fill(reader, &mut seen, Conversation::LENGTH).await?;
            Some(Conversation::read(&mut seen))
        }
        (PLAIN | RESUMABLE, _) => return Err(WireError::Unresumable),
        _ => return Err(WireError::Malformed("greeting: unknown kind")),
    };
    Ok(Greeted {
        conversation,
        beyond: seen,
    })
}

/// What of a build must be the same on both sides.
fn wire(build: &str) -> &str {
    build.rsplit_once('+').map_or("", |(_, wire)| wire)
}

async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    seen: &mut BytesMut,
    length: usize,
) -> Result<(), WireError> {
    while seen.len() < length {
        if reader.read_buf(seen).await? == 0 {
            return Err(WireError::Ended);
        }
    }
    Ok(())
}

/// The stream has ended: in the greeting or before anything, or after something else.
fn end_of(seen: &[u8]) -> WireError {
    let begun = (1..=MAGIC.len().min(seen.len())).any(|length| seen.ends_with(&MAGIC[..length]));
    if seen.is_empty() || begun {
        WireError::Ended
    } else {
        no_greeting(seen)
    }
}

fn no_greeting(seen: &[u8]) -> WireError {
    let start = String::from_utf8_lossy(&seen[..seen.len().min(200)])
        .trim()
        .to_owned();
    WireError::NoGreeting {
        limit: NOISE,
        start,
    }
}
