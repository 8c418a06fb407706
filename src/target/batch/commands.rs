//! Runs the commands of one batch system in one place, and tells its words from those of a login shell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::BatchError;
use super::shell::{Interpreter, Output, Shell};

/// Stands before the first line of ours in what a place prints: start-up files may print, too.
const MARK: &str = "cellferry: begin";

/// The exit code of a script that does not find the command.
const MISSING: u32 = 119;

/// The exit code of `timeout`.
pub const TIMED_OUT: u32 = 124;

/// How long after a command should have ended by its own `timeout` nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(20);

/// The commands of a batch system in one place.
pub struct Commands {
    system: &'static str,
    shell: Arc<dyn Shell>,
    /// Whether they are found only by a login shell.
    login: AtomicBool,
}

impl Commands {
    /// The commands of `system` that are run by `shell`.
    pub fn new(system: &'static str, shell: Arc<dyn Shell>) -> Self {
        Self {
            system,
            shell,
            login: AtomicBool::new(false),
        }
    }

    /// Where they are, for messages.
    pub fn place(&self) -> String {
        self.shell.place().to_owned()
    }

    /// Runs `lines` of shell, in which `command` is the one that matters. They should end by themselves within `limit`.
    pub async fn run(
        &self,
        command: &'static str,
        lines: &str,
        limit: Duration,
    ) -> Result<Output, BatchError> {
        // All of it is read before any of it runs, so that no command in it takes the rest for its input.
        let script = format!(
            "{{\ncommand -v {command} >/dev/null 2>&1 || exit {MISSING}\nLC_ALL=C; export LC_ALL\n\
             printf '\\n%s\\n' '{MARK}'\n{lines}\n}}\n"
        );
        let login = self.login.load(Ordering::Relaxed);
        let mut output = self.once(command, login, &script, limit).await?;
        if output.code == Some(MISSING) && !login {
            output = self.once(command, true, &script, limit).await?;
            if output.code != Some(MISSING) {
                self.login.store(true, Ordering::Relaxed);
            }
        }
        if output.code == Some(MISSING) {
            return Err(BatchError::Missing {
                place: self.place(),
                command,
                system: self.system,
            });
        }
        match output.stdout.split_once(&format!("{MARK}\n")) {
            Some((_, ours)) => output.stdout = ours.to_owned(),
            None => return Err(self.answer(command, &output)),
        }
        Ok(output)
    }

    async fn once(
        &self,
        command: &'static str,
        login: bool,
        script: &str,
        limit: Duration,
    ) -> Result<Output, BatchError> {
        let interpreter = if login {
            Interpreter::Login
        } else {
            Interpreter::Plain
        };
        self.shell
            .run(interpreter, script, limit + GRACE)
            .await
            .map_err(|source| BatchError::Shell {
                place: self.place(),
                command,
                source,
            })
    }

    /// The error for an answer that nobody understands.
    pub fn answer(&self, command: &'static str, output: &Output) -> BatchError {
        let said = [&output.stderr, &output.stdout]
            .into_iter()
            .map(|text| tail(text, 5))
            .find(|text| !text.is_empty());
        BatchError::Answer {
            place: self.place(),
            command,
            said: said.unwrap_or_else(|| match output.code {
                Some(code) => format!("it ended with exit code {code} and said nothing"),
                None => "a signal ended it, and it said nothing".to_owned(),
            }),
        }
    }
}

/// The last lines of a text that say something.
pub fn tail(text: &str, most: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

#[cfg(test)]
pub mod fake {
    //! A place that answers as it is told, and notes what it was asked.

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::target::batch::shell::ShellError;

    /// Answers each script with the next of its outputs.
    #[derive(Default)]
    pub struct Fake {
        /// Exit code, stdout and stderr.
        pub answers: Mutex<VecDeque<(u32, String, String)>>,
        /// All scripts.
        pub asked: Mutex<Vec<String>>,
    }

    impl Fake {
        /// With these answers.
        pub fn answering(answers: &[(u32, &str, &str)]) -> Arc<Self> {
            let answers = answers
                .iter()
                .map(|(code, out, err)| (*code, (*out).to_owned(), (*err).to_owned()))
                .collect();
            Arc::new(Self {
                answers: Mutex::new(answers),
                asked: Mutex::default(),
            })
        }

        /// All scripts so far.
        pub fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Shell for Fake {
        fn place(&self) -> &str {
            "login"
        }

        async fn run(
            &self,
            _: Interpreter,
            script: &str,
            _: Duration,
        ) -> Result<Output, ShellError> {
            self.asked.lock().unwrap().push(script.to_owned());
            let next = self.answers.lock().unwrap().pop_front();
            let (code, out, err) = next.expect("nobody said what to answer");
            Ok(Output {
                code: Some(code),
                stdout: format!("Welcome\n{MARK}\n{out}"),
                stderr: err,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::batch::shell::Here;

    #[tokio::test]
    async fn a_command_that_is_not_there_is_named_with_its_place() {
        let commands = Commands::new("Slurm", Arc::new(Here));
        let error = commands
            .run("no-such-command", "true", Duration::from_secs(20))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("there is no `no-such-command` on this machine: is Slurm installed"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn only_what_the_command_says_is_its_answer() {
        let commands = Commands::new("Slurm", Arc::new(Here));
        let output = commands
            .run("cat", "cat; echo out; exit 3", Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!((output.stdout.as_str(), output.code), ("out\n", Some(3)));
    }
}
