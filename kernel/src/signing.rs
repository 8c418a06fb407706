//! Message signatures: HMAC-SHA-256 over the four JSON parts, as lower-case hex.
//!
//! Source: "The Wire Protocol" in the Jupyter messaging specification.

use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The key of one connection file. An empty key turns signing off, as the specification allows.
#[derive(Clone)]
pub struct Signer {
    mac: Option<Hmac<Sha256>>,
}

impl Signer {
    /// A signer for `key`, the connection file's `key` as bytes.
    pub fn new(key: &[u8]) -> Self {
        let mac = if key.is_empty() {
            None
        } else {
            Hmac::<Sha256>::new_from_slice(key).ok()
        };
        Self { mac }
    }

    /// The signature of `parts` (header, parent header, metadata, content, in that order).
    pub fn sign(&self, parts: &[Bytes; 4]) -> Bytes {
        let Some(mac) = &self.mac else {
            return Bytes::new();
        };
        let digest = digest(mac, parts).finalize().into_bytes();
        let mut hex = Vec::with_capacity(digest.len() * 2);
        for byte in digest {
            hex.push(HEX[usize::from(byte >> 4)]);
            hex.push(HEX[usize::from(byte & 15)]);
        }
        Bytes::from(hex)
    }

    /// Whether `signature` is the signature of `parts`, compared in constant time.
    pub fn verify(&self, signature: &[u8], parts: &[Bytes; 4]) -> bool {
        let Some(mac) = &self.mac else {
            return true;
        };
        let mut raw = [0u8; 32];
        if signature.len() != raw.len() * 2 {
            return false;
        }
        for (byte, pair) in raw.iter_mut().zip(signature.chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return false;
            };
            *byte = high << 4 | low;
        }
        digest(mac, parts).verify_slice(&raw).is_ok()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signer(…)")
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

fn digest(mac: &Hmac<Sha256>, parts: &[Bytes; 4]) -> Hmac<Sha256> {
    let mut mac = mac.clone();
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> [Bytes; 4] {
        ["{\"msg_id\":\"1\"}", "{}", "{}", "{\"code\":\"1\"}"].map(Bytes::from)
    }

    #[test]
    fn a_signature_verifies_and_a_changed_part_does_not() {
        let signer = Signer::new(b"secret");
        let signature = signer.sign(&parts());
        assert!(signer.verify(&signature, &parts()));
        let mut forged = parts();
        forged[3] = Bytes::from("{\"code\":\"2\"}");
        assert!(!signer.verify(&signature, &forged));
        assert!(!signer.verify(b"", &parts()));
        assert!(!signer.verify(&[b'z'; 64], &parts()));
    }

    #[test]
    fn an_empty_key_signs_nothing() {
        let signer = Signer::new(b"");
        assert!(signer.sign(&parts()).is_empty());
        assert!(signer.verify(b"anything", &parts()));
    }
}
