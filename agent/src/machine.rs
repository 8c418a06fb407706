//! What this machine is, and what of it workers may use.

use std::path::Path;

use cellferry_wire::protocol::Hello;

/// Introduces the agent.
pub fn hello(run_dir: &Path, segments: &Path) -> Hello {
    Hello {
        hostname: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        arch: std::env::consts::ARCH.to_owned(),
        // It heeds what the process is bound to, and quotas of its control group.
        cpus: std::thread::available_parallelism()
            .ok()
            .and_then(|count| u32::try_from(count.get()).ok())
            .unwrap_or(1),
        memory_bytes: memory_bytes(),
        pid: std::process::id(),
        run_dir: run_dir.display().to_string(),
        segment_dir: segments.display().to_string(),
    }
}

/// The memory of the machine, or what the control groups above this process leave of it; 0 if neither is known.
fn memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map(|kilobytes| kilobytes.saturating_mul(1024));
    let limits = control_groups().into_iter().filter_map(|group| {
        ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .find_map(|name| std::fs::read_to_string(Path::new(&group).join(name)).ok())?
            .trim()
            .parse::<u64>()
            .ok()
    });
    machine.into_iter().chain(limits).min().unwrap_or_default()
}

/// The directories of this process's control group for memory and of those above it, the nearest first.
pub fn control_groups() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = text.lines().find_map(|line| {
        // `0::/path` in version 2, `4:memory:/path` in version 1.
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.split(',').any(|name| name == "memory") {
            Some(("/sys/fs/cgroup/memory", path.to_owned()))
        } else if number == "0" && controllers.is_empty() && !text.contains(":memory:") {
            Some(("/sys/fs/cgroup", path.to_owned()))
        } else {
            None
        }
    });
    let Some((root, path)) = group else {
        return Vec::new();
    };
    // In a container the path is often not there, but its end is.
    let mut groups: Vec<String> = Path::new(path.trim_start_matches('/'))
        .ancestors()
        .map(|below| Path::new(root).join(below).display().to_string())
        .filter(|group| Path::new(group).is_dir())
        .collect();
    groups.dedup();
    groups
}
