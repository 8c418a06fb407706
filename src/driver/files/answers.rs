//! What a far agent answers about files: each answer goes to the task that asked, by its number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellferry_wire::Held;
use cellferry_wire::protocol::FromAgent;
use tokio::sync::mpsc;

/// Values have the numbers below this one, files those from it on.
const FIRST: u64 = 1 << 62;

/// An answer, and what it takes of the link's credit until it is dropped.
pub type Answer = (FromAgent, Held);

/// The open questions of one conversation.
#[derive(Debug, Default)]
pub struct Answers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asked: u64,
    open: HashMap<u64, mpsc::UnboundedSender<Answer>>,
    over: bool,
}

/// A question, or a transfer; once it is dropped nobody waits for its answers.
#[derive(Debug)]
pub struct Question {
    /// Its number, never used again.
    pub number: u64,
    answers: mpsc::UnboundedReceiver<Answer>,
    all: Arc<Answers>,
}

impl Answers {
    /// Opens a question.
    pub fn open(self: &Arc<Self>) -> Question {
        let (sender, answers) = mpsc::unbounded_channel();
        let mut state = self.lock();
        let number = FIRST + state.asked;
        state.asked += 1;
        if !state.over {
            state.open.insert(number, sender);
        }
        Question {
            number,
            answers,
            all: self.clone(),
        }
    }

    /// Hands an answer to whoever asked; gives it back if it is about no file.
    pub fn give(&self, message: FromAgent, held: Held) -> Option<Answer> {
        let number = match &message {
            FromAgent::Data { transfer, .. }
            | FromAgent::Sent { transfer, .. }
            | FromAgent::Stored { transfer }
            | FromAgent::TransferFailed { transfer, .. } => *transfer,
            FromAgent::Listing { request, .. } | FromAgent::Made { request, .. } => *request,
            _ => 0,
        };
        if number < FIRST {
            return Some((message, held));
        }
        if let Some(asker) = self.lock().open.get(&number) {
            // Who has gone meanwhile needs it no more.
            let _ = asker.send((message, held));
        }
        None
    }

    /// Nothing more comes.
    pub fn close(&self) {
        let mut state = self.lock();
        state.over = true;
        state.open.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// The next answer; `None` if the agent is lost.
    pub async fn next(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.number);
    }
}
