//! Which ranks see the agent's own directories, and how the others get what lies there: their node has copies, at other
//! paths, and what is sent to them names those.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cellferry_kernel::message::Message;
use cellferry_wire::Sender;
use cellferry_wire::protocol::{FilePath, PIECE, ToAgent};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::Directory;
use super::meeting::Came;
use crate::mapped::Mapped;

/// The numbers of files on their way to a node begin here; values have the kernel's.
const FILES: u64 = 1 << 62;

/// What must be on a node: `None` until that is decided, then why it is not, if it is not.
pub type Brought = watch::Receiver<Option<Result<(), String>>>;

/// All machines of an island.
pub struct Nodes {
    /// The agent's directories: its own, and that of values.
    own: [PathBuf; 2],
    nodes: Vec<Node>,
    /// The node of each rank.
    of: Vec<usize>,
    files: u64,
}

/// Ranks that see each other's directories.
struct Node {
    /// The rank that takes what is brought.
    keeper: usize,
    sender: Sender<ToAgent>,
    /// The keeper's directories, in the place of the agent's; `None` where those are seen.
    spelled: Option<[PathBuf; 2]>,
    coming: HashMap<u64, watch::Sender<Option<Result<(), String>>>>,
}

impl Nodes {
    /// Those of the ranks, in their order.
    pub fn new(own: &[Directory; 2], ranks: &[Came]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let (mut nodes, mut of) = (Vec::new(), Vec::new());
        for (rank, came) in ranks.iter().enumerate() {
            let name = if came.visit.sees {
                ""
            } else {
                &came.visit.node
            };
            let index = match names.iter().position(|other| *other == name) {
                Some(index) => index,
                None => {
                    names.push(name);
                    let hello = &came.hello;
                    nodes.push(Node {
                        keeper: rank,
                        sender: came.sender.clone(),
                        spelled: (!came.visit.sees)
                            .then(|| [&hello.run_dir, &hello.segment_dir].map(PathBuf::from)),
                        coming: HashMap::new(),
                    });
                    nodes.len() - 1
                }
            };
            of.push(index);
        }
        Self {
            own: own.clone().map(|directory| directory.path),
            nodes,
            of,
            files: FILES,
        }
    }

    /// Whether a rank sees what the agent sees.
    pub fn sees(&self, rank: usize) -> bool {
        self.nodes[self.of[rank]].spelled.is_none()
    }

    /// A message with the agent's directories called as they are where a rank is.
    pub fn spell(&self, rank: usize, message: &Message) -> Message {
        let Some(spelled) = &self.nodes[self.of[rank]].spelled else {
            return message.clone();
        };
        let mut message = message.clone();
        for part in [&mut message.metadata, &mut message.content] {
            for (from, to) in self.own.iter().zip(spelled) {
                *part = replaced(part, &from.to_string_lossy(), &to.to_string_lossy());
            }
        }
        message
    }

    /// Brings the values to a rank's node that a cell's orders put there from files.
    pub fn bring_values(&mut self, rank: usize, metadata: &[u8]) -> Vec<Brought> {
        if self.sees(rank) {
            return Vec::new();
        }
        let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
        let actions = metadata["cellferry"]["actions"].as_array();
        let paths = actions
            .into_iter()
            .flatten()
            .filter(|action| action["place"] == "segment")
            .filter_map(|action| action["segment"].as_str());
        let transfers = paths.filter_map(|path| {
            let path = Path::new(path);
            Some((path.file_name()?.to_str()?.parse().ok()?, path.to_owned()))
        });
        let transfers: Vec<(u64, PathBuf)> = transfers.collect();
        transfers
            .into_iter()
            .map(|(transfer, path)| {
                self.bring(rank, transfer, path, move |transfer, size| {
                    ToAgent::Receive { transfer, size }
                })
            })
            .collect()
    }

    /// Brings all files below a directory of the agent's own to a rank's node.
    pub fn bring_files(&mut self, rank: usize, folder: &str) -> Vec<Brought> {
        let Some(spelled) = &self.nodes[self.of[rank]].spelled else {
            return Vec::new();
        };
        let (from, to) = (self.own[0].join(folder), spelled[0].join(folder));
        let mut brought = Vec::new();
        for path in files_below(&from) {
            let Ok(name) = path.strip_prefix(&from) else {
                continue;
            };
            let file = FilePath {
                base: None,
                path: to.join(name).display().to_string(),
            };
            let mode = path
                .metadata()
                .map_or(0o600, |found| found.permissions().mode());
            self.files += 1;
            let coming = self.bring(rank, self.files, path, move |transfer, size| {
                ToAgent::ReceiveFile {
                    transfer,
                    path: file.clone(),
                    mode,
                    size,
                }
            });
            brought.push(coming);
        }
        brought
    }

    fn bring(
        &mut self,
        rank: usize,
        transfer: u64,
        path: PathBuf,
        announce: impl FnOnce(u64, u64) -> ToAgent + Send + 'static,
    ) -> Brought {
        let node = &mut self.nodes[self.of[rank]];
        if let Some(coming) = node.coming.get(&transfer) {
            return coming.subscribe();
        }
        let (told, brought) = watch::channel(None);
        let (sender, outcome) = (node.sender.clone(), told.clone());
        node.coming.insert(transfer, told);
        tokio::spawn(async move {
            if let Err(error) = upload(&sender, transfer, path, announce).await {
                let _ = outcome.send(Some(Err(error.to_string())));
            }
        });
        brought
    }

    /// A keeper has something, or cannot.
    pub fn brought(&mut self, keeper: usize, transfer: u64, outcome: Result<(), String>) {
        let node = self.nodes.iter().find(|node| node.keeper == keeper);
        if let Some(told) = node.and_then(|node| node.coming.get(&transfer)) {
            let _ = told.send(Some(outcome));
        }
    }

    /// What was brought for a cell is not needed any more: whoever mapped a value keeps its memory.
    pub fn forget(&mut self) {
        for node in &mut self.nodes {
            let transfers: Vec<u64> = node.coming.drain().map(|(transfer, _)| transfer).collect();
            if !transfers.is_empty() {
                node.sender.queue(ToAgent::Forget { transfers });
            }
        }
    }

    /// Where a value is whose path a worker was given.
    pub fn value(&self, transfer: u64) -> PathBuf {
        self.own[1].join(transfer.to_string())
    }
}

/// The same bytes with one text in the place of another. The directories' names are random, so nothing else is meant.
fn replaced(part: &Bytes, from: &str, to: &str) -> Bytes {
    match std::str::from_utf8(part) {
        Ok(text) if text.contains(from) => Bytes::from(text.replace(from, to)),
        _ => part.clone(),
    }
}

async fn upload(
    sender: &Sender<ToAgent>,
    transfer: u64,
    path: PathBuf,
    announce: impl FnOnce(u64, u64) -> ToAgent,
) -> std::io::Result<()> {
    let opened = spawn_blocking(move || Mapped::new(File::open(path)?)).await;
    let value = opened.map_err(std::io::Error::other)??;
    sender.queue(announce(transfer, value.size()));
    for offset in (0..value.size()).step_by(PIECE) {
        for bytes in value.piece(offset)? {
            if !sender.send(ToAgent::Data { transfer, bytes }).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_is_spelled_otherwise() {
        let part =
            Bytes::from_static(br#"{"segment": "/dev/shm/cellferry-1a/7", "x": "cellferry"}"#);
        assert_eq!(
            replaced(&part, "/dev/shm/cellferry-1a", "/tmp/cellferry-2b"),
            Bytes::from_static(br#"{"segment": "/tmp/cellferry-2b/7", "x": "cellferry"}"#)
        );
    }
}
