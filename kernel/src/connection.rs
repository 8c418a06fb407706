//! The connection file: where a kernel listens and with which key it signs.
//!
//! Source: "Connection files" in the Jupyter client documentation.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// A connection file, checked.
#[derive(Clone)]
pub struct ConnectionFile {
    /// Where the channels listen.
    pub transport: Transport,
    /// Shell channel: port, or suffix of the socket's path.
    pub shell_port: u16,
    /// Control channel.
    pub control_port: u16,
    /// Stdin channel.
    pub stdin_port: u16,
    /// Iopub channel.
    pub iopub_port: u16,
    /// Heartbeat.
    pub hb_port: u16,
    /// The signing key; empty if messages are not signed.
    pub key: Vec<u8>,
    /// The notebook's path, where Jupyter Server tells it.
    pub jupyter_session: Option<String>,
}

/// Where the channels listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP on this address.
    Tcp(String),
    /// Unix sockets whose paths are this prefix, a hyphen and the port.
    Ipc(String),
}

/// Why a connection file cannot be used.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The file cannot be read.
    #[error("cannot read the connection file `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the JSON of a connection file.
    #[error("the connection file `{}` is not complete: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that this kernel cannot serve.
    #[error("the connection file `{}` asks for {field} `{value}`: {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default = "tcp")]
    transport: String,
    ip: String,
    shell_port: u16,
    control_port: u16,
    stdin_port: u16,
    iopub_port: u16,
    hb_port: u16,
    key: String,
    #[serde(default = "scheme")]
    signature_scheme: String,
    #[serde(default)]
    jupyter_session: Option<String>,
}

fn tcp() -> String {
    "tcp".to_owned()
}

fn scheme() -> String {
    SCHEME.to_owned()
}

const SCHEME: &str = "hmac-sha256";

impl ConnectionFile {
    /// Reads and checks the file that a client wrote.
    pub fn read(path: &Path) -> Result<Self, ConnectionError> {
        let text = std::fs::read(path).map_err(|source| ConnectionError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let raw: Raw =
            serde_json::from_slice(&text).map_err(|source| ConnectionError::Malformed {
                path: path.to_owned(),
                source,
            })?;
        let unsupported = |field, value: &str, expected| ConnectionError::Unsupported {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            expected,
        };
        if raw.signature_scheme != SCHEME && !raw.key.is_empty() {
            return Err(unsupported(
                "signature_scheme",
                &raw.signature_scheme,
                "only `hmac-sha256` is supported",
            ));
        }
        let transport = match raw.transport.as_str() {
            "tcp" => Transport::Tcp(raw.ip),
            "ipc" => Transport::Ipc(raw.ip),
            other => {
                return Err(unsupported(
                    "transport",
                    other,
                    "only `tcp` and `ipc` are supported",
                ));
            }
        };
        let ports = [
            raw.shell_port,
            raw.control_port,
            raw.stdin_port,
            raw.iopub_port,
            raw.hb_port,
        ];
        if matches!(transport, Transport::Tcp(_)) && ports.contains(&0) {
            return Err(unsupported("port", "0", "the client chooses the ports"));
        }
        Ok(Self {
            transport,
            shell_port: raw.shell_port,
            control_port: raw.control_port,
            stdin_port: raw.stdin_port,
            iopub_port: raw.iopub_port,
            hb_port: raw.hb_port,
            key: raw.key.into_bytes(),
            jupyter_session: raw.jupyter_session.filter(|session| !session.is_empty()),
        })
    }

    /// The ZeroMQ endpoint of a port.
    pub fn endpoint(&self, port: u16) -> String {
        match &self.transport {
            Transport::Tcp(ip) if ip.contains(':') && !ip.starts_with('[') => {
                format!("tcp://[{ip}]:{port}")
            }
            Transport::Tcp(ip) => format!("tcp://{ip}:{port}"),
            Transport::Ipc(prefix) => format!("ipc://{prefix}-{port}"),
        }
    }
}

impl fmt::Debug for ConnectionFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ConnectionFile")
            .field("transport", &self.transport)
            .field("shell_port", &self.shell_port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ConnectionFile, ConnectionError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ConnectionFile::read(file.path())
    }

    const GOOD: &str = r#"{"transport":"tcp","ip":"127.0.0.1","shell_port":1,"control_port":2,"stdin_port":3,
        "iopub_port":4,"hb_port":5,"key":"secret","signature_scheme":"hmac-sha256","kernel_name":"x"}"#;

    #[test]
    fn a_good_file_is_read_and_its_key_is_not_shown() {
        let file = read(GOOD).unwrap();
        assert_eq!(file.endpoint(file.iopub_port), "tcp://127.0.0.1:4");
        assert!(!format!("{file:?}").contains("secret"));
    }

    #[test]
    fn addresses_of_all_kinds_become_endpoints() {
        let six = read(&GOOD.replace("127.0.0.1", "::1")).unwrap();
        assert_eq!(six.endpoint(7), "tcp://[::1]:7");
        let ipc = read(
            &GOOD
                .replace("\"tcp\"", "\"ipc\"")
                .replace("127.0.0.1", "/run/k"),
        )
        .unwrap();
        assert_eq!(ipc.endpoint(7), "ipc:///run/k-7");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |text: &str| read(text).unwrap_err().to_string();
        assert!(message(&GOOD[..60]).contains("not complete"));
        assert!(message(&GOOD.replace("\"hb_port\":5,", "")).contains("hb_port"));
        assert!(message(&GOOD.replace(":4,", ":70000,")).contains("70000"));
        assert!(message(&GOOD.replace("sha256", "md5")).contains("hmac-md5"));
        assert!(message(&GOOD.replace("\"tcp\"", "\"carrier\"")).contains("carrier"));
        assert!(matches!(
            ConnectionFile::read(Path::new("/nowhere")),
            Err(ConnectionError::Unreadable { .. })
        ));
    }
}
