//! The byte stream between the kernel and an agent: frames, handshake, flow control.
