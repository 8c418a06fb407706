//! A host's key compared with what is known, as `check_host_key` of OpenSSH's client does it.

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, PublicKey};

use super::file::{Entry, Marker};
use super::{Known, certificate, same_type};
use crate::config::Host;

/// What the files say about a key.
#[derive(Debug)]
pub(super) enum Verdict<'a> {
    /// It is the host's, or its authority's word is good.
    Accepted,
    /// The host is known with other keys only; this is one of them, of the same type if there is one.
    Changed(&'a Entry),
    /// It must not be used.
    Revoked(&'a Entry),
    /// The host is not known.
    Unknown,
}

impl Known {
    /// What to think of a plain key.
    pub(super) fn verdict(&self, key: &PublicKey) -> Verdict<'_> {
        if let Some(entry) = self.revocation(key.key_data()) {
            return Verdict::Revoked(entry);
        }
        let plain = |name| self.hosts.of(name).filter(|entry| entry.marker.is_none());
        let is_it = |entry: &Entry| entry.key.key_data() == key.key_data();
        if plain(&self.name).any(is_it) {
            return Verdict::Accepted;
        }
        let of_type = |entry: &&Entry| same_type(&entry.key.algorithm(), &key.algorithm());
        if let Some(entry) = plain(&self.name)
            .find(of_type)
            .or_else(|| plain(&self.name).next())
        {
            return Verdict::Changed(entry);
        }
        match &self.name_without_port {
            Some(name) if plain(name).any(is_it) => Verdict::Accepted,
            _ => Verdict::Unknown,
        }
    }

    /// What to think of a certificate. `Err` if a known authority signed it and it is not good for this host now.
    pub(super) fn verdict_on_certificate(
        &self,
        certificate: &Certificate,
        host: &Host,
    ) -> Result<Verdict<'_>, String> {
        for key in [certificate.public_key(), certificate.signature_key()] {
            if let Some(entry) = self.revocation(key) {
                return Ok(Verdict::Revoked(entry));
            }
        }
        let vouches = |entry: &Entry| {
            entry.marker == Some(Marker::Authority)
                && entry.key.key_data() == certificate.signature_key()
        };
        let names = [Some(&self.name), self.name_without_port.as_ref()];
        if !names
            .into_iter()
            .flatten()
            .any(|name| self.hosts.of(name).any(vouches))
        {
            return Ok(Verdict::Unknown);
        }
        let principal = host
            .trust
            .alias
            .as_ref()
            .unwrap_or(&host.hostname)
            .to_lowercase();
        certificate::check(certificate, &principal, std::time::SystemTime::now())?;
        Ok(Verdict::Accepted)
    }

    fn revocation(&self, key: &KeyData) -> Option<&Entry> {
        [Some(&self.name), self.name_without_port.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|name| self.hosts.of(name))
            .find(|entry| entry.marker == Some(Marker::Revoked) && entry.key.key_data() == key)
    }
}
