//! Islands: MPI ranks that are one worker, started by a real `mpirun`.

use std::path::Path;
use std::time::{Duration, Instant};

use cellferry_wire::protocol::{
    Channel, Exit, FromAgent, Hello, Ranks, StartFailure, ToAgent, WorkerSpec,
};
use serde_json::{Value, json};

use crate::common::*;

/// As the kernel starts ranks on one machine.
fn island(count: u32) -> WorkerSpec {
    let count_word = count.to_string();
    let launcher = [
        "env",
        "OMPI_ALLOW_RUN_AS_ROOT=1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        "OMPI_MCA_hwloc_base_binding_policy=none",
        "OMPI_MCA_orte_tmpdir_base={folder}",
        "OMPI_MCA_btl_vader_backing_directory={folder}",
        "mpirun",
        "-n",
        &count_word,
    ];
    let mut spec = spec();
    spec.argv.push("--HistoryManager.enabled=False".to_owned());
    WorkerSpec {
        gpus: None,
        ranks: Some(Ranks {
            count,
            launcher: launcher.map(str::to_owned).to_vec(),
            spread: false,
            gpus: None,
        }),
        ..spec
    }
}

/// A message of the island, read.
#[derive(Debug)]
struct Said {
    channel: Channel,
    kind: String,
    id: String,
    content: Value,
}

struct Island {
    agent: tokio::process::Child,
    connection: Remote,
    hello: Hello,
}

impl Island {
    async fn up(spec: WorkerSpec) -> Self {
        let mut island = Self::start(spec).await;
        match next(&mut island.connection).await {
            FromAgent::WorkerUp { worker: WORKER, .. } => island,
            other => panic!("not up: {other:?}"),
        }
    }

    async fn start(spec: WorkerSpec) -> Self {
        let (agent, connection, hello) = program().await;
        let worker = WORKER;
        connection
            .sender
            .queue(ToAgent::StartWorker { worker, spec });
        Self {
            agent,
            connection,
            hello,
        }
    }

    fn tell(&self, command: ToAgent) {
        self.connection.sender.queue(command);
    }

    /// What it says of a request, until it has replied and is idle, or until `enough`.
    async fn said(&mut self, id: &str, enough: impl Fn(&Said) -> bool) -> Vec<Said> {
        let mut all = Vec::new();
        let (mut replied, mut idle) = (false, false);
        while !(replied && idle) {
            let FromAgent::Received { channel, parts, .. } = next(&mut self.connection).await
            else {
                panic!("not a message, after {all:#?}");
            };
            if json_of(&parts[1])["msg_id"] != id {
                continue;
            }
            let header = json_of(&parts[0]);
            let said = Said {
                channel,
                kind: header["msg_type"].as_str().unwrap().to_owned(),
                id: header["msg_id"].as_str().unwrap().to_owned(),
                content: json_of(&parts[3]),
            };
            replied |= channel == Channel::Shell;
            idle |= said.content["execution_state"] == "idle";
            let stop = enough(&said);
            all.push(said);
            if stop {
                break;
            }
        }
        all
    }

    async fn run(&mut self, id: &str, code: &str) -> Vec<Said> {
        self.tell(execute(id, code));
        self.said(id, |_| false).await
    }

    /// How it ends, which rank that was, and the last words.
    async fn down(&mut self) -> (Exit, Option<u32>, String) {
        loop {
            if let FromAgent::WorkerDown {
                exit,
                rank,
                stderr_tail,
                ..
            } = next(&mut self.connection).await
            {
                return (exit, rank, stderr_tail);
            }
        }
    }

    fn answer(&self, question: &Said, text: &str) {
        let mut parts = request("input_reply", "answer", &json!({"value": text}));
        parts[1] = json!({"msg_id": question.id}).to_string().into();
        self.tell(ToAgent::Send {
            worker: WORKER,
            channel: Channel::Stdin,
            parts,
        });
    }

    /// Ends the agent, after which nothing of it must be left.
    async fn end(mut self) {
        self.tell(ToAgent::Shutdown);
        assert!(self.agent.wait().await.unwrap().success());
        assert!(!Path::new(&self.hello.run_dir).exists());
        assert!(!Path::new(&self.hello.segment_dir).exists());
        self.nothing_left().await;
    }

    /// No process that came from this agent is there any more: all have its directory in their environment or command line.
    async fn nothing_left(&self) {
        let mark = self.hello.run_dir.clone();
        eventually("no process of the island is left", || {
            processes(&mark).is_empty()
        })
        .await;
    }
}

/// The processes that name a directory in their command line or environment.
fn processes(mark: &str) -> Vec<String> {
    let names = |path: &Path| {
        let of = |name: &str| {
            let bytes = std::fs::read(path.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let (line, environment) = (of("cmdline"), of("environ"));
        (line.contains(mark) || environment.contains(mark)).then_some(line)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            entry.file_name().to_string_lossy().parse::<u32>() != Ok(std::process::id())
        })
        .filter_map(|entry| names(&entry.path()))
        .collect()
}

fn text(all: &[Said]) -> String {
    all.iter()
        .filter(|said| said.kind == "stream")
        .filter_map(|said| said.content["text"].as_str())
        .collect()
}

/// What each rank has printed: whole lines, however they were merged. Where ranks have to wait for a processor, what they print alike
/// does not always come at once.
fn printed(all: &[Said], rank: usize) -> Vec<String> {
    let of = |label: &str| {
        label.split(',').any(|part| match part.split_once('-') {
            Some((first, last)) => (first.parse().unwrap()..=last.parse().unwrap()).contains(&rank),
            None => part.parse() == Ok(rank),
        })
    };
    text(all)
        .lines()
        .filter_map(|line| {
            let (label, line) = line.strip_prefix('[')?.split_once(']')?;
            of(label).then(|| line.trim_start().to_owned())
        })
        .collect()
}

fn reply(all: &[Said]) -> &Value {
    let reply = all.iter().find(|said| said.channel == Channel::Shell);
    &reply
        .unwrap_or_else(|| panic!("no reply in {all:#?}"))
        .content
}

fn count(all: &[Said], kind: &str) -> usize {
    all.iter().filter(|said| said.kind == kind).count()
}

const COMM: &str = "from mpi4py import MPI\ncomm = MPI.COMM_WORLD\nrank = comm.rank\n";

#[tokio::test]
async fn ranks_are_one_worker_with_one_communicator_that_stays() {
    let mut island = Island::up(island(4)).await;
    let all = island.run("a", COMM).await;
    assert_eq!(reply(&all)["status"], "ok", "{all:#?}");
    let code = "print('sum', comm.allreduce(rank))\nif rank == 2: print('two')\ncomm.Barrier()\ncomm.size * 10";
    let all = island.run("b", code).await;
    for rank in 0..4 {
        let expected: &[&str] = if rank == 2 {
            &["sum 6", "two"]
        } else {
            &["sum 6"]
        };
        assert_eq!(printed(&all, rank), expected, "{all:#?}");
    }
    assert_eq!(
        (count(&all, "execute_result"), count(&all, "execute_input")),
        (1, 1)
    );
    assert_eq!(reply(&all)["status"], "ok");
    island.end().await;
}

#[tokio::test]
async fn output_is_live_and_displays_and_questions_tell_their_rank() {
    let mut island = Island::up(island(3)).await;
    island.run("a", COMM).await;
    let code = "import time, sys\nfrom IPython.display import display\nprint('begun', end='', flush=True)\n\
                name = input('name? ') if rank != 1 else None\nif rank == 1: display({'text/plain': 'x'}, raw=True)\n\
                print(name, file=sys.stderr)";
    island.tell(execute("b", code));
    // What is not finished is seen while the cell runs.
    let begun = island.said("b", |said| said.kind == "input_request").await;
    let mut shown = text(&begun);
    for _ in 0..2 {
        let question = match begun.last() {
            Some(last) if !shown.contains("asked") => last,
            _ => panic!("no question"),
        };
        let prompt = question.content["prompt"].as_str().unwrap().to_owned();
        assert!(["[0] name? ", "[2] name? "].contains(&&*prompt), "{prompt}");
        island.answer(question, &format!("N{}", &prompt[1..2]));
        shown += "asked";
        let more = island.said("b", |said| said.kind == "input_request").await;
        if let Some(next) = more.last().filter(|said| said.kind == "input_request") {
            let prompt = next.content["prompt"].as_str().unwrap().to_owned();
            island.answer(next, &format!("N{}", &prompt[1..2]));
            let rest = island.said("b", |_| false).await;
            let rest = text(&begun) + &text(&more) + &text(&rest);
            assert!(rest.contains("begun"), "{rest}");
            for line in ["[0] N0\n", "[1] None\n", "[2] N2\n", "[1]\n"] {
                assert!(rest.contains(line), "{line} in {rest}");
            }
            break;
        }
    }
    island.end().await;
}

#[tokio::test]
async fn an_error_on_one_rank_ends_the_step_on_all_and_they_stay() {
    let mut island = Island::up(island(3)).await;
    island.run("a", COMM).await;
    let code = "import time\nkept = rank\nif rank == 1: 1 / 0\ntime.sleep(600)";
    let all = island.run("b", code).await;
    assert_eq!(reply(&all)["ename"], "ZeroDivisionError");
    assert_eq!(count(&all, "error"), 1);
    let error = all.iter().find(|said| said.kind == "error").unwrap();
    let traceback = error.content["traceback"].to_string();
    assert!(
        traceback.contains("rank 1:") && traceback.contains("line 3"),
        "{traceback}"
    );
    let all = island.run("c", "print(kept, comm.allreduce(1))").await;
    let lines = text(&all);
    for line in ["[0] 0 3", "[1] 1 3", "[2] 2 3"] {
        assert!(lines.contains(line), "{lines}");
    }
    // Of all: once.
    let all = island.run("d", "undefined").await;
    let error = all.iter().find(|said| said.kind == "error").unwrap();
    assert_eq!(error.content["ename"], "NameError");
    assert!(error.content["traceback"][0].to_string().contains("rank"));
    assert_eq!(count(&all, "error"), 1);
    island.end().await;
}

#[tokio::test]
async fn ranks_that_hang_in_a_collective_after_an_error_are_ended() {
    let mut island = Island::up(island(3)).await;
    island.run("a", COMM).await;
    let begun = Instant::now();
    let code = "if rank == 2: raise ValueError('mine')\ncomm.Barrier()";
    let all = island.run("b", code).await;
    assert_eq!(reply(&all)["ename"], "ValueError");
    let error = all.iter().find(|said| said.kind == "error").unwrap();
    assert!(
        error.content["traceback"][0]
            .to_string()
            .contains("rank 2:")
    );
    assert!(text(&all).contains("did not end within"), "{}", text(&all));
    let (exit, rank, _) = island.down().await;
    assert_eq!(exit.signal, Some(9));
    assert!(rank.is_some_and(|rank| rank < 2), "{rank:?}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    island.end().await;
}

#[tokio::test]
async fn a_rank_that_dies_is_named_with_its_end() {
    for (code, signal, exit_code) in [
        (
            "import os, signal\nif rank == 1: os.kill(os.getpid(), signal.SIGSEGV)\ncomm.Barrier()",
            Some(11),
            None,
        ),
        (
            "import os\nif rank == 1: os._exit(7)\ncomm.Barrier()",
            None,
            Some(7),
        ),
    ] {
        let mut island = Island::up(island(3)).await;
        island.run("a", COMM).await;
        island.tell(execute("b", code));
        let (exit, rank, _) = island.down().await;
        assert_eq!((exit.signal, exit.code, rank), (signal, exit_code, Some(1)));
        island.end().await;
    }
}

#[tokio::test]
async fn an_interrupt_reaches_all_ranks() {
    let mut island = Island::up(island(3)).await;
    island.run("a", COMM).await;
    let folder = tempfile::tempdir().unwrap();
    let code = format!(
        "import time\nopen(f'{}/{{rank}}', 'w').close()\ntime.sleep(600)",
        folder.path().display()
    );
    island.tell(execute("b", &code));
    eventually("all ranks sleep", || {
        std::fs::read_dir(folder.path()).unwrap().count() == 3
    })
    .await;
    island.tell(ToAgent::Interrupt { worker: WORKER });
    let all = island.said("b", |_| false).await;
    assert_eq!(reply(&all)["ename"], "KeyboardInterrupt");
    assert_eq!(count(&all, "error"), 1);
    let all = island.run("c", "print(comm.allreduce(1))").await;
    for rank in 0..3 {
        assert_eq!(printed(&all, rank), ["3"], "{all:#?}");
    }
    island.end().await;
}

#[tokio::test]
async fn killing_the_agent_or_the_launcher_leaves_nothing() {
    let mut killed = Island::up(island(2)).await;
    killed.run("a", COMM).await;
    killed.agent.start_kill().unwrap();
    let _ = killed.agent.wait().await;
    killed.nothing_left().await;
    eventually("its directories are gone", || {
        !Path::new(&killed.hello.run_dir).exists() && !Path::new(&killed.hello.segment_dir).exists()
    })
    .await;

    let mut island = Island::up(island(2)).await;
    island.run("a", COMM).await;
    let all = island
        .run("b", "import os\nif rank == 0: print(os.getppid())")
        .await;
    let rank = text(&all).trim().trim_start_matches("[0] ").to_owned();
    let stat = std::fs::read_to_string(format!("/proc/{rank}/stat")).unwrap();
    let launcher = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    let name = std::fs::read_to_string(format!("/proc/{launcher}/comm")).unwrap();
    assert_eq!(name.trim(), "mpirun");
    let killed = std::process::Command::new("kill")
        .args(["-9", &launcher])
        .status();
    assert!(killed.unwrap().success());
    let (exit, rank, _) = island.down().await;
    assert_eq!((exit.signal, rank), (Some(9), None));
    island.end().await;
}

#[tokio::test]
async fn what_does_not_start_ranks_is_told() {
    let mut alone = island(2);
    alone.ranks.as_mut().unwrap().launcher = vec!["env".to_owned()];
    let mut island_ = Island::start(alone).await;
    match next(&mut island_.connection).await {
        FromAgent::WorkerFailed {
            failure: StartFailure::Exited { stderr_tail, .. },
            ..
        } => {
            assert!(
                stderr_tail.contains("does not say which rank"),
                "{stderr_tail}"
            );
        }
        other => panic!("{other:?}"),
    }
    island_.end().await;

    let mut missing = island(2);
    missing.argv = vec!["/no/such/python".to_owned()];
    let mut island_ = Island::start(missing).await;
    match next(&mut island_.connection).await {
        FromAgent::WorkerFailed {
            failure: StartFailure::NoProgram { program, .. },
            ..
        } => {
            assert_eq!(program, "/no/such/python");
        }
        other => panic!("{other:?}"),
    }
    island_.end().await;
}

#[tokio::test]
async fn a_polite_stop_finalizes() {
    let mut island = Island::up(island(3)).await;
    let folder = tempfile::tempdir().unwrap();
    let code = format!(
        "{COMM}import atexit\natexit.register(lambda: open(f'{}/{{rank}}-{{MPI.Is_finalized()}}', 'w').close())",
        folder.path().display()
    );
    island.run("a", &code).await;
    let grace = Duration::from_secs(20);
    island.tell(ToAgent::StopWorker {
        worker: WORKER,
        grace,
    });
    let (exit, rank, last_words) = island.down().await;
    assert_eq!((exit.code, rank), (Some(0), None), "{last_words}");
    // Handlers run in the reverse order: mpi4py's own comes last.
    for rank in 0..3 {
        assert!(folder.path().join(format!("{rank}-False")).exists());
    }
    island.end().await;
}

/// The helper of Python workers, as the kernel sends it.
fn helper() -> ToAgent {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../workers/python");
    let source = ["pickling.py", "before.py", "helper.py"]
        .map(|name| std::fs::read_to_string(folder.join(name)).unwrap())
        .concat();
    let source = json!(format!("PATHS = []\n{source}"));
    let module = "__import__('sys').modules.setdefault('_cellferry', __import__('types').ModuleType('_cellferry'))";
    execute(
        "helper",
        &format!("exec(compile({source}, '<cellferry>', 'exec'), vars({module}))"),
    )
}

/// A cell with orders for the helper.
fn ordered(id: &str, code: &str, order: Value) -> ToAgent {
    let ToAgent::Send {
        worker,
        channel,
        mut parts,
    } = execute(id, code)
    else {
        panic!("not a message");
    };
    parts[2] = json!({"cellferry": order}).to_string().into();
    ToAgent::Send {
        worker,
        channel,
        parts,
    }
}

fn ask_helper(id: &str, content: &Value) -> ToAgent {
    ToAgent::Send {
        worker: WORKER,
        channel: Channel::Shell,
        parts: request("cellferry_request", id, content),
    }
}

#[tokio::test]
async fn names_become_lists_by_rank() {
    let mut island = Island::up(island(3)).await;
    island.tell(helper());
    assert_eq!(
        reply(&island.said("helper", |_| false).await)["status"],
        "ok"
    );
    let code = "from mpi4py import MPI\nrank = MPI.COMM_WORLD.rank\nu = bytes([rank]) * 300_000\nv = [rank]";
    let order = json!({"run": 1, "count": 1, "gather": ["u", "v"]});
    island.tell(ordered("a", code, order.clone()));
    let all = island.said("a", |_| false).await;
    assert_eq!(reply(&all)["status"], "ok", "{all:#?}");
    let report = all.iter().find(|said| said.kind == "cellferry_report");
    let report = &report.unwrap().content;
    assert_eq!(report["bound"]["u"]["type"], "list", "{report}");
    let code = "print(v, [(part[0], len(part)) for part in u])";
    let all = island.run("b", code).await;
    for rank in 0..3 {
        let expected = "[[0], [1], [2]] [(0, 300000), (1, 300000), (2, 300000)]";
        assert_eq!(printed(&all, rank), [expected]);
    }
    // What one rank cannot give is told with the rank.
    let code = "u = v = (lambda: rank) if rank != 1 else __import__('threading').Lock()";
    island.tell(ordered("c", code, order));
    let all = island.said("c", |_| false).await;
    assert_eq!(reply(&all)["ename"], "GatherError", "{all:#?}");
    let error = all.iter().find(|said| said.kind == "error").unwrap();
    let traceback = error.content["traceback"].to_string();
    assert!(
        traceback.contains("rank 1:") && traceback.contains("lock"),
        "{traceback}"
    );
    island.end().await;
}

#[tokio::test]
async fn values_come_to_machines_that_do_not_see_the_agents_directories_and_back() {
    // As on another node, what is in shared memory here is not there.
    let mut elsewhere = island(3);
    let hidden = "mount -t tmpfs none /dev/shm && exec \"$0\" \"$@\"";
    let launcher = &mut elsewhere.ranks.as_mut().unwrap().launcher;
    launcher
        .extend(["unshare", "--map-root-user", "--mount", "sh", "-c", hidden].map(str::to_owned));
    let mut island = Island::up(elsewhere).await;
    island.tell(helper());
    island.said("helper", |_| false).await;
    let made = std::process::Command::new(python())
        .args([
            "-c",
            "import pickle, sys; sys.stdout.buffer.write(pickle.dumps({'x': b'xyz' * 1_000_000}))",
        ])
        .output()
        .unwrap();
    let (value, segments) = (made.stdout, island.hello.segment_dir.clone());
    assert!(segments.starts_with("/dev/shm"), "{segments}");
    std::fs::write(format!("{segments}/7"), &value).unwrap();
    let put = json!({"do": "put", "names": ["x"], "place": "segment", "segment": format!("{segments}/7"),
        "layout": [[0, value.len()]]});
    let code = "import os\nprint(len(x), x[:3], os.path.exists('/dev/shm/' + NAME))"
        .replace("NAME", &format!("{:?}", &segments["/dev/shm/".len()..]));
    island.tell(ordered(
        "a",
        &code,
        json!({"run": 1, "count": 1, "actions": [put]}),
    ));
    let all = island.said("a", |_| false).await;
    for rank in 0..3 {
        assert_eq!(printed(&all, rank), ["3000000 b'xyz' False"], "{all:#?}");
    }
    // Back from rank 0, to a file that is here.
    let take = json!({"verb": "take", "names": ["x"], "segment": format!("{segments}/8")});
    island.tell(ask_helper("take", &take));
    let all = island
        .said("take", |said| said.channel == Channel::Shell)
        .await;
    assert_eq!(reply(&all)["place"], "segment", "{all:#?}");
    let size: u64 = reply(&all)["layout"][0][1].as_u64().unwrap();
    let back = std::fs::read(format!("{segments}/8")).unwrap();
    assert!(size > 3_000_000 && back.len() as u64 >= size);
    assert!(back.windows(6).any(|window| window == b"xyzxyz"));
    island.end().await;
}
