//! Prompts of the system's `ssh` program on their way to the user.
//!
//! `ssh` starts a program for each prompt (`SSH_ASKPASS`): ours, which hands the prompt over a private socket and
//! prints what comes back. So no secret is in an argument, an environment or a file.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use zeroize::Zeroizing;

use crate::ask::{Ask, Question};
use crate::auth::printable;

/// Names the socket. Set only for `ssh`, and for what it starts.
pub(crate) const SOCKET: &str = "CELLFERRY_ASKPASS_SOCKET";

/// The first byte of an answer.
const GIVEN: u8 = 1;

/// Prompts are short. Bytes.
const LIMIT: u64 = 64 * 1024;

/// Passes a prompt of `ssh` on, if that is what this process was started for; returns its exit status then.
///
/// A program that uses the openssh transport calls it first in `main`.
pub fn askpass_main() -> Option<i32> {
    let socket = PathBuf::from(std::env::var_os(SOCKET)?);
    let prompt = std::env::args_os().nth(1).unwrap_or_default();
    Some(
        match pass_on(&socket, prompt.to_string_lossy().as_bytes()) {
            Ok(true) => 0,
            Ok(false) | Err(_) => 1,
        },
    )
}

fn pass_on(socket: &Path, prompt: &[u8]) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(prompt)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Zeroizing::new(Vec::with_capacity(1024));
    stream.read_to_end(&mut answer)?;
    let Some((&GIVEN, text)) = answer.split_first() else {
        return Ok(false);
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(true)
}

/// Answers prompts until it is dropped.
pub(crate) async fn answer(listener: UnixListener, ask: Arc<dyn Ask>) {
    // One at a time: that is how a user answers.
    while let Ok((stream, _)) = listener.accept().await {
        // A helper that goes away in the middle gets no answer.
        let _ = answer_one(stream, ask.as_ref()).await;
    }
}

async fn answer_one(mut stream: tokio::net::UnixStream, ask: &dyn Ask) -> std::io::Result<()> {
    let mut prompt = Vec::new();
    (&mut stream).take(LIMIT).read_to_end(&mut prompt).await?;
    let text = printable(&String::from_utf8_lossy(&prompt));
    // `ssh` does not tell which answers may be seen; this is the one question where it matters to see it.
    let echo = text.contains("(yes/no") || text.contains("'yes', 'no'");
    if let Some(answer) = ask.ask(Question { text, echo }).await {
        stream.write_all(&[GIVEN]).await?;
        stream.write_all(answer.as_bytes()).await?;
    }
    stream.shutdown().await
}
