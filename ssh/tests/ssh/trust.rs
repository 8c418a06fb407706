//! Host keys: known, unknown, changed, revoked, certified.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cellferry_ssh::{HostKeyError, SshError, Transport, connect};

use crate::world::{BOTH, Home, Sshd, User, enter, in_time, keygen, message, run};

fn ready(more: &str) -> (Home, Sshd) {
    let home = Home::new();
    let key = home.key("key", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], "");
    trusting(&home, &sshd, more);
    (home, sshd)
}

fn trusting(home: &Home, sshd: &Sshd, more: &str) {
    home.config(&sshd.block(
        "lab",
        &format!("  IdentityFile {}\n{more}", home.path(".ssh/key").display()),
    ));
}

/// The fingerprint as `ssh-keygen` prints it.
fn fingerprint(public: &Path) -> String {
    let output = std::process::Command::new("ssh-keygen")
        .arg("-lf")
        .arg(public)
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn an_unknown_key_is_asked_about() {
    for transport in BOTH {
        let (home, sshd) = ready("  HashKnownHosts no");
        let mut options = home.options("lab");
        options.transport = transport;
        let shown = fingerprint(&sshd.path("host_ed25519.pub"));

        for answers in [&[][..], &["no"]] {
            let user = User::answering(answers);
            let error = message(in_time(connect(&options, user.clone())).await);
            if transport == Transport::Russh {
                assert!(error.contains(&shown), "{error}");
            } else {
                assert!(error.contains("Host key verification failed"), "{error}");
            }
            assert!(!home.path(".ssh/known_hosts").exists());
            let questions = user.questions();
            assert!(
                questions[0].contains("can't be established"),
                "{questions:?}"
            );
            assert!(
                questions[0].contains(&format!("ED25519 key fingerprint is {shown}.")),
                "{questions:?}"
            );
            assert!(user.asked.lock().unwrap()[0].echo);
        }

        let user = User::answering(&["perhaps", "yes"]);
        let client = in_time(connect(&options, user.clone())).await.unwrap();
        assert_eq!(user.questions().len(), 2);
        assert!(
            user.was_told().contains("Permanently added"),
            "{}",
            user.was_told()
        );
        assert_eq!(run(&client, "echo in").await.0, "in\n");
        assert!(home.read(".ssh/known_hosts").starts_with(&sshd.place()));
        if transport == Transport::Russh {
            assert_eq!(
                home.path(".ssh/known_hosts")
                    .metadata()
                    .unwrap()
                    .permissions()
                    .mode()
                    & 0o777,
                0o600
            );
        }
        // Now it is known.
        enter(&options).await.unwrap();
    }
}

#[tokio::test]
async fn the_fingerprint_is_an_answer() {
    let (home, sshd) = ready("");
    let shown = fingerprint(&sshd.path("host_ed25519.pub"));
    let user = User::answering(&["SHA256:wrong", &shown]);
    in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert_eq!(user.questions().len(), 2);
}

#[tokio::test]
async fn new_names_are_hashed_as_openssh_reads_them() {
    let (home, sshd) = ready("  HashKnownHosts yes");
    home.write(".ssh/known_hosts", "# the last line is open");
    in_time(connect(&home.options("lab"), User::answering(&["yes"])))
        .await
        .unwrap();
    let text = home.read(".ssh/known_hosts");
    assert!(text.lines().nth(1).unwrap().starts_with("|1|"), "{text}");
    for transport in BOTH {
        let mut options = home.options("lab");
        options.transport = transport;
        enter(&options).await.unwrap();
    }
    let found = std::process::Command::new("ssh-keygen")
        .args([
            "-F",
            &sshd.place(),
            "-f",
            home.path(".ssh/known_hosts").to_str().unwrap(),
        ])
        .output();
    assert!(found.unwrap().status.success());
}

#[tokio::test]
async fn a_folder_is_made_for_the_first_host() {
    let (home, sshd) = ready("");
    let file = home.path("new/known_hosts");
    home.write(
        ".ssh/config",
        &sshd.block(
            "lab",
            &format!(
                "  IdentityFile {}\n  UserKnownHostsFile {}\n",
                home.path(".ssh/key").display(),
                file.display()
            ),
        ),
    );
    in_time(connect(&home.options("lab"), User::answering(&["yes"])))
        .await
        .unwrap();
    assert_eq!(
        home.path("new").metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(file.exists());
}

#[tokio::test]
async fn an_unwritable_file_is_no_failure() {
    let (home, sshd) = ready("");
    home.write("file", "");
    home.write(
        ".ssh/config",
        &sshd.block(
            "lab",
            &format!(
                "  IdentityFile {}\n  UserKnownHostsFile {}\n",
                home.path(".ssh/key").display(),
                home.path("file/known").display()
            ),
        ),
    );
    let user = User::answering(&["yes"]);
    in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert!(
        user.was_told().contains("cannot be noted"),
        "{}",
        user.was_told()
    );
}

#[tokio::test]
async fn strict_and_accept_new() {
    let (home, sshd) = ready("  StrictHostKeyChecking yes");
    let user = User::answering(&["yes"]);
    let error = message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert!(error.contains("StrictHostKeyChecking is on"), "{error}");
    assert_eq!(user.questions(), [""; 0]);

    trusting(&home, &sshd, "  StrictHostKeyChecking accept-new");
    enter(&home.options("lab")).await.unwrap();
    enter(&home.options("lab")).await.unwrap();
    assert_eq!(home.read(".ssh/known_hosts").lines().count(), 1);
}

#[tokio::test]
async fn a_changed_key_is_refused() {
    for transport in BOTH {
        for checking in ["yes", "ask", "accept-new"] {
            let (home, sshd) = ready(&format!("  StrictHostKeyChecking {checking}"));
            let other = home.key("other", &["ed25519"], "");
            let key = std::fs::read_to_string(format!("{}.pub", other.display())).unwrap();
            home.write(
                ".ssh/known_hosts",
                &format!("# two\n# lines\n{} {key}", sshd.place()),
            );
            let mut options = home.options("lab");
            options.transport = transport;
            let user = User::answering(&["yes", "yes"]);
            let result = in_time(connect(&options, user.clone())).await;
            assert_eq!(user.questions(), [""; 0]);
            if transport == Transport::OpenSsh {
                let error = message(result);
                assert!(
                    error.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"),
                    "{error}"
                );
                continue;
            }
            let Err(SshError::HostKey(error)) = result else {
                panic!("{result:?}")
            };
            let text = error.to_string();
            let HostKeyError::Changed {
                line: 3,
                known,
                offered,
                file,
                ..
            } = *error
            else {
                panic!("{text}")
            };
            assert_eq!(
                known,
                format!(
                    "ED25519 {}",
                    fingerprint(Path::new(&format!("{}.pub", other.display())))
                )
            );
            assert_eq!(
                offered,
                format!("ED25519 {}", fingerprint(&sshd.path("host_ed25519.pub")))
            );
            assert_eq!(file, home.path(".ssh/known_hosts").display().to_string());
            // The remedy works.
            let remedy = text
                .split('`')
                .find(|part| part.starts_with("ssh-keygen"))
                .unwrap();
            assert!(
                std::process::Command::new("sh")
                    .args(["-c", remedy])
                    .output()
                    .unwrap()
                    .status
                    .success()
            );
            assert!(
                !home
                    .read(".ssh/known_hosts")
                    .contains(key.split(' ').nth(1).unwrap())
            );
        }
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_a_change() {
    let (home, sshd) = ready("");
    let other = home.key("other", &["ecdsa"], "");
    let key = std::fs::read_to_string(format!("{}.pub", other.display())).unwrap();
    home.write(".ssh/known_hosts", &format!("{} {key}", sshd.place()));
    let error = message(enter(&home.options("lab")).await);
    assert!(error.contains("HAS CHANGED"), "{error}");
    assert!(error.contains("has the key ECDSA SHA256:"), "{error}");
}

#[tokio::test]
async fn the_type_that_is_known_is_asked_for() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let home = Home::new();
        let key = home.key("key", &["ed25519"], "");
        let sshd = Sshd::with_keys(
            &[&["ed25519"], &["ecdsa"], &["rsa", "-b", "2048"]],
            &[&key],
            "",
        );
        trusting(&home, &sshd, "");
        home.write(".ssh/known_hosts", &sshd.known_as(&sshd.place(), kind));
        enter(&home.options("lab")).await.unwrap();
    }
}

#[tokio::test]
async fn checking_off_lets_a_changed_key_pass_with_a_warning() {
    let (home, sshd) = ready("  StrictHostKeyChecking no");
    let other = home.key("other", &["ed25519"], "");
    let key = std::fs::read_to_string(format!("{}.pub", other.display())).unwrap();
    home.write(".ssh/known_hosts", &format!("{} {key}", sshd.place()));
    let user = User::absent();
    in_time(connect(&home.options("lab"), user.clone()))
        .await
        .unwrap();
    assert!(
        user.was_told().contains("HAS CHANGED"),
        "{}",
        user.was_told()
    );
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    for checking in ["ask", "no"] {
        let (home, sshd) = ready(&format!("  StrictHostKeyChecking {checking}"));
        let known = sshd.known_as(&sshd.place(), "ed25519");
        home.write(
            ".ssh/known_hosts",
            &format!("{known}@revoked {}", sshd.known_as("*", "ed25519")),
        );
        let error = message(enter(&home.options("lab")).await);
        assert!(error.contains("marked as revoked"), "{error}");
        assert!(error.contains("known_hosts:2"), "{error}");
    }
}

#[tokio::test]
async fn names_that_stand_for_the_host() {
    let (home, sshd) = ready("");
    for (names, more, known) in [
        (sshd.place(), "", true),
        // Known without its port.
        ("127.0.0.1".to_owned(), "", true),
        ("127.0.0.?,!10.*".to_owned(), "", true),
        ("[127.0.0.*]:*".to_owned(), "", true),
        (format!("*,!{}", sshd.place()), "  HostKeyAlias other", true),
        ("vault".to_owned(), "  HostKeyAlias vault", true),
        ("vault".to_owned(), "", false),
        ("localhost".to_owned(), "", false),
        (format!("[127.0.0.1]:{}", sshd.port - 1), "", false),
    ] {
        trusting(
            &home,
            &sshd,
            &format!("{more}\n  StrictHostKeyChecking yes"),
        );
        home.write(".ssh/known_hosts", &sshd.known_as(&names, "ed25519"));
        let result = enter(&home.options("lab")).await;
        assert_eq!(result.is_ok(), known, "{names}: {:?}", result.err());
    }
}

#[tokio::test]
async fn all_files_count() {
    let (home, sshd) = ready("");
    home.write("system", &sshd.known_as(&sshd.place(), "ed25519"));
    home.write(
        ".ssh/config",
        &sshd.block(
            "lab",
            &format!(
                "  IdentityFile {}\n  StrictHostKeyChecking yes\n  UserKnownHostsFile {1}/none {1}/none2\n  GlobalKnownHostsFile {1}/none3 {1}/system",
                home.path(".ssh/key").display(),
                home.dir.path().display()
            ),
        ),
    );
    enter(&home.options("lab")).await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_error() {
    let (home, _sshd) = ready("");
    // A directory can be read by nobody, not even by root.
    std::fs::create_dir(home.path(".ssh/known_hosts")).unwrap();
    let user = User::answering(&["yes"]);
    let error = message(in_time(connect(&home.options("lab"), user.clone())).await);
    assert!(error.contains("cannot be read"), "{error}");
    assert_eq!(user.questions(), [""; 0]);
}

/// Signs the host key. Returns the certificate's file.
fn certify(home: &Home, sshd: &Sshd, more: &[&str]) {
    let authority = home.path(".ssh/authority");
    if !authority.exists() {
        home.key("authority", &["ed25519"], "");
    }
    let public = sshd.path("host_ed25519.pub");
    keygen(
        &[
            &["-q", "-s", authority.to_str().unwrap(), "-I", "host"],
            more,
            &[public.to_str().unwrap()],
        ]
        .concat(),
    );
}

#[tokio::test]
async fn host_certificates() {
    let home = Home::new();
    let key = home.key("key", &["ed25519"], "");
    for (signing, accepted) in [
        (&["-h", "-n", "127.0.0.1"][..], true),
        (&["-h", "-n", "other,127.0.0.1"], true),
        (&["-h", "-n", "127.0.0.*"], false),
        (&["-h", "-n", "elsewhere"], false),
        (&["-h", "-n", "127.0.0.1", "-V", "20200101:20200102"], false),
        (&["-h", "-n", "127.0.0.1", "-V", "20900101:20910101"], false),
    ] {
        let sshd = Sshd::certified(&[&key], |sshd| certify(&home, sshd, signing));
        trusting(&home, &sshd, "  StrictHostKeyChecking yes");
        let authority = home.read(".ssh/authority.pub");
        home.write(
            ".ssh/known_hosts",
            &format!("@cert-authority [127.0.0.*]:* {authority}"),
        );
        let ours = enter(&home.options("lab")).await;
        let mut options = home.options("lab");
        options.transport = Transport::OpenSsh;
        let theirs = enter(&options).await;
        assert_eq!(theirs.is_ok(), accepted, "{signing:?}: {:?}", theirs.err());
        assert_eq!(ours.is_ok(), accepted, "{signing:?}: {:?}", ours.err());

        // Without an authority, and with another, the key in the certificate must be known itself.
        let other = home.path(".ssh/key.pub");
        let other = std::fs::read_to_string(other).unwrap();
        for text in [String::new(), format!("@cert-authority * {other}")] {
            home.write(".ssh/known_hosts", &text);
            assert!(enter(&home.options("lab")).await.is_err());
            home.write(
                ".ssh/known_hosts",
                &format!("{text}{}", sshd.known_as(&sshd.place(), "ed25519")),
            );
            enter(&home.options("lab")).await.unwrap();
        }

        // A revoked authority revokes all it has signed.
        home.write(
            ".ssh/known_hosts",
            &format!("@cert-authority * {authority}@revoked * {authority}"),
        );
        let error = message(enter(&home.options("lab")).await);
        assert!(error.contains("revoked"), "{error}");
    }
}
