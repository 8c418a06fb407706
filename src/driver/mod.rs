//! The thin shell around the session: turns messages, processes and signals into events, and
//! effects into deeds. One task, one loop; it decides nothing about cells.

mod again;
mod agents;
mod answers;
mod arrivals;
mod carry;
mod cells;
mod clock;
mod cluster;
mod comms;
mod effects;
mod execute_request;
mod far;
mod files;
mod history;
mod host;
mod information;
mod locations;
mod magics;
mod notices;
mod orders;
mod output;
mod parent;
mod probe;
mod questions;
mod release;
mod replies;
mod requests;
mod retire;
mod starts;
mod stdin;
mod values;
mod waiting_cells;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::connection::ConnectionFile;
use cellferry_kernel::message::Message;
use cellferry_kernel::{Author, Frontend, Incoming, Outbox};
use cellferry_wire::protocol::{Channel, WorkerId};
use serde_json::json;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

pub use self::cells::needed;
pub use self::probe::{User, probe, probe_cluster};

use self::again::Again;
use self::agents::{Agents, FromLocation};
use self::cells::Cells;
use self::comms::Comms;
use self::files::{Modules, Staging};
use self::notices::Notices;
use self::questions::Questions;
use self::release::Releases;
use self::values::Values;
use crate::session::{Event, Gone, Problem, RunId, Session, TargetName};

/// How long answers may take to leave before the process ends: ZeroMQ has no linger here.
const FLUSH: Duration = Duration::from_millis(500);

/// What a kernel is started with.
#[derive(Debug)]
pub struct Options {
    /// The connection file that the client wrote.
    pub connection_file: PathBuf,
    /// The Python of the home worker that was asked for by name.
    pub python: Option<PathBuf>,
}

/// Why the kernel cannot run at all.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The connection file cannot be used.
    #[error(transparent)]
    Connection(#[from] cellferry_kernel::connection::ConnectionError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] cellferry_kernel::BindError),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// Serves one connection file until a client asks for shutdown or the client's process is gone.
pub async fn run(options: Options) -> Result<ExitCode, KernelError> {
    let version =
        information::python_version_of(agents::find_python(options.python.as_deref()).ok());
    let file = ConnectionFile::read(&options.connection_file)?;
    let Frontend {
        mut requests,
        outbox,
    } = cellferry_kernel::bind(&file).await?;
    let values = Values::default();
    let cells = Cells::new(file.jupyter_session.as_deref());
    let notebook = cells
        .notebook()
        // A client that does not tell the notebook starts its kernel again with the same file.
        .map_or_else(|| options.connection_file.clone(), Path::to_owned);
    let notebook = std::path::absolute(&notebook).unwrap_or(notebook);
    let (agents, mut events) = Agents::new(
        options.python,
        values.files.arrivals(),
        &notebook.display().to_string(),
    );
    let modules = Modules::new(agents.folder().to_owned());
    let mut driver = Driver {
        outbox,
        author: Author::new(),
        version,
        session: Session::new(),
        cells,
        agents,
        values,
        staging: Staging::default(),
        modules,
        comms: Comms::default(),
        running: HashMap::new(),
        held: HashMap::new(),
        discarded: HashSet::new(),
        again: Again::default(),
        going_back: HashMap::new(),
        shown: HashMap::new(),
        questions: Questions::default(),
        notices: Notices::default(),
        dying_jobs: HashMap::new(),
        short_of_gpus: HashMap::new(),
        idle: HashMap::new(),
        releases: Releases::default(),
        warm: false,
        ending: None,
    };
    driver.publish(
        driver
            .author
            .message("status", None, &json!({"execution_state": "starting"})),
    );
    let mut interrupts = signal(SignalKind::interrupt()).map_err(KernelError::Signals)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(KernelError::Signals)?;
    let mut orphaned = std::pin::pin!(parent::gone());
    let mut ticks = tokio::time::interval(notices::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while driver.ending.is_none() {
        // Signals first: an interrupt concerns what was asked for before it, not after it.
        tokio::select! {
            biased;
            _ = interrupts.recv() => driver.interrupt().await,
            _ = terminations.recv() => driver.ending = Some(Ending::Silent),
            () = &mut orphaned => driver.ending = Some(Ending::Silent),
            _ = ticks.tick(), if driver.has_time_limits() => driver.tick().await,
            Some(arrival) = async { tokio::select! {
                incoming = requests.recv() => incoming.map(Arrival::Request),
                event = events.recv() => event.map(Arrival::Location),
            } } => match arrival {
                Arrival::Request(incoming) => driver.incoming(incoming).await,
                Arrival::Location(event) => driver.arrived(event).await,
            },
        }
    }
    driver.end().await;
    Ok(ExitCode::SUCCESS)
}

/// What the kernel waits for, both with the same right.
enum Arrival {
    Request(Incoming),
    Location(FromLocation),
}

enum Ending {
    /// A client asked for it and gets a reply.
    Asked(Box<Incoming>, bool),
    Silent,
}

struct Driver {
    outbox: Outbox,
    author: Author,
    version: information::Version,
    session: Session,
    cells: Cells,
    agents: Agents,
    values: Values,
    staging: Staging,
    modules: Modules,
    comms: Comms,
    /// Runs in a worker, by the `msg_id` of the request that the worker got and sees as parent.
    running: HashMap<(WorkerId, String), RunId>,
    /// What runs say that have not their turn: it is held back.
    held: HashMap<RunId, Vec<(WorkerId, Channel, Message)>>,
    /// Runs that have been taken back: nothing that they still say is shown.
    discarded: HashSet<RunId>,
    /// What cells show that may have to run again.
    again: Again,
    /// How often each worker has yet to go back. It answers in order, so a reply that comes before is of a run that
    /// has been taken back.
    going_back: HashMap<WorkerId, usize>,
    /// The client's request that each worker saw last: output without a request of its own is shown there.
    shown: HashMap<WorkerId, Bytes>,
    questions: Questions,
    notices: Notices,
    /// Workers that died as they do when their job ends: told when that is known, or once it is known not to be so.
    dying_jobs: HashMap<WorkerId, (Instant, Problem, Gone)>,
    /// Workers that are not started for want of GPUs, with their targets, and where.
    short_of_gpus: HashMap<WorkerId, (TargetName, Vec<TargetName>)>,
    /// Workers that end because their allocation has not been used for long.
    idle: HashMap<WorkerId, TargetName>,
    releases: Releases,
    warm: bool,
    ending: Option<Ending>,
}

impl Driver {
    async fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front().or_else(|| self.next_release()) {
            for effect in self.session.handle(event) {
                events.extend(self.perform(effect).await);
            }
        }
    }

    async fn end(mut self) {
        let mut restarts = false;
        if let Some(Ending::Asked(incoming, restart)) = self.ending.take() {
            restarts = restart;
            let content = json!({"status": "ok", "restart": restart});
            let mut reply =
                self.author
                    .message("shutdown_reply", Some(&incoming.message), &content);
            self.publish(reply.clone());
            reply.identities = incoming.message.identities.clone();
            self.outbox.send(incoming.channel, reply);
        }
        self.agents.shutdown(restarts).await;
        self.outbox.flush(FLUSH).await;
    }
}
