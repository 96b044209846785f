//! HTTP requests to the hub, and the errors that its answers stand for.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::digest::{Digest, bare_etag, blob_name};
use crate::config::Host;
use crate::models::source::safe_relative;
use crate::{Error, Result, tls};

const ENDPOINT: &str = "https://huggingface.co";
/// Silence for this long ends an attempt; `HF_HUB_DOWNLOAD_TIMEOUT` overrides it.
const TIMEOUT_SECONDS: u64 = 10;
/// Attempts in a row without new bytes, after which a download fails.
const FRUITLESS: u32 = 3;
const REMEDY: &str = "Check the network, HF_ENDPOINT and proxy settings; without a network give a local folder, \
                      pkg:PACKAGE/FOLDER, or set HF_HUB_OFFLINE=1 to use cached models only";
const PAUSE: Duration = Duration::from_millis(100);
const REDIRECTS: usize = 5;
/// A lower rate than this over one time-out counts as silence: otherwise a server that sends single bytes would keep a
/// download, and the lock on its file, from ending.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 10;
/// The longest list of a model's files.
const LISTING_BYTES: u64 = 64 << 20;

/// A connection to the hub.
pub(crate) struct HubClient {
    /// Or the error of its TLS settings, which is returned at the first request.
    agent: Result<Agent>,
    endpoint: String,
    authorization: Option<String>,
    timeout: Duration,
}

/// A model at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit that the revision points to.
    pub(crate) commit: String,
    /// All files, relative to the model.
    pub(crate) files: Vec<String>,
}

/// The answer to a HEAD request for a file.
pub(crate) struct Stated {
    /// Names the content, as a file.
    pub(crate) name: String,
    /// Checksum of the content, when the server states it.
    pub(super) digest: Option<Digest>,
    /// Bytes of the content, when the server states it.
    pub(crate) size: Option<u64>,
}

impl HubClient {
    pub(crate) fn new(
        endpoint: Option<&str>,
        token: Option<&str>,
        timeout_seconds: Option<u64>,
        host: &dyn Host,
    ) -> Result<Self> {
        let endpoint = endpoint.unwrap_or(ENDPOINT).trim_end_matches('/').to_string();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(Error::Config {
                setting: "HF_ENDPOINT".into(),
                value: endpoint,
                reason: "an address that starts with https:// or http://".into(),
            });
        }
        if token.is_some_and(|token| token.chars().any(|c| !c.is_ascii_graphic())) {
            return Err(Error::Config {
                setting: "HF_TOKEN".into(),
                value: "(hidden)".into(),
                reason: "an access token holds only printable ASCII characters".into(),
            });
        }
        let seconds = Duration::from_secs(timeout_seconds.unwrap_or(TIMEOUT_SECONDS));
        let timeout = Some(seconds);
        let trust =
            if endpoint.starts_with("https://") { tls::trust(host) } else { Ok(TlsConfig::default()) };
        let agent = trust.map(|trust| {
            Agent::config_builder()
                .tls_config(trust)
                .http_status_as_error(false)
                // This client follows redirects itself, to decide which hosts get the access token.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_resolve(timeout)
                .timeout_connect(timeout)
                .timeout_recv_response(timeout)
                .timeout_per_read(timeout)
                .user_agent(concat!("model-manager/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        });
        let authorization = token.map(|token| format!("Bearer {token}"));
        Ok(Self { agent, endpoint, authorization, timeout: seconds })
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().map_err(Clone::clone)
    }

    /// The hub's address, without a slash at the end.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The model's page, for messages.
    pub(crate) fn page(&self, id: &str) -> String {
        format!("{}/{id}", self.endpoint)
    }

    /// The files of the model at `revision`.
    pub(crate) fn listing(&self, id: &str, revision: &str) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url =
            format!("{}/api/models/{id}/revision/{}", self.endpoint, escape(revision).replace('/', "%2F"));
        let mut fruitless = 0;
        let info: Info = loop {
            let attempt = self.get(&url, 0).and_then(|mut response| {
                self.refuse(&url, id, &response)?;
                self.read_listing(&url, &mut response)
            });
            match attempt {
                Ok(text) => {
                    break serde_json::from_slice(&text).map_err(|e| {
                        failed(
                            &url,
                            format!("the answer is not the hub's ({e}); check HF_ENDPOINT={}", self.endpoint),
                        )
                    })?;
                }
                Err(fault) => fault.pause(&url, &mut fruitless)?,
            }
        };
        if safe_relative(&info.sha).is_none_or(|path| path.components().count() != 1) {
            return Err(failed(&url, format!("the answer names the commit {:?}", info.sha)));
        }
        // A name that leads out of the snapshot's folder is never requested.
        let files =
            info.siblings.into_iter().map(|s| s.rfilename).filter(|f| safe_relative(f).is_some()).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// The whole body, within bounds of length and time.
    fn read_listing(&self, url: &str, response: &mut Response<Body>) -> Result<Vec<u8>, HubFault> {
        let mut body = response.body_mut().as_reader();
        let mut pace = self.pace();
        let (mut text, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match body.read(&mut buffer).map_err(|e| HubFault::Transient(e.to_string()))? {
                0 => return Ok(text),
                count => text.extend_from_slice(&buffer[..count]),
            }
            if text.len() as u64 > LISTING_BYTES {
                let reason = "the list of files has no end; check HF_ENDPOINT";
                return Err(HubFault::Permanent(failed(url, reason)));
            }
            pace.note(text.len() as u64)?;
        }
    }

    /// Watches one body.
    pub(crate) fn pace(&self) -> Pace {
        Pace { window: self.timeout, since: Instant::now(), bytes: 0 }
    }

    /// The token, if `url` has the scheme, host and port of the hub; other servers do not get it.
    fn authorization_for(&self, url: &str) -> Option<&str> {
        self.authorization.as_deref().filter(|_| same_origin(url, &self.endpoint))
    }

    /// Length and identity of a file. The hub answers with a redirect whose headers state those of the file itself.
    pub(crate) fn head(&self, url: &str, id: &str) -> Result<Stated> {
        let mut fruitless = 0;
        loop {
            match self.head_once(url, id) {
                Ok(stated) => return Ok(stated),
                Err(fault) => fault.pause(url, &mut fruitless)?,
            }
        }
    }

    fn head_once(&self, url: &str, id: &str) -> Result<Stated, HubFault> {
        let mut at = url.to_string();
        for _ in 0..REDIRECTS {
            let mut request = self.agent()?.head(&at);
            if let Some(value) = self.authorization_for(&at) {
                request = request.header("Authorization", value);
            }
            let response = request.call().map_err(|e| HubFault::new(&at, &e))?;
            let headers = response.headers();
            let redirected = response.status().is_redirection();
            // A redirect within the hub (a renamed model) has no headers of the file.
            if redirected && header(headers, "x-linked-etag").is_none() {
                let location = header(headers, "location").unwrap_or_default();
                if let Some(next) = redirect(&at, location).filter(|next| same_origin(next, &at)) {
                    at = next;
                    continue;
                }
            }
            if !redirected {
                self.refuse(url, id, &response)?;
            }
            let etag =
                header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).and_then(bare_etag);
            let own_length = if redirected { None } else { header(headers, "content-length") };
            let size = header(headers, "x-linked-size").or(own_length).and_then(|size| size.parse().ok());
            return match etag {
                Some(etag) => Ok(Stated { name: blob_name(etag), digest: Digest::of_etag(etag), size }),
                None => Err(HubFault::Permanent(failed(
                    url,
                    "the server states no ETag; check that HF_ENDPOINT speaks the hub's paths",
                ))),
            };
        }
        Err(HubFault::Permanent(failed(url, "the server redirects in a circle; check HF_ENDPOINT")))
    }

    /// The content from byte `start` on. Any status: see [`HubClient::refuse`].
    pub(crate) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, HubFault> {
        let mut at = url.to_string();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent()?.get(&at);
            if let Some(value) = self.authorization_for(&at) {
                request = request.header("Authorization", value);
            }
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            let response = request.call().map_err(|e| HubFault::new(&at, &e))?;
            let location = header(response.headers(), "location");
            let (true, Some(location)) = (response.status().is_redirection(), location) else {
                return Ok(response);
            };
            at = redirect(&at, location).ok_or_else(|| {
                HubFault::Permanent(failed(
                    url,
                    "the server redirects to an address that is none, or from https to http; check HF_ENDPOINT",
                ))
            })?;
        }
        Err(HubFault::Permanent(failed(url, "the server redirects in a circle; check HF_ENDPOINT")))
    }

    /// The error behind a status that is not success, with what the user can do about it.
    pub(crate) fn refuse(&self, url: &str, id: &str, response: &Response<Body>) -> Result<(), HubFault> {
        let status = response.status();
        let page = self.page(id);
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let reason = match status.as_u16() {
            200..300 => return Ok(()),
            404 if code == "EntryNotFound" => {
                "the file is not there (404); the model changed while it was downloaded, try again".into()
            }
            404 => {
                return Err(HubFault::Permanent(Error::ModelNotFound {
                    model: id.into(),
                    reason: format!(
                        "{url} answers 404; check the name and revision at {page}, or give a local folder"
                    ),
                }));
            }
            401 if self.authorization.is_some() => {
                format!("the access token was refused (401); renew HF_TOKEN, and check that {page} exists")
            }
            401 => format!(
                "{page} is private, gated, or does not exist (401); check the name, or set HF_TOKEN to an access token"
            ),
            403 => format!(
                "access was refused (403); open {page} with the account of your HF_TOKEN and accept its terms"
            ),
            429 | 500..600 => return Err(HubFault::Transient(format!("the server answered {status}"))),
            _ => format!("the server answered {status}"),
        };
        Err(HubFault::Permanent(failed(url, reason)))
    }
}

/// Why one attempt failed.
pub(crate) enum HubFault {
    /// Another attempt may succeed: a cut connection, a time-out, a failure of the server.
    Transient(String),
    /// Another attempt would fail too.
    Permanent(Error),
}

impl HubFault {
    /// The fault of a request that got no complete answer.
    pub(crate) fn new(url: &str, error: &ureq::Error) -> Self {
        use ureq::Error as E;
        if let Some(reason) = tls::refusal(error) {
            return Self::Permanent(failed(url, reason));
        }
        let refused = matches!(error, E::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused);
        match error {
            E::HostNotFound
            | E::ConnectionFailed
            | E::BadUri(_)
            | E::Http(_)
            | E::Tls(_)
            | E::InvalidProxyUrl => Self::Permanent(failed(url, format!("{}; {REMEDY}", tls::words(error)))),
            _ if refused => Self::Permanent(failed(url, format!("{}; {REMEDY}", tls::words(error)))),
            _ => Self::Transient(tls::words(error)),
        }
    }

    /// Waits before the next attempt, or gives the error when there have been enough.
    pub(crate) fn pause(self, url: &str, fruitless: &mut u32) -> Result<()> {
        let reason = match self {
            Self::Permanent(error) => return Err(error),
            Self::Transient(reason) => reason,
        };
        *fruitless += 1;
        if *fruitless >= FRUITLESS {
            let kept = "what arrived is kept, and the next call continues there";
            return Err(failed(url, format!("{reason}, {FRUITLESS} times in a row; {kept}. {REMEDY}")));
        }
        log::warn!("{url}: {reason}; trying again");
        thread::sleep(PAUSE * *fruitless);
        Ok(())
    }
}

impl From<Error> for HubFault {
    fn from(error: Error) -> Self {
        Self::Permanent(error)
    }
}

pub(crate) fn failed(url: &str, reason: impl Into<String>) -> Error {
    Error::Download { url: url.into(), reason: reason.into() }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes START-END/TOTAL` → START and, unless it is `*`, TOTAL.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split('-').next()?.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Ends a download that is too slow.
pub(crate) struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Records the number of bytes received so far.
    pub(crate) fn note(&mut self, bytes: u64) -> Result<(), HubFault> {
        let passed = self.since.elapsed();
        if passed < self.window {
            return Ok(());
        }
        if ((bytes - self.bytes) as f64) < SLOWEST_BYTES_PER_SECOND as f64 * passed.as_secs_f64() {
            return Err(HubFault::Transient(format!(
                "less than {SLOWEST_BYTES_PER_SECOND} bytes a second came for {} s",
                self.window.as_secs()
            )));
        }
        (self.since, self.bytes) = (Instant::now(), bytes);
        Ok(())
    }
}

/// Whether scheme, host and port of two addresses are equal.
fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| {
        let url: Uri = url.parse().ok()?;
        let scheme = url.scheme_str()?.to_ascii_lowercase();
        let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, url.host()?.to_ascii_lowercase(), port))
    };
    origin(one).is_some_and(|one| origin(other) == Some(one))
}

/// Where `location`, in an answer from `at`, leads; `None` when it is no HTTP address, or one without the TLS that `at` has.
fn redirect(at: &str, location: &str) -> Option<String> {
    let (scheme, rest) = at.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let next = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let path = rest.split(['?', '#']).next()?;
        let folder = path.rfind('/').map_or(path, |slash| &path[..slash]);
        format!("{scheme}://{folder}/{location}")
    };
    let next = next.split('#').next()?.to_owned();
    let uri: Uri = next.parse().ok()?;
    let kept = match uri.scheme_str()? {
        "https" => true,
        "http" => scheme.eq_ignore_ascii_case("http"),
        _ => false,
    };
    (kept && uri.host().is_some()).then_some(next)
}

/// Percent-encodes the characters that a path may not contain. Slashes stay.
pub(crate) fn escape(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SystemHost;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (one, other, same) in [
            ("http://h:1/a/b", "http://H:1/c", true),
            ("https://h/a", "https://h:443", true),
            ("http://h/a", "http://h:80/a", true),
            ("http://h:1/a", "http://h:2/a", false),
            ("http://h/a", "https://h/a", false),
            ("https://h/a", "https://h.evil/a", false),
            ("https://h/a", "https://h@evil/a", false),
            ("nothing", "nothing", false),
        ] {
            assert_eq!(same_origin(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn redirects_lead_to_http_addresses_and_keep_tls() {
        let at = "https://h:1/a/b?c";
        for (location, to) in [
            ("/x", Some("https://h:1/x")),
            ("x?y", Some("https://h:1/a/x?y")),
            ("//other/x", Some("https://other/x")),
            ("https://other:2/x#y", Some("https://other:2/x")),
            ("http://h:1/x", None),
            ("file:///etc/passwd", None),
            ("", Some("https://h:1/a/")),
        ] {
            assert_eq!(redirect(at, location).as_deref(), to, "{location}");
        }
        assert_eq!(redirect("http://h/a", "http://other/x").as_deref(), Some("http://other/x"));
        assert_eq!(redirect("http://h/a", "https://h/x").as_deref(), Some("https://h/x"));
    }

    #[test]
    fn ranges() {
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/20"), Some((5, Some(20))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("bytes */20"), None);
        assert_eq!(range("items 5-9/20"), None);
    }

    #[test]
    fn addresses() {
        assert_eq!(escape("1_Pooling/con fig#.json"), "1_Pooling/con%20fig%23.json");
    }

    #[test]
    fn a_token_with_a_line_break_is_refused_and_not_shown() {
        let error = HubClient::new(None, Some("hf_a\r\nX: y"), None, &SystemHost).err().unwrap();
        assert!(matches!(&error, Error::Config { setting, .. } if setting == "HF_TOKEN"));
        assert!(!error.to_string().contains("hf_a"));
    }
}
