//! Noticing that the client's process is gone, so that the kernel does not outlive it.

use std::time::Duration;

/// How often the parent is looked at, as ipykernel does.
const INTERVAL: Duration = Duration::from_secs(1);

/// Ends when the process that started this one has ended. Like ipykernel, only a client that
/// names itself in `JPY_PARENT_PID` wants this: others start kernels that outlive them.
pub async fn gone() {
    let parent = nix::unistd::getppid();
    let watched =
        std::env::var("JPY_PARENT_PID").is_ok_and(|pid| !matches!(pid.as_str(), "" | "0" | "1"));
    if !watched || parent.as_raw() <= 1 {
        std::future::pending::<()>().await;
    }
    let mut tick = tokio::time::interval(INTERVAL);
    while nix::unistd::getppid() == parent {
        tick.tick().await;
    }
}
