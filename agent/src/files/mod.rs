//! The user's files on this machine: what there is, and making what there shall be.

mod list;
mod make;
mod path;

use cellferry_wire::protocol::FromAgent;
use tokio::task::spawn_blocking;

use crate::outlet::Outlet;

pub use list::{exists, list, named_part};
pub use make::{copy_file, make_directory, make_link};
pub use path::{expand, home, resolve};

/// Does what may block where nobody waits for it, and tells what came of it.
pub(crate) fn answer(outlet: &Outlet, work: impl FnOnce() -> FromAgent + Send + 'static) {
    let outlet = outlet.clone();
    drop(spawn_blocking(move || outlet.tell(work())));
}
