//! The byte stream that ssh is spoken over: TCP, or the stdin and stdout of a `ProxyCommand`.

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

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

/// How much of what a `ProxyCommand` complains about is kept. Bytes.
const COMPLAINTS: usize = 4096;

/// The process of a `ProxyCommand`, which is killed when this is dropped.
pub(crate) struct ProxyCommand {
    host: String,
    command: String,
    child: Child,
    complaints: JoinHandle<Vec<u8>>,
}

/// Starts a `ProxyCommand`, in which tokens are already replaced. Its stdin and stdout are the stream.
pub(crate) fn proxy_command(
    host: &Host,
    command: &str,
) -> Result<(impl Stream + 'static, ProxyCommand), SshError> {
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
    let complaints = tokio::spawn(async move {
        let mut kept = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            let room = COMPLAINTS.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..count.min(room)]);
        }
        kept
    });
    let stream = tokio::io::join(stdout, stdin);
    Ok((
        stream,
        ProxyCommand {
            host: host.name.clone(),
            command: command.to_owned(),
            child,
            complaints,
        },
    ))
}

impl ProxyCommand {
    /// Why its stream ended, in its own words if it had any. The stream must have been dropped.
    pub(crate) async fn failure(mut self) -> SshError {
        // Both may come a little after the end of the stream; what it started may keep its stderr open for ever.
        const PATIENCE: Duration = Duration::from_secs(2);
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let complaints = tokio::time::timeout(PATIENCE, self.complaints).await;
        let printed = words(&complaints.ok().and_then(Result::ok).unwrap_or_default());
        let ended = match status {
            Ok(Ok(status)) => format!("ended ({status})"),
            Ok(Err(_)) | Err(_) => "closed its stream".to_owned(),
        };
        let printed = if printed.is_empty() {
            "without a word".to_owned()
        } else {
            format!("and printed: {printed}")
        };
        let reason = format!("{ended} before the connection was made, {printed}");
        SshError::ProxyCommand {
            host: self.host,
            command: self.command,
            reason,
        }
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
