//! How a model of a server is written.
//!
//! ```text
//! ollama://HOST[:PORT]/[BASE//]MODEL             plain HTTP, port 11434, base ""
//! openai+http://HOST[:PORT]/[BASE//]MODEL        plain HTTP, port 80, base "v1"
//! openai+https://, ollama+https://               the same over TLS, port 443
//! ```
//!
//! Names of models contain `/` and `:` (`hf.co/Qwen/Qwen3-Embedding-0.6B-GGUF:Q8_0`), so the whole path is the model. A base
//! of the server's own ends in `//`; before the model of an OpenAI-compatible server a version (`v1/`) ends it too:
//! `openai+http://host/api/v1/org/model` is the model `org/model` at `/api/v1`. `env:NAME@` before the host names the
//! environment variable that has the key. A key itself must not be in a source: sources are logged, pickled and
//! shown in statistics.

use std::borrow::Cow;
use std::fmt;

use crate::{Error, Result};

/// The variable of the key for OpenAI-compatible servers that name none. Ollama has no keys of its own.
pub const KEY_VARIABLE: &str = "MODEL_MANAGER_REMOTE_KEY";

/// The form of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Ollama's `POST /api/embed`.
    Ollama,
    /// OpenAI's `POST /v1/embeddings`.
    OpenAi,
}

impl Protocol {
    /// ollama or openai
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
        }
    }
}

/// A model and the server that runs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The form of requests and answers.
    pub protocol: Protocol,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Name or address, in brackets when it is an IPv6 address.
    pub host: String,
    /// `None`: the scheme's own.
    pub port: Option<u16>,
    /// What comes before the protocol's own path; empty, or starts with a slash and ends without.
    pub base: String,
    /// The model, as the server calls it.
    pub model: String,
    /// The environment variable of the key, when the source names one.
    pub key: Option<String>,
}

impl Address {
    /// Whether `source` is meant as an address rather than a path or a hub id.
    #[must_use]
    pub fn is_meant(source: &str) -> bool {
        source.contains("://")
    }

    /// Reads a source as users write it.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] that says what is wrong; it never shows what may be a key.
    pub fn parse(source: &str) -> Result<Self> {
        let refuse = |reason: String| Error::ModelNotFound { model: shown(source).into(), reason };
        let (scheme, rest) = source.split_once("://").unwrap_or((source, ""));
        let (protocol, tls) = match scheme.to_ascii_lowercase().as_str() {
            "ollama" | "ollama+http" => (Protocol::Ollama, false),
            "ollama+https" => (Protocol::Ollama, true),
            "openai+http" => (Protocol::OpenAi, false),
            "openai+https" => (Protocol::OpenAi, true),
            _ => {
                return Err(refuse(
                    "a server's model is written ollama://, ollama+https://, openai+http:// or openai+https://, \
                     then HOST:PORT/MODEL"
                        .into(),
                ));
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (key, authority) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((user, authority)) => match user.strip_prefix("env:").filter(|name| is_variable(name)) {
                Some(name) => (Some(name.to_owned()), authority),
                None => {
                    return Err(refuse(format!(
                        "a key does not belong into a source, which is logged; put it into an environment variable and \
                         write env:NAME@ before the host, or set {KEY_VARIABLE}"
                    )));
                }
            },
        };
        let (host, port) = split_port(authority)
            .ok_or_else(|| refuse(format!("{authority:?} is no host, or no host and port")))?;
        if let Some(odd) = path.chars().find(|c| c.is_control() || c.is_whitespace() || "?#\\".contains(*c)) {
            return Err(refuse(format!("{odd:?} does not belong into the path of a model; leave it out")));
        }
        let (base, model) = split_model(protocol, path);
        if model.is_empty() || model.ends_with('/') {
            return Err(refuse("it names no model; write one after the last slash".into()));
        }
        if !base.is_ascii() {
            return Err(refuse("the part before the model must be ASCII; percent-encode it".into()));
        }
        Ok(Self { protocol, tls, host, port, base, model: model.to_owned(), key })
    }

    /// Where embeddings are asked for.
    #[must_use]
    pub fn url(&self) -> String {
        let (scheme, default) = match (self.tls, self.protocol) {
            (true, _) => ("https", None),
            (false, Protocol::Ollama) => ("http", Some(11434)),
            (false, Protocol::OpenAi) => ("http", None),
        };
        let port = self.port.or(default).map(|port| format!(":{port}")).unwrap_or_default();
        let end = match self.protocol {
            Protocol::Ollama => "/api/embed",
            Protocol::OpenAi => "/embeddings",
        };
        format!("{scheme}://{}{port}{}{end}", self.host, self.base)
    }
}

/// The canonical form of this address. Never contains a key.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = match (self.protocol, self.tls) {
            (Protocol::Ollama, false) => ("ollama", ""),
            (Protocol::Ollama, true) => ("ollama+https", ""),
            (Protocol::OpenAi, false) => ("openai+http", "/v1"),
            (Protocol::OpenAi, true) => ("openai+https", "/v1"),
        };
        write!(f, "{scheme}://")?;
        if let Some(name) = &self.key {
            write!(f, "env:{name}@")?;
        }
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        // When the model's name looks like a base, the base has to be written.
        if self.base == usual && split_model(self.protocol, &self.model) == (usual.to_owned(), &self.model) {
            write!(f, "/{}", self.model)
        } else {
            write!(f, "{}//{}", self.base, self.model)
        }
    }
}

/// `source` as messages and statistics show it: whatever stands where a key would is hidden.
#[must_use]
pub fn shown(source: &str) -> Cow<'_, str> {
    let hidden = source.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let (user, host) = rest[..end].rsplit_once('@')?;
        let names_variable = user.strip_prefix("env:").is_some_and(is_variable);
        (!names_variable).then(|| format!("{scheme}://***@{host}{}", &rest[end..]))
    });
    hidden.map_or(Cow::Borrowed(source), Cow::Owned)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Host, lower-cased, and port. An IPv6 address stands in brackets.
fn split_port(authority: &str) -> Option<(String, Option<u16>)> {
    let bracketed = authority.starts_with('[');
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !bracketed || host.ends_with(']') => {
            (host, Some(port.parse().ok().filter(|port| *port > 0)?))
        }
        _ => (authority, None),
    };
    let sound = if bracketed {
        host[1..].strip_suffix(']').is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok())
    } else {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    sound.then(|| (host.to_ascii_lowercase(), port))
}

/// Base and model of a path without its first slash.
fn split_model(protocol: Protocol, path: &str) -> (String, &str) {
    let (base, model) = if let Some(model) = path.strip_prefix('/') {
        ("", model)
    } else if let Some((base, model)) = path.split_once("//") {
        (base, model)
    } else if protocol == Protocol::Ollama {
        ("", path)
    } else if let Some(end) = version_end(path) {
        (&path[..end], &path[end + 1..])
    } else {
        ("v1", path)
    };
    let base = base.trim_matches('/');
    (if base.is_empty() { String::new() } else { format!("/{base}") }, model)
}

/// Where the first segment like `v1` ends, if another one follows.
fn version_end(path: &str) -> Option<usize> {
    let mut start = 0;
    for (end, _) in path.match_indices('/') {
        let version = path[start..end].strip_prefix('v');
        if version.is_some_and(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit())) {
            return Some(end);
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(source: &str) -> (String, String) {
        let address = Address::parse(source).unwrap();
        (address.url(), address.model)
    }

    #[test]
    fn addresses_of_every_shape() {
        for (source, url, model) in [
            ("ollama://box/bge-m3", "http://box:11434/api/embed", "bge-m3"),
            ("ollama://127.0.0.1:9/hf.co/Qwen/Q3:Q8_0", "http://127.0.0.1:9/api/embed", "hf.co/Qwen/Q3:Q8_0"),
            ("OLLAMA://Box/Org/Model", "http://box:11434/api/embed", "Org/Model"),
            ("ollama+https://box/proxy/in//a/b", "https://box/proxy/in/api/embed", "a/b"),
            ("openai+https://api.openai.com/v1/small", "https://api.openai.com/v1/embeddings", "small"),
            ("openai+http://h:8000/BAAI/bge-m3", "http://h:8000/v1/embeddings", "BAAI/bge-m3"),
            ("openai+http://h/api/v2/BAAI/bge", "http://h/api/v2/embeddings", "BAAI/bge"),
            ("openai+http://h//bge", "http://h/embeddings", "bge"),
            ("openai+https://g/v1beta/openai//models/x", "https://g/v1beta/openai/embeddings", "models/x"),
            ("openai+http://[::1]:80/m", "http://[::1]:80/v1/embeddings", "m"),
        ] {
            assert_eq!(parts(source), (url.to_owned(), model.to_owned()), "{source}");
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (source, word) in [
            ("http://h/m", "openai+http://"),
            ("ollama://", "host"),
            ("ollama:///m", "host"),
            ("ollama://h:0/m", "port"),
            ("ollama://h:99999/m", "port"),
            ("ollama://h e/m", "host"),
            ("ollama://[::1/m", "host"),
            ("ollama://h", "no model"),
            ("ollama://h/", "no model"),
            ("openai+http://h/v1/", "no model"),
            ("openai+http://h/v1//", "no model"),
            ("ollama://h/org/", "no model"),
            ("ollama://env:@h/m", "env:NAME@"),
            ("ollama://env:1A@h/m", "env:NAME@"),
            ("ollama://env:A-B@h/m", "env:NAME@"),
            ("ollama://h/m?x=1", "'?'"),
            ("ollama://h/a b", "' '"),
            ("ollama://h/ü//m", "ASCII"),
        ] {
            let error = Address::parse(source).unwrap_err().to_string();
            assert!(error.contains(word), "{source}: {error}");
        }
    }

    #[test]
    fn a_key_is_named_by_its_variable_and_never_written() {
        let address = Address::parse("openai+https://env:MY_KEY@h/v1/m").unwrap();
        assert_eq!(address.key.as_deref(), Some("MY_KEY"));
        assert_eq!(address.to_string(), "openai+https://env:MY_KEY@h/m");
        for source in
            ["openai+https://sk-secret@h/m", "openai+https://u:sk-secret@h/m", "x://env:sk-secret@h"]
        {
            let error = Address::parse(source).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("***@h"), "{error}");
        }
        assert_eq!(shown("openai+https://env:MY_KEY@h/m"), "openai+https://env:MY_KEY@h/m");
        assert_eq!(shown("org/a@b://c"), "org/a@b://c");
    }

    proptest! {
        #[test]
        fn the_written_form_reads_as_the_same_address(
            protocol in prop_oneof![Just("ollama"), Just("ollama+https"), Just("openai+http"), Just("openai+https")],
            key in prop_oneof![Just(""), Just("env:A_1@")],
            port in prop_oneof![Just(String::new()), (1u16..).prop_map(|port| format!(":{port}"))],
            path in "[a-z1:/.]{1,6}(v1/|//|/){0,1}[a-zA-Z0-9:._-]{1,8}",
        ) {
            if let Ok(address) = Address::parse(&format!("{protocol}://{key}host{port}/{path}")) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }
    }
}
