//! The greeting: both sides say who they are, and refuse what they do not know, by name.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::WireError;

/// The version of the frames and messages; both sides must have the same.
pub const WIRE_VERSION: u32 = 1;

/// The version of the program, for messages.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

const MAGIC: &[u8] = b"\0cellferry\n";

/// How much a login shell may print before the other side's greeting.
const NOISE: usize = 64 << 10;

/// Greets, and waits for the other side's greeting. Returns what was read beyond it.
pub async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<BytesMut, WireError> {
    let program = PROGRAM_VERSION.as_bytes();
    let mut hello = MAGIC.to_vec();
    hello.extend_from_slice(&WIRE_VERSION.to_be_bytes());
    hello.push(u8::try_from(program.len()).unwrap_or_default());
    hello.extend_from_slice(program);
    writer.write_all(&hello).await?;
    writer.flush().await?;

    let mut seen = BytesMut::new();
    let start = loop {
        if let Some(start) = seen.windows(MAGIC.len()).position(|window| window == MAGIC) {
            break start;
        }
        if seen.len() > NOISE {
            return Err(no_greeting(&seen));
        }
        if reader.read_buf(&mut seen).await? == 0 {
            return Err(no_greeting(&seen));
        }
    };
    seen.advance(start + MAGIC.len());
    while seen.len() < 5 || seen.len() < 5 + usize::from(seen[4]) {
        if reader.read_buf(&mut seen).await? == 0 {
            return Err(WireError::Malformed("greeting: it ends in the middle"));
        }
    }
    let theirs = seen.get_u32();
    let length = usize::from(seen.get_u8());
    let program = String::from_utf8_lossy(&seen.split_to(length)).into_owned();
    if theirs != WIRE_VERSION {
        return Err(WireError::Version {
            theirs,
            ours: WIRE_VERSION,
            program,
        });
    }
    Ok(seen)
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
