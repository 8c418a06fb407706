//! Files of the user's: listed, brought, fetched, copied.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use cellferry_wire::protocol::{EntryKind, FilePath, FromAgent, PIECE, ToAgent};
use tempfile::TempDir;
use tokio::process::Child;

use crate::common::*;
use crate::transfers::{content, get};

/// An agent, and a directory with files.
struct Place {
    _child: Child,
    connection: Remote,
    folder: TempDir,
}

impl Place {
    async fn start() -> Self {
        let (child, connection, _) = program().await;
        Self {
            _child: child,
            connection,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the directory.
    fn at(&self, path: &str) -> FilePath {
        FilePath {
            base: Some(self.path().display().to_string()),
            path: path.to_owned(),
        }
    }

    fn write(&self, path: &str, content: &[u8], mode: u32) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        set_mode(&path, mode);
    }

    async fn send(&self, command: ToAgent) {
        assert!(self.connection.sender.send(command).await);
    }

    async fn next(&mut self) -> FromAgent {
        next(&mut self.connection).await
    }

    async fn list(
        &mut self,
        pattern: FilePath,
    ) -> Result<(String, Vec<(String, EntryKind)>), String> {
        self.send(ToAgent::List {
            request: 5,
            pattern,
        })
        .await;
        match self.next().await {
            FromAgent::Listing {
                request: 5,
                outcome,
            } => outcome.map(|listing| {
                let entries = listing.entries.into_iter();
                let entries = entries.map(|entry| (entry.path, entry.kind)).collect();
                (listing.root, entries)
            }),
            other => panic!("no listing: {other:?}"),
        }
    }

    async fn names(&mut self, pattern: &str) -> Vec<String> {
        let (_, entries) = self.list(self.at(pattern)).await.unwrap();
        entries.into_iter().map(|(path, _)| path).collect()
    }

    async fn made(&mut self, command: ToAgent) -> Result<(), String> {
        self.send(command).await;
        match self.next().await {
            FromAgent::Made {
                request: 6,
                outcome,
            } => outcome,
            other => panic!("no answer: {other:?}"),
        }
    }

    async fn link(&mut self, path: &str, target: &str) -> Result<(), String> {
        self.made(ToAgent::MakeLink {
            request: 6,
            path: self.at(path),
            target: target.to_owned(),
        })
        .await
    }

    /// Brings a file, of which only so many bytes are announced.
    async fn bring(
        &mut self,
        path: FilePath,
        mode: u32,
        size: usize,
        content: &Bytes,
    ) -> FromAgent {
        self.send(ToAgent::ReceiveFile {
            transfer: 1,
            path,
            mode,
            size: size as u64,
        })
        .await;
        let mut rest = content.clone();
        while !rest.is_empty() {
            let bytes = rest.split_to(rest.len().min(PIECE));
            self.send(ToAgent::Data { transfer: 1, bytes }).await;
        }
        self.next().await
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o777
}

fn file(content: &[u8], mode: u32) -> EntryKind {
    EntryKind::File {
        mode,
        size: content.len() as u64,
        blake3: *blake3::hash(content).as_bytes(),
    }
}

#[tokio::test]
async fn a_directory_is_listed_with_all_that_is_in_it() {
    let mut place = Place::start().await;
    place.write("d/run", b"#!", 0o755);
    place.write("d/sub/.hidden", b"", 0o640);
    place.write("elsewhere/x", b"x", 0o600);
    set_mode(&place.path().join("d"), 0o750);
    set_mode(&place.path().join("d/sub"), 0o700);
    symlink("../run", place.path().join("d/sub/within")).unwrap();
    symlink("../../elsewhere", place.path().join("d/sub/out")).unwrap();
    symlink("nothing", place.path().join("d/dangling")).unwrap();
    let (root, entries) = place.list(place.at("d")).await.unwrap();
    assert_eq!(Path::new(&root), place.path());
    let link = |target: &str| EntryKind::Link {
        target: target.to_owned(),
    };
    let elsewhere = EntryKind::Directory {
        mode: mode(&place.path().join("elsewhere")),
    };
    let expected = [
        ("d", EntryKind::Directory { mode: 0o750 }),
        ("d/dangling", link("nothing")),
        ("d/run", file(b"#!", 0o755)),
        ("d/sub", EntryKind::Directory { mode: 0o700 }),
        ("d/sub/.hidden", file(b"", 0o640)),
        ("d/sub/out", elsewhere),
        ("d/sub/out/x", file(b"x", 0o600)),
        ("d/sub/within", link("../run")),
    ];
    assert_eq!(
        entries,
        expected.map(|(path, kind)| (path.to_owned(), kind))
    );
}

#[tokio::test]
async fn patterns_match_as_in_a_shell() {
    let mut place = Place::start().await;
    for path in [
        "a.csv",
        "b.csv",
        ".c.csv",
        "d/e.csv",
        "d/f/g.csv",
        "data[1].txt",
        "1",
    ] {
        place.write(path, b"", 0o600);
    }
    assert_eq!(place.names("*.csv").await, ["a.csv", "b.csv"]);
    assert_eq!(place.names("?.csv").await, ["a.csv", "b.csv"]);
    assert_eq!(
        place.names("**/*.csv").await,
        ["a.csv", "b.csv", "d/e.csv", "d/f/g.csv"]
    );
    assert_eq!(place.names("d/**").await, ["d/e.csv", "d/f", "d/f/g.csv"]);
    assert_eq!(place.names("data[1].txt").await, ["data[1].txt"]);
    assert_eq!(place.names("[0-9]").await, ["1"]);
    assert_eq!(place.names("*.png").await, [""; 0]);
    let absolute = |path: &str| FilePath {
        base: None,
        path: place.path().join(path).display().to_string(),
    };
    let (csv, plain) = (absolute("d/*/*.csv"), absolute("d/e.csv"));
    let root = place.path().join("d").display().to_string();
    let (of_csv, entries) = place.list(csv).await.unwrap();
    assert_eq!(
        (&of_csv, &*entries[0].0, entries.len()),
        (&root, "f/g.csv", 1)
    );
    let (of_plain, entries) = place.list(plain).await.unwrap();
    assert_eq!((&of_plain, &*entries[0].0), (&root, "e.csv"));
}

#[tokio::test]
async fn what_cannot_be_listed_is_named() {
    let mut place = Place::start().await;
    place.write("d/x", b"", 0o600);
    symlink(".", place.path().join("d/loop")).unwrap();
    symlink("/nowhere/at/all", place.path().join("d/away")).unwrap();
    nix::unistd::mkfifo(&place.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    for (pattern, why) in [
        ("nothing", "nothing`: No such file"),
        ("../x", "must not contain `..`"),
        ("a[", "is not a pattern"),
        ("d", "d/away`: No such file"),
        ("pipe", "neither a file nor a directory"),
    ] {
        let error = place.list(place.at(pattern)).await.unwrap_err();
        assert!(error.contains(why), "{pattern}: {error}");
    }
    // A link to where it is in stays a link, one from elsewhere is followed, but not for ever.
    std::fs::remove_file(place.path().join("d/away")).unwrap();
    assert_eq!(place.names("d").await, ["d", "d/loop", "d/x"]);
    symlink(place.path().join("d"), place.path().join("d/again")).unwrap();
    let error = place.list(place.at("d")).await.unwrap_err();
    assert!(error.contains("again` leads back"), "{error}");
}

#[tokio::test]
async fn a_file_comes_whole_with_its_mode_or_not_at_all() {
    let mut place = Place::start().await;
    let big = content(3_000_000);
    let stored = FromAgent::Stored { transfer: 1 };
    for (path, mode_there, content) in [
        ("made/for/it/run.sh", 0o755, big.clone()),
        ("empty", 0o600, Bytes::new()),
        ("made/for/it/run.sh", 0o4640, Bytes::from_static(b"another")),
    ] {
        let answer = place
            .bring(place.at(path), mode_there, content.len(), &content)
            .await;
        assert_eq!(answer, stored);
        let path = place.path().join(path);
        assert!(std::fs::read(&path).unwrap() == content);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode_there & 0o777);
    }
    // Too much of it comes: the file that was there stays, and nothing else.
    let answer = place
        .bring(place.at("empty"), 0o600, 10, &big.slice(..11))
        .await;
    assert!(
        matches!(answer, FromAgent::TransferFailed { .. }),
        "{answer:?}"
    );
    assert_eq!(std::fs::read(place.path().join("empty")).unwrap(), b"");
    assert_eq!(place.path().read_dir().unwrap().count(), 2);
    for (path, why) in [
        ("../out", "must not contain"),
        ("empty/below", "cannot make the directory"),
    ] {
        match place.bring(place.at(path), 0o600, 0, &Bytes::new()).await {
            FromAgent::TransferFailed { reason, .. } => assert!(reason.contains(why), "{reason}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_file_is_fetched_and_stays_when_it_is_forgotten() {
    let mut place = Place::start().await;
    let content = content(2_500_000);
    place.write("a", &content, 0o600);
    let path = place.at("a");
    place.send(ToAgent::FetchFile { transfer: 1, path }).await;
    assert!(get(&mut place.connection, 1).await.unwrap() == content);
    let transfers = vec![1];
    place.send(ToAgent::Forget { transfers }).await;
    for (path, why) in [
        ("b", "b`: No such file"),
        (".", "it is not a file"),
        ("..", "`..`"),
    ] {
        let path = place.at(path);
        place.send(ToAgent::FetchFile { transfer: 2, path }).await;
        let reason = get(&mut place.connection, 2).await.unwrap_err();
        assert!(reason.contains(why), "{reason}");
    }
    assert!(std::fs::read(place.path().join("a")).unwrap() == content);
}

#[tokio::test]
async fn copies_and_directories_get_their_modes() {
    let mut place = Place::start().await;
    place.write("a", b"content", 0o600);
    let copy = |from: FilePath, to: FilePath| ToAgent::CopyFile {
        request: 6,
        from,
        to,
        mode: 0o750,
    };
    let (from, to) = (place.at("a"), place.at("d/b"));
    place.made(copy(from, to)).await.unwrap();
    let copied = place.path().join("d/b");
    assert_eq!(
        (std::fs::read(&copied).unwrap(), mode(&copied)),
        (b"content".to_vec(), 0o750)
    );
    let (from, to) = (place.at("nothing"), place.at("c"));
    let error = place.made(copy(from, to)).await.unwrap_err();
    assert!(error.contains("nothing`: No such file"), "{error}");
    for mode_there in [0o711, 0o700] {
        let path = place.at("d/e");
        place
            .made(ToAgent::MakeDirectory {
                request: 6,
                path,
                mode: mode_there,
            })
            .await
            .unwrap();
        assert_eq!(mode(&place.path().join("d/e")), mode_there);
    }
}

#[tokio::test]
async fn links_are_made_only_within_their_base() {
    let mut place = Place::start().await;
    place.link("d/e/up", "../../a").await.unwrap();
    assert_eq!(
        place.path().join("d/e/up").read_link().unwrap(),
        Path::new("../../a")
    );
    place.link("d/e/up", "other").await.unwrap();
    // Through `way` it would only seem to be two directories deep.
    place.link("d/way", ".").await.unwrap();
    for (path, target) in [
        ("d/e/out", "../../../a"),
        ("out", "/etc"),
        ("out", "a/../../b"),
        ("d/way/out", "../../a"),
    ] {
        let error = place.link(path, target).await.unwrap_err();
        assert!(
            error.contains("would lead out"),
            "{path} to {target}: {error}"
        );
    }
    let error = place.link("../out", "a").await.unwrap_err();
    assert!(error.contains("must not contain"), "{error}");
    let mut left: Vec<_> = place.path().join("d").read_dir().unwrap().collect();
    left.extend(place.path().read_dir().unwrap());
    assert_eq!(left.len(), 3);
}
