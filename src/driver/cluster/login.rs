//! Where a cluster's commands are run, and its nodes are reached from: the login node, or this machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Client, SshError};
use tokio::sync::Mutex;

use super::super::host::Host;
use crate::target::batch::shell::{Here, Interpreter, Output, Shell, ShellError, There};

/// How many nodes are reached over one connection: sshd allows 10 commands at once (`MaxSessions`), and batch commands
/// need some.
const NODES_EACH: u32 = 7;

/// The way to a cluster.
pub struct Login {
    /// The login node; `None` if the cluster's commands are at hand.
    host: Option<Host>,
    name: String,
    /// Connections to it. One that is lost is made again when it is needed.
    clients: Mutex<HashMap<u32, Arc<Client>>>,
}

impl Login {
    /// By this host, or on this machine.
    pub fn new(host: Option<Host>) -> Self {
        let name = host.as_ref().map(|host| host.ssh.host.clone());
        Self {
            host,
            name: name.unwrap_or_else(|| "this machine".to_owned()),
            clients: Mutex::default(),
        }
    }

    /// The host, if it is not this machine.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Which connection is used for a node.
    pub fn group(node: u32) -> u32 {
        node / NODES_EACH
    }

    /// A connection to the host.
    ///
    /// # Errors
    /// If there is none and none can be made.
    pub async fn client(&self, host: &Host, group: u32) -> Result<Arc<Client>, SshError> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(&group).filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(host.connect().await?);
        clients.insert(group, client.clone());
        Ok(client)
    }

    /// It does not answer: the next to need one makes another.
    pub async fn forget(&self, client: &Arc<Client>) {
        let mut clients = self.clients.lock().await;
        clients.retain(|_, other| !Arc::ptr_eq(other, client));
    }

    /// Closes all connections.
    pub async fn leave(&self) {
        let clients = std::mem::take(&mut *self.clients.lock().await);
        for client in clients.into_values() {
            client.disconnect().await;
        }
    }
}

#[async_trait]
impl Shell for Login {
    fn place(&self) -> &str {
        &self.name
    }

    async fn run(
        &self,
        interpreter: Interpreter,
        script: &str,
        limit: Duration,
    ) -> Result<Output, ShellError> {
        let Some(host) = &self.host else {
            return Here.run(interpreter, script, limit).await;
        };
        let client = self.client(host, 0).await?;
        let there = There {
            client: client.clone(),
        };
        let output = there.run(interpreter, script, limit).await;
        if output.is_err() {
            self.forget(&client).await;
        }
        output
    }
}
