//! A byte stream made of files, for machines that share a directory and nothing else.
//!
//! Each side writes numbered pieces, which are renamed into place when they are whole, and removes the other's pieces
//! once it has read them. The end of a stream is a piece that is empty.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// The largest piece, in bytes.
const PIECE: usize = 1 << 20;

/// How many pieces may wait to be read.
const AHEAD: u64 = 8;

/// How often to look for the next piece: while something goes on, and else.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// How long something goes on after the last piece.
const BUSY: Duration = Duration::from_secs(5);

/// Who writes where.
const TO_NODE: &str = "to-node";
const FROM_NODE: &str = "from-node";

/// How long what the other side still says may take once this one has ended.
const LINGER: Duration = Duration::from_secs(30);

/// One end of a mailbox.
#[derive(Debug)]
pub struct Mailbox {
    /// What goes with it, at the end that has made it.
    own: Option<Own>,
    inbox: Inbox,
    outbox: Outbox,
}

/// A directory that goes with its owner.
#[derive(Debug)]
struct Own(PathBuf);

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::info!("a mailbox stays: {error}");
        }
    }
}

#[derive(Debug)]
struct Inbox {
    directory: PathBuf,
    next: u64,
    last: Instant,
}

#[derive(Debug)]
struct Outbox {
    directory: PathBuf,
    next: u64,
}

impl Mailbox {
    /// A new one, made by a node: `mail` is the directory of all.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn open(mail: &Path, node: u32) -> io::Result<Self> {
        let name = format!("{node}-{}", uuid::Uuid::new_v4().simple());
        let begun = mail.join(format!(".{name}"));
        for side in [TO_NODE, FROM_NODE] {
            fs::create_dir_all(begun.join(side)).await?;
        }
        let path = mail.join(name);
        fs::rename(begun, &path).await?;
        let own = Some(Own(path.clone()));
        Ok(Self {
            own,
            ..Self::between(&path, TO_NODE, FROM_NODE)
        })
    }

    fn between(path: &Path, from: &str, to: &str) -> Self {
        Self {
            own: None,
            inbox: Inbox {
                directory: path.join(from),
                next: 0,
                last: Instant::now(),
            },
            outbox: Outbox {
                directory: path.join(to),
                next: 0,
            },
        }
    }

    /// Says something short.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn tell(&mut self, what: &impl Serialize) -> io::Result<()> {
        self.outbox.put(&serde_json::to_vec(what)?).await
    }

    /// Hears something short.
    ///
    /// # Errors
    /// If it cannot be read, or the other side has ended.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let piece = self.inbox.take().await?;
        Ok(serde_json::from_slice(&piece)?)
    }

    /// What follows, as a stream, and what ends with it.
    pub fn into_stream(self) -> (DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = tokio::io::duplex(PIECE);
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let Self {
            own,
            mut inbox,
            mut outbox,
        } = self;
        let over = tokio::spawn(async move {
            let _own = own;
            let posting = async {
                let mut piece = vec![0; PIECE];
                loop {
                    let read = reader.read(&mut piece).await?;
                    outbox.put(&piece[..read]).await?;
                    if read == 0 {
                        return Ok::<_, io::Error>(());
                    }
                }
            };
            let fetching = async {
                loop {
                    let piece = inbox.take().await?;
                    if piece.is_empty() {
                        return writer.shutdown().await;
                    }
                    writer.write_all(&piece).await?;
                }
            };
            let (mut posting, mut fetching) = (std::pin::pin!(posting), std::pin::pin!(fetching));
            let ended = tokio::select! {
                fetched = &mut fetching => match fetched {
                    Ok(()) => posting.await,
                    error => error,
                },
                posted = &mut posting => match posted {
                    Ok(()) => timeout(LINGER, fetching).await.unwrap_or(Ok(())),
                    error => error,
                },
            };
            if let Err(error) = ended {
                tracing::info!("a mailbox ended: {error}");
            }
        });
        (ours, over)
    }
}

fn piece(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}"))
}

impl Outbox {
    async fn put(&mut self, content: &[u8]) -> io::Result<()> {
        if let Some(before) = self.next.checked_sub(AHEAD) {
            while fs::try_exists(piece(&self.directory, before)).await? {
                sleep(LOOK.0).await;
            }
        }
        let begun = self.directory.join(".begun");
        fs::write(&begun, content).await?;
        fs::rename(begun, piece(&self.directory, self.next)).await?;
        self.next += 1;
        Ok(())
    }
}

impl Inbox {
    /// The next piece, once it is there.
    async fn take(&mut self) -> io::Result<Vec<u8>> {
        let path = piece(&self.directory, self.next);
        loop {
            match fs::read(&path).await {
                Ok(content) => {
                    fs::remove_file(&path).await?;
                    self.next += 1;
                    self.last = Instant::now();
                    return Ok(content);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            // A network file system remembers for a while that a file is not there, unless the directory is read.
            fs::read_dir(&self.directory).await?.next_entry().await?;
            let busy = self.last.elapsed() < BUSY;
            sleep(if busy { LOOK.0 } else { LOOK.1 }).await;
        }
    }
}

/// All mailboxes of an allocation, as the gate finds them.
#[derive(Debug)]
pub struct Mailboxes {
    directory: PathBuf,
    known: HashSet<String>,
}

impl Mailboxes {
    /// Those in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            known: HashSet::new(),
        }
    }

    /// The gate's end of those that are new, by their nodes.
    pub async fn opened(&mut self) -> Vec<(u32, Mailbox)> {
        let mut opened = Vec::new();
        let Ok(mut entries) = fs::read_dir(&self.directory).await else {
            return opened;
        };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let node = name.split_once('-').and_then(|(node, _)| node.parse().ok());
            if let Some(node) = node
                && self.known.insert(name)
            {
                let mailbox = Mailbox::between(&entry.path(), FROM_NODE, TO_NODE);
                opened.push((node, mailbox));
            }
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_posted_arrives_in_order_and_nothing_is_left() {
        let mail = tempfile::tempdir().unwrap();
        let mut node = Mailbox::open(mail.path(), 7).await.unwrap();
        let mut mailboxes = Mailboxes::new(mail.path().to_owned());
        let (number, mut gate) = mailboxes.opened().await.pop().unwrap();
        assert_eq!(number, 7);
        assert!(mailboxes.opened().await.is_empty());
        gate.tell(&"go").await.unwrap();
        assert_eq!(node.hear::<String>().await.unwrap(), "go");
        let ((mut node, node_over), (mut gate, _)) = (node.into_stream(), gate.into_stream());
        let content: Vec<u8> = (0..5 * PIECE as u32).map(|i| (i % 251) as u8).collect();
        let sent = content.clone();
        let sending = tokio::spawn(async move {
            node.write_all(&sent).await.unwrap();
            node.shutdown().await.unwrap();
            let mut answer = String::new();
            node.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        gate.read_to_end(&mut received).await.unwrap();
        assert!(received == content);
        gate.write_all(b"thanks").await.unwrap();
        gate.shutdown().await.unwrap();
        assert_eq!(sending.await.unwrap(), "thanks");
        node_over.await.unwrap();
        assert_eq!(std::fs::read_dir(mail.path()).unwrap().count(), 0);
    }
}
