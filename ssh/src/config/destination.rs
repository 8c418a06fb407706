//! Where to go, as people write it: `host`, `user@host:port`, `ssh://user@host:port`.

use std::fmt;

/// A host with what was said along with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    pub(crate) user: Option<String>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl Destination {
    /// Reads one. A host with colons (an IPv6 address) needs brackets if a port follows.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text
            .strip_prefix("ssh://")
            .map_or(text, |rest| rest.trim_end_matches('/'));
        // A user name may have an @ in it.
        let (user, place) = match text.rsplit_once('@') {
            Some(("", _)) => return Err("the user name before the @ is missing"),
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, text),
        };
        let (host, port) = if let Some(bracketed) = place.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or("the ] is missing")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err("there is something after the ]"),
            }
        } else {
            match place.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (place, None),
            }
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err("the port is not a number from 1 to 65535"),
                Ok(port) => Some(port),
            },
        };
        if host.is_empty() {
            return Err("the host name is missing");
        }
        // As OpenSSH does: these would reach a command line or a shell as something else.
        if host.starts_with('-')
            || host.contains(|letter: char| {
                letter.is_whitespace() || "'`\"$\\;&<>|(){}".contains(letter)
            })
        {
            return Err("the host name has characters that no host name has");
        }
        if let Some(user) = &user
            && (user.starts_with('-')
                || user.contains(|letter: char| {
                    "'`\";&<>|(){}".contains(letter) || letter.is_control()
                }))
        {
            return Err("the user name has characters that no user name has");
        }
        Ok(Self {
            user,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<String>, String, Option<u16>) {
        let destination = Destination::parse(text).unwrap();
        (destination.user, destination.host, destination.port)
    }

    #[test]
    fn the_usual_forms() {
        assert_eq!(parsed("lab"), (None, "lab".into(), None));
        assert_eq!(
            parsed("ada@lab:2222"),
            (Some("ada".into()), "lab".into(), Some(2222))
        );
        assert_eq!(
            parsed("ssh://ada@lab:2222/"),
            (Some("ada".into()), "lab".into(), Some(2222))
        );
        assert_eq!(
            parsed("ada@uni.org@lab"),
            (Some("ada@uni.org".into()), "lab".into(), None)
        );
        assert_eq!(parsed("fe80::1"), (None, "fe80::1".into(), None));
        assert_eq!(parsed("[fe80::1]:22"), (None, "fe80::1".into(), Some(22)));
        assert_eq!(
            Destination::parse("[fe80::1]:22").unwrap().to_string(),
            "[fe80::1]:22"
        );
    }

    #[test]
    fn what_is_no_host() {
        for wrong in [
            "",
            "@lab",
            "ada@",
            "lab:0",
            "lab:x",
            "lab:70000",
            "-oProxyCommand=x",
            "a b",
            "a;b",
            "[x",
            "[x]y",
        ] {
            assert!(Destination::parse(wrong).is_err(), "{wrong}");
        }
    }
}
