//! Agents on the nodes of a batch job, reached through the gate. Here all are processes of one machine.

use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{Connection, Line, WireError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::common::*;

/// A job: its directory, and the agents of its nodes.
struct Job {
    folder: tempfile::TempDir,
    directory: PathBuf,
    nodes: Vec<Child>,
    patience: u64,
}

/// A kernel's side of its conversation with one node.
struct Kernel {
    connection: Remote,
    line: Line,
    conversation: String,
}

/// One `reach`, and the task that carries the conversation over it.
struct Link {
    process: Child,
    carrying: tokio::task::JoinHandle<Result<(), WireError>>,
}

impl Job {
    fn new(patience: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder
            .path()
            .join(uuid::Uuid::new_v4().simple().to_string());
        DirBuilder::new().mode(0o700).create(&directory).unwrap();
        std::fs::write(directory.join("secret"), uuid::Uuid::new_v4().to_string()).unwrap();
        // The batch system does not answer the first time.
        let cancels = folder.path().join("cancels").display().to_string();
        let cancel = format!("echo cancel >> {cancels}; [ \"$(cat {cancels} | wc -l)\" = 2 ]");
        std::fs::write(directory.join("cancel"), cancel).unwrap();
        std::fs::copy(agent_program().get_program(), directory.join("agent")).unwrap();
        Self {
            folder,
            directory,
            nodes: Vec::new(),
            patience,
        }
    }

    fn node(&mut self, number: u32) {
        let program = self.directory.join("agent");
        let node = tokio::process::Command::new(program)
            .arg("node")
            .arg("--allocation")
            .arg(&self.directory)
            .args(["--patience", &self.patience.to_string()])
            .env("SLURM_NODEID", number.to_string())
            .env("CELLFERRY_LOG", "info,zeromq=error")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.nodes.push(node.unwrap());
    }

    fn link(&self, node: u32, kernel: &Kernel) -> Link {
        let mut process = tokio::process::Command::from(agent_program())
            .arg("reach")
            .arg("--allocation")
            .arg(&self.directory)
            .args(["--node", &node.to_string()])
            .args(["--conversation", &kernel.conversation])
            .args(["--patience", &self.patience.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (writer, reader) = (
            process.stdin.take().unwrap(),
            process.stdout.take().unwrap(),
        );
        let line = kernel.line.clone();
        let carrying = tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            let mut found = String::new();
            while !found.ends_with("cellferry: found\n") {
                if reader.read_line(&mut found).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
            line.carry(reader, writer).await
        });
        Link { process, carrying }
    }

    fn gates(&self) -> Vec<u32> {
        let id = self.directory.file_name().unwrap().to_str().unwrap();
        running(&["gate", id])
    }

    /// Nothing is left once nobody has come for long enough.
    async fn ends(mut self) {
        for mut node in std::mem::take(&mut self.nodes) {
            assert_eq!(node.wait().await.unwrap().code(), Some(75));
        }
        eventually("the gate ends", || self.gates().is_empty()).await;
        let cancels = std::fs::read_to_string(self.folder.path().join("cancels"));
        assert_eq!(cancels.unwrap(), "cancel\ncancel\n");
        assert!(!self.directory.exists());
    }
}

/// Processes of which the command line has all these words in it.
fn running(words: &[&str]) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        words.iter().all(|word| line.contains(word)) && alive(*pid)
    })
    .collect()
}

impl Kernel {
    fn new() -> Self {
        let conversation = uuid::Uuid::new_v4();
        let (connection, line) = Connection::resumable(*conversation.as_bytes());
        Self {
            connection,
            line,
            conversation: conversation.simple().to_string(),
        }
    }

    async fn send(&self, command: ToAgent) {
        assert!(self.connection.sender.send(command).await);
    }

    async fn worker(&mut self) -> u32 {
        let spec = spec();
        let start = ToAgent::StartWorker {
            worker: WORKER,
            spec,
        };
        self.send(start).await;
        loop {
            match next(&mut self.connection).await {
                FromAgent::WorkerUp { pid, .. } => return pid,
                FromAgent::WorkerFailed { failure, .. } => panic!("{failure}"),
                _ => {}
            }
        }
    }

    async fn printed(&mut self, id: &str) -> String {
        let mut printed = String::new();
        loop {
            let FromAgent::Received { parts, .. } = next(&mut self.connection).await else {
                continue;
            };
            let (header, parent, content) =
                (json_of(&parts[0]), json_of(&parts[1]), json_of(&parts[3]));
            if parent["msg_id"] != id {
                continue;
            }
            match header["msg_type"].as_str() {
                Some("stream") => printed += content["text"].as_str().unwrap(),
                Some("status") if content["execution_state"] == "idle" => return printed,
                _ => {}
            }
        }
    }

    /// Runs a cell that prints in pieces while links come and go.
    async fn counts(&mut self, job: &Job, node: u32, mut link: Link) -> Link {
        let code =
            "import time\nfor i in range(100):\n    print(i, flush=True)\n    time.sleep(0.02)";
        self.send(execute("count", code)).await;
        for _ in 0..3 {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            link.process.kill().await.unwrap();
            assert!(link.carrying.await.unwrap().unwrap_err().is_lost_link());
            link = job.link(node, self);
        }
        let all: String = (0..100).map(|i| format!("{i}\n")).collect();
        assert_eq!(self.printed("count").await, all);
        link
    }
}

#[tokio::test]
async fn nodes_are_reached_and_outlive_their_links() {
    let mut job = Job::new(3);
    job.node(0);
    job.node(1);
    let (mut first, mut second) = (Kernel::new(), Kernel::new());
    let mut links = vec![job.link(0, &first), job.link(1, &second)];
    let one = hello(&mut first.connection).await;
    let other = hello(&mut second.connection).await;
    assert_ne!(one.segment_dir, other.segment_dir);
    first.worker().await;
    let link = links.remove(0);
    links.push(first.counts(&job, 0, link).await);
    assert_eq!(job.gates().len(), 1);
    drop(links);
    job.ends().await;
    assert!(!Path::new(&one.segment_dir).exists());
}

#[tokio::test]
async fn the_next_kernel_takes_a_node_over() {
    let mut job = Job::new(4);
    job.node(0);
    let mut first = Kernel::new();
    let _gone = job.link(0, &first);
    hello(&mut first.connection).await;
    let worker = first.worker().await;
    // The first one does not even end: its link hangs.
    let mut second = Kernel::new();
    let link = job.link(0, &second);
    hello(&mut second.connection).await;
    eventually("the first one's worker is gone", || !alive(worker)).await;
    second.worker().await;
    // When it says that it is done, the node waits for another.
    second.send(ToAgent::Shutdown).await;
    second.connection.sender.finish();
    link.carrying.await.unwrap().unwrap();
    let mut third = Kernel::new();
    let _link = job.link(0, &third);
    hello(&mut third.connection).await;
    let node = Pid::from_raw(job.nodes[0].id().unwrap().try_into().unwrap());
    kill(node, Signal::SIGTERM).unwrap();
    let mut node = job.nodes.remove(0);
    assert_eq!(node.wait().await.unwrap().code(), Some(0));
    drop(_link);
    drop(_gone);
    job.ends().await;
}

#[tokio::test]
async fn a_node_that_cannot_reach_the_gate_uses_the_mailbox() {
    let mut job = Job::new(3);
    let mut kernel = Kernel::new();
    let link = job.link(0, &kernel);
    let told = job.directory.join("gate");
    eventually("the gate tells where it is", || told.exists()).await;
    std::fs::write(&told, r#"["127.0.0.1:1"]"#).unwrap();
    job.node(0);
    hello(&mut kernel.connection).await;
    kernel.worker().await;
    let link = kernel.counts(&job, 0, link).await;
    drop(link);
    let mail = job.directory.join("mail");
    for mut node in std::mem::take(&mut job.nodes) {
        assert_eq!(node.wait().await.unwrap().code(), Some(75));
    }
    // Maybe the gate has removed all of it already.
    assert_eq!(std::fs::read_dir(mail).map_or(0, Iterator::count), 0);
    job.ends().await;
}

#[tokio::test]
async fn a_stranger_is_not_let_in() {
    let job = Job::new(2);
    let kernel = Kernel::new();
    let link = job.link(0, &kernel);
    let told = job.directory.join("gate");
    eventually("the gate tells where it is", || told.exists()).await;
    let addresses: Vec<std::net::SocketAddr> =
        serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    let mut stranger = std::net::TcpStream::connect(addresses[0]).unwrap();
    let limit = Some(std::time::Duration::from_secs(30));
    stranger.set_read_timeout(limit).unwrap();
    std::io::Write::write_all(&mut stranger, &[7; 48]).unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
    drop(link);
    job.ends().await;
}
