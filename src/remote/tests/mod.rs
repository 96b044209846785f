//! The whole way of a text to a server and back, with a server that misbehaves.

mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use self::server::{Fault, Server, WIDTH, base64_of, vector};
use super::link::{Callers, Recovery};
use super::*;
use crate::batching::{Cancel, Chunk, ChunkOutput, Counters, Lane};
use crate::clock::Clock;
use crate::config::Host;
use crate::manager::{EmbedOptions, EmbeddingSpec, Manager, Retention, SourceSpec, Spec};
use crate::output::Output;
use crate::sync::StopFlag;
use crate::{Error, Result};

/// An environment in which the usual variable holds a key.
struct Keyed;

impl Host for Keyed {
    fn env(&self, name: &str) -> Option<String> {
        (name == KEY_VARIABLE).then(|| "sk-secret".to_owned())
    }

    fn package_dir(&self, _name: &str) -> Option<PathBuf> {
        None
    }
}

const SETTINGS: RemoteSettings =
    RemoteSettings { connections: 2, batch: 8, timeout: Duration::from_secs(20) };

fn link_with(source: &str, settings: RemoteSettings, clock: Clock) -> Link {
    let health = Arc::new(Health::new(clock));
    Link::new(&Address::parse(source).unwrap(), &Keyed, settings, health).unwrap()
}

fn openai(server: &Server) -> Link {
    link_with(&format!("openai+http://127.0.0.1:{}/org/model", server.port()), SETTINGS, Clock::System)
}

fn open(link: Link) -> RemoteEncoder {
    RemoteEncoder::open(link, &Arc::default(), &StopFlag::default()).unwrap()
}

/// One caller, who never pauses.
struct Alone;

impl Callers for Alone {
    fn pause(&mut self, _: Duration) -> bool {
        true
    }

    fn divisible(&self, _: Recovery) -> bool {
        false
    }
}

/// One request after the other, without pauses.
fn ask(link: &Link, texts: &[&str]) -> Result<Vec<f32>> {
    let answer = link.embed(texts, None, &mut Alone).map_err(|failure| failure.error)?;
    let rows: Result<Vec<_>, _> = answer.rows.into_iter().collect();
    rows.map(|rows| rows.concat()).map_err(|defect| link.defective(defect))
}

fn submit(encoder: &RemoteEncoder, texts: &[&str], cancel: &Cancel) -> Receiver<Result<ChunkOutput>> {
    let (sender, receiver) = channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    let chunk = Chunk::new(texts.len(), encoder.shape(), cancel.clone(), done, None, None).unwrap();
    encoder.submit(texts.iter().map(|text| Arc::from(*text)).collect(), &chunk, Lane::Interactive);
    receiver
}

fn values(found: &ChunkOutput) -> Vec<f32> {
    let Output::Dense(vectors) = &found.output else { panic!() };
    vectors.values().to_vec()
}

fn expected(texts: &[&str]) -> Vec<f32> {
    texts.iter().flat_map(|text| vector(text)).collect()
}

/// Has every connection busy with a request that the server does not answer before it is released.
fn occupy(server: &Server, encoder: &RemoteEncoder) -> Vec<Receiver<Result<ChunkOutput>>> {
    server.hold();
    let before = server.asked().len();
    let busy: Vec<_> = (0..SETTINGS.connections)
        .map(|number| {
            let receiver = submit(encoder, &[&format!("busy {number}")], &Cancel::default());
            while server.asked().len() <= before + number {
                thread::yield_now();
            }
            receiver
        })
        .collect();
    busy
}

#[test]
fn both_protocols_bring_the_same_vectors() {
    let server = Server::new();
    let texts = ["one", "two three", "", "dört"];
    for scheme in ["ollama", "openai+http"] {
        let link =
            link_with(&format!("{scheme}://127.0.0.1:{}/org/m:1", server.port()), SETTINGS, Clock::System);
        let encoder = open(link);
        assert_eq!(encoder.shape().width(), WIDTH);
        let rows = submit(&encoder, &texts, &Cancel::default()).recv().unwrap().unwrap();
        assert_eq!(values(&rows), expected(&texts), "{scheme}");
        assert_eq!(rows.tokens.iter().sum::<u32>(), 5, "{scheme}");
    }
    let asked = server.asked();
    let paths: Vec<_> = asked.iter().map(|asked| asked.path.as_str()).collect();
    assert_eq!(paths, ["/api/embed", "/api/embed", "/v1/embeddings", "/v1/embeddings"]);
    assert!(asked.iter().all(|asked| asked.body["model"] == "org/m:1"));
    let keys: Vec<_> = asked.iter().map(|asked| asked.authorization.as_deref()).collect();
    assert_eq!(keys, [None, None, Some("Bearer sk-secret"), Some("Bearer sk-secret")]);
}

#[test]
fn a_server_without_base64_is_asked_for_numbers_from_then_on() {
    let server = Server::new();
    server.refuse_base64();
    let link = openai(&server);
    for _ in 0..2 {
        assert_eq!(ask(&link, &["a"]), Ok(expected(&["a"])));
    }
    let forms: Vec<_> = server
        .asked()
        .iter()
        .map(|asked| asked.body["encoding_format"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(forms, ["base64", "float", "float"]);
}

#[test]
fn a_busy_server_without_base64_is_asked_again() {
    let server = Server::new();
    server.refuse_base64();
    let link = openai(&server);
    for busy in [
        Fault::Status(429, "retry-after: 0\r\n", ""),
        Fault::Status(503, "", ""),
        Fault::Status(500, "", ""),
        Fault::Hangup,
    ] {
        let link = openai(&server);
        let before = server.asked().len();
        server.fail([Fault::Held, busy.clone()]);
        assert_eq!(ask(&link, &["a"]), Ok(expected(&["a"])), "{busy:?}");
        let asked = server.asked().split_off(before);
        let forms: Vec<_> =
            asked.iter().map(|asked| asked.body["encoding_format"].as_str().unwrap()).collect();
        assert_eq!(forms, ["base64", "float", "base64", "float"], "{busy:?}");
    }
    // Both forms refused: the text is to blame.
    server.fail([Fault::Held, Fault::Status(400, "", "too long")]);
    assert!(matches!(ask(&link, &["a"]), Err(Error::Input(reason)) if reason.contains("must be float")));
}

#[test]
fn transient_failures_are_tried_again() {
    let server = Server::new();
    let link = openai(&server);
    for fault in [
        Fault::Status(503, "", ""),
        Fault::Status(429, "retry-after: 0\r\n", ""),
        Fault::Status(500, "retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", ""),
        Fault::Hangup,
        Fault::Cut,
    ] {
        let before = link.health().report();
        server.fail([fault.clone(), fault.clone()]);
        assert_eq!(ask(&link, &["a"]), Ok(expected(&["a"])), "{fault:?}");
        let after = link.health().report();
        assert_eq!((after.requests - before.requests, after.retries - before.retries), (3, 2), "{fault:?}");
    }
    assert_eq!(link.health().report().errors, 0);
}

#[test]
fn permanent_failures_are_reported_at_once_with_their_remedy() {
    let server = Server::new();
    let link = openai(&server);
    assert!(ask(&link, &["a"]).is_ok());
    let huge = format!("{{\"data\":[],\"x\":\"{}\"}}", "x".repeat(2 << 20));
    for (fault, word) in [
        (Fault::Status(401, "", r#"{"error":{"message":"bad key sk-secret"}}"#), "renew the key in"),
        (Fault::Status(404, "", r#"{"error":"model not found"}"#), "check the model's name, \"org/model\""),
        (Fault::Status(400, "", r#"{"error":{"message":"too long"}}"#), "too long"),
        (Fault::Status(418, "", ""), "418"),
        (Fault::Status(302, "location: http://127.0.0.1:9/x\r\n", ""), "redirects to http://127.0.0.1:9/x"),
        (Fault::Status(429, "retry-after: 3600\r\n", ""), "left alone for 3600 s"),
        (Fault::Body("<html>".into()), "not what it should be"),
        (Fault::Body(r#"{"error":{"message":"overloaded"}}"#.into()), "it answers \"overloaded\""),
        (Fault::Body(r#"{"data":[]}"#.into()), "0 vectors for 1 texts"),
        (Fault::Body(r#"{"data":[{"embedding":[1e39]}]}"#.into()), "not finite"),
        (Fault::Body(huge), "longer than"),
    ] {
        let before = link.health().report();
        server.fail([fault.clone()]);
        let error = ask(&link, &["a"]).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("secret"), "{fault:?}: {error}");
        let after = link.health().report();
        let counted = (after.requests - before.requests, after.retries - before.retries);
        assert_eq!((counted, after.errors - before.errors), ((1, 0), 1), "{fault:?}");
        assert!(ask(&link, &["a"]).is_ok());
    }
}

#[test]
fn the_remedy_is_that_of_the_failure() {
    let asks = "retry-after: 0\r\n";
    for (status, header, remedy) in
        [(429, asks, "lower remote_connections"), (500, "", "Its log may say why")]
    {
        let server = Server::new();
        let link = link_with(&format!("ollama://127.0.0.1:{}/m", server.port()), SETTINGS, Clock::manual());
        server.fail(vec![Fault::Status(status, header, ""); 4]);
        let error = ask(&link, &["a"]).unwrap_err().to_string();
        assert!(error.contains(remedy) && !error.contains("can be reached"), "{status}: {error}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let port = Server::new().port();
    let link = link_with(&format!("ollama://127.0.0.1:{port}/m"), SETTINGS, Clock::manual());
    let error = ask(&link, &["a"]).unwrap_err();
    assert!(matches!(&error, Error::Remote { server, .. } if server.contains(&port.to_string())), "{error}");
    assert!(error.to_string().contains("4 times in a row"), "{error}");
    // The fifth failure opens the circuit, and what follows is not even tried.
    let error = ask(&link, &["a"]).unwrap_err().to_string();
    assert!(error.contains("tried again in 5.0 s"), "{error}");
    let before = link.health().report();
    assert!(matches!(before.circuit, Circuit::Open(_)));
    assert!(ask(&link, &["a"]).is_err());
    assert_eq!(link.health().report().requests, before.requests);
}

#[test]
fn a_server_that_comes_back_is_found_by_one_request() {
    let (server, clock) = (Server::new(), Clock::manual());
    let link = link_with(&format!("ollama://127.0.0.1:{}/m", server.port()), SETTINGS, clock.clone());
    server.fail(vec![Fault::Status(503, "", ""); 5]);
    assert!(ask(&link, &["a"]).is_err());
    assert!(ask(&link, &["a"]).is_err());
    assert_eq!(server.asked().len(), 5);
    clock.advance(Duration::from_secs(5));
    assert_eq!(link.health().report().circuit, Circuit::HalfOpen);
    assert_eq!(ask(&link, &["a"]), Ok(expected(&["a"])));
    assert_eq!((server.asked().len(), link.health().report().circuit), (6, Circuit::Closed));
}

#[test]
fn a_text_that_the_server_fails_at_shuts_out_no_others() {
    for status in [500, 424, 200] {
        for scheme in ["ollama", "openai+http"] {
            let server = Server::new();
            server.refuse("poison", status);
            let source = format!("{scheme}://127.0.0.1:{}/m", server.port());
            let link = link_with(&source, SETTINGS, Clock::manual());
            for _ in 0..7 {
                let error = ask(&link, &["poison"]).unwrap_err().to_string();
                assert!(!error.contains("left alone"), "{status}: {error}");
                assert_eq!(link.health().report().circuit, Circuit::Closed, "{status}");
            }
            assert_eq!(ask(&link, &["good"]), Ok(expected(&["good"])));
        }
    }
}

#[test]
fn a_server_that_fails_at_every_text_is_left_alone() {
    for fault in [Fault::Status(500, "", ""), Fault::Body("<html>".into())] {
        let (server, clock) = (Server::new(), Clock::manual());
        let link = link_with(&format!("ollama://127.0.0.1:{}/m", server.port()), SETTINGS, clock.clone());
        server.fail(vec![fault.clone(); 8]);
        while link.health().report().circuit == Circuit::Closed {
            assert!(server.asked().len() < 6, "{fault:?}");
            assert!(ask(&link, &["a"]).is_err());
        }
        let texts = |server: &Server| server.asked().iter().map(|asked| asked.texts().join(" ")).collect();
        let asked: Vec<String> = texts(&server);
        assert_eq!(asked, ["a", "a", "a", "a", "a", "hello"], "{fault:?}");
        assert!(ask(&link, &["a"]).unwrap_err().to_string().contains("tried again in 5.0 s"), "{fault:?}");
        // So does the one request that finds out whether it works again.
        clock.advance(Duration::from_secs(5));
        assert!(ask(&link, &["a"]).is_err());
        let asked: Vec<String> = texts(&server);
        assert_eq!(asked[6..], ["a", "hello"], "{fault:?}");
        assert!(matches!(link.health().report().circuit, Circuit::Open(left) if left.as_secs() == 10));
    }
}

#[test]
fn a_request_takes_no_longer_than_it_may() {
    let server = Server::new();
    let settings = RemoteSettings { timeout: Duration::from_millis(50), ..SETTINGS };
    let link = link_with(&format!("ollama://127.0.0.1:{}/m", server.port()), settings, Clock::System);
    server.hold();
    let error = ask(&link, &["a"]).unwrap_err().to_string();
    assert!(error.contains("no answer within 0.05 s") && error.contains("remote_timeout"), "{error}");
}

#[test]
fn what_arrives_during_requests_becomes_few_requests() {
    let server = Server::new();
    let encoder = open(openai(&server));
    let busy = occupy(&server, &encoder);
    let texts: Vec<String> = (0..20).map(|number| format!("text {number}")).collect();
    let replies: Vec<_> =
        texts.iter().map(|text| submit(&encoder, &[text, "common"], &Cancel::default())).collect();
    let before = server.asked().len();
    server.release();
    for (text, reply) in texts.iter().zip(replies) {
        assert_eq!(values(&reply.recv().unwrap().unwrap()), expected(&[text, "common"]));
    }
    busy.into_iter().for_each(|busy| drop(busy.recv().unwrap().unwrap()));
    // 21 different texts, 8 a request.
    assert_eq!(server.asked().len() - before, 3);
    // One connection for each thread, and the one of the probe, which a thread goes on with.
    assert!(server.connections() <= SETTINGS.connections, "{}", server.connections());
}

#[test]
fn cancelled_texts_are_not_sent() {
    let server = Server::new();
    let encoder = open(openai(&server));
    let busy = occupy(&server, &encoder);
    let cancel = Cancel::default();
    let _cancelled = submit(&encoder, &["unwanted"], &cancel);
    cancel.cancel();
    let fine = submit(&encoder, &["wanted"], &Cancel::default());
    server.release();
    fine.recv().unwrap().unwrap();
    busy.into_iter().for_each(|busy| drop(busy.recv().unwrap().unwrap()));
    assert!(server.asked().iter().all(|asked| !asked.texts().contains(&"unwanted")));
}

#[test]
fn a_text_given_up_during_a_pause_is_not_sent_again() {
    let server = Server::new();
    let counters: Arc<Counters> = Arc::default();
    let encoder = RemoteEncoder::open(openai(&server), &counters, &StopFlag::default()).unwrap();
    let before = server.asked().len();
    server.fail([Fault::Status(503, "", "")]);
    let cancel = Cancel::default();
    let _cancelled = submit(&encoder, &["unwanted"], &cancel);
    while server.asked().len() == before {
        thread::yield_now();
    }
    cancel.cancel();
    let deadline = Instant::now() + Duration::from_secs(20);
    while counters.work().abandoned == 0 {
        assert!(Instant::now() < deadline, "it was not dropped");
        thread::yield_now();
    }
    assert_eq!(server.asked().len(), before + 1);
    assert_eq!(counters.work().failed, 0);
    // Nothing is left of it that a later caller would wait for.
    let again = submit(&encoder, &["unwanted"], &Cancel::default());
    let again = again.recv_timeout(Duration::from_secs(20)).expect("it is sent again");
    assert_eq!(values(&again.unwrap()), expected(&["unwanted"]));
    let work = counters.work();
    assert_eq!((work.batches, work.sequences, work.abandoned, work.failed), (1, 1, 1, 0));
}

#[test]
fn a_refused_text_fails_its_own_caller_only() {
    let server = Server::new();
    let encoder = open(openai(&server));
    let busy = occupy(&server, &encoder);
    server.refuse("poison", 400);
    let poisoned = submit(&encoder, &["harmless", "poison"], &Cancel::default());
    let fine: Vec<_> = ["a", "b", "c"].map(|text| submit(&encoder, &[text], &Cancel::default())).into();
    server.release();
    let error = poisoned.recv().unwrap().unwrap_err();
    assert!(matches!(&error, Error::Input(reason) if reason.contains("poison is refused")), "{error}");
    for (text, reply) in ["a", "b", "c"].iter().zip(fine) {
        assert_eq!(values(&reply.recv().unwrap().unwrap()), expected(&[text]));
    }
    busy.into_iter().for_each(|busy| drop(busy.recv().unwrap().unwrap()));
}

#[test]
fn a_text_that_the_server_fails_at_fails_its_own_caller_only() {
    // The last: an answer that is none as a whole.
    for status in [500, 424, 200] {
        let server = Server::new();
        let encoder = open(openai(&server));
        let busy = occupy(&server, &encoder);
        server.refuse("poison", status);
        let poisoned = submit(&encoder, &["harmless", "poison"], &Cancel::default());
        let fine: Vec<_> = ["a", "b", "c"].map(|text| submit(&encoder, &[text], &Cancel::default())).into();
        server.release();
        for (text, reply) in ["a", "b", "c"].iter().zip(fine) {
            assert_eq!(values(&reply.recv().unwrap().unwrap()), expected(&[text]), "{status}");
        }
        let error = poisoned.recv().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Remote { .. }), "{status}: {error}");
        busy.into_iter().for_each(|busy| drop(busy.recv().unwrap().unwrap()));
        // Failures that were divided are none of a caller.
        assert_eq!(encoder.link().health().report().errors, 1, "{status}");
    }
}

#[test]
fn a_bad_row_fails_its_own_caller_only() {
    let nan = json!(base64_of(&[f32::NAN, 1.0, 1.0]));
    let infinite = json!([1e39, 1.0, 1.0]);
    let not_finite = [nan, infinite, json!([null, 1.0, 1.0])];
    let malformed = [json!(null), json!([]), json!("???"), json!({"a": 1})];
    for bad in not_finite.iter().cloned().chain(malformed) {
        let server = Server::new();
        let encoder = open(openai(&server));
        let busy = occupy(&server, &encoder);
        server.spoil("bad", bad.clone());
        let spoiled = submit(&encoder, &["harmless", "bad"], &Cancel::default());
        let fine: Vec<_> =
            ["a", "harmless", "c"].map(|text| submit(&encoder, &[text], &Cancel::default())).into();
        let before = server.asked().len();
        server.release();
        for (text, reply) in ["a", "harmless", "c"].iter().zip(fine) {
            assert_eq!(values(&reply.recv().unwrap().unwrap()), expected(&[text]), "{bad}");
        }
        let error = spoiled.recv().unwrap().unwrap_err();
        if not_finite.contains(&bad) {
            assert!(matches!(error, Error::NotFinite { .. }), "{bad}: {error}");
            assert!(error.to_string().contains("a model of a server"), "{error}");
        } else {
            assert!(matches!(error, Error::Remote { .. }), "{bad}: {error}");
        }
        busy.into_iter().for_each(|busy| drop(busy.recv().unwrap().unwrap()));
        let report = encoder.link().health().report();
        // Nothing was sent again.
        assert_eq!((server.asked().len() - before, report.errors, report.circuit), (1, 1, Circuit::Closed));
    }
}

#[test]
fn a_first_vector_that_is_none_fails_the_load() {
    for (bad, word) in [(json!([1e39, 1.0, 1.0]), "not finite"), (json!([]), "without dimensions")] {
        let server = Server::new();
        server.spoil("hello", bad);
        let opened = RemoteEncoder::open(openai(&server), &Arc::default(), &StopFlag::default());
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn one_callers_texts_are_refused_by_one_request() {
    let server = Server::new();
    let encoder = open(openai(&server));
    server.refuse("poison", 400);
    let before = server.asked().len();
    assert!(submit(&encoder, &["a", "b", "c", "poison"], &Cancel::default()).recv().unwrap().is_err());
    assert_eq!(server.asked().len() - before, 1);
}

#[test]
fn requests_that_are_too_large_become_smaller() {
    let server = Server::new();
    let encoder = open(openai(&server));
    server.take_at_most(2);
    let texts = ["a", "bb", "ccc", "dddd", "eeeee"];
    let rows = submit(&encoder, &texts, &Cancel::default()).recv().unwrap().unwrap();
    assert_eq!(values(&rows), expected(&texts));
}

#[test]
fn a_failing_batch_spares_the_others() {
    let server = Server::new();
    let link = openai(&server);
    let encoder = open(link);
    server.fail([Fault::Body("{}".into())]);
    let error = submit(&encoder, &["first"], &Cancel::default()).recv().unwrap().unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    let rows = submit(&encoder, &["second"], &Cancel::default()).recv().unwrap().unwrap();
    assert_eq!(values(&rows), expected(&["second"]));
}

#[test]
fn a_model_that_was_replaced_by_one_of_other_dimensions_is_noticed() {
    let server = Server::new();
    let encoder = open(openai(&server));
    server.fail([Fault::Body(r#"{"data":[{"embedding":[1,2]}]}"#.into())]);
    let error = submit(&encoder, &["a"], &Cancel::default()).recv().unwrap().unwrap_err().to_string();
    assert!(error.contains("2 dimensions now, not 3"), "{error}");
}

#[test]
fn tokens_that_nobody_counted_are_none() {
    let server = Server::new();
    server.hide_tokens();
    let encoder = open(openai(&server));
    let rows = submit(&encoder, &["a b", "c"], &Cancel::default()).recv().unwrap().unwrap();
    assert_eq!(rows.tokens, [0, 0]);
}

#[test]
fn dropping_it_ends_at_once_and_fails_whoever_waits() {
    let server = Server::new();
    let encoder = open(openai(&server));
    let busy = occupy(&server, &encoder);
    let waiting = submit(&encoder, &["waiting"], &Cancel::default());
    drop(encoder);
    for reply in busy.into_iter().chain([waiting]) {
        assert_eq!(reply.recv().unwrap(), Err(Error::Closed));
    }
}

#[test]
fn dropping_it_ends_a_pause_between_attempts() {
    let server = Server::new();
    // Often: the thread may wake before or after the callers have been taken from it.
    for _ in 0..40 {
        let encoder = open(openai(&server));
        server.fail([Fault::Status(503, "retry-after: 25\r\n", "")]);
        let before = server.asked().len();
        let waiting = submit(&encoder, &["a"], &Cancel::default());
        while server.asked().len() == before {
            thread::yield_now();
        }
        drop(encoder);
        assert_eq!(waiting.recv().unwrap(), Err(Error::Closed));
        assert_eq!(server.asked().len(), before + 1);
    }
}

#[test]
fn closing_a_manager_ends_a_load_that_pauses() {
    let (server, second) = (Server::new(), Server::new());
    server.fail(vec![Fault::Status(429, "retry-after: 25\r\n", ""); 4]);
    let source = |server: &Server| format!("openai+http://127.0.0.1:{}/org/model", server.port());
    let spec = EmbeddingSpec {
        fallback: vec![source(&second)],
        ..EmbeddingSpec::new(SourceSpec::Fixed(source(&server)))
    };
    let manager = Arc::new(Manager::from_environment(vec![], Arc::new(Keyed)).unwrap());
    manager.register("remote", Spec::Embedding(spec), Retention::default(), false).unwrap();
    let (sender, receiver) = channel();
    let calling = Arc::clone(&manager);
    let call = thread::spawn(move || {
        let options = EmbedOptions { model: Some("remote".into()), ..EmbedOptions::default() };
        let result = calling.embed(vec!["a".to_owned()], options, &mut || Ok(()), &mut |_, _| Ok(()));
        sender.send(result.map(drop)).unwrap();
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.asked().is_empty() {
        assert!(Instant::now() < deadline, "it was not asked");
        thread::yield_now();
    }
    manager.close();
    // Less than the pause.
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(Err(Error::Closed)));
    call.join().unwrap();
    assert_eq!((server.asked().len(), second.asked().len()), (1, 0));
}

#[test]
fn racing_callers_all_get_their_own_rows() {
    let server = Server::new();
    let counters: Arc<Counters> = Arc::default();
    let encoder = RemoteEncoder::open(openai(&server), &counters, &StopFlag::default()).unwrap();
    server.fail((0..10).flat_map(|_| [Fault::Held, Fault::Held, Fault::Hangup]));
    thread::scope(|scope| {
        for caller in 0..8 {
            let encoder = &encoder;
            scope.spawn(move || {
                for step in 0..20 {
                    let own = format!("{caller} {step}");
                    let rows =
                        submit(encoder, &[&own, "common"], &Cancel::default()).recv().unwrap().unwrap();
                    assert_eq!(values(&rows), expected(&[&own, "common"]));
                }
            });
        }
    });
    assert_eq!((encoder.waiting(), counters.work().failed), (0, 0));
}
