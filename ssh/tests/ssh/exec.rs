//! Commands: their input, output and end.

use std::time::Duration;

use cellferry_ssh::{Exit, Options, SshError, Transport};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{BOTH, Home, Sshd, enter, in_time, run};

fn ready(more: &str) -> (Home, Sshd, Options) {
    let home = Home::new();
    let key = home.key("id_ed25519", &["ed25519"], "");
    let sshd = Sshd::new(&[&key], more);
    home.config(&sshd.block("lab", &format!("  IdentityFile {}", key.display())));
    home.write(".ssh/known_hosts", &sshd.known_as(&sshd.place(), "ed25519"));
    let options = home.options("lab");
    (home, sshd, options)
}

#[tokio::test]
async fn output_and_exit() {
    let (_home, _sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        assert_eq!(client.host().hostname, "127.0.0.1");
        let (out, err, exit) = run(&client, "echo out; echo err >&2; exit 3").await;
        assert_eq!(
            (out.as_str(), err.as_str(), exit),
            ("out\n", "err\n", Exit::Code(3))
        );
        // What looks like an option of `ssh` is a command all the same.
        let (_, err, _) = run(&client, "-V").await;
        assert!(!err.contains("OpenSSH"), "{err}");
        let (_, _, exit) = run(&client, "kill -KILL $$").await;
        match transport {
            Transport::Russh => {
                assert!(matches!(exit, Exit::Signal { name, .. } if name == "KILL"))
            }
            Transport::OpenSsh => assert_eq!(exit, Exit::Code(255)),
        }
        client.disconnect().await;
        assert!(client.is_closed());
        assert!(matches!(
            client.exec("true").await,
            Err(SshError::Closed { .. })
        ));
    }
}

#[tokio::test]
async fn text_of_the_shell_comes_first() {
    let (_home, _sshd, mut options) =
        ready("ForceCommand echo welcome; sh -c \"$SSH_ORIGINAL_COMMAND\"");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        assert_eq!(run(&client, "echo out").await.0, "welcome\nout\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_there_and_back() {
    const SIZE: usize = 100 << 20;
    let (_home, _sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let process = in_time(client.exec("cat")).await.unwrap();
        let mut stdin = process.stdin;
        let mut stdout = process.stdout;
        let send = tokio::spawn(async move {
            let mut hash = Sha256::new();
            let mut chunk = vec![0; 1 << 20];
            let mut state = 1_u64;
            for _ in 0..SIZE / chunk.len() {
                for byte in &mut chunk {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *byte = (state >> 56) as u8;
                }
                hash.update(&chunk);
                stdin.write_all(&chunk).await.unwrap();
            }
            stdin.shutdown().await.unwrap();
            hash.finalize()
        });
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut total = 0;
        in_time(async {
            loop {
                match stdout.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => {
                        total += count;
                        hash.update(&buffer[..count]);
                    }
                }
            }
        })
        .await;
        assert_eq!(total, SIZE);
        assert_eq!(send.await.unwrap(), hash.finalize());
    }
}

#[tokio::test]
async fn many_commands_share_a_connection() {
    let (_home, _sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let outputs = futures::future::join_all((0..8).map(|n| {
            let client = &client;
            async move { run(client, &format!("echo {n}")).await.0 }
        }));
        let expected: Vec<String> = (0..8).map(|n| format!("{n}\n")).collect();
        assert_eq!(outputs.await, expected);
    }
}

#[tokio::test]
async fn unread_output_holds_nobody_up() {
    let (_home, _sshd, options) = ready("");
    let client = enter(&options).await.unwrap();
    // More than sshd, the connection and the window take without being read, and less than the buffer.
    let mut hoarder = in_time(client.exec("head -c 30000000 /dev/zero; echo done >&2"))
        .await
        .unwrap();
    let mut line = [0; 5];
    in_time(hoarder.stderr.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"done\n");
    assert_eq!(run(&client, "echo on").await.0, "on\n");
    let mut all = Vec::new();
    in_time(hoarder.stdout.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 30_000_000);

    // The same in small pieces, each a packet of its own: a log that nobody reads.
    let mut chatter = in_time(
        client.exec("for i in $(seq 3000); do echo line $i; sleep 0.0003; done; echo done >&2"),
    )
    .await
    .unwrap();
    in_time(chatter.stderr.read_exact(&mut line)).await.unwrap();
    assert_eq!(run(&client, "echo on").await.0, "on\n");
}

#[tokio::test]
async fn output_beyond_all_room_waits_and_is_whole() {
    let (_home, _sshd, options) = ready("");
    let client = enter(&options).await.unwrap();
    let mut flood = in_time(client.exec("head -c 200000000 /dev/zero"))
        .await
        .unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    in_time(async {
        loop {
            match flood.stdout.read(&mut buffer).await.unwrap() {
                0 => break,
                count => total += count,
            }
        }
    })
    .await;
    assert_eq!(total, 200_000_000);
    assert_eq!(in_time(flood.exit.wait()).await, Exit::Code(0));
}

#[tokio::test]
async fn writing_to_what_has_ended_fails() {
    let (_home, _sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let mut process = in_time(client.exec("exit 0")).await.unwrap();
        assert_eq!(in_time(process.exit.wait()).await, Exit::Code(0));
        let chunk = vec![0; 1 << 20];
        // It must not wait for ever for room that never comes.
        in_time(async { while process.stdin.write_all(&chunk).await.is_ok() {} }).await;
    }
}

#[tokio::test]
async fn dropping_a_command_closes_its_channel() {
    let (_home, sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let mark = format!("cellferry-{}-{transport:?}", sshd.port);
        let mut process = in_time(client.exec(&format!(
            "echo {mark} >&2; read line; echo over; exec cat >&2"
        )))
        .await
        .unwrap();
        let mut line = vec![0; mark.len()];
        in_time(process.stderr.read_exact(&mut line)).await.unwrap();
        // `read` ends with its input, and then writing fails.
        drop(process);
        assert_eq!(run(&client, "echo on").await.0, "on\n");
    }
}

#[tokio::test]
async fn a_killed_sshd_is_noticed() {
    for transport in BOTH {
        let (_home, mut sshd, mut options) = ready("");
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let mut process = in_time(client.exec("echo here; exec sleep 1000"))
            .await
            .unwrap();
        let mut line = [0; 5];
        in_time(process.stdout.read_exact(&mut line)).await.unwrap();
        assert!(!client.is_closed());
        sshd.kill();
        let why = in_time(client.closed()).await;
        assert!(!why.is_empty());
        assert!(client.is_closed());
        assert_eq!(
            in_time(process.exit.wait()).await,
            Exit::Lost,
            "{transport:?}: {why}"
        );
        let end = in_time(process.stdout.read(&mut line)).await;
        if transport == Transport::Russh {
            assert!(
                end.is_err(),
                "a lost connection must not look like the end of the output"
            );
        }
        match client.exec("true").await {
            Err(SshError::Closed { reason, .. }) => assert_eq!(reason, why),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_stops_is_noticed_by_keepalives() {
    let (home, sshd, options) = ready("");
    home.config(&sshd.block(
        "lab",
        &format!(
            "  IdentityFile {}\n  ServerAliveInterval 1\n  ServerAliveCountMax 1",
            home.path(".ssh/id_ed25519").display()
        ),
    ));
    let client = enter(&options).await.unwrap();
    sshd.signal_connections("-STOP");
    let why = in_time(client.closed()).await;
    sshd.signal_connections("-CONT");
    assert!(why.contains("no longer answers"), "{why}");
}

#[tokio::test]
async fn refusals_to_run_commands() {
    let (_home, _sshd, options) = ready("MaxSessions 1");
    let client = enter(&options).await.unwrap();
    let holding = in_time(client.exec("cat")).await.unwrap();
    match in_time(client.exec("true")).await {
        Err(SshError::Refused { reason, .. }) => {
            assert!(reason.contains("MaxSessions"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    drop(holding);

    let (_home, _sshd, options) = ready("ForceCommand echo This account is not available.; exit 1");
    let client = enter(&options).await.unwrap();
    let (out, _, exit) = run(&client, "true").await;
    assert_eq!(
        (out.as_str(), exit),
        ("This account is not available.\n", Exit::Code(1))
    );
}

#[tokio::test]
async fn a_dropped_client_leaves_nothing() {
    let (home, sshd, mut options) = ready("");
    for transport in BOTH {
        options.transport = transport;
        let client = enter(&options).await.unwrap();
        let process = in_time(client.exec("exec sleep 1000")).await.unwrap();
        drop(client);
        drop(process);
        in_time(async {
            while sshd.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let left = || {
            std::fs::read_dir(home.dir.path())
                .unwrap()
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("cfssh-"))
        };
        in_time(async {
            while left() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}
