//! Signing what the server wants signed, by the agent or with a key file.

use russh::SendError;
use russh::Signer;
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::{HashAlg, PrivateKey};
use tokio::net::UnixStream;

use super::keys::{Candidate, Holder};
use crate::ask::Ask;

/// Why there is no signature.
#[derive(Debug)]
pub(super) enum SignError {
    /// The connection is gone.
    Gone,
    /// This key cannot sign.
    Cannot(String),
}

impl From<SendError> for SignError {
    fn from(_: SendError) -> Self {
        Self::Gone
    }
}

/// One key, ready to sign when the server has said that it knows it.
pub(super) struct Signing<'a> {
    pub(super) candidate: Candidate,
    pub(super) agent: Option<&'a mut AgentClient<UnixStream>>,
    pub(super) ask: &'a dyn Ask,
    pub(super) prompts: usize,
}

impl Signer for Signing<'_> {
    type Error = SignError;

    /// Appends the signature, as a string in the sense of RFC 4251, to what is signed.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        self.candidate
            .unlock(self.ask, self.prompts)
            .await
            .map_err(SignError::Cannot)?;
        match (&self.candidate.holder, &mut self.agent) {
            (Holder::Agent(identity), Some(agent)) => agent
                .sign_request(identity, hash, to_sign)
                .await
                .map_err(|error| SignError::Cannot(format!("ssh-agent does not sign: {error}"))),
            (Holder::Open(key), _) => {
                let signature = sign(key, hash, &to_sign).map_err(SignError::Cannot)?;
                signature
                    .encode(&mut to_sign)
                    .map_err(|error| SignError::Cannot(error.to_string()))?;
                Ok(to_sign)
            }
            (Holder::Agent(_) | Holder::File(_), _) => {
                Err(SignError::Cannot("nothing can sign with it".to_owned()))
            }
        }
    }
}

fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> Result<Vec<u8>, String> {
    let signature = match key.key_data() {
        KeypairData::Rsa(pair) => (pair, hash).try_sign(data),
        other => other.try_sign(data),
    };
    let signature = signature.map_err(|error| format!("it cannot sign: {error}"))?;
    let mut encoded = Vec::new();
    signature
        .encode(&mut encoded)
        .map_err(|error| error.to_string())?;
    Ok(encoded)
}
