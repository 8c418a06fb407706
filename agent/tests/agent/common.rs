//! What the tests share: an agent program, its kernel's side, and workers that are real ipykernels.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cellferry_wire::Connection;
use cellferry_wire::protocol::{Channel, FromAgent, Hello, ToAgent, WorkerId, WorkerSpec};
use serde_json::{Value, json};
use tokio::time::timeout;

pub const WORKER: WorkerId = WorkerId(1);
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn python() -> String {
    std::env::var("CELLFERRY_TEST_PYTHON").unwrap_or_else(|_| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
        assert!(
            path.exists(),
            "set CELLFERRY_TEST_PYTHON to a Python with ipykernel, or make .venv"
        );
        path.display().to_string()
    })
}

pub fn spec() -> WorkerSpec {
    spec_of(&[
        &python(),
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ])
}

pub fn spec_of(argv: &[&str]) -> WorkerSpec {
    WorkerSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        workdir: None,
        gpus: None,
        ranks: None,
    }
}

pub fn request(kind: &str, id: &str, content: &Value) -> Vec<Bytes> {
    let header = json!({"msg_id": id, "msg_type": kind, "session": "test", "username": "test",
        "date": "2026-01-01T00:00:00Z", "version": "5.4"});
    [header, json!({}), json!({}), content.clone()]
        .iter()
        .map(|part| Bytes::from(part.to_string()))
        .collect()
}

pub fn execute(id: &str, code: &str) -> ToAgent {
    let content = json!({"code": code, "silent": false, "store_history": true,
        "user_expressions": {}, "allow_stdin": true, "stop_on_error": true});
    ToAgent::Send {
        worker: WORKER,
        channel: Channel::Shell,
        parts: request("execute_request", id, &content),
    }
}

pub fn json_of(part: &Bytes) -> Value {
    serde_json::from_slice(part).unwrap()
}

/// A process that runs, and is not only waiting to be reaped.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| rest.trim_start().to_owned())
        })
        .is_some_and(|rest| !rest.starts_with('Z'))
}

pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within 60 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub type Remote = Connection<ToAgent, FromAgent>;

/// The agent as a program over its stdin and stdout.
pub async fn program() -> (tokio::process::Child, Remote, Hello) {
    talk_to(tokio::process::Command::from(agent_program())).await
}

async fn talk_to(mut command: tokio::process::Command) -> (tokio::process::Child, Remote, Hello) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (writer, reader) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut connection = Connection::start(reader, writer).await.unwrap();
    let hello = hello(&mut connection).await;
    (child, connection, hello)
}

pub fn agent_program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cellferry-agent"))
}

/// The next message of the agent.
pub async fn next(connection: &mut Remote) -> FromAgent {
    timeout(LIMIT, connection.receiver.recv())
        .await
        .expect("nothing came")
        .expect("the agent ended")
        .unwrap()
}

/// The agent's introduction, which comes first.
pub async fn hello(connection: &mut Remote) -> Hello {
    match next(connection).await {
        FromAgent::Hello(hello) => hello,
        other => panic!("not an introduction: {other:?}"),
    }
}

/// As [`program`], started by a shell after `limits`.
pub async fn program_under(limits: &str) -> (tokio::process::Child, Remote, Hello) {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", &format!("{limits}; exec \"$0\"")]);
    command.arg(env!("CARGO_BIN_EXE_cellferry-agent"));
    talk_to(command).await
}
