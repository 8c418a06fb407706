//! What comes from the locations: agents, their links, jobs and workers that come and go. Here it is sorted; what workers
//! say goes on to the module of its channel.

use cellferry_wire::protocol::{Channel, FromAgent, WorkerId};
use serde_json::json;
use tokio::time::Instant;

use super::Driver;
use super::agents::{self, FromLocation};
use super::carry::Carried;
use super::far::LinkState;
use super::notices::Wait;
use super::questions::Waiting;
use crate::session::{Event, Gone, Problem, Taken};
use cellferry_agent::parts::{message, parts};

impl Driver {
    pub(super) async fn arrived(&mut self, event: FromLocation) {
        match event {
            FromLocation::Message(
                _,
                FromAgent::Received {
                    worker,
                    channel,
                    parts,
                },
            ) => {
                let Some(mut message) = message(parts) else {
                    tracing::warn!(
                        "ignored a message with too few parts from worker {}",
                        worker.0
                    );
                    return;
                };
                if let Err(error) = self.author.adopt(&mut message) {
                    tracing::warn!("ignored a message of worker {}: {error}", worker.0);
                    return;
                }
                match channel {
                    Channel::Iopub => self.output(worker, message).await,
                    Channel::Stdin => self.input_request(worker, message).await,
                    Channel::Shell | Channel::Control => self.reply(worker, message).await,
                }
            }
            FromLocation::Message(_, FromAgent::WorkerUp { worker, pid }) => {
                self.agents.is_up(worker, pid);
                self.install_helper(worker);
            }
            FromLocation::Message(_, FromAgent::WorkerFailed { worker, failure }) => {
                let problem = self.agents.start_problem(worker, &failure);
                self.gone(worker, problem, agents::how_failed(&failure))
                    .await;
            }
            FromLocation::Message(
                _,
                FromAgent::WorkerDown {
                    worker,
                    exit,
                    stderr_tail,
                    rank,
                    given_up,
                },
            ) => {
                let problem = self.agents.death_problem(worker, rank, &exit, &stderr_tail);
                let how = agents::how(&exit);
                if !given_up && self.agents.may_end_with_job(worker, &exit) {
                    self.dying_jobs
                        .insert(worker, (Instant::now(), problem, how));
                } else {
                    self.gone(worker, problem, how).await;
                }
            }
            FromLocation::Failed { workers, problem } => {
                for worker in workers {
                    self.gone(worker, problem.clone(), Gone::NotStarted).await;
                }
            }
            FromLocation::Job(allocation, news) => self.job(&allocation, news),
            FromLocation::AgentGone(target, problem, how) => {
                tracing::info!("the agent of `{target}` is gone: {}", problem.evalue);
                // What was never there is not lost.
                let how = how.unwrap_or(if self.agents.is_connecting(&target) {
                    Gone::NotStarted
                } else {
                    Gone::LocationLost
                });
                self.over(&target);
                self.modules.lost(&target);
                let carried = self.values.files.lost(&target);
                if let Some(waiting) = self.agents.ended(&target) {
                    for (worker, target) in waiting {
                        self.start_worker(worker, &target).await;
                    }
                } else {
                    for worker in self.agents.agent_gone(&target) {
                        self.gone(worker, problem.clone(), how).await;
                    }
                }
                self.carried(carried).await;
            }
            FromLocation::Message(target, FromAgent::Hello(hello)) => {
                if let Some(allocation) = self.agents.allocation_of(&target) {
                    let job = self.agents.job(&allocation).unwrap_or("the job");
                    let text = format!("{job} runs: {target} is {}", hello.hostname);
                    self.settled(&allocation, &text);
                }
                self.agents.hello(&target, hello);
                self.over(&target);
            }
            FromLocation::Message(target, message) => {
                let carried = self.values.files.heard(&target, message, &mut self.agents);
                self.carried(carried).await;
            }
            FromLocation::Link(target, LinkState::Lost { reason, since }) => {
                tracing::info!("the link to `{target}` is lost: {reason}");
                self.agents.link_lost(&target);
                self.notices.waits(&target, Wait::Lost(reason), since);
                self.notice();
            }
            FromLocation::Link(target, LinkState::Back) => {
                tracing::info!("the link to `{target}` is back");
                self.agents.link_back(&target);
                self.values.files.back(&target);
                self.over(&target);
            }
            FromLocation::Ask(target, question, answer) => {
                self.questions.waiting.push(Waiting {
                    target,
                    question,
                    answer,
                });
                self.ask();
            }
            FromLocation::Tell(target, text) => {
                tracing::info!("`{target}`: {text}");
                if let Some(asked) = self.waiting_at(&target).first() {
                    let content =
                        json!({"name": "stderr", "text": format!("{}\n", text.trim_end())});
                    self.publish(
                        self.author
                            .message("stream", Some(&asked.message), &content),
                    );
                }
            }
            FromLocation::Staged(worker, staged) => {
                if let Some((asked, content)) = self.staging.done(worker, staged, &mut self.modules)
                {
                    let answer = self
                        .author
                        .message("cellferry_answer", Some(&asked), &content);
                    self.tell_worker(worker, Channel::Stdin, parts(answer));
                }
            }
            FromLocation::TransferFailed { transfer, reason } => {
                self.handle(Event::Taken(transfer, Taken::Failed(reason)))
                    .await;
            }
        }
    }

    /// Tells the session what has been brought where.
    async fn carried(&mut self, carried: Vec<Carried>) {
        for (transfer, to, outcome) in carried {
            self.handle(Event::Carried {
                transfer,
                to,
                outcome,
            })
            .await;
        }
    }

    pub(super) async fn gone(&mut self, worker: WorkerId, problem: Problem, how: Gone) {
        self.forget(worker);
        self.idle.remove(&worker);
        let answered = self.releases.died(worker);
        self.released(answered);
        self.handle(Event::WorkerGone {
            worker,
            problem,
            how,
        })
        .await;
    }

    /// Nothing more comes from a worker.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.dying_jobs.remove(&worker);
        self.short_of_gpus.remove(&worker);
        self.agents.forget(worker);
        self.staging.end(worker);
        self.shown.remove(&worker);
        self.going_back.remove(&worker);
        self.running.retain(|(other, _), _| *other != worker);
        self.questions.gone(worker);
        for comm in self.comms.worker_gone(worker) {
            let content = json!({"comm_id": comm, "data": {}});
            self.publish(self.author.message("comm_close", None, &content));
        }
    }
}
