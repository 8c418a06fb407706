//! A port where other agents get and bring values.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellferry_wire::protocol::Secret;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use super::channel::respond;
use super::visit::oblige;
use super::{Request, Shelf};

/// How many visitors may be at the door who have not proved that they know the secret. Others wait in the system's queue.
const STRANGERS: usize = 64;

/// How long a stranger has for that.
const GREETING: Duration = Duration::from_secs(5);

/// An open door. It closes when this is dropped, or by itself when it has not been used for long enough.
#[derive(Debug)]
pub struct Door {
    secret: Secret,
    addresses: Vec<SocketAddr>,
    uses: Arc<Uses>,
    accepting: JoinHandle<()>,
}

/// How many visitors there are who know the secret, and when the last one came or left, or was expected.
#[derive(Debug)]
struct Uses(Mutex<(usize, Instant)>);

/// A visitor who knows the secret.
struct Use(Arc<Uses>);

impl Uses {
    fn lock(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Use {
        let mut state = self.lock();
        *state = (state.0 + 1, Instant::now());
        Use(self.clone())
    }

    /// When the door may close, as far as is known now.
    fn over(&self, idle: Duration) -> Result<(), Instant> {
        let (count, last) = *self.lock();
        let now = Instant::now();
        match (count, last + idle) {
            (0, until) if until <= now => Ok(()),
            (0, until) => Err(until),
            _ => Err(now + idle),
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        *state = (state.0 - 1, Instant::now());
    }
}

impl Door {
    /// Opens a door that closes after being idle for so long.
    pub fn open(secret: Secret, shelf: Shelf, idle: Duration) -> io::Result<Self> {
        let (listener, addresses) = listen()?;
        let uses = Arc::new(Uses(Mutex::new((0, Instant::now()))));
        let accepting = tokio::spawn(accept(listener, secret.clone(), shelf, uses.clone(), idle));
        Ok(Self {
            secret,
            addresses,
            uses,
            accepting,
        })
    }

    /// Whether it is open, and this is its secret. Then it stays open for a while.
    pub fn is_open(&self, secret: &Secret) -> bool {
        let mut state = self.uses.lock();
        state.1 = Instant::now();
        !self.accepting.is_finished() && self.secret == *secret
    }

    /// Where it is.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listens on a port of its own; the addresses at which other machines may reach it.
pub fn listen() -> io::Result<(tokio::net::TcpListener, Vec<SocketAddr>)> {
    // An IPv6 socket takes IPv4 as well, where there is IPv6 at all.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let addresses = own_addresses()?
        .into_iter()
        .filter(|address| bound.is_ipv6() || address.is_ipv4())
        .map(|address| SocketAddr::new(address, bound.port()))
        .collect::<Vec<_>>();
    if addresses.is_empty() {
        return Err(io::Error::other(
            "this machine has no address that others could reach",
        ));
    }
    Ok((tokio::net::TcpListener::from_std(listener)?, addresses))
}

/// The addresses of this machine at which others may reach it.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?
        .filter(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP)
                && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        })
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
        })
        .filter(|address: &IpAddr| match address {
            IpAddr::V4(address) => !address.is_link_local() && !address.is_unspecified(),
            IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_unspecified(),
        });
    Ok(addresses.collect())
}

async fn accept(
    listener: tokio::net::TcpListener,
    secret: Secret,
    shelf: Shelf,
    uses: Arc<Uses>,
    idle: Duration,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let Err(until) = uses.over(idle) else {
            return;
        };
        let stranger = async {
            let permit = strangers.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            () = sleep_until(until) => continue,
            (permit, accepted) = stranger => match accepted {
                Ok((stream, _)) => (permit, stream),
                Err(error) => {
                    tracing::warn!("cannot accept another agent: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (secret, shelf, uses) = (secret.clone(), shelf.clone(), uses.clone());
        tokio::spawn(async move {
            let met = meet(stream, &secret).await;
            drop(permit);
            match met {
                Ok((request, channel)) => {
                    let used = uses.begin();
                    spawn_blocking(move || {
                        oblige(channel, &request, &shelf);
                        drop(used);
                    });
                }
                Err(error) => tracing::info!("a stranger at the door was sent away: {error}"),
            }
        });
    }
}

/// Lets a visitor prove that it knows the secret, and say what it wants.
async fn meet(
    stream: TcpStream,
    secret: &Secret,
) -> io::Result<(Request, super::channel::Channel)> {
    timeout(GREETING, async {
        respond(stream, secret).await?.request().await
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outlet::Outlet;
    use crate::tickets::Tickets;

    #[tokio::test]
    async fn a_door_that_is_not_used_closes() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf {
            segments: folder.path().to_owned(),
            outlet: Outlet::Here(tokio::sync::mpsc::unbounded_channel().0),
            tickets: Tickets::default(),
        };
        let secret = Secret::new([1; 32]);
        let idle = Duration::from_millis(300);
        let door = Door::open(secret.clone(), shelf, idle).unwrap();
        assert!(!door.is_open(&Secret::new([2; 32])));
        let port = door.addresses()[0].port();
        // A stranger is no use of it.
        let _stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let used = door.uses.begin();
        tokio::time::sleep(2 * idle).await;
        assert!(door.is_open(&secret));
        drop(used);
        let closed = timeout(Duration::from_secs(5), async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        closed.await.unwrap();
        assert!(!door.is_open(&secret));
    }
}
