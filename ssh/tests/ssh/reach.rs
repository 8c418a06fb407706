//! The way to a host: configuration, jump hosts, proxies, and what can be wrong with it.

use std::net::TcpListener;
use std::time::Duration;

use cellferry_ssh::{SshError, Transport};

use crate::world::{BOTH, Home, Sshd, enter, in_time, message, run};

struct Chain {
    home: Home,
    hosts: Vec<Sshd>,
}

/// Three hosts; each alias `h0`, `h1`, `h2` has its own block, with `more` for it.
fn chain(more: [&str; 3]) -> Chain {
    let home = Home::new();
    let key = home.key("key", &["ed25519"], "");
    let hosts: Vec<Sshd> = (0..3).map(|_| Sshd::new(&[&key], "")).collect();
    let blocks: String = hosts
        .iter()
        .zip(more)
        .enumerate()
        .map(|(n, (sshd, more))| sshd.block(&format!("h{n}"), more))
        .collect();
    home.config(&format!(
        "{blocks}\nHost *\n  IdentityFile {}",
        key.display()
    ));
    let known: String = hosts
        .iter()
        .map(|sshd| sshd.known_as(&sshd.place(), "ed25519"))
        .collect();
    home.write(".ssh/known_hosts", &known);
    Chain { home, hosts }
}

#[tokio::test]
async fn jumps() {
    for more in [
        ["", "", "  ProxyJump h0,h1"],
        // Each hop has a configuration of its own.
        ["", "  ProxyJump h0", "  ProxyJump h1"],
    ] {
        let Chain { home, mut hosts } = chain(more);
        for transport in BOTH {
            let mut options = home.options("h2");
            options.transport = transport;
            let client = enter(&options).await.unwrap();
            // The way is seen at the far end: the connection there comes from the hop's sshd, not from here.
            let (from, _, _) = run(&client, "echo $SSH_CONNECTION").await;
            assert!(from.trim().ends_with(&hosts[2].port.to_string()), "{from}");
            assert!(hosts[0].connections() > 0 && hosts[1].connections() > 0);
            client.disconnect().await;
        }
        let client = enter(&home.options("h2")).await.unwrap();
        hosts[0].kill();
        let why = in_time(client.closed()).await;
        assert!(why.contains("h0") || !why.is_empty(), "{why}");
    }
}

#[tokio::test]
async fn a_jump_with_user_and_port() {
    let Chain { home, hosts } = chain(["", "", ""]);
    let user = home.environment().user;
    let text = home.read(".ssh/config");
    home.write(
        ".ssh/config",
        &format!(
            "Host far\n  HostName 127.0.0.1\n  Port {}\n  ProxyJump {user}@127.0.0.1:{}\n{text}",
            hosts[1].port, hosts[0].port
        ),
    );
    let client = enter(&home.options("far")).await.unwrap();
    assert_eq!(
        client.host().jumps(),
        [format!("{user}@127.0.0.1:{}", hosts[0].port)]
    );
    assert_eq!(run(&client, "echo in").await.0, "in\n");
}

#[tokio::test]
async fn failing_jumps_are_named() {
    let Chain { home, mut hosts } = chain(["", "", "  ProxyJump h0,h1"]);
    hosts[1].kill();
    let error = message(enter(&home.options("h2")).await);
    assert!(
        error.contains("the jump host `h1` on the way to `h2` failed"),
        "{error}"
    );
    hosts[0].kill();
    let error = message(enter(&home.options("h2")).await);
    assert!(
        error.contains("the jump host `h0` on the way to `h1`"),
        "{error}"
    );
    assert!(error.contains("connection refused"), "{error}");

    let Chain { home, mut hosts } = chain(["", "", "  ProxyJump h0"]);
    hosts[2].kill();
    let error = message(enter(&home.options("h2")).await);
    assert!(error.contains("cannot reach 127.0.0.1"), "{error}");
}

#[tokio::test]
async fn circles_are_refused() {
    for more in [
        ["  ProxyJump h0", "", ""],
        ["  ProxyJump h1", "  ProxyJump h0", ""],
        ["  ProxyJump h1", "  ProxyJump h2", "  ProxyJump h0"],
    ] {
        let Chain {
            home,
            hosts: _hosts,
        } = chain(more);
        let error = message(enter(&home.options("h0")).await);
        assert!(error.contains("go in a circle"), "{error}");
    }
}

#[tokio::test]
async fn proxy_commands() {
    let Chain { home, hosts } = chain(["", "", ""]);
    let text = home.read(".ssh/config");
    // The pipes of `ssh -W` are as good as a connection, and need nothing that is not here.
    let proxy = format!("ssh -F {} -W %h:%p h1", home.path(".ssh/config").display());
    home.write(
        ".ssh/proxied",
        &format!(
            "Host far\n  HostName 127.0.0.1\n  Port {}\n  ProxyCommand {proxy}\n{text}",
            hosts[2].port
        ),
    );
    for transport in BOTH {
        let mut options = home.options("far");
        options.config = Some(home.path(".ssh/proxied"));
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        assert_eq!(run(&client, "echo in").await.0, "in\n");
    }

    home.write(
        ".ssh/proxied",
        &format!("Host far\n  ProxyCommand echo no luck with %n >&2; exit 1\n{text}"),
    );
    let mut options = home.options("far");
    options.config = Some(home.path(".ssh/proxied"));
    match enter(&options).await {
        Err(SshError::ProxyCommand {
            command, reason, ..
        }) => {
            assert!(command.contains("no luck with far"), "{command}");
            assert_eq!(
                reason,
                "ended (exit status: 0) before the connection was made, and printed: no luck with far"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_reached() {
    let home = Home::new();
    home.config(
        "Host gone\n  HostName no-such-host.invalid\nHost shut\n  HostName 127.0.0.1\n  Port 1\n",
    );
    let error = message(enter(&home.options("gone")).await);
    assert!(
        error.contains("`no-such-host.invalid` of host `gone` cannot be resolved"),
        "{error}"
    );
    let error = message(enter(&home.options("shut")).await);
    assert!(
        error.contains("cannot connect to `shut` at 127.0.0.1:1: connection refused"),
        "{error}"
    );
    for transport in BOTH {
        let mut options = home.options("-oProxyCommand=true");
        options.transport = transport;
        assert!(matches!(
            enter(&options).await,
            Err(SshError::Destination { .. })
        ));
    }
    let mut options = home.options("shut");
    options.transport = Transport::OpenSsh;
    let error = message(enter(&options).await);
    assert!(error.contains("Connection refused"), "{error}");
    options.environment.ssh_program = None;
    assert!(matches!(
        enter(&options).await,
        Err(SshError::NoProgram { .. })
    ));
}

#[tokio::test]
async fn a_silent_server_times_out() {
    // It takes connections, by its queue, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new();
    home.config(&format!(
        "Host mute\n  HostName 127.0.0.1\n  Port {}\n",
        silent.local_addr().unwrap().port()
    ));
    let mut options = home.options("mute");
    options.connect_timeout = Duration::from_millis(300);
    let error = message(enter(&options).await);
    assert!(
        error.contains("did not finish the key exchange within 0.3 s"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_an_ssh_server() {
    use std::io::Write;
    for (greeting, expected) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak ssh"),
        ("", "hung up"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let home = Home::new();
        home.config(&format!(
            "Host web\n  HostName 127.0.0.1\n  Port {}\n",
            listener.local_addr().unwrap().port()
        ));
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
        });
        let error = message(enter(&home.options("web")).await);
        assert!(error.contains(expected), "{error}");
        serving.join().unwrap();
    }
}

#[tokio::test]
async fn broken_configurations() {
    let home = Home::new();
    home.write(".ssh/config", "Host lab\n  Port many\n");
    for program in [home.environment().ssh_program, None] {
        let mut options = home.options("lab");
        options.environment.ssh_program = program;
        let error = message(enter(&options).await);
        assert!(
            error.contains("configuration of `lab` cannot be used"),
            "{error}"
        );
    }
    home.write(".ssh/config", "Host lab\n  RevokedHostKeys /etc/revoked\n");
    let error = message(enter(&home.options("lab")).await);
    assert!(error.contains("transport = \"openssh\""), "{error}");
}

#[tokio::test]
async fn giving_up_ends_the_attempt() {
    let home = Home::new();
    let key = home.key("key", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], "");
    home.config(&sshd.block("lab", ""));
    /// Never answers.
    struct Slow;
    #[async_trait::async_trait]
    impl cellferry_ssh::Ask for Slow {
        async fn ask(&self, _: cellferry_ssh::Question) -> Option<zeroize::Zeroizing<String>> {
            std::future::pending().await
        }
        fn tell(&self, _: &str) {}
    }
    for transport in BOTH {
        let mut options = home.options("lab");
        options.transport = transport;
        let attempt = tokio::time::timeout(
            Duration::from_secs(2),
            cellferry_ssh::connect(&options, std::sync::Arc::new(Slow)),
        );
        assert!(attempt.await.is_err());
        in_time(async {
            while sshd.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}
