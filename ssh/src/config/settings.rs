//! Raw settings: keywords in lower case, values as written.

use std::collections::HashMap;
use std::time::Duration;

/// What was set for a host, first come first.
#[derive(Debug, Default)]
pub(super) struct Settings(HashMap<String, Vec<String>>);

impl Settings {
    /// Whether the keyword has a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Adds one more value. A value that is there already is not doubled.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let values = self.0.entry(key.to_owned()).or_default();
        if !values.iter().any(|known| known == value) {
            values.push(value.to_owned());
        }
    }

    /// The first value.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str)
    }

    /// All values.
    pub(super) fn all(&self, key: &str) -> Vec<&str> {
        self.0
            .get(key)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.get(key).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("yes" | "true") => Ok(true),
            Some("no" | "false") => Ok(false),
            // `PubkeyAuthentication` also knows these two, both of which mean yes.
            Some("unbound" | "host-bound") => Ok(true),
            Some(other) => Err(format!("`{key}` must be yes or no, not `{other}`")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("`{key}` must be a number, not `{text}`"))
            })
            .transpose()
    }

    /// A time as sshd_config(5) writes them: `90`, `1m30s`.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, String> {
        let Some(text) = self
            .get(key)
            .filter(|text| !text.eq_ignore_ascii_case("none"))
        else {
            return Ok(None);
        };
        parse_time(text)
            .map(Some)
            .ok_or_else(|| format!("`{key}` must be a time such as `30` or `1m`, not `{text}`"))
    }

    /// A list of algorithms; one that starts with `+`, `-` or `^` changes the default list.
    pub(super) fn algorithms(&self, key: &str, default: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let Some(text) = self.get(key) else {
            return owned(default);
        };
        let named = |list: &str| list.split(',').map(str::to_owned).collect::<Vec<_>>();
        match text.split_at_checked(1) {
            Some(("+", list)) => {
                let mut all = owned(default);
                all.extend(
                    named(list)
                        .into_iter()
                        .filter(|name| !default.contains(&name.as_str())),
                );
                all
            }
            Some(("-", list)) => owned(default)
                .into_iter()
                .filter(|name| super::matches_list(name, list) != Some(true))
                .collect(),
            Some(("^", list)) => {
                let mut all = named(list);
                let rest: Vec<_> = owned(default)
                    .into_iter()
                    .filter(|name| !all.contains(name))
                    .collect();
                all.extend(rest);
                all
            }
            _ => named(text),
        }
    }
}

fn parse_time(text: &str) -> Option<Duration> {
    let mut total = 0_u64;
    let mut digits = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let unit = match letter.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            'w' => 7 * 24 * 3600,
            _ => return None,
        };
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    if !digits.is_empty() {
        total = total.checked_add(digits.parse().ok()?)?;
    } else if text.is_empty() {
        return None;
    }
    Some(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("90"), Some(Duration::from_secs(90)));
        assert_eq!(parse_time("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_time("1h"), Some(Duration::from_secs(3600)));
        for wrong in ["", "m", "1x", "-1", "99999999999999999999"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lists_of_algorithms_change_the_default() {
        let list = |value: &str| {
            let mut settings = Settings::default();
            settings.add("hostkeyalgorithms", value);
            settings
                .algorithms("hostkeyalgorithms", &["a", "b", "c1"])
                .join(",")
        };
        assert_eq!(list("x,y"), "x,y");
        assert_eq!(list("+x,a"), "a,b,c1,x");
        assert_eq!(list("-b,c*"), "a");
        assert_eq!(list("^c1,x"), "c1,x,a,b");
    }
}
