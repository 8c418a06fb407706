//! Where the commands of a batch system are run: on this machine, or on a host that is reached by ssh.
//!
//! What is run is a script that a shell reads from its input, so that nothing of it shows in any list of processes, and the
//! login shell of a far host may be any.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Client, Exit, SshError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How much a script may print, on each of its two outputs. Bytes.
const MOST: u64 = 16 << 20;

/// What reads a script from its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// The system's shell, without any of the user's files.
    Plain,
    /// A login shell, which knows what a site's or a user's profile adds to `PATH`; slower.
    Login,
}

impl Interpreter {
    /// As a command line that every login shell takes alike.
    fn command(self) -> &'static str {
        match self {
            Self::Plain => "exec sh -s",
            Self::Login => "exec bash -l -s",
        }
    }
}

/// What a script did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// What it exited with; `None` if a signal ended it.
    pub code: Option<u32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Why nobody knows what a script did.
#[derive(Debug, Error)]
pub enum ShellError {
    /// It was not started.
    #[error("no shell could be started: {0}")]
    NotStarted(#[source] std::io::Error),
    /// It was not started, for the host is not reached.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The connection was lost before its end. It may have done its work.
    #[error("the connection was lost before it ended")]
    Lost,
    /// It took too long. It may still do its work.
    #[error("it did not end within {}{}", humantime::format_duration(*.limit), after(.said))]
    Slow {
        /// How long it had.
        limit: Duration,
        /// What it had complained about by then.
        said: String,
    },
}

fn after(said: &str) -> String {
    match said.trim() {
        "" => String::new(),
        said => format!("; it said: {said}"),
    }
}

/// Runs scripts in one place.
#[async_trait]
pub trait Shell: Send + Sync {
    /// The place's name, for messages.
    fn place(&self) -> &str;

    /// Runs a script, for at most so long.
    ///
    /// # Errors
    /// If it is not known what it did. That it failed is no error.
    async fn run(
        &self,
        interpreter: Interpreter,
        script: &str,
        limit: Duration,
    ) -> Result<Output, ShellError>;
}

/// This machine.
#[derive(Debug)]
pub struct Here;

#[async_trait]
impl Shell for Here {
    fn place(&self) -> &str {
        "this machine"
    }

    async fn run(
        &self,
        interpreter: Interpreter,
        script: &str,
        limit: Duration,
    ) -> Result<Output, ShellError> {
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", interpreter.command()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(ShellError::NotStarted)?;
        let missing = || ShellError::NotStarted(std::io::Error::other("it has no pipes"));
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let ended = async {
            let status = child.wait().await.map_err(|_| ShellError::Lost)?;
            Ok(status.code().and_then(|code| u32::try_from(code).ok()))
        };
        collect(script, limit, stdin, stdout, stderr, ended).await
    }
}

/// A host that is reached by ssh.
#[derive(Debug)]
pub struct There {
    /// The connection.
    pub client: Arc<Client>,
}

#[async_trait]
impl Shell for There {
    fn place(&self) -> &str {
        &self.client.host().name
    }

    async fn run(
        &self,
        interpreter: Interpreter,
        script: &str,
        limit: Duration,
    ) -> Result<Output, ShellError> {
        let mut process = self.client.exec(interpreter.command()).await?;
        let ended = async {
            match process.exit.wait().await {
                Exit::Code(code) => Ok(Some(code)),
                Exit::Signal { .. } => Ok(None),
                Exit::Lost => Err(ShellError::Lost),
            }
        };
        collect(
            script,
            limit,
            process.stdin,
            process.stdout,
            process.stderr,
            ended,
        )
        .await
    }
}

/// Feeds a shell its script and waits for all that it says.
async fn collect(
    script: &str,
    limit: Duration,
    mut stdin: impl AsyncWrite + Unpin,
    stdout: impl AsyncRead + Unpin,
    stderr: impl AsyncRead + Unpin,
    ended: impl Future<Output = Result<Option<u32>, ShellError>>,
) -> Result<Output, ShellError> {
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let done = async {
        let fed = async {
            // A shell that ends before it has read all of it says more by its exit code.
            let _ = stdin.write_all(script.as_bytes()).await;
            let _ = stdin.shutdown().await;
            drop(stdin);
        };
        let (code, printed, complained, ()) = tokio::join!(
            ended,
            read(stdout, &mut printed),
            read(stderr, &mut complained),
            fed
        );
        let code = code?;
        if printed.is_err() || complained.is_err() {
            return Err(ShellError::Lost);
        }
        Ok(code)
    };
    match tokio::time::timeout(limit, done).await {
        Ok(code) => Ok(Output {
            code: code?,
            stdout: String::from_utf8_lossy(&printed).into_owned(),
            stderr: String::from_utf8_lossy(&complained).into_owned(),
        }),
        Err(_) => Err(ShellError::Slow {
            limit,
            said: String::from_utf8_lossy(&complained).into_owned(),
        }),
    }
}

/// Reads all, and keeps the beginning of it.
async fn read(mut stream: impl AsyncRead + Unpin, kept: &mut Vec<u8>) -> std::io::Result<()> {
    (&mut stream).take(MOST).read_to_end(kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

/// A word as every POSIX shell takes it, whatever is in it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The lines that give `text` to a command as its input; they follow the command's line.
pub fn input(text: &str) -> (String, String) {
    // No line of a text is its own hash.
    let end = format!("END_{}", &blake3::hash(text.as_bytes()).to_hex()[..32]);
    let newline = if text.ends_with('\n') || text.is_empty() {
        ""
    } else {
        "\n"
    };
    (format!("<<'{end}'"), format!("\n{text}{newline}{end}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str) -> Result<Output, ShellError> {
        Here.run(Interpreter::Plain, script, Duration::from_secs(20))
            .await
    }

    #[tokio::test]
    async fn a_script_says_what_it_did() {
        let output = run("echo out; echo bad >&2; exit 3").await.unwrap();
        let expected = Output {
            code: Some(3),
            stdout: "out\n".to_owned(),
            stderr: "bad\n".to_owned(),
        };
        assert_eq!(output, expected);
        assert_eq!(run("kill -9 $$").await.unwrap().code, None);
    }

    #[tokio::test]
    async fn a_script_that_takes_too_long_is_given_up_with_what_it_said() {
        let start = std::time::Instant::now();
        let script = "echo waiting >&2; exec sleep 1000";
        let error = Here
            .run(Interpreter::Plain, script, Duration::from_millis(300))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "it did not end within 300ms; it said: waiting"
        );
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn what_prints_more_than_anybody_wants_does_not_fill_the_memory() {
        let output = run("head -c 40000000 /dev/zero; exit 0").await.unwrap();
        assert_eq!(output.stdout.len() as u64, MOST);
    }

    #[tokio::test]
    async fn words_and_texts_pass_as_they_are() {
        let odd = "a'b \"$HOME\" \\ `id`\t*\nEND é";
        for word in ["", "plain", odd] {
            let said = run(&format!("printf %s {}", quoted(word))).await.unwrap();
            assert_eq!(said.stdout, word);
        }
        let (redirection, lines) = input(&format!("{odd}\n"));
        let said = run(&format!("cat {redirection}{lines}")).await.unwrap();
        assert_eq!(said.stdout, format!("{odd}\n"));
    }
}
