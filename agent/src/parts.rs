//! Messages as the wire carries them: their parts, without identities.

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Parts;

/// A message as the wire carries it: without identities.
pub fn parts(message: Message) -> Parts {
    let mut parts = vec![
        message.header,
        message.parent_header,
        message.metadata,
        message.content,
    ];
    parts.extend(message.buffers);
    parts
}

/// The message of which these are the parts, if they are enough.
pub fn message(parts: Parts) -> Option<Message> {
    let mut parts = parts.into_iter();
    Some(Message {
        identities: Vec::new(),
        header: parts.next()?,
        parent_header: parts.next()?,
        metadata: parts.next()?,
        content: parts.next()?,
        buffers: parts.collect(),
    })
}
