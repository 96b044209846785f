//! One request to a server: sent, read, and classified. The caller decides on further attempts.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use ureq::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Timeout};

use self::ServerState::{Doubtful, Down, Runs};
use super::address::{Address, KEY_VARIABLE, Protocol};
use super::protocol::{self, Answer, Defect, EncodingFormat, complaint};
use crate::config::Host;
use crate::trace::Trace;
use crate::{Error, Result, tls};

/// A server that does not take a connection within this is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest answer that is read: so much, and so much more for each text. Ten thousand dimensions in decimal fit.
const ANSWER_BYTES: u64 = 1 << 20;
const ANSWER_BYTES_PER_TEXT: u64 = 256 << 10;

/// Pooled connections to one model of one server.
pub(super) struct Client {
    agent: Agent,
    address: Address,
    url: String,
    key: Option<String>,
    timeout: Duration,
    /// The form that the server has been found to understand.
    form: OnceLock<EncodingFormat>,
}

/// Why a request returned no vectors.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt may succeed, after the time that the server asks for.
    Transient { reason: String, after: Option<Duration>, server: ServerState },
    /// Another attempt would fail in the same way.
    Permanent { error: Error, server: ServerState },
    /// The server refuses these texts; it may accept other ones.
    Refused {
        error: Error,
        /// Fewer texts at a time may succeed.
        too_large: bool,
    },
}

/// What a failed request says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerState {
    /// It runs: it is busy, or it refuses.
    Runs,
    /// It fails at these texts, and perhaps at all others.
    Doubtful,
    /// It cannot be reached, or does not answer.
    Down,
}

impl Fault {
    /// What it says about the server.
    pub(super) fn server(&self) -> ServerState {
        match self {
            Self::Transient { server, .. } | Self::Permanent { server, .. } => *server,
            Self::Refused { .. } => ServerState::Runs,
        }
    }
}

impl Client {
    /// Connects to nothing yet. `connections` stay open between requests; `timeout` is for one whole request.
    ///
    /// # Errors
    /// [`Error::Config`] when the key's variable is not set or has no key, or `SSL_CERT_FILE` no certificate.
    pub(super) fn new(
        address: &Address,
        host: &dyn Host,
        connections: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let trust = if address.tls { tls::trust(host)? } else { TlsConfig::default() };
        let agent = Agent::config_builder()
            .tls_config(trust)
            .http_status_as_error(false)
            // A redirect would send the key to another server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT.min(timeout)))
            .timeout_global(Some(timeout))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .user_agent(concat!("model-manager/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            url: address.url(),
            key: key(address, host)?,
            address: address.clone(),
            timeout,
            form: OnceLock::new(),
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The vectors of `texts`, by one request; by two as long as it is open whether the server knows base64.
    pub(super) fn ask(&self, texts: &[&str], trace: Option<&Trace>) -> Result<Answer, Fault> {
        if self.address.protocol == Protocol::Ollama {
            return self.send(texts, EncodingFormat::Float, trace);
        }
        if let Some(form) = self.form.get() {
            return self.send(texts, *form, trace);
        }
        let (form, answer) = match self.send(texts, EncodingFormat::Base64, trace) {
            Err(first @ Fault::Refused { too_large: false, .. }) => {
                match self.send(texts, EncodingFormat::Float, trace) {
                    Ok(answer) => (EncodingFormat::Float, answer),
                    // The first of the two refusals is reported: every server supports the plain form.
                    Err(Fault::Refused { too_large: false, .. }) => return Err(first),
                    // The server never judged the plain form: it may be busy, and take it later.
                    Err(fault) => return Err(fault),
                }
            }
            outcome => (EncodingFormat::Base64, outcome?),
        };
        // Another thread may have set it already, to the same form.
        let _ = self.form.set(form);
        Ok(answer)
    }

    fn send(&self, texts: &[&str], form: EncodingFormat, trace: Option<&Trace>) -> Result<Answer, Fault> {
        let body = protocol::request(self.address.protocol, &self.address.model, texts, form)
            .map_err(|reason| self.lasting(reason, Runs))?;
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        for (name, value) in trace.into_iter().flat_map(carried) {
            request = request.header(name, value);
        }
        let mut response = request.send(&body).map_err(|error| self.unanswered(&error))?;
        let status = response.status();
        let limit = ANSWER_BYTES + ANSWER_BYTES_PER_TEXT * texts.len() as u64;
        let after = retry_after(response.headers());
        let encoding =
            response.headers().get("content-encoding").and_then(|name| name.to_str().ok().map(str::to_owned));
        let location = response.headers().get("location").and_then(|at| at.to_str().ok().map(str::to_owned));
        let body = response.body_mut().with_config().limit(limit).read_to_vec();
        if !status.is_success() {
            // Without its body the status is enough.
            let said = self.hide_key(&complaint(&body.unwrap_or_default()));
            return Err(self.refused(status, after, location, &said, texts.len()));
        }
        let body = body.map_err(|error| self.unanswered(&error))?;
        protocol::answer(self.address.protocol, &body, texts.len()).map_err(|defect| {
            let defect = match encoding.filter(|name| name != "identity") {
                Some(name) => {
                    Defect::Malformed(format!("it is encoded as {name:?}, which was not asked for"))
                }
                None => defect,
            };
            // Gateways answer with status 200 and an error.
            match protocol::complaint_of(&body) {
                Some(said) => self.lasting(format!("it answers {said:?}"), Doubtful),
                None => Fault::Permanent { error: self.defective(defect), server: Doubtful },
            }
        })
    }

    /// The error for an answer, or for one row of it.
    pub(super) fn defective(&self, defect: Defect) -> Error {
        match defect {
            Defect::NotFinite => Error::NotFinite { model: self.address.to_string() },
            Defect::Malformed(reason) => Error::Remote {
                server: self.url.clone(),
                reason: self.hide_key(&format!(
                    "the answer is not what it should be ({reason}); check that the address is that of the server's API"
                )),
            },
        }
    }

    /// An error that another attempt does not change.
    fn lasting(&self, reason: impl Into<String>, state: ServerState) -> Fault {
        let (server, reason) = (self.url.clone(), self.hide_key(&reason.into()));
        let error = match state {
            Runs => Error::RemoteRefused { server, reason },
            Doubtful | Down => Error::Remote { server, reason },
        };
        Fault::Permanent { error, server: state }
    }

    /// Classifies a request without an answer, or without a complete one.
    fn unanswered(&self, error: &ureq::Error) -> Fault {
        use ureq::Error as E;
        if let Some(reason) = tls::refusal(error) {
            // The server is there, and refuses every request for the same reason.
            return self.lasting(reason, Runs);
        }
        let passing = |reason: String| Fault::Transient { reason, after: None, server: Down };
        match error {
            E::Timeout(Timeout::Connect | Timeout::Resolve) => passing("no connection in time".into()),
            E::Timeout(_) => self.lasting(
                format!(
                    "no answer within {} s; raise remote_timeout or lower remote_batch",
                    self.timeout.as_secs_f64()
                ),
                Down,
            ),
            E::BodyExceedsLimit(limit) => {
                self.lasting(format!("the answer is longer than {limit} bytes"), Doubtful)
            }
            // A server that expects TLS closes a connection without it.
            E::Io(io) if self.url.starts_with("http:") && hung_up(io.kind()) => {
                passing(format!("{}; if it speaks TLS, write https in the place of http", tls::words(error)))
            }
            E::Io(_) | E::HostNotFound | E::ConnectionFailed => passing(tls::words(error)),
            _ => self.lasting(error.to_string(), Down),
        }
    }

    /// What a status that is not success means.
    fn refused(
        &self,
        status: StatusCode,
        after: Option<Duration>,
        location: Option<String>,
        said: &str,
        texts: usize,
    ) -> Fault {
        let answered = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
        let model = || self.address.to_string();
        match status.as_u16() {
            408 | 429 => Fault::Transient { reason: answered, after, server: Runs },
            // The second is what some servers answer where others answer the first. One that asks for a pause blames itself.
            500 | 424 if after.is_none() => Fault::Transient { reason: answered, after, server: Doubtful },
            500..600 | 424 => Fault::Transient { reason: answered, after, server: Down },
            300..400 => {
                let to = location.unwrap_or_else(|| "nowhere".into());
                self.lasting(format!("it redirects to {to} ({status}); name that server itself"), Runs)
            }
            401 | 403 => {
                let variable = self.address.key.as_deref().unwrap_or(KEY_VARIABLE);
                let remedy = match (&self.key, self.address.protocol) {
                    (Some(_), _) => format!("renew the key in {variable}"),
                    (None, Protocol::OpenAi) => format!("put a key into the environment variable {variable}"),
                    (None, Protocol::Ollama) => {
                        "name the variable that holds a key: ollama://env:NAME@HOST/MODEL".into()
                    }
                };
                self.lasting(format!("access was refused ({answered}); {remedy}"), Runs)
            }
            404 => {
                let remedy = match self.address.protocol {
                    Protocol::Ollama => format!("run `ollama pull {}` there", self.address.model),
                    Protocol::OpenAi => format!(
                        "check the model's name, {:?}, and the address; a base of its own ends in two slashes: \
                         openai+http://HOST/BASE//MODEL",
                        self.address.model
                    ),
                };
                let reason = format!("{} answered {answered}; {remedy}", self.url);
                Fault::Permanent { error: Error::ModelNotFound { model: model(), reason }, server: Runs }
            }
            400 | 413 | 422 => {
                let model = model();
                let error = if texts == 1 {
                    format!("{model} does not take the text: {answered}")
                } else {
                    format!(
                        "{model} does not take one of {texts} texts, which the request has in another order than the call: \
                         {answered}"
                    )
                };
                Fault::Refused {
                    error: Error::Input(error),
                    too_large: status == StatusCode::PAYLOAD_TOO_LARGE,
                }
            }
            _ => self.lasting(format!("it answered {answered}"), Runs),
        }
    }

    /// Servers like to repeat a key that they do not know.
    fn hide_key(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| text.replace(key.as_str(), "***"))
    }
}

/// The key for `address`: from the variable that it names; else the usual one, if that is set, for OpenAI's protocol.
fn key(address: &Address, host: &dyn Host) -> Result<Option<String>> {
    let variable = match (&address.key, address.protocol) {
        (Some(variable), _) => variable.as_str(),
        (None, Protocol::OpenAi) => KEY_VARIABLE,
        (None, Protocol::Ollama) => return Ok(None),
    };
    let value = host.env(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let refuse = |reason: String| {
        Err(Error::Config { setting: variable.to_owned(), value: "(hidden)".into(), reason })
    };
    match value {
        Some(key) if key.chars().all(|c| c.is_ascii_graphic()) => Ok(Some(key)),
        Some(_) => refuse("a key holds only printable ASCII characters".into()),
        None if address.key.is_some() => refuse(format!("{address} names it, but it is not set")),
        None => Ok(None),
    }
}

/// The headers that carry a trace on, without those that are none or that the request has already.
fn carried(trace: &Trace) -> impl Iterator<Item = (HeaderName, HeaderValue)> + '_ {
    let own = [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::AUTHORIZATION, header::HOST];
    trace.headers().iter().filter_map(move |(name, value)| {
        let name = HeaderName::try_from(name).ok().filter(|name| !own.contains(name))?;
        Some((name, HeaderValue::try_from(value).ok()?))
    })
}

/// `Retry-After` in seconds; a date is left to the back-off.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// Whether the other side ended the connection: seen when the answer should come, or already while the request goes out.
fn hung_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as K;
    matches!(kind, K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment of one variable.
    struct Environment(&'static str, &'static str);

    impl Host for Environment {
        fn env(&self, name: &str) -> Option<String> {
            (name == self.0).then(|| self.1.to_owned())
        }

        fn package_dir(&self, _name: &str) -> Option<std::path::PathBuf> {
            None
        }
    }

    fn key_of(source: &str, host: &Environment) -> Result<Option<String>> {
        key(&Address::parse(source).unwrap(), host)
    }

    #[test]
    fn keys_come_from_the_environment_and_go_to_their_own_server_only() {
        let usual = Environment(KEY_VARIABLE, " sk-1\n");
        assert_eq!(key_of("openai+https://h/m", &usual), Ok(Some("sk-1".into())));
        assert_eq!(key_of("ollama://h/m", &usual), Ok(None));
        assert!(matches!(key_of("openai+https://env:OTHER@h/m", &usual), Err(Error::Config { .. })));
        let own = Environment("OTHER", "sk-2");
        assert_eq!(key_of("ollama://env:OTHER@h/m", &own), Ok(Some("sk-2".into())));
        assert_eq!(key_of("openai+https://h/m", &own), Ok(None));
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_and_not_shown() {
        let error = key_of("openai+https://h/m", &Environment(KEY_VARIABLE, "sk\r\nX: y")).unwrap_err();
        assert!(error.to_string().contains(KEY_VARIABLE) && !error.to_string().contains("X: y"), "{error}");
    }

    #[test]
    fn a_connection_can_be_ended_at_any_time() {
        use io::ErrorKind as K;
        let ended = [K::UnexpectedEof, K::ConnectionReset, K::ConnectionAborted, K::BrokenPipe];
        assert!(ended.into_iter().all(hung_up));
        assert!(![K::ConnectionRefused, K::TimedOut].into_iter().any(hung_up));
    }
}
