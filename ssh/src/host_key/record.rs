//! Noting a host key that the user accepted.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::PublicKey;

use super::file::Names;
use crate::config::Trust;

/// Appends a line to the user's first file of known hosts, which it returns.
pub(super) fn append(trust: &Trust, name: &str, key: &PublicKey) -> Result<PathBuf, String> {
    let Some(file) = trust.user_files.first() else {
        return Err("there is no UserKnownHostsFile".to_owned());
    };
    let names = if trust.hash {
        let mut salt = vec![0; 20];
        getrandom::fill(&mut salt).map_err(|error| error.to_string())?;
        Names::hashed(name, salt).ok_or("the name cannot be hashed")?
    } else {
        Names::Patterns(name.to_owned())
    };
    let mut key = key.clone();
    key.set_comment("");
    let key = key.to_openssh().map_err(|error| error.to_string())?;
    write(file, &format!("{names} {}\n", key.trim_end()))
        .map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(file.clone())
}

fn write(file: &Path, line: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)?;
    // An editor may have left the last line open.
    let mut text = String::new();
    if file.metadata()?.is_file() && file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    // One write, so that two programs that add a host do not mix their lines.
    file.write_all(text.as_bytes())
}
