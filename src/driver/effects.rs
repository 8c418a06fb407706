//! What the session wants done, and the messages to workers that do it.

use std::time::Duration;

use cellferry_wire::protocol::{Channel, Parts, ToAgent, WorkerId};
use serde_json::json;

use super::answers::error_content;
use super::carry::Machine;
use super::{Driver, orders};
use crate::session::{Effect, Event, HOME, Orders, TargetName};
use cellferry_agent::parts::parts;

impl Driver {
    /// Does what must be done; what has happened by that at once.
    pub(super) async fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::StartWorker { worker, target, .. } => {
                self.start_worker(worker, &target).await;
            }
            Effect::Status(asked, state) => self.status(&asked, state),
            Effect::Input(asked, count) => {
                let code = self.cells.code(&asked);
                self.publish(self.author.message(
                    "execute_input",
                    Some(&asked.message),
                    &json!({"code": code, "execution_count": count}),
                ));
            }
            Effect::Error(asked, problem) => {
                self.publish(self.author.message(
                    "error",
                    Some(&asked.message),
                    &error_content(&problem),
                ));
            }
            Effect::Note(asked, text) => {
                let note = self.author.message(
                    "stream",
                    Some(&asked.message),
                    &json!({"name": "stderr", "text": text}),
                );
                self.again.keep_note(&asked.header.msg_id, &note);
                self.publish(note);
            }
            Effect::Answer(asked, answer) => {
                self.again.forget(&asked.header.msg_id);
                self.ends(&asked);
                self.answer_ourselves(&asked, &answer);
            }
            Effect::Reply(asked, mut message) => {
                let last = self
                    .again
                    .done(&asked.header.msg_id, &asked.message, &self.author);
                last.into_iter().for_each(|message| self.publish(message));
                self.ends(&asked);
                message.parent_header = asked.message.header.clone();
                self.send(&asked, *message);
            }
            Effect::Run(worker, run, orders) => {
                let (session, discarded) = (&self.session, &self.discarded);
                self.running
                    .retain(|_, run| discarded.contains(run) || session.request(*run).is_some());
                let msg_id = orders.request.header.msg_id.clone();
                if let Some(before) = self.running.insert((worker, msg_id), run) {
                    self.discarded.remove(&before);
                }
                if orders.keep.is_some() {
                    self.held.insert(run, Vec::new());
                } else if !orders.unseen {
                    self.shown
                        .insert(worker, orders.request.message.header.clone());
                }
                let is_seen = !orders.unseen && orders.keep.is_none();
                let time = orders.time.filter(|_| is_seen);
                let ends = time.and_then(|time| self.agents.ends_before(worker, time));
                if let (Some(time), Some((job, left))) = (time, ends) {
                    let whole = |time: Duration| {
                        humantime::format_duration(Duration::from_secs(time.as_secs()))
                    };
                    let text = format!(
                        "Cellferry: this cell may take {}, and {job} has {} left: it may not come to its end there; \
                         `%cellferry release` gives that job back, so that the cell gets another one\n",
                        whole(time),
                        whole(left)
                    );
                    let name_and_text = json!({"name": "stderr", "text": text});
                    let request = Some(&orders.request.message);
                    self.publish(self.author.message("stream", request, &name_and_text));
                }
                if let (Some(count), Some(target)) = (orders.count, self.agents.target(worker)) {
                    let carried = orders.carried();
                    tracing::info!("cell [{count}] runs on `{target}`{carried}");
                }
                let at_home = self
                    .agents
                    .target(worker)
                    .is_some_and(|target| &**target == HOME);
                let machine = self.agents.machine(worker).unwrap_or(Machine::Home);
                let segments = self.agents.segment_dir(&machine).unwrap_or_default();
                let lacks_modules = match &machine {
                    Machine::Home => false,
                    Machine::Far(target) => self.lacks_modules(target, &orders),
                };
                let values = &self.values;
                let parts =
                    orders::execute_parts(run, *orders, at_home, lacks_modules, values, &segments);
                self.tell_worker(worker, Channel::Shell, parts);
            }
            Effect::Take {
                transfer,
                worker,
                names,
                stale,
                ignored,
                reader,
            } => {
                let taking = self.values.take(
                    &self.author,
                    (transfer, worker),
                    &names,
                    (&stale, &ignored),
                    reader,
                    &self.agents,
                );
                match taking {
                    Ok(message) => self.tell_worker(worker, Channel::Shell, parts(message)),
                    Err(problem) => self.agents.transfer_failed(transfer, problem),
                }
            }
            Effect::Carry { transfer, to, .. } => {
                let carried = self.values.files.bring(transfer, to, &mut self.agents);
                return carried.map(|(transfer, to, outcome)| Event::Carried {
                    transfer,
                    to,
                    outcome,
                });
            }
            Effect::Release(transfers) => self.values.release(&transfers, &mut self.agents),
            Effect::Show(run, asked) => {
                if self.session.may_run_again(run) {
                    self.again.keep(&asked.header.msg_id);
                }
                for (worker, channel, message) in self.held.remove(&run).unwrap_or_default() {
                    self.shown.insert(worker, asked.message.header.clone());
                    self.tell_client(&asked, worker, channel, message);
                }
                self.ask();
            }
            Effect::Discard(run) => {
                self.held.remove(&run);
                self.discarded.insert(run);
            }
            Effect::Again { new, .. } => {
                if let Some(asked) = self.session.request(new).cloned() {
                    let msg_id = &asked.header.msg_id;
                    let clear = self.again.again(msg_id, &asked.message, &self.author);
                    clear.into_iter().for_each(|message| self.publish(message));
                }
            }
            Effect::Stop(worker) => {
                self.agents.stop(worker);
                self.forget(worker);
            }
            Effect::Retired(retired) => self.retired(&retired),
            Effect::Undo(worker, run) => {
                *self.going_back.entry(worker).or_default() += 1;
                self.request(worker, &json!({"verb": "undo", "run": run.0}))
            }
            Effect::Settle(worker, run) => {
                self.request(worker, &json!({"verb": "settle", "run": run.0}))
            }
            Effect::Interrupt(worker) => self.agents.send(worker, ToAgent::Interrupt { worker }),
            Effect::PassOn(worker, asked) => {
                if asked.header.msg_type == "comm_open" {
                    self.comms.opened(&asked.message.content, worker);
                }
                self.shown.insert(worker, asked.message.header.clone());
                self.tell_worker(worker, asked.channel, parts(asked.message.clone()));
            }
            Effect::History(worker, cells) => {
                self.request(worker, &json!({"verb": "inputs", "cells": cells}))
            }
        }
        None
    }

    /// Whether modules must be sent to a far host before a cell runs there.
    fn lacks_modules(&mut self, target: &TargetName, orders: &Orders) -> bool {
        let source = self.cells.code(&orders.request);
        let imported = orders::imported(&source, orders, &self.values);
        !self.modules.lacking(target, imported).is_empty()
    }

    pub(super) fn tell_worker(&mut self, worker: WorkerId, channel: Channel, parts: Parts) {
        let message = ToAgent::Send {
            worker,
            channel,
            parts,
        };
        self.agents.send(worker, message);
    }

    /// Asks the helper in a worker for something that has no result.
    fn request(&mut self, worker: WorkerId, content: &serde_json::Value) {
        let message = self.author.message("cellferry_request", None, content);
        self.tell_worker(worker, Channel::Shell, parts(message));
    }

    pub(super) fn install_helper(&mut self, worker: WorkerId) {
        let message = orders::helper_message(&self.author, self.agents.modules(worker));
        self.tell_worker(worker, Channel::Shell, parts(message));
    }
}
