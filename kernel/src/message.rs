//! A Jupyter message whose JSON parts stay as the bytes they came as.
//!
//! A kernel that passes messages through must not lose what it does not know, and should not
//! pay for parsing what it does not read. So the parts are raw, and [`Header`] is read on demand.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::signing::Signer;

/// Separates the routing identities from the signed parts.
pub(crate) const DELIMITER: &[u8] = b"<IDS|MSG>";

/// One message of any channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Routing identities (ROUTER) or the topic (iopub).
    pub identities: Vec<Bytes>,
    /// JSON object: `msg_id`, `msg_type`, `session` and more.
    pub header: Bytes,
    /// JSON object: the header of the request that this message answers, or `{}`.
    pub parent_header: Bytes,
    /// JSON object.
    pub metadata: Bytes,
    /// JSON object whose shape depends on the message type.
    pub content: Bytes,
    /// Raw buffers after the JSON parts; they are not signed.
    pub buffers: Vec<Bytes>,
}

/// The fields of a header that a kernel acts upon; all others stay in the raw bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Unique for each message.
    pub msg_id: String,
    /// What the content is.
    pub msg_type: String,
    /// The sender's session.
    #[serde(default)]
    pub session: String,
}

/// Why frames are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// No `<IDS|MSG>` frame.
    #[error("message without the `<IDS|MSG>` delimiter")]
    NoDelimiter,
    /// Fewer than a signature and four parts after the delimiter.
    #[error("message with {0} frames after the delimiter, where at least 5 are needed")]
    TooShort(usize),
    /// The signature does not match: not from a holder of the key.
    #[error("message with a signature that does not match")]
    BadSignature,
    /// A part that must be a JSON object is not.
    #[error("message whose {part} is not a JSON object")]
    NotJson {
        /// `header`, `parent header`, `metadata` or `content`.
        part: &'static str,
    },
}

impl Message {
    /// Reads a message from the frames of a ZeroMQ multipart message and checks its signature.
    pub fn decode(frames: Vec<Bytes>, signer: &Signer) -> Result<Self, DecodeError> {
        let delimiter = frames
            .iter()
            .position(|frame| frame.as_ref() == DELIMITER)
            .ok_or(DecodeError::NoDelimiter)?;
        let after = frames.len() - delimiter - 1;
        if after < 5 {
            return Err(DecodeError::TooShort(after));
        }
        let mut frames = frames.into_iter();
        let identities = frames.by_ref().take(delimiter).collect();
        frames.next();
        let mut next = || frames.next().unwrap_or_default();
        let signature = next();
        let parts = [next(), next(), next(), next()];
        if !signer.verify(&signature, &parts) {
            return Err(DecodeError::BadSignature);
        }
        for (part, name) in parts
            .iter()
            .zip(["header", "parent header", "metadata", "content"])
        {
            if !is_object(part) {
                return Err(DecodeError::NotJson { part: name });
            }
        }
        let [header, parent_header, metadata, content] = parts;
        Ok(Self {
            identities,
            header,
            parent_header,
            metadata,
            content,
            buffers: frames.collect(),
        })
    }

    /// The frames to send, signed with `signer`.
    pub fn encode(self, signer: &Signer) -> Vec<Bytes> {
        let parts = [self.header, self.parent_header, self.metadata, self.content];
        let signature = signer.sign(&parts);
        let mut frames = self.identities;
        frames.reserve(6 + self.buffers.len());
        frames.push(Bytes::from_static(DELIMITER));
        frames.push(signature);
        frames.extend(parts);
        frames.extend(self.buffers);
        frames
    }

    /// Reads the header.
    pub fn parse_header(&self) -> Result<Header, serde_json::Error> {
        serde_json::from_slice(&self.header)
    }

    /// Reads the parent header; `None` if it is empty.
    pub fn parse_parent(&self) -> Option<Header> {
        serde_json::from_slice(&self.parent_header).ok()
    }

    /// Reads the content as `T`.
    pub fn parse_content<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.content)
    }
}

/// Whether `part` is one JSON object in UTF-8; looks at it once and builds nothing.
fn is_object(part: &[u8]) -> bool {
    part.trim_ascii_start().first() == Some(&b'{')
        && std::str::from_utf8(part)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            identities: vec![Bytes::from_static(b"a"), Bytes::from_static(b"")],
            header: Bytes::from_static(b"{\"msg_id\":\"1\",\"msg_type\":\"x\",\"new\":[1]}"),
            parent_header: Bytes::from_static(b" {}"),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from_static(b"{\"code\":\"1\"}"),
            buffers: vec![Bytes::from_static(b"\0\xff")],
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let signer = Signer::new(b"k");
        let back = Message::decode(message().encode(&signer), &signer).unwrap();
        assert_eq!(back, message());
        assert_eq!(back.parse_header().unwrap().msg_id, "1");
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        let signer = Signer::new(b"k");
        for wrong in [
            &b"[]"[..],
            b"1",
            b"",
            b"{",
            b"{} {}",
            b"{\"a\":\"\xff\"}",
            b"null",
        ] {
            let mut message = message();
            message.content = Bytes::copy_from_slice(wrong);
            assert_eq!(
                Message::decode(message.encode(&signer), &signer),
                Err(DecodeError::NotJson { part: "content" }),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn frames_that_are_no_message_are_refused() {
        let signer = Signer::new(b"k");
        let decode = |frames: &[&'static [u8]]| {
            let frames = frames
                .iter()
                .map(|frame| Bytes::from_static(frame))
                .collect();
            Message::decode(frames, &signer).unwrap_err()
        };
        assert_eq!(decode(&[]), DecodeError::NoDelimiter);
        assert_eq!(
            decode(&[b"a", b"<IDS|MSG>", b"{}"]),
            DecodeError::TooShort(1)
        );
        assert_eq!(
            decode(&[b"a", b"<IDS|MSG>", b"00", b"{}", b"{}", b"{}", b"{}"]),
            DecodeError::BadSignature
        );
        let frames = message().encode(&Signer::new(b"another"));
        assert_eq!(
            Message::decode(frames, &signer),
            Err(DecodeError::BadSignature)
        );
    }
}
