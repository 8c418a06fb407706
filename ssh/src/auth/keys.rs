//! The keys that may be offered, in OpenSSH's order: those of the agent that the configuration names, other keys of
//! the agent, then key files.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use russh::keys::agent::client::AgentClient;
use russh::keys::agent::{AgentIdentity, AgentSessionBinding};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey, decode_secret_key};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::secret;
use crate::ask::Ask;
use crate::config::Login;

/// All that may be offered.
pub(super) struct Keys {
    pub(super) candidates: VecDeque<Candidate>,
    /// The agent that holds some of them.
    pub(super) agent: Option<AgentClient<UnixStream>>,
    /// What cannot be offered, and why.
    pub(super) notes: Vec<String>,
    /// Whether there was any at all.
    pub(super) any: bool,
    /// Whether some need a device that we cannot talk to.
    pub(super) any_hardware: bool,
}

/// One key.
pub(super) struct Candidate {
    /// How messages name it.
    pub(super) label: String,
    /// Offered before anything is signed. `None` for an encrypted file that does not show it.
    pub(super) public: Option<PublicKey>,
    /// Offered in place of the key itself.
    pub(super) certificate: Option<Certificate>,
    pub(super) holder: Holder,
}

/// Who can sign.
pub(super) enum Holder {
    /// The agent, by this identity of its.
    Agent(Box<AgentIdentity>),
    /// A file, encrypted or not.
    File(PathBuf),
    /// A key at hand.
    Open(Box<PrivateKey>),
}

/// A file that the configuration names.
struct FileKey {
    path: PathBuf,
    public: Option<PublicKey>,
    certificate: Option<Certificate>,
    /// Only the public half is there: the agent has to sign.
    public_only: bool,
}

impl Keys {
    /// Looks at files and agent. Asks nothing.
    pub(super) async fn gather(login: &Login, binding: Option<&AgentSessionBinding>) -> Self {
        let mut notes = Vec::new();
        let mut any_hardware = false;
        let mut files = Vec::new();
        for path in &login.identity_files {
            match file_key(path) {
                Ok(Some(key)) => {
                    files.extend(certificates_of(&key, login, &mut notes));
                    files.push(key);
                }
                // The default names need not all exist.
                Ok(None) => {}
                Err(reason) => notes.push(format!("{} ({reason})", path.display())),
            }
        }
        let (agent, held) = match &login.agent {
            None => (None, Vec::new()),
            Some(socket) => match open_agent(socket, binding).await {
                Ok((agent, held)) => (Some(agent), held),
                Err(reason) => {
                    notes.push(format!("ssh-agent at {} ({reason})", socket.display()));
                    (None, Vec::new())
                }
            },
        };

        let mut named = VecDeque::new();
        let mut others = VecDeque::new();
        for identity in held {
            let public = identity.public_key().into_owned();
            let is_it = |file: &FileKey| {
                file.public
                    .as_ref()
                    .is_some_and(|key| key.key_data() == public.key_data())
            };
            let label = match identity.comment() {
                "" => "a key of ssh-agent".to_owned(),
                comment => format!("ssh-agent's `{comment}`"),
            };
            // A certificate in the agent stands for itself; a plain key there signs for all files that have it.
            let matching: Vec<FileKey> = if let AgentIdentity::Certificate { .. } = identity {
                Vec::new()
            } else {
                let (matching, rest) = std::mem::take(&mut files).into_iter().partition(is_it);
                files = rest;
                matching
            };
            let certificate = match &identity {
                AgentIdentity::Certificate { certificate, .. } => Some(certificate.clone()),
                AgentIdentity::PublicKey { .. } => None,
            };
            if matching.is_empty() {
                if !login.identities_only || (certificate.is_some() && files.iter().any(is_it)) {
                    others.push_back(Candidate {
                        label,
                        public: Some(public),
                        certificate,
                        holder: Holder::Agent(Box::new(identity)),
                    });
                }
                continue;
            }
            for file in matching {
                let what = if file.certificate.is_some() {
                    " with its certificate"
                } else {
                    ""
                };
                named.push_back(Candidate {
                    label: format!("{}{what} by ssh-agent", file.path.display()),
                    public: file.public,
                    certificate: file.certificate,
                    holder: Holder::Agent(Box::new(identity.clone())),
                });
            }
        }
        named.extend(others);
        for file in files {
            if file.public_only {
                notes.push(format!(
                    "{} (only the public half is there, and ssh-agent does not have the other)",
                    file.path.display()
                ));
                continue;
            }
            if let Some(public) = &file.public
                && matches!(
                    public.algorithm(),
                    Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256
                )
            {
                notes.push(format!("{} (it needs a security key)", file.path.display()));
                any_hardware = true;
                continue;
            }
            let what = if file.certificate.is_some() {
                " with its certificate"
            } else {
                ""
            };
            named.push_back(Candidate {
                label: format!("{}{what}", file.path.display()),
                public: file.public,
                certificate: file.certificate,
                holder: Holder::File(file.path),
            });
        }
        Self {
            any: !named.is_empty(),
            candidates: named,
            agent,
            notes,
            any_hardware,
        }
    }
}

async fn open_agent(
    socket: &Path,
    binding: Option<&AgentSessionBinding>,
) -> Result<(AgentClient<UnixStream>, Vec<AgentIdentity>), String> {
    let mut agent = AgentClient::connect_uds(socket)
        .await
        .map_err(|error| error.to_string())?;
    if let Some(binding) = binding {
        // Needed for keys that were added for certain hosts only; other agents may not know it.
        let _ = agent.bind_session(binding, false).await;
    }
    let held = agent
        .request_identities()
        .await
        .map_err(|error| error.to_string())?;
    Ok((agent, held))
}

/// What can be seen of a key file without its passphrase. `None` if there is none.
fn file_key(path: &Path) -> Result<Option<FileKey>, String> {
    let beside = with_suffix(path, ".pub");
    let public = std::fs::read_to_string(&beside)
        .ok()
        .and_then(|text| PublicKey::from_openssh(text.trim()).ok());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let public_only = public.is_some();
            let key = FileKey {
                path: path.to_owned(),
                public,
                certificate: None,
                public_only,
            };
            return Ok(public_only.then_some(key));
        }
        Err(error) => return Err(error.to_string()),
    };
    if let Ok(public) = PublicKey::from_openssh(text.trim()) {
        return Ok(Some(FileKey {
            path: path.to_owned(),
            public: Some(public),
            certificate: None,
            public_only: true,
        }));
    }
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.uid() == nix::unistd::Uid::current().as_raw() && metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "others may read it: run `chmod 600 {}`",
            path.display()
        ));
    }
    // OpenSSH's own format shows the public half even if the rest is encrypted.
    let own = PrivateKey::from_openssh(text.as_bytes())
        .ok()
        .map(|key| key.public_key().clone());
    let public = own.or(public);
    Ok(Some(FileKey {
        path: path.to_owned(),
        public,
        certificate: None,
        public_only: false,
    }))
}

/// The certificates for a key: those that `CertificateFile` names, or else the one beside it.
fn certificates_of(key: &FileKey, login: &Login, notes: &mut Vec<String>) -> Vec<FileKey> {
    let beside = [with_suffix(&key.path, "-cert.pub")];
    let files: &[PathBuf] = if login.certificate_files.is_empty() {
        &beside
    } else {
        &login.certificate_files
    };
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        let certificate = match Certificate::from_openssh(text.trim()) {
            Ok(certificate) => certificate,
            Err(error) => {
                notes.push(format!("{} ({error})", file.display()));
                continue;
            }
        };
        let is_its = key
            .public
            .as_ref()
            .is_some_and(|public| public.key_data() == certificate.public_key());
        if is_its && certificate.cert_type() == CertType::User {
            found.push(FileKey {
                path: key.path.clone(),
                public: key.public.clone(),
                certificate: Some(certificate),
                public_only: key.public_only,
            });
        }
    }
    found
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Candidate {
    /// Makes a file's key ready to sign, which may need its passphrase. Says why if it cannot.
    pub(super) async fn unlock(&mut self, ask: &dyn Ask, tries: usize) -> Result<(), String> {
        let Holder::File(path) = &self.holder else {
            return Ok(());
        };
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|error| error.to_string())?;
        let key = match decode_secret_key(&text, None) {
            Ok(key) if !key.is_encrypted() => key,
            // Old formats say so in words; what else fails without a passphrase fails with one.
            Err(error) if !text.contains("ENCRYPTED") && !is_encrypted(&text) => {
                return Err(format!(
                    "{error}; if `ssh-keygen -y -f {0}` can read it, `ssh-keygen -p -f {0}` brings it into a newer form",
                    path.display()
                ));
            }
            _ => decrypt(path, &text, ask, tries).await?,
        };
        if self
            .public
            .as_ref()
            .is_some_and(|public| public.key_data() != key.public_key().key_data())
        {
            return Err(format!(
                "the private half does not belong to {}",
                with_suffix(path, ".pub").display()
            ));
        }
        self.public = Some(key.public_key().clone());
        self.holder = Holder::Open(Box::new(key));
        Ok(())
    }
}

fn is_encrypted(text: &str) -> bool {
    PrivateKey::from_openssh(text).is_ok_and(|key| key.is_encrypted())
}

async fn decrypt(
    path: &Path,
    text: &str,
    ask: &dyn Ask,
    tries: usize,
) -> Result<PrivateKey, String> {
    for attempt in 0..tries {
        let again = if attempt == 0 {
            ""
        } else {
            "Bad passphrase, try again: "
        };
        let question = format!("{again}Enter passphrase for key '{}': ", path.display());
        let Some(passphrase) = secret(ask, question).await else {
            return Err("its passphrase was not given".to_owned());
        };
        if passphrase.is_empty() {
            return Err("its passphrase was not given".to_owned());
        }
        if let Ok(key) = decode_secret_key(text, Some(&passphrase)) {
            return Ok(key);
        }
    }
    Err(format!(
        "the passphrase was wrong, or its form is too old: `ssh-keygen -p -f {}` brings it into a newer one",
        path.display()
    ))
}
