//! Values from one agent to another, without the kernel in between.
//!
//! One agent opens a *door*, a TCP port; another comes to it and asks for a value, or brings one. The kernel gives both the
//! door's secret over its own links to them.

mod channel;
mod door;
mod reach;
mod visit;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::outlet::Outlet;
use crate::tickets::Tickets;

pub use channel::{Greeted, respond};
pub use door::{Door, listen};
pub use reach::reach;
pub use visit::{pull, push};

/// What a door gives and takes: the values of one agent.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// Where they are.
    pub segments: PathBuf,
    /// Whom to tell.
    pub outlet: Outlet,
    /// Which are under way.
    pub tickets: Tickets,
}

impl Shelf {
    fn segment(&self, transfer: u64) -> PathBuf {
        self.segments.join(transfer.to_string())
    }
}

/// What a visitor wants.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Give me this value.
    Get { transfer: u64 },
    /// Take this value.
    Put { transfer: u64, size: u64 },
}

/// What the door says to a request, and at the end of a value that it took.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The value follows, of so many bytes; or the value may follow; or it is stored.
    Yes { size: u64 },
    /// Why not.
    No { reason: String },
}

/// Opens a value, and says how large it is.
fn open(path: &Path) -> Result<(File, u64), String> {
    let opened = || -> io::Result<(File, u64)> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    };
    opened().map_err(|error| format!("cannot read `{}`: {error}", path.display()))
}
