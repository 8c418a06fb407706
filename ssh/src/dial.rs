//! The byte stream that ssh is spoken over: TCP, or the stdin and stdout of a `ProxyCommand`.

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::config::openssh::words;
use crate::config::{Family, Host};
use crate::error::SshError;

/// What ssh can be spoken over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How much may wait in the kernel to be sent. More would only sit in front of the next interrupt or ping: the
/// sender keeps up with the link all the same. Bytes.
const UNSENT: u32 = 128 * 1024;

/// Connects by TCP. Each address has the whole time, as in OpenSSH.
pub(crate) async fn tcp(host: &Host, limit: Duration) -> Result<TcpStream, SshError> {
    let unresolved = |source| SshError::Resolve {
        host: host.name.clone(),
        hostname: host.hostname.clone(),
        source,
    };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.hostname.as_str(), host.port))
        .await
        .map_err(unresolved)?
        .filter(|address| match host.family {
            Family::Any => true,
            Family::Ipv4 => address.is_ipv4(),
            Family::Ipv6 => address.is_ipv6(),
        })
        .collect();
    let mut failure = None;
    for address in addresses {
        failure = Some(
            match tokio::time::timeout(limit, tcp_to(host, address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => SshError::Connect {
                    host: host.name.clone(),
                    address: host.address(),
                    source,
                },
                Err(_) => SshError::Timeout {
                    host: host.name.clone(),
                    address: host.address(),
                    what: "take the connection",
                    limit,
                },
            },
        );
    }
    Err(failure.unwrap_or_else(|| {
        unresolved(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "it has no address of the wanted AddressFamily",
        ))
    }))
}

async fn tcp_to(host: &Host, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    if let Some(name) = &host.bind_address {
        let own = tokio::net::lookup_host((name.as_str(), 0))
            .await?
            .find(|own| own.is_ipv4() == address.is_ipv4());
        let own = own.ok_or_else(|| {
            io::Error::other(format!("BindAddress {name} is of another address family"))
        })?;
        socket.bind(own)?;
    }
    #[cfg(target_os = "linux")]
    SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT)?;
    socket.connect(address).await
}

/// The stdin and stdout of a `ProxyCommand`, and with them its process.
pub(crate) struct ProxyCommand {
    host: String,
    command: String,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    complaints: Arc<Mutex<Vec<u8>>>,
}

/// How much of what a `ProxyCommand` complains about is kept. Bytes.
const COMPLAINTS: usize = 4096;

/// Starts a `ProxyCommand`, in which tokens are already replaced.
pub(crate) fn proxy_command(host: &Host, command: &str) -> Result<ProxyCommand, SshError> {
    let failed = |reason: String| SshError::ProxyCommand {
        host: host.name.clone(),
        command: command.to_owned(),
        reason,
    };
    let shell = std::env::var_os("SHELL")
        .filter(|shell| !shell.is_empty())
        .unwrap_or_else(|| "/bin/sh".into());
    let mut child = Command::from(dies_with_thread(std::process::Command::new(shell)))
        .arg("-c")
        // So that what we kill is the command, and not only the shell around it.
        .arg(format!("exec {command}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let (Some(stdin), Some(stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("has no pipes".to_owned()));
    };
    let complaints = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&complaints);
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let room = COMPLAINTS.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..count.min(room)]);
        }
    });
    Ok(ProxyCommand {
        host: host.name.clone(),
        command: command.to_owned(),
        child,
        stdin,
        stdout,
        complaints,
    })
}

impl ProxyCommand {
    /// Its stream, and what tells how it ended if the stream did.
    pub(crate) fn split(self) -> (impl Stream + 'static, Epitaph) {
        let epitaph = Epitaph {
            host: self.host,
            command: self.command,
            complaints: self.complaints,
        };
        (
            ProxyStream {
                stdin: self.stdin,
                stdout: self.stdout,
                _child: self.child,
            },
            epitaph,
        )
    }
}

/// What is said of a `ProxyCommand` that failed.
pub(crate) struct Epitaph {
    host: String,
    command: String,
    complaints: Arc<Mutex<Vec<u8>>>,
}

impl Epitaph {
    /// Its failure, in its own words if it had any.
    pub(crate) fn error(&self) -> SshError {
        let printed = words(
            &self
                .complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let reason = if printed.is_empty() {
            "ended without a word before the connection was made".to_owned()
        } else {
            format!("failed: {printed}")
        };
        SshError::ProxyCommand {
            host: self.host.clone(),
            command: self.command.clone(),
            reason,
        }
    }
}

struct ProxyStream {
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Killed when dropped.
    _child: Child,
}

impl AsyncRead for ProxyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for ProxyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

/// Makes a program end with the thread that starts it, and have no terminal to ask on.
pub(crate) fn dies_with_thread(mut command: std::process::Command) -> std::process::Command {
    let parent = nix::unistd::getpid();
    // SAFETY: the closure makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            // The parent may have gone before the line above.
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
    command
}
