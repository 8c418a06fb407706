//! Files of known hosts: their lines, and which of them are about a host.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PublicKey;
use sha1::Sha1;

use crate::config::matches_list;
use crate::error::HostKeyError;

/// What stands before the names of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// `@cert-authority`: the key vouches for hosts, and is none of a host.
    Authority,
    /// `@revoked`: the key is never to be accepted.
    Revoked,
}

/// One line.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) marker: Option<Marker>,
    pub(super) names: Names,
    pub(super) key: PublicKey,
    pub(super) file: PathBuf,
    /// From 1.
    pub(super) line: usize,
}

/// The hosts a line is about.
#[derive(Debug, PartialEq)]
pub(super) enum Names {
    /// Patterns with commas between them.
    Patterns(String),
    /// HMAC-SHA1 of one name.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Names {
    fn parse(text: &str) -> Option<Self> {
        let Some(parts) = text.strip_prefix("|1|") else {
            return Some(Self::Patterns(text.to_lowercase()));
        };
        let (salt, hash) = parts.split_once('|')?;
        Some(Self::Hashed {
            salt: STANDARD.decode(salt).ok()?,
            hash: STANDARD.decode(hash).ok()?,
        })
    }

    /// Hides a name.
    pub(super) fn hashed(name: &str, salt: Vec<u8>) -> Option<Self> {
        let hash = keyed(&salt, name)?.finalize().into_bytes().to_vec();
        Some(Self::Hashed { salt, hash })
    }

    /// Whether they include the name, which is in lower case.
    pub(super) fn include(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => matches_list(name, patterns) == Some(true),
            Self::Hashed { salt, hash } => {
                keyed(salt, name).is_some_and(|mac| mac.verify_slice(hash).is_ok())
            }
        }
    }
}

/// As the line writes them.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Patterns(patterns) => f.write_str(patterns),
            Self::Hashed { salt, hash } => {
                write!(f, "|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(hash))
            }
        }
    }
}

fn keyed(salt: &[u8], name: &str) -> Option<Hmac<Sha1>> {
    let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
    mac.update(name.as_bytes());
    Some(mac)
}

/// All lines of all files, in order.
#[derive(Debug, Default)]
pub(super) struct KnownHosts {
    pub(super) entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads the files. One that does not exist is empty; one that cannot be read is an error, since it may hold what
    /// would forbid to go on.
    pub(super) fn load<'a>(
        files: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Result<Self, HostKeyError> {
        let mut known = Self::default();
        for file in files {
            match std::fs::read(file) {
                Ok(bytes) => known.add(&String::from_utf8_lossy(&bytes), file),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                Err(source) => {
                    return Err(HostKeyError::Unreadable {
                        file: file.clone(),
                        source,
                    });
                }
            }
        }
        Ok(known)
    }

    fn add(&mut self, text: &str, file: &Path) {
        for (number, line) in text.lines().enumerate() {
            // Lines that make no sense, or have a key of a kind we don't know, are passed over, as OpenSSH does.
            self.entries.extend(entry(line, file, number + 1));
        }
    }

    /// The lines about a host. The name is in lower case.
    pub(super) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.names.include(name))
    }
}

fn entry(line: &str, file: &Path, number: usize) -> Option<Entry> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (marker, rest) = match line.strip_prefix('@') {
        None => (None, line),
        Some(marked) => {
            let (marker, rest) = marked.split_once(char::is_whitespace)?;
            let marker = match marker {
                "cert-authority" => Marker::Authority,
                "revoked" => Marker::Revoked,
                _ => return None,
            };
            (Some(marker), rest.trim_start())
        }
    };
    let (names, key) = rest.split_once(char::is_whitespace)?;
    Some(Entry {
        marker,
        names: Names::parse(names)?,
        key: public_key(key)?,
        file: file.to_owned(),
        line: number,
    })
}

/// `type base64 comment`; the comment may be anything.
fn public_key(text: &str) -> Option<PublicKey> {
    let mut words = text.split_whitespace();
    let (kind, encoded) = (words.next()?, words.next()?);
    PublicKey::from_openssh(&format!("{kind} {encoded}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn names_of(text: &str, name: &str) -> Vec<usize> {
        let mut known = KnownHosts::default();
        known.add(text, Path::new("/known"));
        known.of(name).map(|entry| entry.line).collect()
    }

    #[test]
    fn names_patterns_and_ports() {
        let text = format!(
            "# comment\n\nlab,192.168.1.7 {KEY} a comment with blanks\n*.example.org,!bad.example.org {KEY}\n\
             [lab]:2222 {KEY}\nLAB2 {KEY}\nbroken\nlab ssh-nonsense AAAA\n"
        );
        assert_eq!(names_of(&text, "lab"), [3]);
        assert_eq!(names_of(&text, "192.168.1.7"), [3]);
        assert_eq!(names_of(&text, "a.example.org"), [4]);
        assert_eq!(names_of(&text, "bad.example.org"), [0; 0]);
        assert_eq!(names_of(&text, "[lab]:2222"), [5]);
        assert_eq!(names_of(&text, "lab2"), [6]);
    }

    #[test]
    fn markers() {
        let mut known = KnownHosts::default();
        known.add(
            &format!("@revoked * {KEY}\n@cert-authority *.org {KEY}\n@other x {KEY}\n"),
            Path::new("/known"),
        );
        let markers: Vec<_> = known.entries.iter().map(|entry| entry.marker).collect();
        assert_eq!(markers, [Some(Marker::Revoked), Some(Marker::Authority)]);
    }

    #[test]
    fn hashed_names_are_those_of_ssh_keygen() {
        // Made by `ssh-keygen -H` of a line for `example.org`.
        let text = format!("|1|rIlu+7Y15+jfHjHg0yJvtW3djZc=|p2BLdaCqj0R8BF12Ka83io0WTqE= {KEY}");
        assert_eq!(names_of(&text, "example.org"), [1]);
        assert_eq!(names_of(&text, "other"), [0; 0]);
        let own = Names::hashed("[lab]:2222", vec![7; 20]).unwrap();
        assert!(own.include("[lab]:2222"));
        assert!(!own.include("lab"));
        assert_eq!(Names::parse(&own.to_string()), Some(own));
    }
}
