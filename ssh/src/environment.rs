//! Whose ssh set-up is used: home directory, name, agent, and the programs and files of the system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// The parts of a user's environment that ssh looks at.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The home directory, as the system's user database has it: OpenSSH does not look at `HOME`.
    pub home: PathBuf,
    /// The user's name on this machine.
    pub user: String,
    /// The socket of ssh-agent (`SSH_AUTH_SOCK`).
    pub agent_socket: Option<PathBuf>,
    /// The system's configuration, usually `/etc/ssh/ssh_config`.
    pub system_config: PathBuf,
    /// OpenSSH's program. Without it the configuration is read by our own parser.
    pub ssh_program: Option<PathBuf>,
    /// The program that passes prompts of the openssh transport on; its `main` calls [`crate::askpass_main`] first.
    pub askpass_program: Option<PathBuf>,
}

impl Environment {
    /// The environment of the user who runs this process.
    pub fn of_process() -> Self {
        let account = account();
        // As every other program takes it; OpenSSH alone asks the user database first. They differ only where HOME was
        // set on purpose.
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute())
            .or_else(|| account.as_ref().map(|user| user.dir.clone()))
            .unwrap_or_else(|| PathBuf::from("/"));
        let user = account
            .map(|user| user.name)
            .or_else(|| std::env::var("USER").ok())
            .unwrap_or_default();
        Self {
            home,
            user,
            agent_socket: std::env::var_os("SSH_AUTH_SOCK")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            system_config: PathBuf::from("/etc/ssh/ssh_config"),
            ssh_program: find_program("ssh", std::env::var_os("PATH")),
            askpass_program: std::env::current_exe().ok(),
        }
    }

    /// The user's directory of keys and settings.
    pub fn ssh_dir(&self) -> PathBuf {
        self.home.join(".ssh")
    }

    /// Whether OpenSSH's program, left alone, would look into this home directory.
    pub(crate) fn is_of_account(&self) -> bool {
        account().is_some_and(|user| user.dir == self.home)
    }
}

fn account() -> Option<User> {
    User::from_uid(Uid::current()).ok().flatten()
}

fn find_program(name: &str, path: Option<OsString>) -> Option<PathBuf> {
    std::env::split_paths(&path?)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}
