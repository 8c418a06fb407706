//! Whether a host certificate is good, as `sshkey_cert_check_host` of OpenSSH has it. That its authority is a known
//! one is looked at elsewhere.

use std::time::{SystemTime, UNIX_EPOCH};

use russh::keys::{Algorithm, Certificate};

use russh::keys::ssh_key::certificate::CertType;

/// Says what is wrong with it for the host of this name, in lower case, at this time.
pub(super) fn check(
    certificate: &Certificate,
    principal: &str,
    now: SystemTime,
) -> Result<(), String> {
    if certificate.cert_type() != CertType::Host {
        return Err("it is not a host certificate".to_owned());
    }
    // Its own signature is not checked in the key exchange, which only proves that the host has the key in it.
    certificate
        .verify_signature()
        .map_err(|error| format!("its signature is wrong ({error})"))?;
    if matches!(
        certificate.signature().algorithm(),
        Algorithm::Rsa { hash: None }
    ) {
        return Err("it is signed with SHA-1, which is too weak".to_owned());
    }
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "the clock of this machine is wrong".to_owned())?
        .as_secs();
    if now < certificate.valid_after() {
        return Err("it is not valid yet; is the clock of this machine right?".to_owned());
    }
    if now >= certificate.valid_before() {
        return Err("it has expired".to_owned());
    }
    if let Some((option, _)) = certificate.critical_options().iter().next() {
        return Err(format!(
            "it has the critical option `{option}`, and host certificates know none"
        ));
    }
    // Old versions of OpenSSH take a certificate without names as one for any host; new ones do not, nor do we.
    // There are no patterns in it.
    let names = certificate.valid_principals();
    if !names.iter().any(|name| name == principal) {
        return Err(format!("it is for {}, not for `{principal}`", list(names)));
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no host in particular".to_owned();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
