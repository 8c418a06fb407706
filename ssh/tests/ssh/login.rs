//! Getting in with keys and agents.

use cellferry_ssh::{SshError, Transport};

use crate::world::{BOTH, Home, Sshd, User, enter, in_time, keygen, message, run};

/// A home that knows the host.
fn knowing(sshd: &Sshd, home: &Home, more: &str) {
    home.config(&sshd.block("lab", more));
    home.write(".ssh/known_hosts", &sshd.known_as(&sshd.place(), "ed25519"));
}

#[tokio::test]
async fn keys_of_all_kinds() {
    for kind in [
        &["ed25519"][..],
        &["rsa", "-b", "2048"],
        &["ecdsa", "-b", "256"],
        &["ecdsa", "-b", "384"],
        &["ecdsa", "-b", "521"],
    ] {
        let home = Home::new();
        let key = home.key("key", kind, "");
        let sshd = Sshd::new(&[&key], "");
        knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
        let client = enter(&home.options("lab"))
            .await
            .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        assert_eq!(run(&client, "echo in").await.0, "in\n");
    }
}

#[tokio::test]
async fn old_forms_of_key_files() {
    for (kind, form) in [
        ("rsa", "PEM"),
        ("rsa", "PKCS8"),
        ("ecdsa", "PKCS8"),
        ("ecdsa", "PEM"),
    ] {
        let home = Home::new();
        let key = home.key("key", &[kind, "-m", form], "");
        let sshd = Sshd::new(&[&key], "");
        knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
        enter(&home.options("lab"))
            .await
            .unwrap_or_else(|error| panic!("{kind} {form}: {error}"));
    }
}

#[tokio::test]
async fn default_names_and_non_standard_port() {
    let home = Home::new();
    let key = home.key("id_ed25519", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], "");
    home.config("");
    home.write(".ssh/known_hosts", &sshd.known_as(&sshd.place(), "ed25519"));
    let mut options = home.options(&format!(
        "{}@127.0.0.1:{}",
        home.environment().user,
        sshd.port
    ));
    // The program would look for them in the home of the account.
    options.environment.ssh_program = None;
    let client = enter(&options).await.unwrap();
    assert_eq!(client.host().port, sshd.port);
}

#[tokio::test]
async fn passphrases_are_asked() {
    for transport in BOTH {
        let home = Home::new();
        let key = home.key("key", &["ed25519"], "open sesame");
        let sshd = Sshd::new(&[&key], "");
        knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
        let mut options = home.options("lab");
        options.transport = transport;

        let user = User::answering(&["wrong", "open sesame"]);
        let client = in_time(cellferry_ssh::connect(&options, user.clone()))
            .await
            .unwrap();
        assert_eq!(run(&client, "echo in").await.0, "in\n");
        let questions = user.questions();
        assert_eq!(questions.len(), 2, "{questions:?}");
        assert!(
            questions[0].starts_with(&format!("Enter passphrase for key '{}'", key.display())),
            "{questions:?}"
        );
        assert!(
            user.asked
                .lock()
                .unwrap()
                .iter()
                .all(|question| !question.echo)
        );

        let error = message(enter(&options).await);
        if transport == Transport::Russh {
            assert!(error.contains("its passphrase was not given"), "{error}");
        } else {
            assert!(error.contains("Permission denied"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_passphrase_is_not_asked_for_a_key_that_is_refused() {
    let home = Home::new();
    let locked = home.key("locked", &["ed25519"], "secret");
    let key = home.key("key", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], "");
    knowing(
        &sshd,
        &home,
        &format!(
            "  IdentityFile {}\n  IdentityFile {}",
            locked.display(),
            key.display()
        ),
    );
    let user = User::absent();
    in_time(cellferry_ssh::connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert_eq!(user.questions(), [""; 0]);
}

#[tokio::test]
async fn old_encrypted_keys_are_opened() {
    let home = Home::new();
    let key = home.key("key", &["rsa", "-b", "2048", "-m", "PKCS8"], "secret");
    let sshd = Sshd::new(&[&key], "");
    knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
    in_time(cellferry_ssh::connect(
        &home.options("lab"),
        User::answering(&["secret"]),
    ))
    .await
    .unwrap();
}

#[tokio::test]
async fn keys_of_the_agent() {
    for (transport, kind) in BOTH
        .into_iter()
        .flat_map(|transport| [(transport, "ed25519"), (transport, "rsa")])
    {
        let home = Home::new();
        let key = home.key("key", &[kind], "");
        let sshd = Sshd::new(&[&key], "");
        knowing(&sshd, &home, "");
        let mut options = home.options("lab");
        options.transport = transport;
        options.environment.agent_socket = Some(home.agent(&[&key]));
        std::fs::remove_file(&key).unwrap();
        let client = enter(&options).await.unwrap();
        assert_eq!(run(&client, "echo in").await.0, "in\n");
    }
}

#[tokio::test]
async fn too_many_keys_and_identities_only() {
    let home = Home::new();
    let keys: Vec<_> = (0..4)
        .map(|n| home.key(&format!("key{n}"), &["ed25519"], ""))
        .collect();
    let sshd = Sshd::new(&[&keys[3]], "MaxAuthTries 3");
    let mut options = home.options("lab");
    options.environment.agent_socket =
        Some(home.agent(&keys.iter().map(AsRef::as_ref).collect::<Vec<_>>()));

    knowing(&sshd, &home, "");
    let error = message(enter(&options).await);
    assert!(
        error.contains("Too many authentication failures"),
        "{error}"
    );
    assert!(error.contains("`IdentitiesOnly yes`"), "{error}");
    assert!(error.contains("ssh-agent's `key0` (refused)"), "{error}");

    // The file that is named comes first, and by the agent.
    knowing(
        &sshd,
        &home,
        &format!("  IdentityFile {}.pub", keys[3].display()),
    );
    enter(&options).await.unwrap();

    knowing(
        &sshd,
        &home,
        &format!("  IdentityFile {}\n  IdentitiesOnly yes", keys[0].display()),
    );
    let error = message(enter(&options).await);
    assert!(error.contains("key0 by ssh-agent (refused)"), "{error}");
    assert!(!error.contains("key1"), "{error}");
}

#[tokio::test]
async fn user_certificates() {
    let home = Home::new();
    let authority = home.key("authority", &["ed25519"], "");
    let key = home.key("key", &["ed25519"], "");
    let sshd = Sshd::new(
        &[],
        &format!("TrustedUserCAKeys {}.pub", authority.display()),
    );
    let user = home.environment().user;
    let public = format!("{}.pub", key.display());
    keygen(&[
        "-q",
        "-s",
        authority.to_str().unwrap(),
        "-I",
        "test",
        "-n",
        &user,
        &public,
    ]);
    knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
    enter(&home.options("lab")).await.unwrap();

    // Elsewhere, and with the private half in the agent only.
    let elsewhere = home.path("certificate");
    std::fs::rename(format!("{}-cert.pub", key.display()), &elsewhere).unwrap();
    knowing(
        &sshd,
        &home,
        &format!(
            "  IdentityFile {}\n  CertificateFile {}",
            key.display(),
            elsewhere.display()
        ),
    );
    let mut options = home.options("lab");
    enter(&options).await.unwrap();
    options.environment.agent_socket = Some(home.agent(&[&key]));
    std::fs::remove_file(&key).unwrap();
    enter(&options).await.unwrap();
}

#[tokio::test]
async fn failures_say_what_was_tried() {
    let home = Home::new();
    let key = home.key("key", &["ed25519"], "");
    let other = home.key("other", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], "");
    knowing(&sshd, &home, &format!("  IdentityFile {}", other.display()));
    let error = message(enter(&home.options("lab")).await);
    for part in [
        "`lab` does not let",
        "other (refused)",
        "it accepts publickey",
        "ssh-copy-id lab",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }

    // A key that others may read is not used, as in OpenSSH.
    knowing(&sshd, &home, &format!("  IdentityFile {}", key.display()));
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let error = message(enter(&home.options("lab")).await);
    assert!(
        error.contains(&format!("chmod 600 {}", key.display())),
        "{error}"
    );

    knowing(
        &sshd,
        &home,
        &format!("  IdentityFile {}", home.path("none").display()),
    );
    match enter(&home.options("lab")).await {
        Err(SshError::Auth(failure)) => {
            assert_eq!(failure.allowed, ["publickey"]);
            assert_eq!(failure.tried, [""; 0]);
            assert!(failure.to_string().contains("ssh-keygen"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}
