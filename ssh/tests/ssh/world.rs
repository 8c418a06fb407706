//! What the tests run against: homes with keys, and sshd as plain processes on loopback.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{
    Ask, Client, Environment, Exit, Options, Question, SshError, Transport, connect,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

pub const BOTH: [Transport; 2] = [Transport::Russh, Transport::OpenSsh];

/// No test may take longer.
pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("the test took too long")
}

/// A home directory of a user who connects.
pub struct Home {
    pub dir: TempDir,
    agents: Mutex<Vec<Child>>,
}

impl Home {
    pub fn new() -> Self {
        let home = Self {
            dir: TempDir::with_prefix("cfs-").unwrap(),
            agents: Mutex::default(),
        };
        fs::create_dir(home.path(".ssh")).unwrap();
        fs::set_permissions(home.path(".ssh"), fs::Permissions::from_mode(0o700)).unwrap();
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Makes a key pair, `.ssh/NAME` and `.ssh/NAME.pub`.
    pub fn key(&self, name: &str, kind: &[&str], passphrase: &str) -> PathBuf {
        let path = self.path(".ssh").join(name);
        keygen(
            &[
                &[
                    "-q",
                    "-N",
                    passphrase,
                    "-C",
                    name,
                    "-f",
                    path.to_str().unwrap(),
                    "-t",
                ],
                kind,
            ]
            .concat(),
        );
        path
    }

    /// What `ssh_config` says of a host on a port of this machine.
    pub fn config(&self, text: &str) {
        let known = self.path(".ssh/known_hosts");
        self.write(
            ".ssh/config",
            &format!(
                "{text}\nHost *\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n",
                known.display()
            ),
        );
    }

    pub fn environment(&self) -> Environment {
        Environment {
            home: self.dir.path().to_owned(),
            agent_socket: None,
            system_config: self.path("no-system-config"),
            askpass_program: Some(PathBuf::from(env!("CARGO_BIN_EXE_askpass"))),
            ..Environment::of_process()
        }
    }

    pub fn options(&self, host: &str) -> Options {
        Options {
            environment: self.environment(),
            runtime_dir: Some(self.dir.path().to_owned()),
            connect_timeout: Duration::from_secs(20),
            ..Options::new(host)
        }
    }

    /// Starts an agent with these keys.
    pub fn agent(&self, keys: &[&Path]) -> PathBuf {
        let socket = self.path("agent");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut agents = self.agents.lock().unwrap();
        agents.push(child);
        // It prints its settings when it listens.
        let stdout = agents.last_mut().unwrap().stdout.take().unwrap();
        BufReader::new(stdout)
            .read_line(&mut String::new())
            .unwrap();
        for key in keys {
            let added = Command::new("ssh-add")
                .arg("-q")
                .arg(key)
                .env("SSH_AUTH_SOCK", &socket)
                .stderr(Stdio::null())
                .status();
            assert!(added.unwrap().success());
        }
        socket
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for agent in self.agents.lock().unwrap().iter_mut() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

pub fn keygen(arguments: &[&str]) {
    let output = Command::new("ssh-keygen")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An sshd.
pub struct Sshd {
    pub port: u16,
    dir: TempDir,
    child: Child,
}

impl Sshd {
    /// With an ed25519 host key.
    pub fn new(authorized: &[&Path], more: &str) -> Self {
        Self::with_keys(&[&["ed25519"]], authorized, more)
    }

    pub fn with_keys(kinds: &[&[&str]], authorized: &[&Path], more: &str) -> Self {
        let dir = TempDir::with_prefix("cfd-").unwrap();
        for kind in kinds {
            let file = dir.path().join(format!("host_{}", kind[0]));
            keygen(&[&["-q", "-N", "", "-f", file.to_str().unwrap(), "-t"], *kind].concat());
        }
        let keys: String = authorized
            .iter()
            .map(|key| fs::read_to_string(public(key)).unwrap())
            .collect();
        fs::write(dir.path().join("authorized"), keys).unwrap();
        let names: Vec<String> = kinds
            .iter()
            .map(|kind| format!("host_{}", kind[0]))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Self::start(dir, &names, more)
    }

    /// With a certificate for its ed25519 key, made by `certify`.
    pub fn certified(authorized: &[&Path], certify: impl Fn(&Self)) -> Self {
        let mut plain = Self::new(authorized, "");
        certify(&plain);
        plain.kill();
        let dir = std::mem::replace(&mut plain.dir, TempDir::new().unwrap());
        let certificate = format!(
            "HostCertificate {}",
            dir.path().join("host_ed25519-cert.pub").display()
        );
        Self::start(dir, &["host_ed25519"], &certificate)
    }

    fn start(dir: TempDir, host_keys: &[&str], more: &str) -> Self {
        // Separates privileges into it, if run by root.
        let _ = fs::create_dir("/run/sshd");
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let path = dir.path().display();
            let host_keys: String = host_keys
                .iter()
                .map(|name| format!("HostKey {path}/{name}\n"))
                .collect();
            let config = format!(
                "{more}\nListenAddress 127.0.0.1\nPort {port}\n{host_keys}AuthorizedKeysFile {path}/authorized\n\
                 StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin yes\nPidFile none\nPrintMotd no\nMaxStartups 100\nPerSourceMaxStartups none\n"
            );
            fs::write(dir.path().join("config"), config).unwrap();
            let mut child = Command::new("/usr/sbin/sshd")
                .args(["-D", "-e", "-f"])
                .arg(dir.path().join("config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("sshd is needed: install openssh-server");
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let mut said = String::new();
            let listens = lines.by_ref().map_while(Result::ok).any(|line| {
                said.push_str(&line);
                line.starts_with("Server listening")
            });
            if listens {
                // Its log has to go somewhere, for it must not block.
                std::thread::spawn(move || lines.for_each(drop));
                return Self { port, dir, child };
            }
            child.wait().unwrap();
            assert!(said.contains("Address already in use"), "{said}");
        }
        panic!("no free port");
    }

    /// Its host key as a line of known hosts.
    pub fn known_as(&self, name: &str, kind: &str) -> String {
        format!(
            "{name} {}",
            fs::read_to_string(self.path(&format!("host_{kind}.pub"))).unwrap()
        )
    }

    pub fn place(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A block of configuration for it.
    pub fn block(&self, alias: &str, more: &str) -> String {
        format!(
            "Host {alias}\n  HostName 127.0.0.1\n  Port {}\n{more}\n",
            self.port
        )
    }

    /// How many processes serve connections.
    pub fn connections(&self) -> usize {
        descendants(self.child.id()).len()
    }

    /// Sends a signal to all that serve connections.
    pub fn signal_connections(&self, signal: &str) {
        for process in descendants(self.child.id()) {
            let _ = Command::new("kill")
                .args([signal, &process.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }

    /// Kills it and all of its connections.
    pub fn kill(&mut self) {
        self.signal_connections("-KILL");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn public(key: &Path) -> PathBuf {
    PathBuf::from(format!("{}.pub", key.display()))
}

/// All processes below one.
pub fn descendants(process: u32) -> Vec<u32> {
    let mut all = Vec::new();
    let mut left = vec![process];
    while let Some(parent) = left.pop() {
        let tasks = fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children: Vec<u32> = children
                .split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect();
            left.extend(&children);
            all.extend(children);
        }
    }
    all
}

/// A user who gives prepared answers.
#[derive(Default)]
pub struct User {
    answers: Mutex<VecDeque<String>>,
    pub asked: Mutex<Vec<Question>>,
    pub told: Mutex<Vec<String>>,
}

impl User {
    pub fn absent() -> Arc<Self> {
        Arc::default()
    }

    pub fn answering(answers: &[&str]) -> Arc<Self> {
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        Arc::new(Self {
            answers: Mutex::new(answers),
            ..Self::default()
        })
    }

    pub fn questions(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|question| question.text.clone())
            .collect()
    }

    pub fn was_told(&self) -> String {
        self.told.lock().unwrap().join("\n")
    }
}

#[async_trait]
impl Ask for User {
    async fn ask(&self, question: Question) -> Option<Zeroizing<String>> {
        self.asked.lock().unwrap().push(question);
        self.answers.lock().unwrap().pop_front().map(Zeroizing::new)
    }

    fn tell(&self, text: &str) {
        self.told.lock().unwrap().push(text.to_owned());
    }
}

/// Connects as a user who answers nothing.
pub async fn enter(options: &Options) -> Result<Client, SshError> {
    in_time(connect(options, User::absent())).await
}

/// Runs a command to its end: output, error output, how it ended.
pub async fn run(client: &Client, command: &str) -> (String, String, Exit) {
    in_time(async {
        let mut process = client.exec(command).await.unwrap();
        drop(process.stdin);
        let (mut out, mut err) = (String::new(), String::new());
        let (read, complained) = tokio::join!(
            process.stdout.read_to_string(&mut out),
            process.stderr.read_to_string(&mut err)
        );
        read.unwrap();
        complained.unwrap();
        (out, err, process.exit.wait().await)
    })
    .await
}

/// The message of a failure.
pub fn message(result: Result<Client, SshError>) -> String {
    match result {
        Ok(client) => panic!("connected to {}", client.host().name),
        Err(error) => error.to_string(),
    }
}
