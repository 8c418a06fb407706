//! The connection file: where a kernel listens and with which key it signs.
