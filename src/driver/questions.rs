//! What the user is asked, and who waits for the answer: a cell that reads from stdin, or a far host that wants a
//! password before any cell can run there.

use cellferry_ssh::Question;
use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::session::TargetName;

/// Who waits for an answer.
#[derive(Debug)]
pub enum Asker {
    /// A cell, in a worker.
    Worker(WorkerId),
    /// A far host.
    Host(oneshot::Sender<Option<Zeroizing<String>>>),
}

/// A host's question that no cell has been found for yet.
#[derive(Debug)]
pub struct Waiting {
    /// Whose.
    pub target: TargetName,
    /// What.
    pub question: Question,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Option<Zeroizing<String>>>,
}

/// All open questions.
#[derive(Debug, Default)]
pub struct Questions {
    /// Those that a client has been asked, by the `msg_id` of the request, the latest last.
    asked: Vec<(String, Asker)>,
    /// Those that wait until a cell of their target has its turn.
    pub waiting: Vec<Waiting>,
}

impl Questions {
    /// A client has been asked.
    pub fn asked(&mut self, msg_id: String, asker: Asker) {
        self.asked.push((msg_id, asker));
    }

    /// Whom an answer is for: clients that name no question answer the latest.
    pub fn answered(&mut self, msg_id: &str) -> Option<Asker> {
        let named = self.asked.iter().rposition(|(id, _)| id == msg_id);
        let index = named.or(self.asked.len().checked_sub(1))?;
        Some(self.asked.remove(index).1)
    }

    /// A worker is gone: nobody answers it any more.
    pub fn gone(&mut self, worker: WorkerId) {
        self.asked
            .retain(|(_, asker)| !matches!(asker, Asker::Worker(other) if *other == worker));
    }

    /// The user does not want to be asked: hosts learn that there is no answer, since their questions are dropped.
    pub fn interrupted(&mut self) {
        self.waiting.clear();
        self.asked
            .retain(|(_, asker)| matches!(asker, Asker::Worker(_)));
    }
}

/// The user's answer in an `input_reply`.
pub fn value(content: &[u8]) -> Option<Zeroizing<String>> {
    #[derive(Deserialize)]
    struct Content {
        value: String,
    }
    let content: Content = serde_json::from_slice(content).ok()?;
    Some(Zeroizing::new(content.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_the_question_that_it_names_else_to_the_latest() {
        let mut questions = Questions::default();
        for worker in 1..4 {
            questions.asked(worker.to_string(), Asker::Worker(WorkerId(worker)));
        }
        let mut answered = |id: &str| match questions.answered(id) {
            Some(Asker::Worker(worker)) => worker.0,
            _ => 0,
        };
        assert_eq!(
            (answered("2"), answered(""), answered("?"), answered("1")),
            (2, 3, 1, 0)
        );
    }

    #[test]
    fn an_interrupt_leaves_hosts_without_an_answer() {
        let mut questions = Questions::default();
        let (sender, mut receiver) = oneshot::channel();
        questions.asked("1".to_owned(), Asker::Host(sender));
        questions.asked("2".to_owned(), Asker::Worker(WorkerId(1)));
        questions.interrupted();
        assert!(receiver.try_recv().is_err());
        assert!(matches!(questions.answered("1"), Some(Asker::Worker(_))));
        questions.asked("3".to_owned(), Asker::Worker(WorkerId(1)));
        questions.gone(WorkerId(1));
        assert!(questions.answered("3").is_none());
    }
}
