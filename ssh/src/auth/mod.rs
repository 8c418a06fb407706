//! Proving to the server who the user is, in OpenSSH's order. See RFC 4252 and ssh_config(5).
//!
//! This module goes through the methods; `keys` gathers the keys, `signer` signs with them.

mod keys;
mod signer;

use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::HashAlg;
use russh::{MethodKind, MethodSet};
use zeroize::{Zeroize, Zeroizing};

use crate::ask::{Ask, Question};
use crate::config::{Host, Method};
use crate::error::{AuthFailure, SshError, openssh_hint};
use crate::host_key::Confidence;
use crate::native::{Events, Watcher};
use keys::{Candidate, Keys};
use signer::{SignError, Signing};

/// What came of one attempt.
enum Outcome {
    /// The user is in.
    In,
    /// The server wants these methods now. `partial` if this one was right, and another is needed besides.
    More { allowed: MethodSet, partial: bool },
    /// Nothing was sent, for there was nothing left to send.
    Spent,
}

impl From<AuthResult> for Outcome {
    fn from(result: AuthResult) -> Self {
        match result {
            AuthResult::Success => Self::In,
            AuthResult::Failure {
                remaining_methods,
                partial_success,
            } => Self::More {
                allowed: remaining_methods,
                partial: partial_success,
            },
        }
    }
}

/// Logs in.
pub(crate) async fn authenticate(
    handle: &mut Handle<Watcher>,
    host: &Host,
    confidence: Confidence,
    events: &Events,
    ask: &dyn Ask,
) -> Result<(), SshError> {
    let mut login = Login {
        handle,
        host,
        ask,
        methods: host.login.methods.clone(),
        keys: None,
        rsa_hash: None,
        rounds: 0,
        passwords: 0,
        tried: Vec::new(),
    };
    if confidence == Confidence::NoSecrets {
        login.methods.retain(|method| *method == Method::PublicKey);
    }
    match login.run().await {
        Ok(()) => Ok(()),
        Err(allowed) => Err(login.failure(&allowed, events).into()),
    }
}

impl From<AuthFailure> for SshError {
    fn from(failure: AuthFailure) -> Self {
        Self::Auth(Box::new(failure))
    }
}

struct Login<'a> {
    handle: &'a mut Handle<Watcher>,
    host: &'a Host,
    ask: &'a dyn Ask,
    /// Those that may still succeed.
    methods: Vec<Method>,
    /// Read when they are first needed.
    keys: Option<Keys>,
    /// The hash to sign with by RSA, once the server has said which it knows.
    rsa_hash: Option<HashAlg>,
    /// How often keyboard-interactive and passwords were tried.
    rounds: usize,
    passwords: usize,
    /// What was tried, and what came of it.
    tried: Vec<String>,
}

impl Login<'_> {
    /// Goes through the methods until one succeeds. `Err` has what the server would still allow.
    async fn run(&mut self) -> Result<(), MethodSet> {
        let empty = MethodSet::empty();
        let first = self.handle.authenticate_none(&self.host.user).await;
        let mut allowed = match first.map_err(|_| empty)? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure {
                remaining_methods, ..
            } => remaining_methods,
        };
        loop {
            let next = self
                .methods
                .iter()
                .copied()
                .find(|method| allowed.contains(&kind(*method)));
            let Some(method) = next else {
                return Err(allowed);
            };
            let outcome = match method {
                Method::PublicKey => self.public_key().await,
                Method::KeyboardInteractive => self.keyboard_interactive().await,
                Method::Password => self.password().await,
            };
            match outcome {
                Ok(Outcome::In) => return Ok(()),
                Ok(Outcome::Spent) => self.methods.retain(|left| *left != method),
                Ok(Outcome::More {
                    allowed: now,
                    partial,
                }) => {
                    // Without methods russh has hung up, or the server has.
                    if now.is_empty() || self.handle.is_closed() {
                        return Err(allowed);
                    }
                    allowed = now;
                    if partial {
                        self.methods.clone_from(&self.host.login.methods);
                        (self.rounds, self.passwords) = (0, 0);
                    }
                }
                Err(_) => return Err(allowed),
            }
        }
    }

    /// Offers the next key.
    async fn public_key(&mut self) -> Result<Outcome, russh::Error> {
        if self.keys.is_none() {
            let keys = Keys::gather(&self.host.login, self.handle.agent_session_binding()).await;
            self.tried.extend(keys.notes.iter().cloned());
            self.keys = Some(keys);
        }
        let Some(keys) = &mut self.keys else {
            return Ok(Outcome::Spent);
        };
        let Some(mut candidate) = keys.candidates.pop_front() else {
            return Ok(Outcome::Spent);
        };
        if let Candidate { public: None, .. } = candidate
            && let Err(why) = candidate.unlock(self.ask, self.host.login.prompts).await
        {
            self.tried.push(format!("{} ({why})", candidate.label));
            return Ok(Outcome::More {
                allowed: self.server_methods(),
                partial: false,
            });
        }
        let Some(public) = candidate.public.clone() else {
            return Ok(Outcome::Spent);
        };
        let hash = if public.algorithm().is_rsa() {
            Some(self.rsa_hash().await?)
        } else {
            None
        };
        let label = candidate.label.clone();
        let certificate = candidate.certificate.clone();
        let agent = self.keys.as_mut().and_then(|keys| keys.agent.as_mut());
        let mut signing = Signing {
            candidate,
            agent,
            ask: self.ask,
            prompts: self.host.login.prompts,
        };
        let user = &self.host.user;
        let result = match certificate {
            Some(certificate) => {
                self.handle
                    .authenticate_certificate_with(user, certificate, hash, &mut signing)
                    .await
            }
            None => {
                self.handle
                    .authenticate_publickey_with(user, public, hash, &mut signing)
                    .await
            }
        };
        match result {
            Ok(result) => {
                let outcome = Outcome::from(result);
                let came = match &outcome {
                    Outcome::More { partial: true, .. } => "accepted, but not enough",
                    _ => "refused",
                };
                self.tried.push(format!("{label} ({came})"));
                Ok(outcome)
            }
            Err(SignError::Gone) => Err(russh::Error::SendError),
            // The server has accepted the key, and still waits for something.
            Err(SignError::Cannot(why)) => {
                self.tried.push(format!("{label} ({why})"));
                Ok(Outcome::More {
                    allowed: self.server_methods(),
                    partial: false,
                })
            }
        }
    }

    /// What goes on being allowed when an attempt was given up on our side.
    fn server_methods(&self) -> MethodSet {
        let kinds: Vec<MethodKind> = self.methods.iter().map(|method| kind(*method)).collect();
        MethodSet::from(kinds.as_slice())
    }

    /// The best hash that the server knows for signatures by RSA keys.
    async fn rsa_hash(&mut self) -> Result<HashAlg, russh::Error> {
        if let Some(hash) = self.rsa_hash {
            return Ok(hash);
        }
        // A server that says nothing is an old one, which may know SHA-2 all the same; SHA-1 is never used.
        let hash = self
            .handle
            .best_supported_rsa_hash()
            .await?
            .flatten()
            .unwrap_or(HashAlg::Sha512);
        self.rsa_hash = Some(hash);
        Ok(hash)
    }

    /// Second factors and passwords that PAM asks for: as many rounds of questions as the server likes.
    async fn keyboard_interactive(&mut self) -> Result<Outcome, russh::Error> {
        if self.rounds >= self.host.login.prompts {
            return Ok(Outcome::Spent);
        }
        self.rounds += 1;
        let mut response = self
            .handle
            .authenticate_keyboard_interactive_start(&self.host.user, None::<String>)
            .await?;
        let mut asked = false;
        loop {
            match response {
                KeyboardInteractiveAuthResponse::Success => return Ok(Outcome::In),
                KeyboardInteractiveAuthResponse::Failure {
                    remaining_methods,
                    partial_success,
                } => {
                    let came = match (partial_success, asked) {
                        (true, _) => "accepted, but not enough",
                        (false, true) => "refused",
                        (false, false) => "refused without a question",
                    };
                    self.tried.push(format!("keyboard-interactive ({came})"));
                    if !asked && !partial_success {
                        // It would be the same again.
                        self.rounds = self.host.login.prompts;
                    }
                    return Ok(Outcome::More {
                        allowed: remaining_methods,
                        partial: partial_success,
                    });
                }
                KeyboardInteractiveAuthResponse::InfoRequest {
                    name,
                    instructions,
                    prompts,
                } => {
                    for text in [name, instructions] {
                        let text = printable(&text);
                        if !text.trim().is_empty() {
                            self.ask.tell(text.trim_end());
                        }
                    }
                    let mut answers: Vec<String> = Vec::with_capacity(prompts.len());
                    for prompt in prompts {
                        asked = true;
                        let text =
                            format!("({}) {}", self.host.login_name(), printable(&prompt.prompt));
                        match self
                            .ask
                            .ask(Question {
                                text,
                                echo: prompt.echo,
                            })
                            .await
                        {
                            Some(mut answer) => answers.push(std::mem::take(&mut *answer)),
                            None => {
                                answers.iter_mut().for_each(Zeroize::zeroize);
                                self.tried.push(
                                    "keyboard-interactive (its question was not answered)"
                                        .to_owned(),
                                );
                                return Err(russh::Error::RecvError);
                            }
                        }
                    }
                    response = self
                        .handle
                        .authenticate_keyboard_interactive_respond(answers)
                        .await?;
                }
            }
        }
    }

    async fn password(&mut self) -> Result<Outcome, russh::Error> {
        if self.passwords >= self.host.login.prompts {
            return Ok(Outcome::Spent);
        }
        if self.passwords > 0 {
            self.ask.tell("Permission denied, please try again.");
        }
        self.passwords += 1;
        let text = format!("{}'s password: ", self.host.login_name());
        let Some(mut password) = self.ask.ask(Question { text, echo: false }).await else {
            self.tried.push("password (not given)".to_owned());
            return Ok(Outcome::Spent);
        };
        let password = std::mem::take(&mut *password);
        let outcome = Outcome::from(
            self.handle
                .authenticate_password(&self.host.user, password)
                .await?,
        );
        let came = if matches!(outcome, Outcome::More { partial: true, .. }) {
            "accepted, but not enough"
        } else {
            "refused"
        };
        self.tried.push(format!("password ({came})"));
        Ok(outcome)
    }

    fn failure(&self, allowed: &MethodSet, events: &Events) -> AuthFailure {
        let host = &self.host.name;
        let disconnect = events.end();
        let mut advice = Vec::new();
        if disconnect
            .as_ref()
            .is_some_and(|said| said.contains("Too many authentication failures"))
        {
            advice.push(format!(
                "The server counts each key as a try: name the right one for `{host}` in the ssh configuration with \
                 `IdentityFile` and `IdentitiesOnly yes`"
            ));
        } else if allowed.contains(&MethodKind::PublicKey)
            && self.host.login.methods.contains(&Method::PublicKey)
        {
            let any = self.keys.as_ref().is_some_and(|keys| keys.any);
            advice.push(if any {
                format!("Run `ssh-copy-id {host}` to make one of your keys known there, or name the right one with `IdentityFile`")
            } else {
                format!("Make a key with `ssh-keygen` and run `ssh-copy-id {host}`, or add your key to ssh-agent")
            });
        }
        for beyond in &self.host.login.beyond_us {
            let is_allowed = allowed.iter().any(|kind| <&str>::from(kind) == beyond);
            if is_allowed || beyond.starts_with("PKCS11") {
                advice.push(format!(
                    "Your ssh configuration also has {beyond}, which cannot be used here; {}",
                    openssh_hint()
                ));
            }
        }
        if self.keys.as_ref().is_some_and(|keys| keys.any_hardware) {
            advice.push(format!("For a key on a security key, {}", openssh_hint()));
        }
        AuthFailure {
            host: host.clone(),
            user: self.host.user.clone(),
            tried: self.tried.clone(),
            allowed: allowed.iter().map(String::from).collect(),
            disconnect,
            advice,
        }
    }
}

fn kind(method: Method) -> MethodKind {
    match method {
        Method::PublicKey => MethodKind::PublicKey,
        Method::KeyboardInteractive => MethodKind::KeyboardInteractive,
        Method::Password => MethodKind::Password,
    }
}

/// What a server sends, without what could play tricks on a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| matches!(letter, '\n' | '\t') || !letter.is_control())
        .collect()
}

/// A secret, asked for.
async fn secret(ask: &dyn Ask, text: String) -> Option<Zeroizing<String>> {
    ask.ask(Question { text, echo: false }).await
}
