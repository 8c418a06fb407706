//! Our parser against `ssh -G`: the same files must mean the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let fixture = Self {
            folder: TempDir::new().unwrap(),
        };
        for (name, text) in files {
            let path = fixture.folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // Relative includes are relative to the home of the account for `ssh`, so they are absolute here.
            fs::write(
                &path,
                text.replace("@HOME@", fixture.folder.path().to_str().unwrap()),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fixture
    }

    fn environment(&self, program: Option<&Path>) -> Environment {
        Environment {
            // `ssh` expands `~` by itself here and there, by the account.
            home: Environment::of_process().home,
            agent_socket: Some(PathBuf::from("/agent")),
            system_config: PathBuf::from("/etc/ssh/ssh_config"),
            ssh_program: program.map(Path::to_owned),
            ..Environment::of_process()
        }
    }

    /// What both make of a host; their errors count as the same.
    fn both(&self, host: &str) -> (Result<Host, String>, Result<Host, String>) {
        let destination = Destination::parse(host).unwrap();
        let file = self.folder.path().join("config");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let read = |program: Option<&Path>| {
            let environment = self.environment(program);
            let host = runtime.block_on(resolve(&environment, &destination, Some(&file)));
            host.map_err(|error| error.to_string())
        };
        (read(Some(Path::new("ssh"))), read(None))
    }

    fn same(&self, host: &str) -> Host {
        match self.both(host) {
            (Ok(theirs), Ok(ours)) => {
                assert_eq!(comparable(theirs.clone()), comparable(ours), "{host}");
                theirs
            }
            other => panic!("{host}: {other:#?}"),
        }
    }
}

/// Without what OpenSSH's builds differ in.
fn comparable(mut host: Host) -> Host {
    // Newer versions have other default names.
    let defaults: Vec<_> = DEFAULT_IDENTITIES
        .iter()
        .map(|name| Environment::of_process().ssh_dir().join(name))
        .collect();
    if host
        .login
        .identity_files
        .iter()
        .all(|file| defaults.contains(file))
    {
        host.login.identity_files.clear();
    }
    // Debian's prints its own defaults even with a file of ours.
    host.login.beyond_us.clear();
    host.trust.hash = false;
    host
}

#[test]
fn a_plain_host() {
    let fixture = Fixture::new(&[(
        "config",
        "# all of it\nHost lab\n\tHostName=lab.example.org\n  Port 2222\n  User \"ada\"\n  IdentityFile ~/.ssh/lab\n  \
         IdentityFile /keys/%h-%p-%r-%n # two\n  IdentitiesOnly yes\n  IdentityAgent ~/agent\n  CertificateFile /c\n  \
         UserKnownHostsFile /a /b\n  GlobalKnownHostsFile /c\n  StrictHostKeyChecking accept-new\n  HostKeyAlias vault\n  \
         ConnectTimeout 1m\n  ServerAliveInterval 15\n  ServerAliveCountMax 4\n  \
         PreferredAuthentications password,publickey\n  NumberOfPasswordPrompts 1\n  BindAddress 127.0.0.1\n  \
         AddressFamily inet\n  HostKeyAlgorithms ssh-ed25519,rsa-sha2-256\n",
    )]);
    let host = fixture.same("lab");
    assert_eq!(
        (host.hostname.as_str(), host.port, host.user.as_str()),
        ("lab.example.org", 2222, "ada")
    );
    assert_eq!(
        host.login.identity_files[1],
        PathBuf::from("/keys/lab.example.org-2222-ada-lab")
    );
    assert_eq!(
        host.trust.user_files,
        [PathBuf::from("/a"), PathBuf::from("/b")]
    );
    assert_eq!(host.login.methods, [Method::Password, Method::PublicKey]);
    assert_eq!(host.trust.algorithms, ["ssh-ed25519", "rsa-sha2-256"]);
    assert_eq!(host.connect_timeout, Some(Duration::from_secs(60)));
    fixture.same("other");
    fixture.same("eve@lab:2200");
}

#[test]
fn blocks_and_order() {
    let fixture = Fixture::new(&[(
        "config",
        "User first\nHost a* !ab\n  Port 1001\n  HostName %h.example.org\nHost ab\n  User second\n  Port 1002\n\
         Host *.org\n  Port 1003\nHost \"a c\" d?\n  Port 1004\nHost *\n  Port 1005\n  IdentityFile /k1\nHost a?\n  IdentityFile /k2\n",
    )]);
    for (name, port) in [
        ("a", 1001),
        ("ab", 1002),
        ("ac", 1001),
        ("x.org", 1003),
        ("d1", 1004),
        ("d", 1005),
    ] {
        let host = fixture.same(name);
        assert_eq!((host.port, host.user.as_str()), (port, "first"), "{name}");
    }
    assert_eq!(fixture.same("ac").hostname, "ac.example.org");
    assert_eq!(
        fixture.same("ac").login.identity_files,
        [PathBuf::from("/k1"), PathBuf::from("/k2")]
    );
}

#[test]
fn includes() {
    let fixture = Fixture::new(&[
        (
            "config",
            "Include @HOME@/d/*.conf @HOME@/none\nHost in\n  Include @HOME@/inner\n  User outer\nHost *\n  Port 9\n",
        ),
        ("d/1.conf", "Host one\n  Port 1\n"),
        ("d/2.conf", "Port 2\nHost two\n  User two\n"),
        // A block in a file that is included from a block ends with the file.
        (
            "inner",
            "User inner\nHost other\n  Port 7\nHost in\n  HostName deep\n",
        ),
    ]);
    assert_eq!(fixture.same("one").port, 1);
    assert_eq!(fixture.same("two").port, 2);
    assert_eq!(fixture.same("two").user, "two");
    let host = fixture.same("in");
    assert_eq!(
        (host.user.as_str(), host.hostname.as_str()),
        ("inner", "deep")
    );
    fixture.same("other");
}

#[test]
fn match_blocks() {
    let fixture = Fixture::new(&[(
        "config",
        "Host lab\n  HostName lab.example.org\nMatch host *.example.org user ada\n  Port 1\nMatch originalhost lab\n  \
         IdentityFile /lab\nMatch !host *.example.org\n  Port 2\nMatch exec \"test %n = run\"\n  Port 3\nMatch final host *.example.org\n  \
         IdentityFile /final\nMatch host a,b,!c localuser *\n  IdentityFile /abc\nMatch all\n  User all\n",
    )]);
    assert_eq!(fixture.same("ada@lab").port, 1);
    assert_eq!(fixture.same("lab").port, 22);
    assert_eq!(fixture.same("run").port, 2);
    assert_eq!(
        fixture.same("lab").login.identity_files,
        [PathBuf::from("/lab"), PathBuf::from("/final")]
    );
    for name in ["a", "b", "c", "x.example.org", "eve@x.example.org"] {
        fixture.same(name);
    }
}

#[test]
fn exec_criteria_run() {
    let fixture = Fixture::new(&[(
        "config",
        "Match exec \"test %h = right\"\n  Port 3\nMatch host right exec false\n  User no\n",
    )]);
    assert_eq!(fixture.same("right").port, 3);
    assert_eq!(fixture.same("wrong").port, 22);
}

#[test]
fn the_way_there() {
    let fixture = Fixture::new(&[(
        "config",
        "Host one\n  ProxyJump gate\nHost two\n  ProxyJump ada@gate:2222,inner\nHost none\n  ProxyJump none\nHost command\n  \
         ProxyCommand nc %h %p 'a  b'\nHost command one\n  ProxyJump late\nHost none\n  ProxyCommand late\nHost off\n  ProxyCommand none\n",
    )]);
    assert_eq!(fixture.same("one").jumps(), ["gate"]);
    assert_eq!(fixture.same("two").jumps(), ["ada@gate:2222", "inner"]);
    assert_eq!(
        fixture.same("none").route,
        Route::Command("late".to_owned())
    );
    assert_eq!(fixture.same("off").route, Route::Direct);
    assert_eq!(
        fixture.same("command").route,
        Route::Command("nc command 22 'a  b'".to_owned())
    );
}

#[test]
fn lists_of_algorithms() {
    for list in ["+ssh-rsa", "-rsa-*", "^rsa-sha2-256", "ssh-ed25519"] {
        let fixture = Fixture::new(&[("config", &format!("HostKeyAlgorithms {list}\n"))]);
        fixture.same("lab");
    }
}

#[test]
fn errors_say_where() {
    for (text, line) in [
        ("Host lab\n  Port\n", 2),
        ("Match\n", 1),
        ("\n\nMatch host\n", 3),
        ("Match nonsense x\n", 1),
        ("User \"open\n", 1),
    ] {
        let fixture = Fixture::new(&[("config", text)]);
        let (theirs, ours) = fixture.both("lab");
        assert!(theirs.is_err(), "{text}");
        let ours = ours.unwrap_err();
        assert!(ours.contains(&format!("config:{line}: ")), "{text}: {ours}");
    }
    for text in [
        "Port many\n",
        "StrictHostKeyChecking perhaps\n",
        "IdentitiesOnly perhaps\n",
        "ConnectTimeout soon\n",
    ] {
        let (theirs, ours) = Fixture::new(&[("config", text)]).both("lab");
        assert!(
            theirs.is_err() && ours.is_err(),
            "{text}: {theirs:?} {ours:?}"
        );
    }
    let (theirs, ours) = Fixture::new(&[]).both("lab");
    assert!(theirs.is_err() && ours.is_err());
}

#[test]
fn a_configuration_that_others_may_write_is_refused() {
    let fixture = Fixture::new(&[(".ssh/config", "User ada\n")]);
    let mut environment = fixture.environment(None);
    environment.home = fixture.folder.path().to_owned();
    let destination = Destination::parse("lab").unwrap();
    assert!(parser::read(&environment, &destination, None).is_ok());
    fs::set_permissions(
        fixture.folder.path().join(".ssh/config"),
        fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    let error = parser::read(&environment, &destination, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("chmod go-w"), "{error}");
}

#[test]
fn user_goes_before_system_and_includes_are_relative() {
    let fixture = Fixture::new(&[
        (".ssh/config", "Include extra\nUser user\n"),
        (".ssh/extra", "Port 7\n"),
        ("etc/ssh_config", "User system\nInclude more/*\n"),
        ("etc/more/one", "HostName from-system\n"),
    ]);
    let mut environment = fixture.environment(None);
    environment.home = fixture.folder.path().to_owned();
    environment.system_config = fixture.folder.path().join("etc/ssh_config");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let host = runtime
        .block_on(resolve(
            &environment,
            &Destination::parse("lab").unwrap(),
            None,
        ))
        .unwrap();
    assert_eq!(
        (host.user.as_str(), host.port, host.hostname.as_str()),
        ("user", 7, "from-system")
    );
}

/// Lines of a configuration, out of which proptest puts files together.
fn line() -> impl Strategy<Value = String> {
    let pattern = prop::sample::select(vec!["*", "a", "b", "a?", "*b", "!ab", "ab", "a.b", "?.?"]);
    let host = prop::collection::vec(pattern.clone(), 1..4)
        .prop_map(|list| format!("Host {}", list.join(" ")));
    let criteria = (
        prop::sample::select(vec![
            "host",
            "originalhost",
            "user",
            "!host",
            "final host",
            "!final host",
        ]),
        pattern,
    )
        .prop_map(|(name, pattern)| format!("Match {name} {}", pattern.trim_start_matches('!')));
    let setting = prop::sample::select(vec![
        "User one",
        "User=ab",
        "Port 1",
        "Port 2",
        "HostName a.b",
        "HostName %h.b",
        "IdentityFile /one",
        "IdentityFile \"/t w o\"",
        "IdentityFile ~/three",
        "ProxyJump j",
        "ProxyJump none",
        "ProxyJump a,b:3",
        "ProxyCommand run %h",
        "ProxyCommand none",
        "UserKnownHostsFile /x /y",
        "StrictHostKeyChecking no",
        "StrictHostKeyChecking yes",
        "Include @HOME@/included",
        "# remark",
        "",
        "Match all",
    ]);
    prop_oneof![2 => host, 1 => criteria, 5 => setting.prop_map(str::to_owned)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_configuration_means_the_same(
        lines in prop::collection::vec(line(), 0..14),
        included in prop::collection::vec(line(), 0..6),
        host in prop::sample::select(vec!["a", "b", "ab", "a.b", "ab@b", "c"]),
    ) {
        // A file that includes itself is an error to both, and a dull one.
        let included: Vec<_> = included.into_iter().filter(|line| !line.starts_with("Include")).collect();
        let fixture = Fixture::new(&[("config", &lines.join("\n")), ("included", &included.join("\n"))]);
        let (theirs, ours) = fixture.both(host);
        prop_assert_eq!(theirs.map(comparable), ours.map(comparable));
    }
}
