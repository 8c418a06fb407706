//! What two agents say to each other once they are connected, and coming to another's door.

use std::net::SocketAddr;
use std::time::Duration;

use cellferry_wire::protocol::{FromAgent, Secret};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::channel::{Channel, initiate, lost};
use super::{Answer, Request, Shelf, open};
use crate::growing::{Growing, remove};
use crate::tickets::{Refusal, Ticket, Way};

/// How long it may take to connect and to greet.
const REACH: Duration = Duration::from_secs(5);

/// The most addresses that are tried.
const ADDRESSES: usize = 32;

/// Gets a value from another agent's door, and tells the kernel how that ended.
pub async fn pull(shelf: &Shelf, ticket: Ticket, size: u64, from: &[SocketAddr], secret: &Secret) {
    let transfer = ticket.transfer();
    let here = shelf.clone();
    let done = visit(ticket, from, secret, move |channel, ticket| {
        get(channel, &here, size, ticket)
    });
    shelf.tell(transfer, done.await.map(|()| true));
}

/// Brings a value to another agent's door, and tells the kernel if that failed.
pub async fn push(shelf: &Shelf, ticket: Ticket, to: &[SocketAddr], secret: &Secret) {
    let transfer = ticket.transfer();
    let here = shelf.clone();
    let done = visit(ticket, to, secret, move |channel, ticket| {
        put(channel, &here, ticket)
    });
    shelf.tell(transfer, done.await.map(|()| false));
}

/// Why a visit came to nothing.
enum Failure {
    /// Nobody wants to know any more.
    GivenUp,
    /// The door was not reached.
    Unreached(String),
    /// It was.
    Reached(String),
}

impl Shelf {
    fn tell(&self, transfer: u64, done: Result<bool, Failure>) {
        let (reason, reached) = match done {
            Ok(true) => return self.outlet.tell(FromAgent::Stored { transfer }),
            Ok(false) | Err(Failure::GivenUp) => return,
            Err(Failure::Unreached(reason)) => (reason, false),
            Err(Failure::Reached(reason)) => (reason, true),
        };
        self.outlet.tell(FromAgent::DirectFailed {
            transfer,
            reason,
            reached,
        });
    }
}

/// Comes to a door, and does there what is to be done, on a thread that may block.
async fn visit(
    ticket: Ticket,
    addresses: &[SocketAddr],
    secret: &Secret,
    act: impl FnOnce(Channel, &Ticket) -> Result<(), String> + Send + 'static,
) -> Result<(), Failure> {
    let channel = tokio::select! {
        () = ticket.cancelled() => return Err(Failure::GivenUp),
        reached = reach(addresses, secret) => reached.map_err(Failure::Unreached)?,
    };
    ticket.alone().await;
    let acted = spawn_blocking(move || match act(channel, &ticket) {
        _ if ticket.is_cancelled() => Err(Failure::GivenUp),
        acted => acted.map_err(Failure::Reached),
    });
    acted
        .await
        .unwrap_or_else(|error| Err(Failure::Reached(error.to_string())))
}

/// Connects to the first address where somebody knows the secret.
async fn reach(addresses: &[SocketAddr], secret: &Secret) -> Result<Channel, String> {
    let mut tries: FuturesUnordered<_> = addresses
        .iter()
        .take(ADDRESSES)
        .map(async |address| {
            let connected = timeout(REACH, async {
                initiate(TcpStream::connect(address).await?, secret).await
            });
            match connected.await {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(error)) => Err(format!("{address}: {error}")),
                Err(_) => Err(format!("{address}: no answer within {} s", REACH.as_secs())),
            }
        })
        .collect();
    let mut failures = Vec::new();
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(channel) => return Ok(channel),
            Err(failure) => failures.push(failure),
        }
    }
    failures.sort();
    Err(format!(
        "the other agent cannot be reached ({})",
        failures.join("; ")
    ))
}

/// Asks for a value and stores it.
fn get(mut channel: Channel, shelf: &Shelf, size: u64, ticket: &Ticket) -> Result<(), String> {
    let transfer = ticket.transfer();
    channel
        .tell(&Request::Get { transfer }, ticket)
        .map_err(lost)?;
    match channel.hear(ticket).map_err(lost)? {
        Answer::Yes { size: theirs } if theirs == size => {}
        Answer::Yes { size: theirs } => {
            return Err(format!(
                "the other agent's value has {theirs} bytes instead of {size}"
            ));
        }
        Answer::No { reason } => return Err(reason),
    }
    let path = shelf.segment(transfer);
    remove(&path);
    let mut growing = Growing::segment(path, size)?;
    channel.receive(&mut growing, ticket)?;
    if ticket.is_cancelled() {
        return Ok(());
    }
    growing.finish()
}

/// Offers a value and sends it.
fn put(mut channel: Channel, shelf: &Shelf, ticket: &Ticket) -> Result<(), String> {
    let transfer = ticket.transfer();
    let (mut file, size) = open(&shelf.segment(transfer))?;
    channel
        .tell(&Request::Put { transfer, size }, ticket)
        .map_err(lost)?;
    let agreed = |channel: &mut Channel| match channel.hear(ticket).map_err(lost)? {
        Answer::Yes { .. } => Ok(()),
        Answer::No { reason } => Err(reason),
    };
    agreed(&mut channel)?;
    channel.send(&mut file, size, ticket).map_err(lost)?;
    agreed(&mut channel)
}

/// Does what a visitor asks who knows the secret.
pub fn oblige(mut channel: Channel, request: &Request, shelf: &Shelf) {
    let (Request::Get { transfer } | Request::Put { transfer, .. }) = *request;
    let done = shelf.tickets.begin(transfer, Way::Away);
    let done = done
        .map_err(|refusal| refusal.to_string())
        .and_then(|talk| {
            match *request {
                Request::Get { .. } => give(&mut channel, shelf, &talk)?,
                Request::Put { size, .. } => {
                    let stored = take(&mut channel, shelf, size, &talk);
                    let answer = match &stored {
                        Ok(()) => Answer::Yes { size },
                        Err(reason) => Answer::No {
                            reason: reason.clone(),
                        },
                    };
                    if stored.is_ok() {
                        shelf.outlet.tell(FromAgent::Stored { transfer });
                    }
                    channel.tell(&answer, &talk).map_err(lost)?;
                    channel.close();
                    stored?;
                }
            }
            Ok(())
        });
    if let Err(reason) = done {
        tracing::info!("with another agent: {reason}");
    }
}

/// Sends a value that was asked for.
fn give(channel: &mut Channel, shelf: &Shelf, talk: &Ticket) -> Result<(), String> {
    let transfer = talk.transfer();
    let opened = if shelf.tickets.is_coming(transfer) {
        Err("the other agent does not have all of it yet".to_owned())
    } else {
        open(&shelf.segment(transfer))
    };
    match opened {
        Ok((mut file, size)) => {
            channel.tell(&Answer::Yes { size }, talk).map_err(lost)?;
            channel.send(&mut file, size, talk).map_err(lost)
        }
        Err(reason) => channel.tell(&Answer::No { reason }, talk).map_err(lost),
    }
}

/// Stores a value that is brought. It is not coming any more when this returns, so that the kernel may try another way.
fn take(channel: &mut Channel, shelf: &Shelf, size: u64, talk: &Ticket) -> Result<(), String> {
    let transfer = talk.transfer();
    let ticket = shelf
        .tickets
        .begin(transfer, Way::Brought)
        .map_err(|refusal| refusal.to_string())?;
    let mut growing = Growing::segment(shelf.segment(transfer), size)?;
    channel.tell(&Answer::Yes { size }, talk).map_err(lost)?;
    channel.receive(&mut growing, &ticket)?;
    if ticket.is_cancelled() {
        return Err(Refusal::Forgotten.to_string());
    }
    growing.finish()
}
