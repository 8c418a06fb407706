//! Brings what a step's metadata names from one end to the other, unless the same content is there already.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use cellferry_agent::files::named_part;
use cellferry_wire::protocol::{Entry, EntryKind, FilePath, Listing};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::end::End;
use crate::paths::Place;
use crate::target::shared::Shared;

/// How many files are on their way at once: small ones do not wait for each other's answers.
pub const AT_ONCE: usize = 16;

/// What the owner must be able to do in a directory while it is filled.
const FILLING: u32 = 0o700;

/// Which way files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// To the step, before it runs.
    In,
    /// Home, after it has run.
    Out,
}

/// Files as one element of the metadata means them.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    /// The element's name.
    #[serde(default)]
    pub name: Option<String>,
    /// Paths and patterns.
    pub paths: Vec<String>,
    /// Whether the metadata itself says them, and not a variable.
    pub given: bool,
}

/// All that is to be brought for a step.
#[derive(Debug)]
pub struct Order {
    /// Which way.
    pub way: Way,
    /// The cell's execution count.
    pub number: Option<u32>,
    /// What.
    pub items: Vec<Item>,
    /// Whether what is not there is no error, since the cell failed.
    pub lenient: bool,
    /// Paths that targets share.
    pub shared: Shared,
}

/// What has been brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// The hash of all that was there, sent or not.
    pub content: blake3::Hasher,
    /// How many files were sent.
    pub files: usize,
    /// How many bytes.
    pub bytes: u64,
}

impl Order {
    /// Brings everything, or says what cannot be brought.
    pub async fn bring(&self, from: &End, to: &End) -> Result<Brought, String> {
        let mut brought = Brought::default();
        for item in &self.items {
            for path in &item.paths {
                let meant = Meant {
                    order: self,
                    item,
                    path,
                };
                let place = Place::parse(path).map_err(|error| format!("{meant}: {error}"))?;
                match meant.bring(&place, from, to, &mut brought).await {
                    Err(Fault::Missing(_)) if self.lenient => {}
                    Err(Fault::Missing(error) | Fault::Other(error)) => return Err(error),
                    Ok(()) => {}
                }
            }
        }
        Ok(brought)
    }
}

enum Fault {
    /// There is nothing to bring.
    Missing(String),
    Other(String),
}

/// A path, as messages name it.
struct Meant<'a> {
    order: &'a Order,
    item: &'a Item,
    path: &'a str,
}

impl fmt::Display for Meant<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`", self.path.escape_debug())?;
        if let Some(name) = &self.item.name {
            write!(formatter, " (`{name}`)")?;
        }
        let what = match self.order.way {
            Way::In => "an input",
            Way::Out => "an output",
        };
        match self.order.number {
            Some(number) => write!(formatter, ", {what} of cell [{number}],"),
            None => write!(formatter, ", {what} of the cell,"),
        }
    }
}

impl Meant<'_> {
    async fn bring(
        &self,
        place: &Place,
        from: &End,
        to: &End,
        brought: &mut Brought,
    ) -> Result<(), Fault> {
        let (source, destination) = (from.absolute(place), to.absolute(place));
        let shared = |within: &str| {
            let (source, destination) = (source.join(within), destination.join(within));
            self.order
                .shared
                .same((&from.target, &source), (&to.target, &destination))
        };
        // Whether it is there will show when it is read: to list it could take long, and it need not be here.
        if shared("") {
            return Ok(());
        }
        let missing =
            |reason: &str| Fault::Missing(format!("{self} is not on `{}`: {reason}", from.target));
        let nothing = || {
            let directory = source.display();
            missing(&format!("nothing there matches in `{directory}`"))
        };
        if from.shares(to, place).await {
            return match from.exists(place).await {
                Ok(true) => Ok(()),
                Ok(false) if place.is_pattern() => Err(nothing()),
                Ok(false) => Err(missing(&format!(
                    "there is no `{}`",
                    source.join(&place.within).display()
                ))),
                Err(reason) => Err(missing(&reason)),
            };
        }
        if to.remote.is_none() && from.remote.is_some() && !self.item.given && !place.is_below() {
            return Err(Fault::Other(format!(
                "{self} is not brought home from `{}`: a variable there may only name files below the working directory; \
                 give the path as `value` in the metadata",
                from.target
            )));
        }
        let (there, before) = futures::join!(from.list(place), to.list(place));
        let Listing { entries, .. } = there.map_err(|reason| missing(&reason))?;
        if entries.is_empty() {
            return Err(nothing());
        }
        for entry in &entries {
            if !is_meant(place, entry) {
                return Err(Fault::Other(format!(
                    "{self} is not taken from `{}`: its agent also named `{}`",
                    from.target,
                    entry.path.escape_debug()
                )));
            }
            note(&mut brought.content, entry);
        }
        // What is not there cannot be listed; what cannot be made there will be told.
        let before = before.map(|listing| listing.entries).unwrap_or_default();
        let entries: Vec<&Entry> = entries
            .iter()
            .filter(|entry| !shared(&entry.path))
            .collect();
        let filling = Filling { place, from, to };
        let sent = filling.fill(&entries, &before).await;
        let (files, bytes) = sent.map_err(|reason| {
            let hint = if place.is_below() || to.remote.is_none() {
                String::new()
            } else {
                format!(
                    "; a relative path is put below the working directory, `{}`, and [[shared]] in cellferry.toml names \
                     what targets share",
                    to.base
                )
            };
            Fault::Other(format!(
                "{self} cannot be brought from `{}` to `{}`: {reason}{hint}",
                from.target, to.target
            ))
        })?;
        brought.files += files;
        brought.bytes += bytes;
        Ok(())
    }
}

/// Whether an entry is one that a correct agent lists for a place. Whatever else an agent may say, nothing is written that the
/// metadata does not name.
fn is_meant(place: &Place, entry: &Entry) -> bool {
    let path = Path::new(&entry.path);
    let is_below = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match named_part(&place.within, path).filter(|_| is_below) {
        // Links are followed but inside of what is named.
        Some(named) => named != path || !matches!(entry.kind, EntryKind::Link { .. }),
        None => false,
    }
}

fn note(hasher: &mut blake3::Hasher, entry: &Entry) {
    hasher.update(entry.path.as_bytes());
    hasher.update(&[0]);
    match &entry.kind {
        EntryKind::File { mode, blake3, .. } => {
            hasher.update(&mode.to_le_bytes()).update(blake3);
        }
        EntryKind::Directory { mode } => {
            hasher.update(&mode.to_le_bytes());
        }
        EntryKind::Link { target } => {
            hasher.update(target.as_bytes());
        }
    }
}

/// One place, filled from the other end.
struct Filling<'a> {
    place: &'a Place,
    from: &'a End,
    to: &'a End,
}

impl Filling<'_> {
    /// Makes what is not there yet; how many files and bytes were sent.
    async fn fill(&self, entries: &[&Entry], before: &[Entry]) -> Result<(usize, u64), String> {
        let before: BTreeMap<&str, &EntryKind> = before
            .iter()
            .map(|entry| (&*entry.path, &entry.kind))
            .collect();
        let wanted: BTreeMap<&str, &EntryKind> = entries
            .iter()
            .map(|entry| (&*entry.path, &entry.kind))
            .collect();
        // What is there under whatever name, and stays as it is.
        let mut stays: BTreeMap<&[u8; 32], &str> = BTreeMap::new();
        for (path, kind) in &before {
            if let EntryKind::File { blake3, .. } = kind
                && wanted
                    .get(path)
                    .is_none_or(|wanted| content(wanted) == Some(blake3))
            {
                stays.insert(blake3, path);
            }
        }
        let file = |path: &str| self.to.file(self.place, path);
        let mut closed = Vec::new();
        for (path, kind) in &wanted {
            let EntryKind::Directory { mode } = kind else {
                continue;
            };
            if before.get(path) != Some(kind) || mode & FILLING != FILLING {
                self.to.make_directory(file(path), mode | FILLING).await?;
            }
            if mode | FILLING != *mode {
                closed.push((path, *mode));
            }
        }
        let (before, stays) = (&before, &stays);
        let sending = wanted.iter().filter_map(|(path, kind)| {
            let EntryKind::File { mode, size, blake3 } = kind else {
                return None;
            };
            if before.get(path) == Some(kind) {
                return None;
            }
            let to = file(path);
            let (mode, size) = (*mode, *size);
            Some(async move {
                if let Some(same) = stays.get(blake3) {
                    self.to.copy(file(same), to, mode).await?;
                    return Ok((0, 0));
                }
                let from = self.from.file(self.place, path);
                self.from.send(from, self.to, to, mode, size).await?;
                Ok::<_, String>((1, size))
            })
        });
        let sending: Vec<_> = sending.collect();
        let sent: Vec<(usize, u64)> = stream::iter(sending)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for (path, kind) in &wanted {
            if let EntryKind::Link { target } = kind
                && before.get(path) != Some(kind)
            {
                self.to.make_link(self.link(path), target.clone()).await?;
            }
        }
        for (path, mode) in closed.into_iter().rev() {
            self.to.make_directory(file(path), mode).await?;
        }
        let add = |(files, bytes), (more, size): &(usize, u64)| (files + more, bytes + size);
        Ok(sent.iter().fold((0, 0), add))
    }

    /// Where a link is made, which cannot lead out of what is named: what is written through it later is named, too.
    fn link(&self, path: &str) -> FilePath {
        let file = self.to.file(self.place, path);
        let named = named_part(&self.place.within, Path::new(path)).and_then(Path::to_str);
        let split = named.and_then(|named| Some((named, path.strip_prefix(named)?)));
        match (split, file.base) {
            (Some((named, within)), Some(base)) => FilePath {
                base: Some(format!("{}/{named}", base.trim_end_matches('/'))),
                path: format!(".{within}"),
            },
            (_, base) => FilePath { base, ..file },
        }
    }
}

fn content(kind: &EntryKind) -> Option<&[u8; 32]> {
    match kind {
        EntryKind::File { blake3, .. } => Some(blake3),
        EntryKind::Directory { .. } | EntryKind::Link { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.to_owned(),
            kind,
        }
    }

    #[test]
    fn an_agent_makes_nothing_be_written_that_is_not_named() {
        let file = || EntryKind::File {
            mode: 0o600,
            size: 0,
            blake3: [0; 32],
        };
        let link = || EntryKind::Link {
            target: "x".to_owned(),
        };
        let meant = |text: &str, path: &str, kind| {
            is_meant(&Place::parse(text).unwrap(), &entry(path, kind))
        };
        assert!(meant("plots", "plots/a/b", file()) && meant("plots", "plots/a", link()));
        assert!(meant("../x/*.png", "a.png", file()) && meant("~/x", "x", file()));
        for path in [
            "cellferry.toml",
            "/plots",
            "../plots",
            "plots/../x",
            "~/x",
            "",
            "plotsx",
            ".ssh/x",
            "./x",
        ] {
            assert!(!meant("plots", path, file()), "{path}");
        }
        assert!(
            !meant("*", "..", file()) && !meant("*", "/etc/x", file()) && !meant("*", ".x", file())
        );
        assert!(!meant("plots", "plots", link()) && !meant("*", "x", link()));
    }

    #[tokio::test]
    async fn a_link_cannot_lead_out_of_what_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().display().to_string();
        std::fs::create_dir_all(folder.path().join("plots/deep")).unwrap();
        let home = End {
            target: "home".into(),
            home: base.clone(),
            base,
            remote: None,
        };
        let place = Place::parse("plots").unwrap();
        let filling = Filling {
            place: &place,
            from: &home,
            to: &home,
        };
        let fill = async |path: &str, target: &str| {
            let target = target.to_owned();
            let entry = entry(path, EntryKind::Link { target });
            filling.fill(&[&entry], &[]).await
        };
        fill("plots/deep/ok", "../x").await.unwrap();
        for (path, target) in [
            ("plots/bad", ".."),
            ("plots/bad", "../y"),
            ("plots/deep/bad", "../../y"),
        ] {
            let error = fill(path, target).await.unwrap_err();
            assert!(error.contains("would lead out"), "{error}");
        }
    }
}
