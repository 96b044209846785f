//! Which servers are trusted over TLS, and what it means when one is not.

use std::{fs, io};

use rustls::{CertificateError, Error as Fault, InvalidMessage};
use ureq::Timeout;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::config::Host;
use crate::error::system_words;
use crate::{Error, Result};

/// The file of authorities, in PEM, that are trusted in the place of Mozilla's. OpenSSL, curl, Go and httpx read it too.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Whom certificates must come from.
///
/// # Errors
/// [`Error::Config`] for a file that cannot be read or holds no certificate.
pub(crate) fn trust(host: &dyn Host) -> Result<TlsConfig> {
    let Some(path) = host.env(AUTHORITIES).filter(|path| !path.is_empty()) else {
        return Ok(TlsConfig::default());
    };
    let refuse = |reason: String| Error::Config {
        setting: AUTHORITIES.into(),
        value: path.clone(),
        reason: format!(
            "{reason}; name a file of certificates in PEM, or unset it to trust the public authorities"
        ),
    };
    let pem = fs::read(&path).map_err(|error| refuse(error.to_string()))?;
    let mut authorities = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(authority) = item.map_err(|error| refuse(error.to_string()))? {
            authorities.push(authority);
        }
    }
    if authorities.is_empty() {
        return Err(refuse("it holds no certificate".into()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(authorities)).build())
}

/// What went wrong between this program and a server, in words; what the system calls it by number is left out.
pub(crate) fn words(error: &ureq::Error) -> String {
    use ureq::Error as E;
    let words = match error {
        E::Io(error) => return io_words(error),
        E::HostNotFound => "the name of the host is not known",
        E::ConnectionFailed => "no connection came about",
        E::Timeout(Timeout::Resolve | Timeout::Connect) => "no connection came about in time",
        E::Timeout(_) => "the server did not answer in time",
        _ => return error.to_string(),
    };
    words.to_owned()
}

/// The same for a connection.
pub(crate) fn io_words(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    let words = match error.kind() {
        Kind::ConnectionRefused => "the connection was refused: no server listens there",
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => {
            "the server ended the connection before its answer was complete"
        }
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
            "the server cannot be reached from this network"
        }
        Kind::TimedOut | Kind::WouldBlock => "the server did not answer in time",
        _ => return system_words(error),
    };
    words.to_owned()
}

/// Why no connection comes about, with the remedy, where another attempt would end the same; `None` for everything else.
pub(crate) fn refusal(error: &ureq::Error) -> Option<String> {
    let ureq::Error::Io(error) = error else { return None };
    io_refusal(error, "name the port of its HTTPS, or write http in the place of https")
}

/// The same for a connection. `plain` is the remedy for a port without TLS.
pub(crate) fn io_refusal(error: &io::Error, plain: &str) -> Option<String> {
    let reason = match error.get_ref()?.downcast_ref::<Fault>()? {
        Fault::InvalidCertificate(fault) => return Some(untrusted(fault)),
        Fault::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!("no TLS is spoken at this port; {plain}")
        }
        Fault::PeerIncompatible(fault) => {
            format!("it has no way of TLS in common with us ({fault:?}); let it speak TLS 1.2 or 1.3")
        }
        Fault::AlertReceived(alert) => format!(
            "it ended the TLS handshake ({alert:?}); let it speak TLS 1.2 or 1.3, know this host name, and ask for no \
             certificate of ours"
        ),
        _ => return None,
    };
    Some(reason)
}

fn untrusted(fault: &CertificateError) -> String {
    match fault {
        CertificateError::UnknownIssuer => format!(
            "its certificate comes from an authority that is not trusted here; if it is your own, let {AUTHORITIES} name a \
             file with that authority's certificate (PEM)"
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") };
            format!(
                "its certificate is for {names}, not for {}; use a name that it holds, or add this one to it as \
                 subjectAltName",
                expected.to_str()
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it there, and see that the clock is right here".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; see that the clocks are right there and here".into()
        }
        // webpki's own name for it, which rustls hands on as text.
        _ if fault.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own, which no server may use; make one for the server, with \
             basicConstraints CA:FALSE"
                .into()
        }
        _ => format!("its certificate is not valid ({fault}); have it made anew"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment of one file.
    struct Environment(String);

    impl Host for Environment {
        fn env(&self, name: &str) -> Option<String> {
            (name == AUTHORITIES).then(|| self.0.clone())
        }

        fn package_dir(&self, _name: &str) -> Option<std::path::PathBuf> {
            None
        }
    }

    #[test]
    fn a_file_without_certificates_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authorities.pem");
        let path = file.to_str().unwrap().to_owned();
        for (content, words) in [
            (None, "No such file"),
            (Some(""), "no certificate"),
            (Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "no certificate"),
            (Some("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"), "PEM"),
        ] {
            if let Some(content) = content {
                fs::write(&file, content).unwrap();
            }
            let error = trust(&Environment(path.clone())).unwrap_err();
            assert!(matches!(&error, Error::Config { setting, .. } if setting == AUTHORITIES));
            let message = error.to_string();
            assert!(
                message.contains(words) && message.contains(&path) && message.contains("unset it"),
                "{message}"
            );
        }
        assert!(trust(&Environment(String::new())).is_ok(), "set to nothing is not set");
    }
}
