//! Passwords and second factors, against a small server of our own: sshd needs PAM and accounts for them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cellferry_ssh::{SshError, connect};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use tokio::net::TcpListener;

use crate::world::{Home, User, in_time, message, run};

/// What the server wants.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Rule {
    /// A password, at the second try at the earliest.
    Password,
    /// Two rounds of questions: a password, then a code that may be seen.
    TwoRounds,
    /// A key, and then a code.
    KeyThenCode,
    /// Questions without end.
    Never,
}

#[derive(Clone)]
struct Server {
    rule: Rule,
    key: Option<PublicKey>,
    key_was_right: bool,
    round: usize,
    passwords: Arc<AtomicUsize>,
}

fn reject(kinds: &[MethodKind], partial: bool) -> Auth {
    Auth::Reject {
        proceed_with_methods: Some(MethodSet::from(kinds)),
        partial_success: partial,
    }
}

fn prompt(text: &'static str, echo: bool) -> Auth {
    Auth::Partial {
        name: "Second factor".into(),
        instructions: "Look at your device\u{1b}[2J".into(),
        prompts: Cow::Owned(vec![(Cow::Borrowed(text), echo)]),
    }
}

impl Handler for Server {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(Some("Authorised use only\n".to_owned()))
    }

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(match self.rule {
            Rule::Password => reject(&[MethodKind::Password], false),
            Rule::TwoRounds | Rule::Never => reject(&[MethodKind::KeyboardInteractive], false),
            Rule::KeyThenCode => reject(
                &[MethodKind::PublicKey, MethodKind::KeyboardInteractive],
                false,
            ),
        })
    }

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        self.passwords.fetch_add(1, Ordering::Relaxed);
        Ok(if self.rule == Rule::Password && password == "right" {
            Auth::Accept
        } else {
            reject(&[MethodKind::Password], false)
        })
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let right = self
            .key
            .as_ref()
            .is_some_and(|own| own.key_data() == key.public_key.key_data());
        self.key_was_right = right;
        Ok(reject(&[MethodKind::KeyboardInteractive], right))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let answer = response
            .and_then(|mut answers| answers.next())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let Some(answer) = answer else {
            self.round = 0;
            return Ok(match self.rule {
                Rule::KeyThenCode if !self.key_was_right => reject(&[MethodKind::PublicKey], false),
                Rule::KeyThenCode => prompt("Code: ", true),
                _ => prompt("Password: ", false),
            });
        };
        self.round += 1;
        Ok(match (self.rule, self.round, answer.as_str()) {
            (Rule::TwoRounds, 1, "right") => prompt("Code: ", true),
            (Rule::TwoRounds, 2, "123") | (Rule::KeyThenCode, 1, "123") => Auth::Accept,
            _ => reject(&[MethodKind::KeyboardInteractive], false),
        })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        session.data(channel, command.to_vec())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

/// A host `lab` with this rule; its port, and how many passwords it was sent.
async fn serve(rule: Rule, key: Option<PublicKey>, home: &Home, more: &str) -> Arc<AtomicUsize> {
    let host_key =
        PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let public = host_key.public_key().to_openssh().unwrap();
    let config = Arc::new(Config {
        keys: vec![host_key],
        auth_rejection_time: std::time::Duration::ZERO,
        ..Config::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let passwords = Arc::new(AtomicUsize::new(0));
    let server = Server {
        rule,
        key,
        key_was_right: false,
        round: 0,
        passwords: Arc::clone(&passwords),
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let session =
                russh::server::run_stream(Arc::clone(&config), stream, server.clone()).await;
            tokio::spawn(async move {
                if let Ok(session) = session {
                    let _ = session.await;
                }
            });
        }
    });
    home.config(&format!(
        "Host lab\n  HostName 127.0.0.1\n  Port {port}\n  User ada\n{more}\n"
    ));
    home.write(
        ".ssh/known_hosts",
        &format!("[127.0.0.1]:{port} {public}\n"),
    );
    passwords
}

#[tokio::test]
async fn a_password_is_asked_until_it_is_right() {
    let home = Home::new();
    let tries = serve(Rule::Password, None, &home, "").await;
    let user = User::answering(&["wrong", "right"]);
    let client = in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert_eq!(user.questions(), ["ada@127.0.0.1's password: "; 2]);
    assert!(
        user.asked
            .lock()
            .unwrap()
            .iter()
            .all(|question| !question.echo)
    );
    assert!(user.was_told().contains("Authorised use only"));
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    assert_eq!(run(&client, "hello").await.0, "hello");
}

#[tokio::test]
async fn passwords_are_asked_as_often_as_configured() {
    let home = Home::new();
    let tries = serve(Rule::Password, None, &home, "  NumberOfPasswordPrompts 2").await;
    let user = User::answering(&["wrong"; 9]);
    let error = message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    assert!(error.contains("password (refused)"), "{error}");
    assert!(error.contains("it accepts password"), "{error}");
    assert!(!error.contains("wrong"), "{error}");

    let tries = serve(Rule::Password, None, &home, "  PasswordAuthentication no").await;
    let user = User::answering(&["right"]);
    message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert_eq!(
        (tries.load(Ordering::Relaxed), user.questions().len()),
        (0, 0)
    );
}

#[tokio::test]
async fn rounds_of_questions() {
    let home = Home::new();
    serve(Rule::TwoRounds, None, &home, "").await;
    let user = User::answering(&["wrong", "right", "123"]);
    let client = in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert_eq!(
        user.questions(),
        [
            "(ada@127.0.0.1) Password: ",
            "(ada@127.0.0.1) Password: ",
            "(ada@127.0.0.1) Code: "
        ]
    );
    let echoes: Vec<bool> = user
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|question| question.echo)
        .collect();
    assert_eq!(echoes, [false, false, true]);
    // A server cannot play with the terminal.
    assert!(
        user.was_told().contains("Look at your device[2J"),
        "{}",
        user.was_told()
    );
    assert_eq!(run(&client, "hello").await.0, "hello");
}

#[tokio::test]
async fn a_key_and_then_a_code() {
    let home = Home::new();
    let wrong = home.key("wrong", &["ed25519"], "");
    let key = home.key("key", &["ed25519"], "");
    let public = PublicKey::from_openssh(home.read(".ssh/key.pub").trim()).unwrap();
    let more = format!("  IdentityFile {}", key.display());
    serve(Rule::KeyThenCode, Some(public.clone()), &home, &more).await;
    let user = User::answering(&["123"]);
    in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert_eq!(user.questions(), ["(ada@127.0.0.1) Code: "]);

    let more = format!("  IdentityFile {}", wrong.display());
    serve(Rule::KeyThenCode, Some(public), &home, &more).await;
    match in_time(connect(&home.options("lab"), User::answering(&["123"]))).await {
        Err(SshError::Auth(failure)) => assert!(
            failure
                .tried
                .iter()
                .any(|tried| tried.contains("wrong (refused)")),
            "{failure}"
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_user_who_does_not_answer() {
    let home = Home::new();
    serve(Rule::Never, None, &home, "").await;
    let user = User::absent();
    let error = message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert_eq!(user.questions().len(), 1);
    assert!(error.contains("its question was not answered"), "{error}");

    // And one who always answers wrong comes to an end.
    let user = User::answering(&["wrong"; 9]);
    let error = message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert_eq!(user.questions().len(), 3);
    assert!(error.contains("keyboard-interactive (refused)"), "{error}");
}

#[tokio::test]
async fn batch_mode_asks_nothing() {
    let home = Home::new();
    serve(Rule::Password, None, &home, "  BatchMode yes").await;
    let user = User::answering(&["right"]);
    message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert_eq!(user.questions().len(), 0);
}
