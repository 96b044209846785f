//! A model hub on 127.0.0.1 that fails on request: as often as asked, then no more.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// A whole answer of only so many bytes, and so announced.
    Short(usize),
    /// More bytes than HEAD stated, and so announced.
    Long,
    /// This status, with this `x-error-code`.
    Status(u16, &'static str),
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// The body without a length, ended by closing the connection after so many bytes.
    NoLength(usize),
    /// The right length with a wrong byte.
    Corrupt,
    /// The range that was asked for, or the whole, in chunks and so without a length.
    Chunked,
    /// So much of the range that was asked for, and so announced.
    PartOfRange(usize),
    /// A byte at a time, so long apart.
    Trickle(Duration),
    /// Nothing comes, for so long.
    Silence(Duration),
}

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
struct Content {
    /// File name → content, in the order of the listing.
    files: Vec<(String, Vec<u8>)>,
    /// File name (or "" for the listing) → what goes wrong with the next GET requests for it.
    faults: HashMap<String, VecDeque<Fault>>,
    requests: Vec<Request>,
    states_size: bool,
    /// ETags that are not made from the name.
    etags: HashMap<String, String>,
    /// Where the content of large files is.
    cdn: Option<String>,
}

/// The server; ends when dropped.
pub(crate) struct Hub {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    /// A hub with one model, `org/model`, made of these files.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let files = files.iter().map(|(name, content)| ((*name).to_string(), content.to_vec())).collect();
        let content = Arc::new(Mutex::new(Content { files, states_size: true, ..Content::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, ending) = (Arc::clone(&content), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&shared);
                let stream = stream.unwrap();
                thread::spawn(move || answer(&stream, address, &shared));
            }
        });
        Self { address, content, stop, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next GET of `file` goes wrong, and those after it, once for each fault.
    pub(crate) fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        self.content.lock().unwrap().faults.entry(file.into()).or_default().extend(faults);
    }

    /// HEAD answers state no size from now on.
    pub(crate) fn hide_sizes(&self) {
        self.content.lock().unwrap().states_size = false;
    }

    /// The hub names the content of `file` so.
    pub(crate) fn name(&self, file: &str, etag: &str) {
        self.content.lock().unwrap().etags.insert(file.into(), etag.into());
    }

    /// The content of large files is served at `endpoint` from now on.
    pub(crate) fn serve_from(&self, endpoint: &str) {
        self.content.lock().unwrap().cdn = Some(endpoint.into());
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.content.lock().unwrap().requests.clone()
    }

    /// The GET requests for `file`, wherever it was served from.
    pub(crate) fn gets(&self, file: &str) -> Vec<Request> {
        let end = format!("/{file}");
        self.requests().into_iter().filter(|r| r.method == "GET" && r.path.ends_with(&end)).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Names a file's content. Large files carry the hash that the hub calls linked.
pub(crate) fn etag(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn answer(stream: &TcpStream, address: SocketAddr, content: &Mutex<Content>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string())))
        .collect();
    let mut words = first.split(' ').map(ToString::to_string);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let range = headers.get("range").cloned();
    let file = path
        .strip_prefix(&format!("/org/model/resolve/{COMMIT}/"))
        .or_else(|| path.strip_prefix("/moved/"))
        .or_else(|| path.strip_prefix("/cdn/"))
        .map(|file| file.replace("%20", " "));
    let listing = path.starts_with("/api/models/org/model/revision/");
    let mut content = content.lock().unwrap();
    let authorization = headers.get("authorization").cloned();
    content.requests.push(Request {
        method: method.clone(),
        path: path.clone(),
        range: range.clone(),
        authorization,
    });
    let large = |name: &str| name.ends_with(".safetensors") || name.ends_with(".bin");
    let redirects = file.as_deref().is_some_and(large) && !path.starts_with("/cdn/");
    let fault = match (&*method, &file) {
        ("GET", Some(file)) if !redirects => content.faults.get_mut(file).and_then(VecDeque::pop_front),
        ("GET", None) if listing => content.faults.get_mut("").and_then(VecDeque::pop_front),
        _ => None,
    };
    let states_size = content.states_size;
    let named = file.as_ref().and_then(|file| content.etags.get(file).cloned());
    let cdn = content.cdn.clone().unwrap_or_else(|| format!("http://localhost:{}", address.port()));
    let body = match &file {
        _ if listing => {
            let names: Vec<_> =
                content.files.iter().map(|(n, _)| serde_json::json!({ "rfilename": n })).collect();
            Some(serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string().into_bytes())
        }
        Some(file) => content.files.iter().find(|(name, _)| name == file).map(|(_, bytes)| bytes.clone()),
        None => None,
    };
    drop(content);
    let Some(body) = body else {
        return send(stream, "404 Not Found", "x-error-code: RepoNotFound\r\n", &[], 0);
    };
    let file = file.unwrap_or_default();
    if redirects {
        // As the hub does: the headers describe the file, the content comes from another host without our token.
        let size = if states_size { format!("x-linked-size: {}\r\n", body.len()) } else { String::new() };
        let head = format!(
            "location: {cdn}/cdn/{file}\r\nx-linked-etag: \"{}\"\r\n{size}x-repo-commit: {COMMIT}\r\n",
            named.unwrap_or_else(|| etag(&file)),
        );
        return send(stream, "302 Found", &head, &[], 0);
    }
    if method == "HEAD" && !path.starts_with("/moved/") && file == "config.json" {
        return send(stream, "307 Temporary Redirect", &format!("location: /moved/{file}\r\n"), &[], 0);
    }
    let etag = named.unwrap_or_else(|| etag(&file));
    let about = format!("etag: W/\"{etag}\"\r\nx-repo-commit: {COMMIT}\r\naccept-ranges: bytes\r\n");
    if method == "HEAD" {
        let length = if states_size { body.len() } else { 0 };
        let length = if states_size { format!("content-length: {length}\r\n") } else { String::new() };
        return raw(stream, &format!("HTTP/1.1 200 OK\r\n{about}{length}connection: close\r\n\r\n"), &[]);
    }
    let start =
        range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()).unwrap_or(0);
    let partial =
        format!("{about}content-range: bytes {start}-{}/{}\r\n", body.len().wrapping_sub(1), body.len());
    match fault {
        Some(Fault::Status(status, code)) => {
            send(stream, &format!("{status} X"), &format!("x-error-code: {code}\r\n"), &[], 0);
        }
        Some(Fault::Short(length)) => send(stream, "200 OK", &about, &body[..length], length),
        Some(Fault::Long) => send(stream, "200 OK", &about, &[&body[..], b"more"].concat(), body.len() + 4),
        Some(Fault::NoLength(length)) => {
            raw(stream, &format!("HTTP/1.1 200 OK\r\n{about}connection: close\r\n\r\n"), &body[..length]);
        }
        Some(Fault::Silence(duration)) => thread::sleep(duration),
        Some(Fault::Corrupt) => {
            let mut wrong = body[start..].to_vec();
            wrong[0] ^= 1;
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            send(stream, status, if start > 0 { &partial } else { &about }, &wrong, wrong.len());
        }
        Some(Fault::Chunked) => {
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            let head = if start > 0 { &partial } else { &about };
            let coded =
                [format!("{:x}\r\n", body.len() - start).as_bytes(), &body[start..], b"\r\n0\r\n\r\n"]
                    .concat();
            let head =
                format!("HTTP/1.1 {status}\r\n{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n");
            raw(stream, &head, &coded);
        }
        Some(Fault::PartOfRange(length)) => {
            let end = (start + length).min(body.len());
            let head = format!("{about}content-range: bytes {start}-{}/{}\r\n", end - 1, body.len());
            send(stream, "206 Partial Content", &head, &body[start..end], end - start);
        }
        Some(Fault::Trickle(pause)) => {
            send(stream, "200 OK", &about, &[], body.len());
            for byte in &body {
                if (&*stream).write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(pause);
            }
        }
        Some(Fault::IgnoreRange) => send(stream, "200 OK", &about, &body, body.len()),
        Some(Fault::Cut(length)) if start > 0 => {
            send(
                stream,
                "206 Partial Content",
                &partial,
                &body[start..(start + length).min(body.len())],
                body.len() - start,
            );
        }
        Some(Fault::Cut(length)) => send(stream, "200 OK", &about, &body[..length], body.len()),
        None if start >= body.len() && start > 0 => send(stream, "416 Range Not Satisfiable", "", &[], 0),
        None if start > 0 => {
            send(stream, "206 Partial Content", &partial, &body[start..], body.len() - start);
        }
        None => send(stream, "200 OK", &about, &body, body.len()),
    }
}

fn send(stream: &TcpStream, status: &str, headers: &str, body: &[u8], length: usize) {
    raw(
        stream,
        &format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"),
        body,
    );
}

fn raw(mut stream: &TcpStream, head: &str, body: &[u8]) {
    // The client may have gone: that is its own affair.
    let _ =
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
}
