//! Our own reading of the configuration files, for machines without OpenSSH's program. See ssh_config(5).
//!
//! It knows blocks (`Host`, `Match`), `Include` and the keywords we use; others are passed over.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Destination;
use super::pattern::{matches_any, matches_list};
use super::settings::Settings;
use super::tokens::{self, Tokens};
use crate::environment::Environment;
use crate::error::SshError;

/// How deep files may include each other, as in OpenSSH.
const DEPTH: usize = 16;

/// Keywords that gather the values of all blocks; of all others the first counts.
const GATHERED: &[&str] = &["identityfile", "certificatefile"];

/// Whether the keyword takes several values on a line.
pub(super) fn is_list(key: &str) -> bool {
    matches!(key, "userknownhostsfile" | "globalknownhostsfile")
}

/// Reads `file`, or else the user's and the system's configuration.
pub(super) fn read(
    environment: &Environment,
    destination: &Destination,
    file: Option<&PathBuf>,
) -> Result<Settings, SshError> {
    let mut reader = Reader {
        environment,
        destination,
        host: destination.host.clone(),
        settings: Settings::default(),
        last_pass: false,
        wants_last_pass: false,
    };
    if let Some(user) = &destination.user {
        reader.settings.add("user", user);
    }
    if let Some(port) = destination.port {
        reader.settings.add("port", &port.to_string());
    }
    let all = |reader: &mut Reader| match file {
        Some(file) => reader.file(file, Origin::User, true, 0),
        None => {
            let own = environment.ssh_dir().join("config");
            if own.exists() {
                check_permissions(&own)?;
                reader.file(&own, Origin::User, true, 0)?;
            }
            if environment.system_config.exists() {
                reader.file(&environment.system_config, Origin::System, true, 0)?;
            }
            Ok(())
        }
    };
    let config_error = |reason| SshError::Config {
        host: destination.host.clone(),
        reason,
    };
    all(&mut reader).map_err(config_error)?;
    if reader.wants_last_pass {
        reader.host = reader.hostname().map_err(config_error)?;
        if !reader.settings.has("hostname") {
            let host = reader.host.clone();
            reader.settings.add("hostname", &host);
        }
        reader.last_pass = true;
        all(&mut reader).map_err(config_error)?;
    }
    Ok(reader.settings)
}

/// Whose file it is, which decides what relative includes mean.
#[derive(Clone, Copy, PartialEq)]
enum Origin {
    User,
    System,
}

struct Reader<'a> {
    environment: &'a Environment,
    destination: &'a Destination,
    /// What `Host` patterns are compared with: the name as given, or in the last pass the host name.
    host: String,
    settings: Settings,
    last_pass: bool,
    wants_last_pass: bool,
}

impl Reader<'_> {
    /// Reads one file. Errors begin with the file and line.
    ///
    /// A file that is included from a block that does not apply is read with `applies` false: nothing in it does.
    fn file(
        &mut self,
        file: &Path,
        origin: Origin,
        applies: bool,
        depth: usize,
    ) -> Result<(), String> {
        if depth > DEPTH {
            return Err(format!(
                "{}: files include each other more than {DEPTH} deep",
                file.display()
            ));
        }
        let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut active = applies;
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let place = |reason: String| format!("{}:{}: {reason}", file.display(), number + 1);
            let Some((key, rest)) = keyword(line) else {
                continue;
            };
            match key.as_str() {
                "host" => {
                    let patterns = words(rest).map_err(place)?;
                    active = applies
                        && matches_any(&self.host, patterns.iter().map(String::as_str))
                            == Some(true);
                }
                "match" => active = self.matches(rest, applies).map_err(place)?,
                "include" => {
                    for pattern in words(rest).map_err(place)? {
                        self.include(&pattern, origin, active, depth)
                            .map_err(|reason| {
                                if reason.starts_with('/') {
                                    reason
                                } else {
                                    place(reason)
                                }
                            })?;
                    }
                }
                _ if active => self.set(&key, rest).map_err(place)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn include(
        &mut self,
        pattern: &str,
        origin: Origin,
        active: bool,
        depth: usize,
    ) -> Result<(), String> {
        let path = tokens::home(pattern, &self.environment.home)?;
        let path = match origin {
            _ if path.is_absolute() => path,
            Origin::User => self.environment.ssh_dir().join(path),
            Origin::System => match self.environment.system_config.parent() {
                Some(folder) => folder.join(path),
                None => path,
            },
        };
        let text = path
            .to_str()
            .ok_or_else(|| format!("`{pattern}` is not UTF-8"))?;
        let files =
            glob::glob(text).map_err(|error| format!("`{pattern}` is not a pattern: {error}"))?;
        // Unreadable and missing files are passed over, as OpenSSH does.
        for file in files.flatten().filter(|file| file.is_file()) {
            self.file(&file, origin, active, depth + 1)?;
        }
        Ok(())
    }

    /// Whether a `Match` line applies. All its criteria are looked at in order; the first that fails decides, so that
    /// an `exec` after it does not run.
    fn matches(&mut self, rest: &str, applies: bool) -> Result<bool, String> {
        let words = words(rest)?;
        let mut words = words.iter();
        let mut result = applies;
        let mut any = false;
        while let Some(word) = words.next() {
            any = true;
            let (negated, name) = match word.strip_prefix('!') {
                Some(name) => (true, name),
                None => (false, word.as_str()),
            };
            let name = name.to_ascii_lowercase();
            let found = match name.as_str() {
                "all" => true,
                // Only `CanonicalizeHostname`, which we do not do, makes it true.
                "canonical" => false,
                "final" => {
                    self.wants_last_pass = true;
                    self.last_pass
                }
                "host" | "originalhost" | "user" | "localuser" | "exec" => {
                    let value = words
                        .next()
                        .ok_or_else(|| format!("Match {name} lacks its value"))?;
                    match name.as_str() {
                        // A later criterion may still be needed to know whether there is a last pass.
                        _ if !result => false,
                        "host" => {
                            matches_list(&self.hostname()?.to_lowercase(), value) == Some(true)
                        }
                        "originalhost" => matches_list(&self.destination.host, value) == Some(true),
                        "user" => matches_list(&self.user(), value) == Some(true),
                        "localuser" => matches_list(&self.environment.user, value) == Some(true),
                        _ => self.succeeds(value)?,
                    }
                }
                other => {
                    return Err(format!(
                        "Match {other} needs OpenSSH's `ssh` program to be understood; install it"
                    ));
                }
            };
            result &= found != negated;
        }
        if any {
            Ok(result)
        } else {
            Err("Match lacks its criteria".to_owned())
        }
    }

    /// The host name as far as it is known here.
    fn hostname(&self) -> Result<String, String> {
        match self.settings.get("hostname") {
            Some(name) => Tokens::for_host_name(&self.destination.host).expand(name),
            None => Ok(self.host.clone()),
        }
    }

    fn user(&self) -> String {
        self.settings
            .get("user")
            .unwrap_or(&self.environment.user)
            .to_owned()
    }

    /// `Match exec`.
    fn succeeds(&self, command: &str) -> Result<bool, String> {
        let port = self
            .settings
            .number("port")?
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(22);
        let tokens = Tokens::new(
            self.environment,
            &self.destination.host,
            &self.hostname()?,
            port,
            &self.user(),
            None,
        );
        let command = tokens.expand(command)?;
        let shell = std::env::var_os("SHELL")
            .filter(|shell| !shell.is_empty())
            .unwrap_or_else(|| "/bin/sh".into());
        let status = Command::new(shell)
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| format!("Match exec `{command}` cannot be run: {error}"))?;
        Ok(status.success())
    }

    fn set(&mut self, key: &str, rest: &str) -> Result<(), String> {
        // A way is chosen once, whichever of the two it is; not to jump leaves room for a command.
        let jump = self
            .settings
            .get("proxyjump")
            .filter(|jump| key == "proxyjump" || !jump.eq_ignore_ascii_case("none"));
        let chosen = matches!(key, "proxyjump" | "proxycommand")
            && (jump.is_some() || self.settings.has("proxycommand"));
        if chosen || (self.settings.has(key) && !GATHERED.contains(&key)) {
            return Ok(());
        }
        if key == "proxycommand" {
            // The rest of the line, as the shell will read it.
            self.settings.add(key, rest);
            return Ok(());
        }
        let values = words(rest)?;
        let Some(first) = values.first() else {
            return Err(format!("`{key}` lacks its value"));
        };
        if is_list(key) {
            values
                .iter()
                .for_each(|value| self.settings.add(key, value));
        } else {
            self.settings.add(key, first);
        }
        Ok(())
    }
}

/// Splits off the keyword, in lower case. An `=` may stand before the values. `None` for empty lines and comments.
fn keyword(line: &str) -> Option<(String, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line
        .find(|letter: char| letter.is_whitespace() || letter == '=')
        .unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some((key.trim_matches('"').to_ascii_lowercase(), rest))
}

/// Splits values at blanks, with quotes and backslashes, up to a comment.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (_, '\\') => {
                let escapes = |next: &char| {
                    matches!(next, '"' | '\'' | '\\') || (quote.is_none() && *next == ' ')
                };
                let taken = letters.next_if(escapes).unwrap_or('\\');
                word.get_or_insert_default().push(taken);
            }
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// OpenSSH refuses a configuration that others may write.
fn check_permissions(file: &Path) -> Result<(), String> {
    let metadata =
        std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let owner = metadata.uid();
    if (owner != 0 && owner != nix::unistd::Uid::current().as_raw()) || metadata.mode() & 0o022 != 0
    {
        return Err(format!(
            "{}: others may write it; run `chmod go-w {}`",
            file.display(),
            file.display()
        ));
    }
    Ok(())
}
