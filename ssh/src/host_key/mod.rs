//! Whether a host's key is accepted: what OpenSSH's client does with `known_hosts`, see sshd(8).
//!
//! `file` reads and matches the files, `verdict` compares a key with them, `certificate` judges certificates, and
//! this module puts the questions to the user and notes their answers.

mod certificate;
mod file;
mod record;
mod verdict;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey, PublicKeyOrCertificate};

use crate::ask::{Ask, Question};
use crate::config::{Host, Strict, Trust};
use crate::error::HostKeyError;
use file::{Entry, KnownHosts, Marker};
use verdict::Verdict;

/// What is known of one host before its key is seen.
#[derive(Debug)]
pub(crate) struct Known {
    hosts: KnownHosts,
    name: String,
    /// A key that is known without the port is accepted, too.
    name_without_port: Option<String>,
}

/// How far an accepted host is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confidence {
    Full,
    /// `StrictHostKeyChecking no` let a changed key pass: it gets no password, as in OpenSSH.
    NoSecrets,
}

impl Known {
    /// Reads the files that the configuration names.
    pub(crate) fn load(host: &Host) -> Result<Self, HostKeyError> {
        let hosts = KnownHosts::load(host.trust.user_files.iter().chain(&host.trust.system_files))?;
        let hostname = host.hostname.to_lowercase();
        let (name, name_without_port) = match &host.trust.alias {
            Some(alias) => (alias.to_lowercase(), None),
            None if host.port == 22 => (hostname, None),
            None => (format!("[{hostname}]:{}", host.port), Some(hostname)),
        };
        Ok(Self {
            hosts,
            name,
            name_without_port,
        })
    }

    /// The algorithms to offer, best first: first those of plain keys, then those of certificates.
    ///
    /// Those for which a key is known come first, so that a host with several keys shows one that can be checked;
    /// certificates are asked for only where an authority is known.
    pub(crate) fn algorithms(&self, trust: &Trust) -> (Vec<Algorithm>, Vec<Algorithm>) {
        const SUFFIX: &str = "-cert-v01@openssh.com";
        let entries: Vec<&Entry> = self.hosts.of(&self.name).collect();
        let plain = trust
            .algorithms
            .iter()
            .filter(|name| !name.ends_with(SUFFIX));
        let plain = plain.filter_map(|name| Algorithm::new(name).ok());
        let is_known = |algorithm: &Algorithm| {
            let of_type = |entry: &&Entry| {
                entry.marker.is_none() && same_type(&entry.key.algorithm(), algorithm)
            };
            entries.iter().any(of_type)
        };
        let (mut first, last): (Vec<_>, Vec<_>) = plain.partition(is_known);
        first.extend(last);
        let certificates = if entries
            .iter()
            .any(|entry| entry.marker == Some(Marker::Authority))
        {
            trust
                .algorithms
                .iter()
                .filter_map(|name| Algorithm::new(name.strip_suffix(SUFFIX)?).ok())
                .collect()
        } else {
            Vec::new()
        };
        (first, certificates)
    }

    /// Judges what the host showed, and asks the user where that is their choice.
    pub(crate) async fn check(
        &self,
        host: &Host,
        offered: &PublicKeyOrCertificate,
        ask: &dyn Ask,
    ) -> Result<Confidence, HostKeyError> {
        // A certificate that cannot be accepted is looked at as the key in it, as OpenSSH does.
        let mut note = None;
        if let Some(certificate) = offered.certificate() {
            match self.verdict_on_certificate(certificate, host) {
                Ok(Verdict::Accepted) => return Ok(Confidence::Full),
                Ok(Verdict::Revoked(entry)) => return Err(self.revoked(entry)),
                Ok(_) => note = Some("no authority is known for its certificate".to_owned()),
                Err(reason) => note = Some(format!("its certificate cannot be accepted: {reason}")),
            }
        }
        let key = offered.public_key();
        match self.verdict(&key) {
            Verdict::Accepted => Ok(Confidence::Full),
            Verdict::Revoked(entry) => Err(self.revoked(entry)),
            Verdict::Changed(entry) => {
                let error = self.changed(entry, &key);
                if host.trust.strict == Strict::No {
                    ask.tell(&format!(
                        "warning: {error}. StrictHostKeyChecking is off, so it is used all the same, but gets no password"
                    ));
                    return Ok(Confidence::NoSecrets);
                }
                Err(error)
            }
            Verdict::Unknown => self.unknown(host, &key, note, ask).await,
        }
    }

    async fn unknown(
        &self,
        host: &Host,
        key: &PublicKey,
        note: Option<String>,
        ask: &dyn Ask,
    ) -> Result<Confidence, HostKeyError> {
        let refused = |why: &str| HostKeyError::Unknown {
            host: self.name.clone(),
            key_type: type_name(&key.algorithm()),
            fingerprint: fingerprint(key),
            why: match &note {
                Some(note) => format!("{why}; {note}"),
                None => why.to_owned(),
            },
        };
        match host.trust.strict {
            Strict::Yes => {
                return Err(refused(
                    "StrictHostKeyChecking is on: add it to the known hosts if it is the right one",
                ));
            }
            Strict::Ask => self
                .ask_about(host, key, note.as_deref(), ask)
                .await
                .map_err(refused)?,
            Strict::AcceptNew | Strict::No => {}
        }
        match record::append(&host.trust, &self.name, key) {
            Ok(file) => ask.tell(&format!(
                "Warning: Permanently added '{}' ({}) to the list of known hosts ({}).",
                self.name,
                type_name(&key.algorithm()),
                file.display()
            )),
            Err(reason) => ask.tell(&format!(
                "warning: the host key of '{}' cannot be noted: {reason}",
                self.name
            )),
        }
        Ok(Confidence::Full)
    }

    async fn ask_about(
        &self,
        host: &Host,
        key: &PublicKey,
        note: Option<&str>,
        ask: &dyn Ask,
    ) -> Result<(), &'static str> {
        let fingerprint = fingerprint(key);
        let others: Vec<String> = self
            .hosts
            .entries
            .iter()
            .filter(|entry| entry.marker.is_none() && entry.key.key_data() == key.key_data())
            .map(|entry| {
                format!(
                    "    {}:{}: {}",
                    entry.file.display(),
                    entry.line,
                    entry.names
                )
            })
            .collect();
        let known_as = if others.is_empty() {
            "This key is not known by any other names.".to_owned()
        } else {
            format!(
                "This host key is known by the following other names/addresses:\n{}",
                others.join("\n")
            )
        };
        let note = note
            .map(|note| format!("Note: {note}.\n"))
            .unwrap_or_default();
        let name = if host.name == self.name {
            String::new()
        } else {
            format!(" ({})", host.name)
        };
        let mut text = format!(
            "The authenticity of host '{}{name}' can't be established.\n\
             {} key fingerprint is {fingerprint}.\n\
             {known_as}\n{note}\
             Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
            self.name,
            type_name(&key.algorithm()),
        );
        loop {
            let Some(answer) = ask.ask(Question { text, echo: true }).await else {
                return Err(
                    "nobody could be asked: connect once with `ssh` in a terminal and check the fingerprint",
                );
            };
            match answer.trim() {
                yes if yes.eq_ignore_ascii_case("yes") => return Ok(()),
                no if no.eq_ignore_ascii_case("no") => return Err("you did not accept it"),
                same if same == fingerprint => return Ok(()),
                _ => text = "Please type 'yes', 'no' or the fingerprint: ".to_owned(),
            }
        }
    }

    fn revoked(&self, entry: &Entry) -> HostKeyError {
        HostKeyError::Revoked {
            host: self.name.clone(),
            key_type: type_name(&entry.key.algorithm()),
            fingerprint: fingerprint(&entry.key),
            file: entry.file.display().to_string(),
            line: entry.line,
        }
    }

    fn changed(&self, entry: &Entry, key: &PublicKey) -> HostKeyError {
        let shown =
            |key: &PublicKey| format!("{} {}", type_name(&key.algorithm()), fingerprint(key));
        HostKeyError::Changed {
            host: self.name.clone(),
            file: entry.file.display().to_string(),
            line: entry.line,
            known: shown(&entry.key),
            offered: shown(key),
        }
    }
}

/// The SHA-256 fingerprint as OpenSSH prints it.
pub(crate) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// A key's type as OpenSSH names it to users.
pub(crate) fn type_name(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::Ed25519 => "ED25519".to_owned(),
        Algorithm::Ecdsa { .. } => "ECDSA".to_owned(),
        Algorithm::Rsa { .. } => "RSA".to_owned(),
        Algorithm::Dsa => "DSA".to_owned(),
        Algorithm::SkEd25519 => "ED25519-SK".to_owned(),
        Algorithm::SkEcdsaSha2NistP256 => "ECDSA-SK".to_owned(),
        other => other.as_str().to_owned(),
    }
}

/// Whether keys of the two are of one type: how an RSA key signs is no part of it.
fn same_type(one: &Algorithm, other: &Algorithm) -> bool {
    fn curve(algorithm: &Algorithm) -> Option<EcdsaCurve> {
        match algorithm {
            Algorithm::Ecdsa { curve } => Some(*curve),
            _ => None,
        }
    }
    match (one, other) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (Algorithm::Ecdsa { .. }, Algorithm::Ecdsa { .. }) => curve(one) == curve(other),
        _ => one == other,
    }
}
