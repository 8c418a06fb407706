//! Percent tokens, `~` and `${VARIABLE}` in values, see TOKENS in ssh_config(5).

use std::path::PathBuf;

use nix::unistd::{Uid, User};

use crate::environment::Environment;

/// What each token stands for, for one host.
pub(super) struct Tokens {
    values: Vec<(char, String)>,
    home: PathBuf,
}

impl Tokens {
    /// All tokens but `%C`, `%f`, `%H`, `%I`, `%K`, `%T` and `%t`, which only keywords that we do not use allow.
    pub(super) fn new(
        environment: &Environment,
        original: &str,
        hostname: &str,
        port: u16,
        user: &str,
        key_alias: Option<&str>,
    ) -> Self {
        let local = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default();
        let short = local.split('.').next().unwrap_or_default().to_owned();
        Self {
            values: vec![
                ('d', environment.home.display().to_string()),
                ('h', hostname.to_owned()),
                ('i', Uid::current().to_string()),
                ('k', key_alias.unwrap_or(original).to_owned()),
                ('L', short),
                ('l', local),
                ('n', original.to_owned()),
                ('p', port.to_string()),
                ('r', user.to_owned()),
                ('u', environment.user.clone()),
            ],
            home: environment.home.clone(),
        }
    }

    /// `HostName` knows only `%h`, the host as it was given.
    pub(super) fn for_host_name(original: &str) -> Self {
        Self {
            values: vec![('h', original.to_owned())],
            home: PathBuf::new(),
        }
    }

    /// Replaces percent tokens.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let mut result = String::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                result.push(letter);
                continue;
            }
            match letters.next() {
                Some('%') => result.push('%'),
                Some(token) => match self.values.iter().find(|(name, _)| *name == token) {
                    Some((_, value)) => result.push_str(value),
                    None => return Err(format!("`%{token}` cannot be used in `{text}`")),
                },
                None => return Err(format!("`{text}` ends with a lone %")),
            }
        }
        Ok(result)
    }

    /// Replaces a leading `~`, environment variables and percent tokens.
    pub(super) fn path(&self, text: &str) -> Result<PathBuf, String> {
        let text = variables(text)?;
        let text = self.expand(&text)?;
        home(&text, &self.home)
    }
}

/// Replaces a leading `~/` or `~user/`.
pub(super) fn home(text: &str, own: &std::path::Path) -> Result<PathBuf, String> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(PathBuf::from(text));
    };
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() {
        return Ok(own.join(path));
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.dir.join(path)),
        Ok(None) | Err(_) => Err(format!(
            "there is no user `{name}`, who is named in `{text}`"
        )),
    }
}

fn variables(text: &str) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| format!("the }} is missing in `{text}`"))?;
        let value = std::env::var(name)
            .map_err(|_| format!("the environment variable `{name}` in `{text}` is not set"))?;
        result.push_str(before);
        result.push_str(&value);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}
