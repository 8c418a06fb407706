//! What the user is asked and told on the way in.

use async_trait::async_trait;
use zeroize::Zeroizing;

/// Something only the user knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// As OpenSSH would print it, with its colon and space at the end.
    pub text: String,
    /// Whether the answer may be seen while it is typed. If not, it is a secret.
    pub echo: bool,
}

/// The user, as far as a connection needs them.
#[async_trait]
pub trait Ask: Send + Sync {
    /// The user's answer, or `None` if they give none (nobody is there, or they interrupt).
    ///
    /// Answers are used once, and are neither kept nor logged.
    async fn ask(&self, question: Question) -> Option<Zeroizing<String>>;

    /// Something worth showing: the server's banner, a host key that was added, a warning.
    fn tell(&self, text: &str);
}
