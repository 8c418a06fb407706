//! Events and effects, a line each, for whoever reads how a play went.

use cellferry::ledger::Step;
use cellferry::session::{Effect, Event, Taken};

/// An event in a line.
pub(super) fn describe_event(event: &Event) -> String {
    match event {
        Event::Execute(ask) => format!(
            "-> Execute {}: {:?}",
            ask.0.message.header.msg_id, ask.1.source
        ),
        Event::Expect(cells) => {
            let ids = cells
                .iter()
                .map(|(request, _)| request.message.header.msg_id.as_str());
            format!("-> Expect {:?}", ids.collect::<Vec<_>>())
        }
        Event::Expected(request) => format!("-> Expected {}", request.message.header.msg_id),
        Event::Report(worker, run, report) => format!(
            "-> Report worker {} run {}: bound {:?} deleted {:?} kept {:?} changed {:?} failed {:?}",
            worker.0,
            run.0,
            report.bound.keys().collect::<Vec<_>>(),
            report.deleted,
            report.kept,
            report.changed,
            report
                .failed
                .as_ref()
                .map(|failed| (&failed.action, &failed.ename, &failed.message)),
        ),
        Event::Replied(worker, run, reply) => format!(
            "-> Replied worker {} run {}: {:?}",
            worker.0, run.0, reply.exception
        ),
        Event::Taken(
            transfer,
            Taken::Ok {
                names,
                needs,
                missing,
                ..
            },
        ) => format!(
            "-> Taken {transfer}: {:?} needs {needs:?} missing {missing:?}",
            names.keys().collect::<Vec<_>>()
        ),
        other => format!("-> {other:?}"),
    }
}

/// An effect in a line.
pub(super) fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::Status(asked, status) => format!("   <- Status {} {status}", asked.header.msg_id),
        Effect::Input(asked, count) => format!("   <- Input {} [{count}]", asked.header.msg_id),
        Effect::Error(asked, problem) => format!("   <- Error {} {problem:?}", asked.header.msg_id),
        Effect::Note(asked, text) => format!("   <- Note {} {text:?}", asked.header.msg_id),
        Effect::Answer(asked, answer) => format!("   <- Answer {} {answer:?}", asked.header.msg_id),
        Effect::Reply(asked, message) => {
            format!(
                "   <- Reply {} of run {:?}",
                asked.header.msg_id, message.content
            )
        }
        Effect::Run(worker, run, orders) => {
            let steps = orders.plan.steps.iter().map(|step| match step {
                Step::Put(put) => format!(
                    "put {:?} of {}",
                    put.names.keys().collect::<Vec<_>>(),
                    put.transfer
                ),
                Step::Define(defined) => format!("define {:?}", defined.definition.binds),
            });
            format!(
                "   <- Run worker {} run {} for {} [{:?}]: keep {:?} drop {:?} steps {:?} watched {:?} touched {:?}",
                worker.0,
                run.0,
                orders.request.header.msg_id,
                orders.count,
                orders.keep,
                orders.plan.drops,
                steps.collect::<Vec<_>>(),
                orders.watched,
                orders.touched,
            )
        }
        Effect::Show(run, asked) => format!("   <- Show run {} as {}", run.0, asked.header.msg_id),
        other => format!("   <- {other:?}"),
    }
}
