//! What the user's ssh configuration says about a host, ready to be used.
//!
//! Where OpenSSH's program is installed, it is asked (`ssh -G`), for nobody reads its files better. Elsewhere our
//! own parser reads them. Both give the same raw [`Settings`]; this module gives them types.

mod destination;
pub(crate) mod openssh;
mod parser;
mod pattern;
mod settings;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use destination::Destination;
pub(crate) use pattern::matches_list;

use crate::environment::Environment;
use crate::error::SshError;
use settings::Settings;
use tokens::Tokens;

/// A host as the configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// As it was given, without user and port: usually an alias.
    pub name: String,
    /// The name or address to connect to.
    pub hostname: String,
    /// The port to connect to.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    pub(crate) route: Route,
    pub(crate) bind_address: Option<String>,
    pub(crate) family: Family,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) trust: Trust,
    pub(crate) login: Login,
}

/// How the byte stream to the host comes about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Route {
    /// A TCP connection.
    Direct,
    /// The stdin and stdout of a local command.
    Command(String),
    /// A channel of another host, the last of these; the others lead there, in order.
    Jumps(Vec<Destination>),
}

/// `AddressFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Any,
    Ipv4,
    Ipv6,
}

/// `ServerAliveInterval` and `ServerAliveCountMax`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) interval: Duration,
    pub(crate) unanswered: usize,
}

/// What decides whether the host's key is accepted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trust {
    pub(crate) strict: Strict,
    /// The user's known hosts; new ones go into the first file.
    pub(crate) user_files: Vec<PathBuf>,
    pub(crate) system_files: Vec<PathBuf>,
    /// Looked up instead of the host's name and port.
    pub(crate) alias: Option<String>,
    /// Whether new names are written as hashes.
    pub(crate) hash: bool,
    /// Names of host key algorithms, best first.
    pub(crate) algorithms: Vec<String>,
}

/// `StrictHostKeyChecking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strict {
    Yes,
    Ask,
    AcceptNew,
    No,
}

/// How to authenticate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Login {
    pub(crate) identity_files: Vec<PathBuf>,
    pub(crate) certificate_files: Vec<PathBuf>,
    /// Offer no other keys of the agent.
    pub(crate) identities_only: bool,
    pub(crate) agent: Option<PathBuf>,
    /// The methods to try, in order.
    pub(crate) methods: Vec<Method>,
    /// How often a password is asked for.
    pub(crate) prompts: usize,
    /// What the set-up may rely on and this transport cannot do, for advice.
    pub(crate) beyond_us: Vec<String>,
}

/// A method of authentication that we can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    PublicKey,
    KeyboardInteractive,
    Password,
}

impl Host {
    /// `user@hostname`, as prompts name it.
    pub(crate) fn login_name(&self) -> String {
        format!("{}@{}", self.user, self.hostname)
    }

    /// `hostname:port`, as messages name it.
    pub(crate) fn address(&self) -> String {
        if self.hostname.contains(':') {
            format!("[{}]:{}", self.hostname, self.port)
        } else {
            format!("{}:{}", self.hostname, self.port)
        }
    }

    /// The jump hosts on the way there, in order, each as `user@host:port` as far as the configuration says.
    pub fn jumps(&self) -> Vec<String> {
        match &self.route {
            Route::Jumps(jumps) => jumps.iter().map(ToString::to_string).collect(),
            Route::Direct | Route::Command(_) => Vec::new(),
        }
    }
}

/// Looks a host up. `file` is read instead of the usual ones.
pub(crate) async fn resolve(
    environment: &Environment,
    destination: &Destination,
    file: Option<&PathBuf>,
) -> Result<Host, SshError> {
    let settings = match &environment.ssh_program {
        Some(program) => openssh::ask(program, environment, destination, file).await?,
        None => parser::read(environment, destination, file)?,
    };
    typed(environment, destination, &settings)
}

fn typed(
    environment: &Environment,
    destination: &Destination,
    settings: &Settings,
) -> Result<Host, SshError> {
    let config_error = |reason: String| SshError::Config {
        host: destination.host.clone(),
        reason,
    };
    refuse_unsupported(destination, settings)?;

    let hostname = match settings.get("hostname") {
        Some(name) => Tokens::for_host_name(&destination.host)
            .expand(name)
            .map_err(config_error)?,
        None => destination.host.clone(),
    };
    let port = settings.number("port").map_err(config_error)?.unwrap_or(22);
    let port =
        u16::try_from(port).map_err(|_| config_error(format!("Port {port} is not a port")))?;
    let user = settings.get("user").unwrap_or(&environment.user).to_owned();
    let alias = settings
        .get("hostkeyalias")
        .filter(|alias| *alias != "none")
        .map(str::to_owned);
    let tokens = Tokens::new(
        environment,
        &destination.host,
        &hostname,
        port,
        &user,
        alias.as_deref(),
    );
    let paths = |names: Vec<&str>| -> Result<Vec<PathBuf>, SshError> {
        names
            .into_iter()
            .filter(|name| !name.eq_ignore_ascii_case("none"))
            .map(|name| tokens.path(name).map_err(config_error))
            .collect()
    };
    let ssh = environment.ssh_dir();

    let route = match (settings.get("proxyjump"), settings.get("proxycommand")) {
        (Some(jumps), _) if !jumps.eq_ignore_ascii_case("none") => Route::Jumps(
            jumps
                .split(',')
                .map(|hop| {
                    Destination::parse(hop.trim())
                        .map_err(|error| config_error(format!("ProxyJump: {error}")))
                })
                .collect::<Result<_, _>>()?,
        ),
        (_, Some(command)) if !command.eq_ignore_ascii_case("none") => {
            Route::Command(tokens.expand(command).map_err(config_error)?)
        }
        _ => Route::Direct,
    };
    let interval = settings
        .seconds("serveraliveinterval")
        .map_err(config_error)?;
    let unanswered = settings
        .number("serveralivecountmax")
        .map_err(config_error)?
        .unwrap_or(3);
    let user_files = match settings.all("userknownhostsfile") {
        files if files.is_empty() => vec![ssh.join("known_hosts"), ssh.join("known_hosts2")],
        files => paths(files)?,
    };
    let system_files = match settings.all("globalknownhostsfile") {
        files if files.is_empty() => {
            let folder = environment
                .system_config
                .parent()
                .unwrap_or(&environment.system_config);
            vec![
                folder.join("ssh_known_hosts"),
                folder.join("ssh_known_hosts2"),
            ]
        }
        files => paths(files)?,
    };
    let strict = match settings
        .get("stricthostkeychecking")
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("ask") => Strict::Ask,
        Some("yes" | "true") => Strict::Yes,
        Some("accept-new") => Strict::AcceptNew,
        Some("no" | "false" | "off") => Strict::No,
        Some(other) => {
            return Err(config_error(format!(
                "StrictHostKeyChecking cannot be `{other}`"
            )));
        }
    };
    let identity_files = match settings.all("identityfile") {
        files if files.is_empty() => DEFAULT_IDENTITIES
            .iter()
            .map(|name| ssh.join(name))
            .collect(),
        files => paths(files)?,
    };
    let agent = match settings.get("identityagent") {
        None | Some("SSH_AUTH_SOCK") => environment.agent_socket.clone(),
        Some(none) if none.eq_ignore_ascii_case("none") => None,
        Some(variable) if variable.starts_with('$') && !variable.starts_with("${") => {
            std::env::var_os(&variable[1..]).map(PathBuf::from)
        }
        Some(path) => Some(tokens.path(path).map_err(config_error)?),
    };

    Ok(Host {
        name: destination.host.clone(),
        port,
        route,
        bind_address: settings
            .get("bindaddress")
            .filter(|address| *address != "none")
            .map(str::to_owned),
        family: match settings
            .get("addressfamily")
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            Some("inet") => Family::Ipv4,
            Some("inet6") => Family::Ipv6,
            _ => Family::Any,
        },
        connect_timeout: settings
            .seconds("connecttimeout")
            .map_err(config_error)?
            .filter(|limit| !limit.is_zero()),
        keepalive: interval
            .filter(|interval| !interval.is_zero())
            .map(|interval| Keepalive {
                interval,
                unanswered: usize::try_from(unanswered).unwrap_or(usize::MAX),
            }),
        trust: Trust {
            strict,
            user_files,
            system_files,
            alias,
            hash: settings
                .flag("hashknownhosts", false)
                .map_err(config_error)?,
            algorithms: {
                let mut algorithms = settings.algorithms("hostkeyalgorithms", HOST_KEY_ALGORITHMS);
                // `ssh-rsa` signs with SHA-1; only who asks for it by name gets it.
                algorithms.retain(|name| {
                    HOST_KEY_ALGORITHMS.contains(&name.as_str()) || name == "ssh-rsa"
                });
                algorithms
            },
        },
        login: Login {
            identity_files,
            certificate_files: paths(settings.all("certificatefile"))?,
            identities_only: settings
                .flag("identitiesonly", false)
                .map_err(config_error)?,
            agent,
            methods: methods(settings).map_err(config_error)?,
            prompts: settings
                .number("numberofpasswordprompts")
                .map_err(config_error)?
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(3),
            beyond_us: beyond_us(settings).map_err(config_error)?,
        },
        hostname,
        user,
    })
}

/// What changes how the host is reached or trusted, and is not ours to do: leaving it out would be wrong.
fn refuse_unsupported(destination: &Destination, settings: &Settings) -> Result<(), SshError> {
    let refuse = |setting: String| {
        Err(SshError::Unsupported {
            host: destination.host.clone(),
            setting,
        })
    };
    for (key, name) in [
        ("knownhostscommand", "KnownHostsCommand"),
        ("revokedhostkeys", "RevokedHostKeys"),
        ("bindinterface", "BindInterface"),
    ] {
        if let Some(value) = settings
            .get(key)
            .filter(|value| !value.eq_ignore_ascii_case("none"))
        {
            return refuse(format!("{name} {value}"));
        }
    }
    if settings.flag("proxyusefdpass", false).unwrap_or(false) {
        return refuse("ProxyUseFdpass yes".to_owned());
    }
    Ok(())
}

/// What may be missing when nothing else lets the user in.
fn beyond_us(settings: &Settings) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    if let Some(library) = settings
        .get("pkcs11provider")
        .filter(|value| !value.eq_ignore_ascii_case("none"))
    {
        found.push(format!("PKCS11Provider {library}"));
    }
    for (key, name) in [
        ("gssapiauthentication", "gssapi-with-mic"),
        ("hostbasedauthentication", "hostbased"),
    ] {
        if settings.flag(key, false)? {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn methods(settings: &Settings) -> Result<Vec<Method>, String> {
    let enabled = |method: Method| match method {
        Method::PublicKey => settings.flag("pubkeyauthentication", true),
        Method::KeyboardInteractive => match settings.get("kbdinteractiveauthentication") {
            Some(_) => settings.flag("kbdinteractiveauthentication", true),
            // Its name before OpenSSH 8.7.
            None => settings.flag("challengeresponseauthentication", true),
        },
        Method::Password => settings.flag("passwordauthentication", true),
    };
    let mut methods = Vec::new();
    if settings.flag("batchmode", false)? {
        // Nobody may be asked; a script relies on that.
        return Ok(if enabled(Method::PublicKey)? {
            vec![Method::PublicKey]
        } else {
            methods
        });
    }
    let preferred = settings
        .get("preferredauthentications")
        .unwrap_or("publickey,keyboard-interactive,password");
    for name in preferred.split(',') {
        let method = match name.trim() {
            "publickey" => Method::PublicKey,
            "keyboard-interactive" => Method::KeyboardInteractive,
            "password" => Method::Password,
            _ => continue,
        };
        if enabled(method)? && !methods.contains(&method) {
            methods.push(method);
        }
    }
    Ok(methods)
}

/// OpenSSH's order, from ssh_config(5).
const DEFAULT_IDENTITIES: &[&str] = &[
    "id_rsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "id_xmss",
    "id_dsa",
];

/// OpenSSH's order, from ssh_config(5), as far as russh knows them.
const HOST_KEY_ALGORITHMS: &[&str] = &[
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

#[cfg(test)]
mod tests;
