//! Workers that are real ipykernels, through the agent in this process and as a program.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cellferry_agent::{Agent, RunDir};
use cellferry_wire::protocol::{Channel, Exit, FromAgent, StartFailure, ToAgent, WorkerSpec};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::*;

/// A message of a worker, read.
struct Said {
    channel: Channel,
    kind: String,
    parent: String,
    content: Value,
}

/// An agent in this process and the one worker of a test.
struct Local {
    agent: Agent,
    inbox: mpsc::UnboundedReceiver<FromAgent>,
    run_dir: RunDir,
    _segments: RunDir,
}

impl Local {
    fn start(spec: WorkerSpec) -> Self {
        let run_dir = RunDir::make().unwrap();
        let segments = RunDir::for_values().unwrap();
        let (mut agent, inbox) = Agent::local(run_dir.path(), segments.path());
        agent.command(ToAgent::StartWorker {
            worker: WORKER,
            spec,
        });
        Self {
            agent,
            inbox,
            run_dir,
            _segments: segments,
        }
    }

    async fn up() -> (Self, u32) {
        let mut local = Self::start(spec());
        match local.next().await {
            FromAgent::WorkerUp {
                worker: WORKER,
                pid,
            } => (local, pid),
            other => panic!("not up: {other:?}"),
        }
    }

    async fn next(&mut self) -> FromAgent {
        timeout(LIMIT, self.inbox.recv())
            .await
            .expect("nothing came")
            .expect("the agent ended")
    }

    async fn said(&mut self) -> Said {
        match self.next().await {
            FromAgent::Received { channel, parts, .. } => {
                let header = json_of(&parts[0]);
                Said {
                    channel,
                    kind: header["msg_type"].as_str().unwrap().to_owned(),
                    parent: json_of(&parts[1])["msg_id"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                    content: json_of(&parts[3]),
                }
            }
            other => panic!("not a message: {other:?}"),
        }
    }

    /// Everything said for `id`, until both its reply and its idle came.
    async fn finish(&mut self, id: &str) -> Vec<Said> {
        let mut all = Vec::new();
        let (mut replied, mut idle) = (false, false);
        while !(replied && idle) {
            let said = self.said().await;
            if said.parent != id {
                continue;
            }
            replied |= said.channel == Channel::Shell;
            idle |= said.kind == "status" && said.content["execution_state"] == "idle";
            all.push(said);
        }
        all
    }

    async fn until(&mut self, kind: &str) -> Said {
        loop {
            let said = self.said().await;
            if said.kind == kind {
                return said;
            }
        }
    }

    /// How the worker ended, its last words, and how many messages of `kind` came before.
    async fn down(&mut self, kind: &str) -> (Exit, String, usize) {
        let mut count = 0;
        loop {
            match self.next().await {
                FromAgent::WorkerDown {
                    exit, stderr_tail, ..
                } => return (exit, stderr_tail, count),
                FromAgent::Received { parts, .. } => {
                    count += usize::from(json_of(&parts[0])["msg_type"] == kind);
                }
                other => panic!("not an end: {other:?}"),
            }
        }
    }

    async fn failure(&mut self) -> StartFailure {
        match self.next().await {
            FromAgent::WorkerFailed { failure, .. } => failure,
            other => panic!("not a failure: {other:?}"),
        }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.run_dir.path()).unwrap().count()
    }
}

fn text(all: &[Said]) -> String {
    all.iter()
        .filter(|said| said.kind == "stream")
        .filter_map(|said| said.content["text"].as_str())
        .collect()
}

fn reply(all: &[Said]) -> &Value {
    &all.iter()
        .find(|said| said.channel == Channel::Shell)
        .unwrap()
        .content
}

#[tokio::test]
async fn a_cell_prints_replies_and_the_end_is_clean() {
    let (mut local, pid) = Local::up().await;
    local.agent.command(execute("a", "print('hello')"));
    let all = local.finish("a").await;
    assert_eq!(text(&all), "hello\n");
    assert_eq!(reply(&all)["status"], "ok");
    local.agent.command(ToAgent::StopWorker {
        worker: WORKER,
        grace: Duration::from_secs(20),
    });
    let (exit, _, _) = local.down("").await;
    assert_eq!(
        exit,
        Exit {
            code: Some(0),
            signal: None,
            out_of_memory: None
        }
    );
    assert!(!alive(pid));
    assert_eq!(local.files(), 0);
}

#[tokio::test]
async fn what_is_sent_to_a_starting_worker_is_run() {
    let mut local = Local::start(spec());
    local.agent.command(execute("early", "print('early')"));
    assert!(matches!(local.next().await, FromAgent::WorkerUp { .. }));
    assert_eq!(text(&local.finish("early").await), "early\n");
}

#[tokio::test]
async fn an_interrupt_ends_a_sleep() {
    let (mut local, _) = Local::up().await;
    // Not told by output: ipykernel swallows an interrupt that comes while it sends some.
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("in");
    let code = format!("import time\nopen({mark:?}, 'w').close()\ntime.sleep(600)");
    local.agent.command(execute("a", &code));
    while !mark.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    local.agent.command(ToAgent::Interrupt { worker: WORKER });
    let all = local.finish("a").await;
    assert_eq!(reply(&all)["ename"], "KeyboardInterrupt");
    local.agent.command(execute("b", "print(1)"));
    assert_eq!(text(&local.finish("b").await), "1\n");
}

#[tokio::test]
async fn input_is_asked_for_and_answered() {
    let (mut local, _) = Local::up().await;
    local.agent.command(execute("a", "print(input('name? '))"));
    let asked = local.until("input_request").await;
    assert_eq!(
        (asked.channel, &asked.content["prompt"]),
        (Channel::Stdin, &json!("name? "))
    );
    let parts = request("input_reply", "answer", &json!({"value": "Ada"}));
    local.agent.command(ToAgent::Send {
        worker: WORKER,
        channel: Channel::Stdin,
        parts,
    });
    assert_eq!(text(&local.finish("a").await), "Ada\n");
}

#[tokio::test]
async fn a_killed_worker_is_told_with_its_signal_and_takes_its_children_along() {
    let (mut local, pid) = Local::up().await;
    let code = "import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)";
    local.agent.command(execute("a", code));
    let child: u32 = text(&local.finish("a").await).trim().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let (exit, _, _) = local.down("").await;
    assert_eq!(
        exit,
        Exit {
            code: None,
            signal: Some(9),
            out_of_memory: Some(false)
        }
    );
    eventually("the worker's child is gone", || !alive(child)).await;
    assert_eq!(local.files(), 0);
}

#[tokio::test]
async fn an_exit_comes_after_all_output() {
    let (mut local, _) = Local::up().await;
    let code = "import os, time\nfor i in range(2000): display(i)\ntime.sleep(1)\nos._exit(7)";
    local.agent.command(execute("a", code));
    let (exit, _, displayed) = local.down("display_data").await;
    let exited = Exit {
        code: Some(7),
        signal: None,
        out_of_memory: None,
    };
    assert_eq!((exit, displayed), (exited, 2000));
}

#[tokio::test]
async fn a_crash_in_compiled_code_leaves_its_last_words() {
    let (mut local, _) = Local::up().await;
    // ipykernel takes file descriptor 2 for the notebook; what reaches the stderr that the worker
    // was started with is what the agent can keep.
    let code = "import ctypes, faulthandler, sys\n\
        faulthandler.enable(sys.stderr._original_stdstream_copy, all_threads=False)\nctypes.string_at(0)";
    local.agent.command(execute("a", code));
    let (exit, words, _) = local.down("").await;
    assert_eq!(exit.signal, Some(11));
    assert!(words.contains("Segmentation fault"), "{words:?}");
}

#[tokio::test]
async fn a_flood_that_is_not_taken_in_time_is_not_lost() {
    let (mut local, _) = Local::up().await;
    local.agent.command(execute(
        "a",
        "for i in range(20000): display(i)\nopen('/proc/self/comm', 'w').write('flooded')",
    ));
    // The worker has finished before anybody looks at what it said.
    let (_, pid) = (
        (),
        std::fs::read_dir(local.run_dir.path())
            .unwrap()
            .flatten()
            .find(|entry| entry.path().extension().is_some_and(|end| end == "pgid"))
            .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
            .and_then(|text| text.split_whitespace().next().map(str::to_owned))
            .unwrap(),
    );
    let comm = PathBuf::from(format!("/proc/{pid}/comm"));
    let start = Instant::now();
    while std::fs::read_to_string(&comm).unwrap().trim() != "flooded" {
        assert!(start.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = local.finish("a").await;
    assert_eq!(
        all.iter()
            .filter(|said| said.kind == "display_data")
            .count(),
        20_000
    );
}

#[tokio::test]
async fn a_worker_that_talks_without_end_is_stopped() {
    let (mut local, pid) = Local::up().await;
    local.agent.command(execute("a", "while True: display(1)"));
    local.until("display_data").await;
    local.agent.command(ToAgent::StopWorker {
        worker: WORKER,
        grace: Duration::from_millis(200),
    });
    local.down("").await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn fifty_megabytes_come_whole_through_the_agent_program() {
    let (mut child, mut connection, _) = program().await;
    connection
        .sender
        .send(ToAgent::StartWorker {
            worker: WORKER,
            spec: spec(),
        })
        .await;
    connection.sender.send(execute("a",
        "from IPython.display import publish_display_data as p\np({'text/plain': 'x' * 50_000_000})")).await;
    loop {
        let message = timeout(LIMIT, connection.receiver.recv())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let FromAgent::Received { parts, .. } = message
            && json_of(&parts[0])["msg_type"] == "display_data"
        {
            let content = json_of(&parts[3]);
            let text = content["data"]["text/plain"].as_str().unwrap();
            assert_eq!(text.len(), 50_000_000);
            assert!(text.bytes().all(|byte| byte == b'x'));
            break;
        }
    }
    connection.sender.send(ToAgent::Shutdown).await;
    assert!(
        timeout(LIMIT, child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let mut local = Local::start(spec_of(&["/no/such/python", "{connection_file}"]));
    let failure = local.failure().await;
    assert!(
        matches!(&failure, StartFailure::NoProgram { program, .. } if program == "/no/such/python"),
        "{failure:?}"
    );
    assert_eq!(local.files(), 0);
}

#[tokio::test]
async fn a_python_without_ipykernel_says_so_in_its_last_words() {
    let argv = [
        "/usr/bin/python3",
        "-I",
        "-S",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ];
    let failure = Local::start(spec_of(&argv)).failure().await;
    let StartFailure::Exited { exit, stderr_tail } = failure else {
        panic!("{failure:?}")
    };
    assert_eq!(exit.code, Some(1));
    assert!(
        stderr_tail.contains("No module named ipykernel"),
        "{stderr_tail:?}"
    );
}

#[tokio::test]
async fn a_death_with_sockets_made_is_a_failure_and_not_a_wait() {
    // Socket files that nobody listens to, as a worker leaves that dies while it starts.
    let code = "import json,socket,sys\nip=json.load(open(sys.argv[1]))['ip']\n\
        for port in range(1,6): socket.socket(socket.AF_UNIX).bind(f'{ip}-{port}')\n\
        print('x' * 10000, file=sys.stderr)\nprint('dying', file=sys.stderr)\nsys.exit(3)";
    let mut local = Local::start(spec_of(&[
        "/usr/bin/python3",
        "-c",
        code,
        "{connection_file}",
    ]));
    let start = Instant::now();
    let failure = local.failure().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    let StartFailure::Exited { exit, stderr_tail } = failure else {
        panic!("{failure:?}")
    };
    assert_eq!(exit.code, Some(3));
    assert_eq!(stderr_tail, "dying\n");
}

#[tokio::test]
async fn a_stop_ends_a_worker_that_never_starts() {
    let mut local = Local::start(spec_of(&["sleep", "600"]));
    local.agent.command(ToAgent::StopWorker {
        worker: WORKER,
        grace: Duration::from_secs(1),
    });
    assert!(matches!(local.failure().await, StartFailure::Exited { .. }));
    assert_eq!(local.files(), 0);
}

#[tokio::test]
async fn a_working_directory_is_made_or_refused() {
    let base = tempfile::tempdir().unwrap();
    let made = base.path().join("a/b");
    let mut local = Local::start(WorkerSpec {
        workdir: Some(made.display().to_string()),
        ..spec()
    });
    assert!(matches!(local.next().await, FromAgent::WorkerUp { .. }));
    local
        .agent
        .command(execute("a", "import os; print(os.getcwd())"));
    assert_eq!(
        text(&local.finish("a").await).trim(),
        made.canonicalize().unwrap().display().to_string()
    );

    let file = base.path().join("file");
    std::fs::write(&file, "").unwrap();
    for refused in [file.join("below"), PathBuf::from("/proc")] {
        let workdir = Some(refused.display().to_string());
        let failure = Local::start(WorkerSpec { workdir, ..spec() })
            .failure()
            .await;
        assert!(
            matches!(&failure, StartFailure::Workdir { path, .. } if *path == refused.display().to_string()),
            "{failure:?}"
        );
    }
}

/// An agent program whose run directory is in a place of its own, with a worker that is up.
async fn watched() -> (tempfile::TempDir, tokio::process::Child, Remote, u32) {
    let base = tempfile::Builder::new()
        .prefix("cf")
        .tempdir_in("/tmp")
        .unwrap();
    let mut command = agent_program();
    command.env("XDG_RUNTIME_DIR", base.path());
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (writer, reader) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut connection = Remote::start(reader, writer).await.unwrap();
    hello(&mut connection).await;
    connection
        .sender
        .send(ToAgent::StartWorker {
            worker: WORKER,
            spec: spec(),
        })
        .await;
    let message = timeout(LIMIT, connection.receiver.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let FromAgent::WorkerUp { pid, .. } = message else {
        panic!("{message:?}")
    };
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
    (base, child, connection, pid)
}

async fn nothing_is_left(base: &Path, pid: u32) {
    eventually("the worker is gone", || !alive(pid)).await;
    eventually("its files are gone", || {
        std::fs::read_dir(base).unwrap().count() == 0
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_of_a_killed_agent() {
    let (base, mut child, mut connection, pid) = watched().await;
    // A child of the user's code is not killed with its parent: the guard has to.
    connection
        .sender
        .send(execute(
            "a",
            "import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)",
        ))
        .await;
    let grandchild: u32 = loop {
        let message = timeout(LIMIT, connection.receiver.recv())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let FromAgent::Received { parts, .. } = message
            && json_of(&parts[0])["msg_type"] == "stream"
        {
            break json_of(&parts[3])["text"]
                .as_str()
                .unwrap()
                .trim()
                .parse()
                .unwrap();
        }
    };
    child.kill().await.unwrap();
    nothing_is_left(base.path(), pid).await;
    eventually("the worker's child is gone", || !alive(grandchild)).await;
}

#[tokio::test]
async fn nothing_is_left_when_the_kernel_is_gone() {
    let (base, mut child, connection, pid) = watched().await;
    connection.sender.finish();
    assert!(
        timeout(LIMIT, child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    nothing_is_left(base.path(), pid).await;
}

#[tokio::test]
async fn a_terminated_agent_ends_though_its_stdin_stays_open() {
    let (base, mut child, _connection, pid) = watched().await;
    let agent = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(
        timeout(Duration::from_secs(10), child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    nothing_is_left(base.path(), pid).await;
}
