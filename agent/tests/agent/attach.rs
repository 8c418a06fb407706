//! An agent that outlives its links.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cellferry_wire::protocol::{Channel, FromAgent, Hello, ToAgent};
use cellferry_wire::{Connection, Line, WireError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, read};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::time::timeout;

use crate::common::*;

/// The kernel's side of one conversation.
struct Kernel {
    connection: Remote,
    line: Line,
    name: String,
    patience: u64,
}

/// One `attach`, and the task that carries the conversation over it.
struct Link {
    process: Child,
    carrying: tokio::task::JoinHandle<Result<(), WireError>>,
}

impl Kernel {
    fn new(patience: u64) -> Self {
        let conversation = uuid::Uuid::new_v4();
        let (connection, line) = Connection::resumable(*conversation.as_bytes());
        Self {
            connection,
            line,
            name: conversation.simple().to_string(),
            patience,
        }
    }

    fn command(&self, existing: bool) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(agent_program());
        command
            .args(["attach", "--conversation", &self.name])
            .args(["--patience", &self.patience.to_string()])
            .args(existing.then_some("--existing"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn link(&self, existing: bool) -> Link {
        let mut process = self.command(existing).spawn().unwrap();
        let (writer, reader) = (
            process.stdin.take().unwrap(),
            process.stdout.take().unwrap(),
        );
        let line = self.line.clone();
        let carrying = tokio::spawn(async move { line.carry(reader, writer).await });
        Link { process, carrying }
    }

    async fn hello(&mut self) -> Hello {
        hello(&mut self.connection).await
    }

    async fn send(&self, command: ToAgent) {
        assert!(self.connection.sender.send(command).await);
    }

    async fn next(&mut self) -> FromAgent {
        next(&mut self.connection).await
    }

    async fn worker(&mut self) -> u32 {
        self.send(ToAgent::StartWorker {
            worker: WORKER,
            spec: spec(),
        })
        .await;
        loop {
            match self.next().await {
                FromAgent::WorkerUp { pid, .. } => return pid,
                FromAgent::WorkerFailed { failure, .. } => panic!("{failure}"),
                _ => {}
            }
        }
    }

    /// Waits until the worker has begun with a cell.
    async fn begun(&mut self, id: &str) {
        loop {
            if let FromAgent::Received { parts, .. } = self.next().await
                && json_of(&parts[1])["msg_id"] == id
            {
                return;
            }
        }
    }

    /// What a cell prints, until its idle.
    async fn printed(&mut self, id: &str) -> String {
        let mut printed = String::new();
        loop {
            let FromAgent::Received { parts, .. } = self.next().await else {
                continue;
            };
            let (header, parent, content) =
                (json_of(&parts[0]), json_of(&parts[1]), json_of(&parts[3]));
            if parent["msg_id"] != id {
                continue;
            }
            match header["msg_type"].as_str().unwrap() {
                "stream" => printed += content["text"].as_str().unwrap(),
                "status" if content["execution_state"] == "idle" => return printed,
                _ => {}
            }
        }
    }

    /// Asks the agent to end, and waits until nothing of it is left.
    async fn end(self, hello: &Hello) {
        self.send(ToAgent::Shutdown).await;
        self.connection.sender.finish();
        gone(hello).await;
    }
}

impl Link {
    /// As if the network or the login had gone.
    async fn cut(mut self) {
        self.process.kill().await.unwrap();
        let ended = timeout(LIMIT, self.carrying).await.unwrap().unwrap();
        assert!(ended.unwrap_err().is_lost_link());
    }
}

async fn gone(hello: &Hello) {
    let (run_dir, segments) = (Path::new(&hello.run_dir), Path::new(&hello.segment_dir));
    eventually("the agent has ended", || !alive(hello.pid)).await;
    eventually("its files are gone", || {
        !run_dir.exists() && !segments.exists()
    })
    .await;
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[tokio::test]
async fn what_is_printed_while_links_are_cut_comes_whole_and_once() {
    let mut kernel = Kernel::new(60);
    let mut link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    let code = "import time\nfor i in range(300):\n    print(i, flush=True)\n    time.sleep(0.01)";
    kernel.send(execute("a", code)).await;
    let line = kernel.line.clone();
    let again = Kernel {
        connection: Connection::resumable([0; 16]).0,
        line: kernel.line.clone(),
        name: kernel.name.clone(),
        patience: kernel.patience,
    };
    let cutting = tokio::spawn(async move {
        for _ in 0..5 {
            let mut up = line.up();
            up.wait_for(|up| *up).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            link.cut().await;
            link = again.link(true);
        }
        link
    });
    let printed = timeout(LIMIT, kernel.printed("a")).await.unwrap();
    let expected: String = (0..300).map(|i| format!("{i}\n")).collect();
    assert_eq!(printed, expected);
    let _link = cutting.await.unwrap();
    assert!(alive(worker));
    kernel.end(&hello).await;
    assert!(!alive(worker));
}

#[tokio::test]
async fn an_agent_without_a_link_for_too_long_ends_and_is_not_found_again() {
    let mut kernel = Kernel::new(1);
    let link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    // As long as there is a link, there is no haste.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(alive(hello.pid));
    link.cut().await;
    gone(&hello).await;
    assert!(!alive(worker));
    let mut command = kernel.command(true);
    let output = timeout(LIMIT, command.stderr(Stdio::piped()).output());
    let output = output.await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "error: no agent serves conversation {} here any more\n",
            kernel.name
        )
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn an_agent_of_another_build_than_its_kernel_does_not_wait_for_it() {
    let kernel = Kernel::new(600);
    let mut process = kernel.command(false).spawn().unwrap();
    let mut greeting = b"\0cellferry\n\0\0\0\x03\x0e".to_vec();
    greeting.extend_from_slice(b"0.0.0+00000000");
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(&greeting).await.unwrap();
    let directory = PathBuf::from(format!("/tmp/cellferry-{}/{}", geteuid(), kernel.name));
    assert!(timeout(LIMIT, process.wait()).await.unwrap().is_ok());
    eventually("the agent is gone", || !directory.exists()).await;
}

#[tokio::test]
async fn nothing_is_left_of_a_killed_agent_and_the_link_ends() {
    let mut kernel = Kernel::new(60);
    let mut link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    signal(hello.pid, Signal::SIGKILL);
    gone(&hello).await;
    eventually("the worker is gone", || !alive(worker)).await;
    assert!(
        timeout(LIMIT, link.process.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_newer_link_replaces_the_older() {
    let mut kernel = Kernel::new(60);
    let mut first = kernel.link(false);
    let hello = kernel.hello().await;
    let _second = kernel.link(true);
    let replaced = timeout(LIMIT, first.carrying).await.unwrap().unwrap();
    assert!(
        matches!(replaced, Err(WireError::Replaced | WireError::Ended)),
        "{replaced:?}"
    );
    assert!(
        timeout(LIMIT, first.process.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    kernel.worker().await;
    kernel.end(&hello).await;
}

#[tokio::test]
async fn output_without_a_link_stops_the_worker_before_it_fills_the_memory_and_none_is_lost() {
    let mut kernel = Kernel::new(60);
    let link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    let code = "for i in range(400): display({'text/plain': 'x' * 1_000_000, 'n': i}, raw=True)";
    kernel.send(execute("a", code)).await;
    kernel.begun("a").await;
    link.cut().await;
    let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    eventually("the worker is stopped", || {
        state(worker).contains("State:\tT")
    })
    .await;
    let resident = state(hello.pid);
    let resident = resident
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: usize = resident
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(resident < 300 << 10, "{resident} kB");
    let _link = kernel.link(true);
    let mut count = 0;
    loop {
        let FromAgent::Received { parts, .. } = kernel.next().await else {
            continue;
        };
        let (header, content) = (json_of(&parts[0]), json_of(&parts[3]));
        match header["msg_type"].as_str().unwrap() {
            "display_data" => {
                assert_eq!(content["data"]["n"], count);
                count += 1;
            }
            "status" if content["execution_state"] == "idle" && count > 0 => break,
            _ => {}
        }
    }
    assert_eq!(count, 400);
    kernel.end(&hello).await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_for_its_output_can_be_interrupted() {
    let mut kernel = Kernel::new(60);
    let _link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    kernel
        .send(execute("a", "while True: display('x' * 1_000_000)"))
        .await;
    // Nobody receives.
    let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    eventually("the worker is stopped", || {
        state(worker).contains("State:\tT")
    })
    .await;
    kernel.send(ToAgent::Interrupt { worker: WORKER }).await;
    loop {
        let FromAgent::Received { channel, parts, .. } = kernel.next().await else {
            continue;
        };
        if channel == Channel::Shell && json_of(&parts[1])["msg_id"] == "a" {
            assert_eq!(json_of(&parts[3])["ename"], "KeyboardInterrupt");
            break;
        }
    }
    kernel.end(&hello).await;
}

/// As sshd does it, which serves all its channels from one thread.
#[tokio::test]
async fn who_reads_from_an_attach_that_has_nothing_to_say_is_not_held_up() {
    let kernel = Kernel::new(1);
    let mut process = kernel.command(false).spawn().unwrap();
    let _stdin = process.stdin.take().unwrap();
    let stdout = process.stdout.take().unwrap().into_owned_fd().unwrap();
    fcntl(&stdout, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let stdout = std::sync::Arc::new(stdout);
    let (mut greeted, mut silent) = (false, 0);
    let reading = timeout(LIMIT / 4, async {
        // It greets, and then waits for our greeting.
        while silent < 20 {
            let stdout = stdout.clone();
            let read = tokio::task::spawn_blocking(move || read(&stdout, &mut [0; 4096]));
            match read.await.unwrap() {
                Ok(count) => greeted = count > 0,
                Err(Errno::EAGAIN) => silent += i32::from(greeted),
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let read = reading.await;
    process.kill().await.unwrap();
    assert!(read.is_ok(), "nothing came of a read after {silent}");
}

#[tokio::test]
async fn two_conversations_have_an_agent_each() {
    let (mut one, mut other) = (Kernel::new(60), Kernel::new(60));
    let (_first, _second) = (one.link(false), other.link(false));
    let (hello, other_hello) = (one.hello().await, other.hello().await);
    assert_ne!(hello.pid, other_hello.pid);
    one.end(&hello).await;
    assert!(alive(other_hello.pid));
    other.end(&other_hello).await;
}

#[tokio::test]
async fn a_hang_up_is_ignored_and_a_termination_heeded() {
    let mut kernel = Kernel::new(60);
    let _link = kernel.link(false);
    let hello = kernel.hello().await;
    signal(hello.pid, Signal::SIGHUP);
    let worker = kernel.worker().await;
    signal(hello.pid, Signal::SIGTERM);
    gone(&hello).await;
    assert!(!alive(worker));
}

#[tokio::test]
async fn an_agent_is_in_a_session_of_its_own_in_the_users_home_and_its_files_are_the_users_alone() {
    let mut kernel = Kernel::new(60);
    let _link = kernel.link(false);
    let hello = kernel.hello().await;
    let process = PathBuf::from(format!("/proc/{}", hello.pid));
    let session = nix::unistd::getsid(Some(Pid::from_raw(hello.pid.cast_signed()))).unwrap();
    assert_eq!(session.as_raw().cast_unsigned(), hello.pid);
    assert_eq!(
        std::fs::read_link(process.join("cwd")).unwrap(),
        std::env::home_dir().unwrap().canonicalize().unwrap()
    );
    for stream in ["0", "1"] {
        let stream = std::fs::read_link(process.join("fd").join(stream)).unwrap();
        assert_eq!(stream, Path::new("/dev/null"));
    }
    let run_dir = Path::new(&hello.run_dir);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for directory in [
        run_dir,
        run_dir.parent().unwrap(),
        Path::new(&hello.segment_dir),
    ] {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    assert_eq!(mode(&run_dir.join("log")), 0o600);
    kernel.end(&hello).await;
}

#[tokio::test]
async fn the_last_bytes_pass_before_the_link_ends() {
    let mut kernel = Kernel::new(60);
    let link = kernel.link(false);
    let hello = kernel.hello().await;
    let worker = kernel.worker().await;
    kernel.send(ToAgent::Shutdown).await;
    let mut down = false;
    while let Some(message) = timeout(LIMIT, kernel.connection.receiver.recv())
        .await
        .unwrap()
    {
        down |= matches!(message.unwrap(), FromAgent::WorkerDown { .. });
        if down {
            kernel.connection.sender.finish();
        }
    }
    assert!(down);
    // The very last acknowledgement may go down with the agent's process: then the link just ended.
    let carried = timeout(LIMIT, link.carrying).await.unwrap().unwrap();
    assert!(
        carried
            .as_ref()
            .err()
            .is_none_or(|error| error.is_lost_link()),
        "{carried:?}"
    );
    gone(&hello).await;
    assert!(!alive(worker));
}

#[test]
fn a_program_knows_its_own_hash() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_cellferry-agent")).unwrap();
    let check = |hash: &str| {
        let checked = agent_program().args(["check", hash]).output().unwrap();
        checked.status.code()
    };
    assert_eq!(check(blake3::hash(&program).to_hex().as_str()), Some(0));
    assert_eq!(check(blake3::hash(b"another").to_hex().as_str()), Some(1));
    assert_eq!(check("no hash"), Some(1));
}

#[test]
fn a_wrong_command_line_is_told_from_a_failure() {
    for arguments in [
        &["attach"][..],
        &["attach", "--conversation", "12", "--patience", "1"],
        &[
            "attach",
            "--conversation",
            "+0123456789abcdef0123456789abcde",
            "--patience",
            "1",
        ],
        &["attack"],
    ] {
        let output = agent_program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("attach --conversation"));
    }
}
