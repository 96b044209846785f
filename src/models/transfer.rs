//! What the hub is asked, and what its answers mean.

use std::io;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::source::safe_relative;
use crate::config::Host;
use crate::{Error, Result, tls};

const ENDPOINT: &str = "https://huggingface.co";
/// Silence for this long ends an attempt; `HF_HUB_DOWNLOAD_TIMEOUT` overrides it.
const TIMEOUT_SECONDS: u64 = 10;
/// Attempts in a row that bring nothing new before a download fails.
const FRUITLESS: u32 = 3;
const REMEDY: &str = "Check the network, HF_ENDPOINT and proxy settings; without a network give a local folder, \
                      pkg:PACKAGE/FOLDER, or set HF_HUB_OFFLINE=1 to use cached models only";
const PAUSE: Duration = Duration::from_millis(100);
const REDIRECTS: usize = 5;

/// A connection to the hub.
pub(crate) struct Client {
    /// Or why there is none, which matters only when the hub is asked.
    agent: Result<Agent>,
    endpoint: String,
    authorization: Option<String>,
}

/// A model at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit that the revision points to.
    pub(crate) commit: String,
    /// All files, relative to the model.
    pub(crate) files: Vec<String>,
}

/// What a HEAD request tells of a file.
pub(crate) struct Stated {
    /// Identity of the content, fit for a file name.
    pub(crate) etag: String,
    /// Bytes of the content, when the server says so.
    pub(crate) size: Option<u64>,
}

impl Client {
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
        let timeout = Some(Duration::from_secs(timeout_seconds.unwrap_or(TIMEOUT_SECONDS)));
        let trust =
            if endpoint.starts_with("https://") { tls::trust(host) } else { Ok(TlsConfig::default()) };
        let agent = trust.map(|trust| {
            Agent::config_builder()
                .tls_config(trust)
                .http_status_as_error(false)
                .max_redirects_will_error(false)
                // Not to the content network that the hub sends us to.
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .timeout_resolve(timeout)
                .timeout_connect(timeout)
                .timeout_recv_response(timeout)
                .timeout_per_read(timeout)
                .user_agent(concat!("model-manager/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        });
        Ok(Self { agent, endpoint, authorization: token.map(|token| format!("Bearer {token}")) })
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

    /// What the model holds at `revision`.
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
                response.body_mut().read_to_string().map_err(|e| Fault::new(&url, &e))
            });
            match attempt {
                Ok(text) => {
                    break serde_json::from_str(&text).map_err(|e| {
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
        // A name that would leave the snapshot's folder is none that we ask for.
        let files =
            info.siblings.into_iter().map(|s| s.rfilename).filter(|f| safe_relative(f).is_some()).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// Length and identity of a file. The hub answers with a redirect whose headers tell those of the file itself.
    pub(crate) fn head(&self, url: &str, id: &str) -> Result<Stated> {
        let mut fruitless = 0;
        loop {
            match self.head_once(url, id) {
                Ok(stated) => return Ok(stated),
                Err(fault) => fault.pause(url, &mut fruitless)?,
            }
        }
    }

    fn head_once(&self, url: &str, id: &str) -> Result<Stated, Fault> {
        let mut at = url.to_string();
        for _ in 0..REDIRECTS {
            let mut request = self.agent()?.head(&at).config().max_redirects(0).build();
            if let Some(value) = &self.authorization {
                request = request.header("Authorization", value);
            }
            let response = request.call().map_err(|e| Fault::new(&at, &e))?;
            let headers = response.headers();
            let redirected = response.status().is_redirection();
            // A move within the hub (a renamed model) carries no headers of the file yet.
            if redirected && header(headers, "x-linked-etag").is_none() {
                let location = header(headers, "location").unwrap_or_default();
                let path = location.strip_prefix(origin(&at)).unwrap_or(location);
                if path.starts_with('/') {
                    at = format!("{}{path}", origin(&at));
                    continue;
                }
            }
            if !redirected {
                self.refuse(url, id, &response)?;
            }
            let etag =
                header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).and_then(clean_etag);
            let own_length = if redirected { None } else { header(headers, "content-length") };
            let size = header(headers, "x-linked-size").or(own_length).and_then(|size| size.parse().ok());
            return match etag {
                Some(etag) => Ok(Stated { etag, size }),
                None => Err(Fault::Final(failed(
                    url,
                    "the server states no ETag; check that HF_ENDPOINT speaks the hub's paths",
                ))),
            };
        }
        Err(Fault::Final(failed(url, "the server redirects in a circle; check HF_ENDPOINT")))
    }

    /// The content from byte `start` on. Any status: see [`Client::refuse`].
    pub(crate) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Fault> {
        let mut request = self.agent()?.get(url);
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        request.call().map_err(|e| Fault::new(url, &e))
    }

    /// The error behind a status that is not success, with what the user can do about it.
    pub(crate) fn refuse(&self, url: &str, id: &str, response: &Response<Body>) -> Result<(), Fault> {
        let status = response.status();
        let page = self.page(id);
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let reason = match status.as_u16() {
            200..300 => return Ok(()),
            404 if code == "EntryNotFound" => {
                "the file is not there (404); the model changed while it was downloaded, try again".into()
            }
            404 => {
                return Err(Fault::Final(Error::ModelNotFound {
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
            429 | 500..600 => return Err(Fault::Passing(format!("the server answered {status}"))),
            _ => format!("the server answered {status}"),
        };
        Err(Fault::Final(failed(url, reason)))
    }
}

/// Why one attempt failed.
pub(crate) enum Fault {
    /// Worth another attempt: a cut connection, a time-out, a server's own failure.
    Passing(String),
    /// Another attempt would end the same.
    Final(Error),
}

impl Fault {
    /// A request that got no answer, or no end of it.
    pub(crate) fn new(url: &str, error: &ureq::Error) -> Self {
        use ureq::Error as E;
        if let Some(reason) = tls::refusal(error) {
            return Self::Final(failed(url, reason));
        }
        let refused = matches!(error, E::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused);
        match error {
            E::HostNotFound
            | E::ConnectionFailed
            | E::BadUri(_)
            | E::Http(_)
            | E::Tls(_)
            | E::InvalidProxyUrl => Self::Final(failed(url, format!("{error}; {REMEDY}"))),
            _ if refused => Self::Final(failed(url, format!("{error}; {REMEDY}"))),
            _ => Self::Passing(error.to_string()),
        }
    }

    /// Waits before the next attempt, or gives the error when there have been enough.
    pub(crate) fn pause(self, url: &str, fruitless: &mut u32) -> Result<()> {
        let reason = match self {
            Self::Final(error) => return Err(error),
            Self::Passing(reason) => reason,
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

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

pub(crate) fn failed(url: &str, reason: impl Into<String>) -> Error {
    Error::Download { url: url.into(), reason: reason.into() }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes START-END/TOTAL` → START
pub(crate) fn range_start(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-range")?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// An ETag as a file name: without quotes and weakness.
fn clean_etag(etag: &str) -> Option<String> {
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
    let valid = !etag.is_empty()
        && etag.len() <= 128
        && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    valid.then(|| etag.to_string())
}

/// Scheme and host of `url`.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |slash| &url[..host + slash])
}

/// Percent-encodes what a path may not hold. Slashes stay.
pub(crate) fn escape(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SystemHost;

    #[test]
    fn etags_become_file_names_or_nothing() {
        assert_eq!(clean_etag("\"abc-1\"").as_deref(), Some("abc-1"));
        assert_eq!(clean_etag("W/\"abc\"").as_deref(), Some("abc"));
        for bad in ["", "\"\"", "\"../x\"", "\"a/b\"", "\"a.lock\""] {
            assert_eq!(clean_etag(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(origin("http://h:1/a/b"), "http://h:1");
        assert_eq!(origin("http://h"), "http://h");
        assert_eq!(escape("1_Pooling/con fig#.json"), "1_Pooling/con%20fig%23.json");
    }

    #[test]
    fn a_token_with_a_line_break_is_refused_and_not_shown() {
        let error = Client::new(None, Some("hf_a\r\nX: y"), None, &SystemHost).err().unwrap();
        assert!(matches!(&error, Error::Config { setting, .. } if setting == "HF_TOKEN"));
        assert!(!error.to_string().contains("hf_a"));
    }
}
