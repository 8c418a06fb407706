//! Finding the one address of another machine that answers.

use std::net::SocketAddr;
use std::time::Duration;

use cellferry_wire::protocol::Secret;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::channel::{Greeted, greet};

/// How long connecting and greeting may take.
const REACH: Duration = Duration::from_secs(5);

/// Greets whoever listens at the first of the addresses that answers and knows the secret, or says why none does.
pub async fn reach(addresses: &[SocketAddr], secret: &Secret) -> Result<Greeted, String> {
    let mut tries: FuturesUnordered<_> = addresses
        .iter()
        .map(async |address| {
            let connected = timeout(REACH, async {
                greet(TcpStream::connect(address).await?, secret).await
            });
            match connected.await {
                Ok(Ok(greeted)) => Ok(greeted),
                Ok(Err(error)) => Err(format!("{address}: {error}")),
                Err(_) => Err(format!("{address}: no answer within {} s", REACH.as_secs())),
            }
        })
        .collect();
    let mut failures = Vec::new();
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(greeted) => return Ok(greeted),
            Err(failure) => failures.push(failure),
        }
    }
    failures.sort();
    Err(failures.join("; "))
}
