//! Making files, directories and links. All of this may block.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use cellferry_wire::protocol::FilePath;

use super::path::{resolve, stays_within};
use crate::growing::{Growing, beside, make_directories};

/// Copies a file.
pub fn copy_file(from: &FilePath, to: &FilePath, mode: u32) -> Result<(), String> {
    let (from, to) = (resolve(from)?.whole(), resolve(to)?.whole());
    let cannot = |error| format!("cannot read `{}`: {error}", from.display());
    let mut content = File::open(&from).map_err(cannot)?;
    let status = content.metadata().map_err(cannot)?;
    if !status.is_file() {
        return Err(format!("`{}` is not a file", from.display()));
    }
    let mut growing = Growing::file(to, mode, status.len())?;
    growing.copy(&mut content)?;
    growing.finish()
}

/// Makes a directory, or changes its permissions.
pub fn make_directory(path: &FilePath, mode: u32) -> Result<(), String> {
    let path = resolve(path)?.whole();
    make_directories(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o777)).map_err(|error| {
        let path = path.display();
        format!("cannot set the permissions of the directory `{path}`: {error}")
    })
}

/// Makes a link that stays within its base: a file that comes later must not get out by it.
pub fn make_link(path: &FilePath, target: &str) -> Result<(), String> {
    let resolved = resolve(path)?;
    let whole = resolved.whole();
    let cannot = |error| format!("cannot make the link `{}`: {error}", whole.display());
    let leads_out = || {
        format!(
            "the link `{}` to `{target}` would lead out of `{}`",
            whole.display(),
            resolved.base.display()
        )
    };
    let parent = whole.parent().ok_or_else(leads_out)?;
    if resolved.base.as_os_str().is_empty() {
        return Err(leads_out());
    }
    make_directories(parent)?;
    // How deep it really is, other links apart.
    let (parent, base) = (
        parent.canonicalize().map_err(cannot)?,
        resolved.base.canonicalize().map_err(cannot)?,
    );
    let depth = parent
        .strip_prefix(&base)
        .map(|below| below.components().count());
    if !depth.is_ok_and(|depth| stays_within(Path::new(target), depth)) {
        return Err(leads_out());
    }
    let now = beside(&whole)?;
    symlink(target, &now).map_err(cannot)?;
    std::fs::rename(&now, &whole).map_err(|error| {
        crate::growing::remove(&now);
        cannot(error)
    })
}
