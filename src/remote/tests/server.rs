//! A server of embeddings on 127.0.0.1 that fails on request: as often as reports, then no more.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// This status, with these header lines and this body.
    Status(u16, &'static str, &'static str),
    /// The connection ends without an answer.
    Hangup,
    /// The answer ends in its middle.
    Cut,
    /// This body instead of the vectors.
    Body(String),
    /// No answer while the server is held.
    Held,
}

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) authorization: Option<String>,
    pub(super) body: Value,
}

impl Asked {
    pub(super) fn texts(&self) -> Vec<&str> {
        self.body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    }
}

#[derive(Default)]
struct Script {
    faults: VecDeque<Fault>,
    asked: Vec<Asked>,
    knows_base64: bool,
    /// A request that holds this text is refused with this status.
    poison: Option<(&'static str, u16)>,
    /// This text's vector is this value.
    spoiled: Option<(&'static str, Value)>,
    /// More texts than this at a time are too large.
    most: usize,
    counts_tokens: bool,
}

struct Shared {
    script: Mutex<Script>,
    hold: Mutex<bool>,
    released: Condvar,
    connections: AtomicUsize,
    stop: AtomicBool,
}

/// The server; ends when dropped.
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Dimensions of its vectors.
pub(super) const WIDTH: usize = 3;

/// The vector of a text: its length, its first byte, and one.
pub(super) fn vector(text: &str) -> [f32; WIDTH] {
    [text.len() as f32, f32::from(text.bytes().next().unwrap_or(0)), 1.0]
}

impl Server {
    pub(super) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script =
            Script { knows_base64: true, most: usize::MAX, counts_tokens: true, ..Script::default() };
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            hold: Mutex::new(false),
            released: Condvar::new(),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    break;
                }
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (stream, shared) = (stream.unwrap(), Arc::clone(&serving));
                thread::spawn(move || while answer(&stream, &shared).is_some() {});
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap()
    }

    /// The next requests go wrong, once for each fault.
    pub(super) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.script().faults.extend(faults);
    }

    pub(super) fn refuse_base64(&self) {
        self.script().knows_base64 = false;
    }

    pub(super) fn refuse(&self, text: &'static str, status: u16) {
        self.script().poison = Some((text, status));
    }

    pub(super) fn spoil(&self, text: &'static str, embedding: Value) {
        self.script().spoiled = Some((text, embedding));
    }

    pub(super) fn take_at_most(&self, texts: usize) {
        self.script().most = texts;
    }

    pub(super) fn hide_tokens(&self) {
        self.script().counts_tokens = false;
    }

    /// From now on, no answers until [`Server::release`].
    pub(super) fn hold(&self) {
        *self.shared.hold.lock().unwrap() = true;
    }

    pub(super) fn release(&self) {
        *self.shared.hold.lock().unwrap() = false;
        self.shared.released.notify_all();
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.script().asked.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.release();
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers one request; `None` when the connection is to end.
fn answer(stream: &TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let asked = Asked { path, authorization, body: serde_json::from_slice(&body).ok()? };
    let fault = {
        let mut script = shared.script.lock().unwrap();
        script.asked.push(asked.clone());
        script.faults.pop_front()
    };
    let mut hold = shared.hold.lock().unwrap();
    while *hold {
        hold = shared.released.wait(hold).unwrap();
    }
    drop(hold);
    match fault {
        Some(Fault::Hangup) => return None,
        Some(Fault::Status(status, headers, body)) => return send(stream, status, headers, body, body.len()),
        Some(Fault::Body(body)) => return send(stream, 200, "", &body, body.len()),
        Some(Fault::Cut) => {
            send(stream, 200, "", "{\"data\":[", 5000);
            return None;
        }
        Some(Fault::Held) | None => {}
    }
    let (status, body) = vectors(&asked, &shared.script.lock().unwrap());
    send(stream, status, "", &body, body.len())
}

fn vectors(asked: &Asked, script: &Script) -> (u16, String) {
    let texts = asked.texts();
    let refusal = |status: u16, message: &str| (status, json!({"error": {"message": message}}).to_string());
    let base64 = asked.body["encoding_format"] == "base64";
    if base64 && !script.knows_base64 {
        return refusal(422, "encoding_format must be float");
    }
    if let Some((text, status)) = script.poison.filter(|(poison, _)| texts.contains(poison)) {
        return refusal(status, &format!("{text} is refused"));
    }
    if texts.len() > script.most {
        return refusal(413, "too much");
    }
    let tokens: Option<usize> =
        script.counts_tokens.then(|| texts.iter().map(|text| text.split(' ').count()).sum());
    let spoiled = |text: &str| {
        script.spoiled.as_ref().filter(|(spoiled, _)| *spoiled == text).map(|(_, value)| value.clone())
    };
    if asked.path.ends_with("/api/embed") {
        let embedding = |text: &str| spoiled(text).unwrap_or_else(|| json!(vector(text)));
        let vectors: Vec<_> = texts.iter().map(|text| embedding(text)).collect();
        return (200, json!({"embeddings": vectors, "prompt_eval_count": tokens}).to_string());
    }
    let embedding = |text: &str| {
        let vector = vector(text);
        spoiled(text).unwrap_or_else(|| if base64 { json!(base64_of(&vector)) } else { json!(vector) })
    };
    // Last first: the index counts, not the place.
    let data: Vec<_> = texts
        .iter()
        .enumerate()
        .rev()
        .map(|(index, text)| json!({"index": index, "embedding": embedding(text)}))
        .collect();
    (200, json!({"data": data, "usage": {"prompt_tokens": tokens}}).to_string())
}

/// A vector in base64.
pub(super) fn base64_of(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

fn send(mut stream: &TcpStream, status: u16, headers: &str, body: &str, length: usize) -> Option<()> {
    let answer = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).ok()
}
