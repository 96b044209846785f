//! The manager over the committed tiny models: routing, loading once, cache, faults, the end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail where it stands")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use model_manager::config::{DTypeChoice, Host, SettingValue};
use model_manager::lifecycle::KeepAlive;
use model_manager::manager::{
    ENGLISH, EmbedOptions, EmbeddingSpec, Embeddings, Manager, Retention, SourceSpec, Spec, TURKISH,
};
use model_manager::output::Output;
use model_manager::wire::Encoding;
use model_manager::{Error, Result};
use serde::Deserialize;

/// A host whose environment the test writes.
#[derive(Default)]
struct Fake(Mutex<BTreeMap<String, String>>);

impl Host for Fake {
    fn env(&self, name: &str) -> Option<String> {
        self.0.lock().unwrap().get(name).cloned()
    }

    fn package_dir(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().unwrap().to_owned()
}

fn reference(name: &str) -> Vec<Case> {
    let file = std::fs::read_to_string(Path::new(&fixture(name)).join("reference.json")).unwrap();
    serde_json::from_str::<Reference>(&file).unwrap().cases
}

fn text(value: impl Into<String>) -> SettingValue {
    SettingValue::Text(value.into())
}

/// A manager in f32: Turkish texts to `xlmr`, others to `bert_wordpiece`, with further settings.
fn manager(settings: Vec<(&str, SettingValue)>) -> Manager {
    let mut keywords = vec![
        ("dtype".to_owned(), text("float32")),
        ("turkish_model".to_owned(), text(fixture("xlmr"))),
        ("english_model".to_owned(), text(fixture("bert_wordpiece"))),
    ];
    keywords.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Manager::from_environment(keywords, Arc::new(Fake::default())).unwrap()
}

fn to(model: &str) -> EmbedOptions {
    EmbedOptions { model: Some(model.into()), normalize: false, ..EmbedOptions::default() }
}

/// Vectors, as the rows of a matrix.
#[derive(Debug, PartialEq)]
struct Matrix {
    values: Vec<f32>,
    rows: usize,
    width: usize,
    tokens: u64,
}

fn matrix(embeddings: Embeddings) -> Matrix {
    let Embeddings { output: Output::Dense(vectors), tokens, .. } = embeddings else { panic!() };
    let (rows, width) = (vectors.rows(), vectors.width());
    Matrix { values: vectors.into_values(), rows, width, tokens }
}

fn embed(manager: &Manager, texts: &[&str], options: EmbedOptions) -> Result<Matrix> {
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    manager.embed(texts, options, &mut || Ok(()), &mut |_, _| Ok(())).map(matrix)
}

fn source(path: String) -> Spec {
    let spec = EmbeddingSpec { dtype: DTypeChoice::Float32, ..EmbeddingSpec::new(SourceSpec::Fixed(path)) };
    Spec::Embedding(spec)
}

fn state(manager: &Manager, name: &str) -> &'static str {
    manager.statistics().unwrap().slots.iter().find(|slot| slot.name == name).unwrap().state
}

#[test]
fn each_text_goes_to_the_model_of_its_language() {
    let manager = manager(vec![]);
    assert_eq!(state(&manager, TURKISH), "absent");
    let (turkish, english) = ("bugün üretim nasıl?", "how is production today?");
    assert_eq!((manager.route(turkish).unwrap(), manager.route(english).unwrap()), (TURKISH, ENGLISH));
    let options = EmbedOptions { normalize: false, ..EmbedOptions::default() };
    // The tiny models have different dimensions: one array cannot hold both.
    let mixed = embed(&manager, &[turkish, english], options.clone());
    let alone = embed(&manager, &[turkish], options.clone()).unwrap();
    assert_eq!(alone, embed(&manager, &[turkish], to(TURKISH)).unwrap());
    let other = embed(&manager, &[english], options).unwrap();
    assert_eq!(other, embed(&manager, &[english], to(ENGLISH)).unwrap());
    match mixed {
        Ok(both) => assert_eq!(both.values, [alone.values, other.values].concat()),
        Err(error) => assert!(alone.width != other.width && error.to_string().contains("model=")),
    }
}

#[test]
fn vectors_are_those_of_sentence_transformers_alone_and_together() {
    let manager = manager(vec![("cache_size", SettingValue::Int(0))]);
    for (name, slot) in [("xlmr", TURKISH), ("bert_wordpiece", ENGLISH)] {
        let cases = reference(name);
        let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
        let together = embed(&manager, &texts, to(slot)).unwrap();
        for (case, row) in cases.iter().zip(together.values.chunks_exact(together.width)) {
            let worst = row.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 && row.len() == case.embedding.len(), "{name}: {worst:e}: {:?}", case.text);
            let alone = embed(&manager, &[&case.text], to(slot)).unwrap();
            assert_eq!(alone.values, row, "{name}: {:?} depends on its batch mates", case.text);
        }
    }
}

#[test]
fn racing_callers_share_one_load_and_names_with_the_same_files_one_model() {
    let manager = manager(vec![("cache_size", SettingValue::Int(0))]);
    manager.register("again", source(fixture("bert_wordpiece")), Retention::default(), false).unwrap();
    let barrier = Barrier::new(16);
    let expected = reference("bert_wordpiece")[0].embedding.clone();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (manager, barrier, expected) = (&manager, &barrier, &expected);
            scope.spawn(move || {
                barrier.wait();
                let name = if thread % 2 == 0 { ENGLISH } else { "again" };
                let text = reference("bert_wordpiece")[0].text.clone();
                let vector = embed(manager, &[&text], to(name)).unwrap().values;
                assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5));
            });
        }
    });
    let statistics = manager.statistics().unwrap();
    assert_eq!(statistics.tracker.load_counts[ENGLISH], 1);
    assert_eq!(statistics.tracker.load_counts["again"], 1);
    let bytes = statistics.slots.iter().find(|slot| slot.name == ENGLISH).unwrap().bytes;
    assert_eq!(statistics.models, bytes, "counted once, because it is there once");
}

#[test]
fn the_cache_answers_while_the_model_is_absent() {
    let manager = manager(vec![]);
    let first = embed(&manager, &["hello"], to(ENGLISH)).unwrap();
    assert!(manager.unload(ENGLISH).unwrap());
    assert_eq!(embed(&manager, &["hello"], to(ENGLISH)).unwrap(), first);
    assert_eq!(state(&manager, ENGLISH), "absent");
    // Whatever changes the vector is another entry.
    let normalized = embed(&manager, &["hello"], EmbedOptions { normalize: true, ..to(ENGLISH) }).unwrap();
    let short = embed(&manager, &["hello"], EmbedOptions { truncate_dim: Some(4), ..to(ENGLISH) }).unwrap();
    let prompted = EmbedOptions { prompt: Some("query: ".into()), ..to(ENGLISH) };
    let prompted = embed(&manager, &["hello"], prompted).unwrap();
    assert_eq!(short.values, first.values[..4]);
    assert_ne!(prompted, first);
    assert_eq!(normalized.width, first.width);
    let cache = manager.cache_statistics().unwrap();
    assert_eq!((cache.counts.hits, cache.counts.misses, cache.entries), (1, 4, 4));
}

#[test]
fn ids_have_the_vectors_of_their_texts_and_entries_of_their_own() {
    let manager = manager(vec![]);
    let cases = reference("bert_wordpiece");
    let ids: Vec<Vec<u32>> = cases.iter().map(|case| case.ids.clone()).collect();
    let embed_ids =
        || manager.embed(ids.clone(), to(ENGLISH), &mut || Ok(()), &mut |_, _| Ok(())).map(matrix);
    let by_ids = embed_ids().unwrap();
    assert_eq!(by_ids.tokens, ids.iter().map(|ids| ids.len() as u64).sum::<u64>());
    assert!(manager.unload(ENGLISH).unwrap());
    assert_eq!(embed_ids().unwrap(), by_ids);
    assert_eq!(state(&manager, ENGLISH), "absent");
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let hits = manager.cache_statistics().unwrap().counts.hits;
    assert_eq!(embed(&manager, &texts, to(ENGLISH)).unwrap(), by_ids);
    assert_eq!(manager.cache_statistics().unwrap().counts.hits, hits, "a text is not its ids");
}

#[test]
fn a_response_is_written_at_once_or_in_pieces_and_counts_its_tokens() {
    let manager = manager(vec![("cache_size", SettingValue::Int(10_000))]);
    let options = EmbedOptions { normalize: true, ..to(ENGLISH) };
    let respond = |texts: &[String]| {
        let (sender, receiver) = mpsc::channel();
        let on_body = Box::new(move |body| sender.send((body, std::thread::current().id())).unwrap());
        let options = options.clone();
        let ticket =
            manager.submit_response(texts.to_vec(), options, "m".into(), Encoding::Float, on_body).unwrap();
        let (body, thread) = receiver.recv().unwrap();
        assert!(ticket.is_done() && !ticket.cancel());
        (body.unwrap(), thread)
    };
    // One row more than fits a piece, and two pieces that are full.
    for rows in [1, 2048, 2049, 4096] {
        let texts: Vec<String> = (0..rows).map(|n| format!("text number {n}")).collect();
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vectors = embed(&manager, &refs, options.clone()).unwrap();
        let ((body, tokens), thread) = respond(&texts);
        assert_eq!(thread == std::thread::current().id(), vectors.values.len() <= 1 << 16);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let items = body["data"].as_array().unwrap();
        let values = items.iter().flat_map(|item| item["embedding"].as_array().unwrap());
        assert!(values.map(|value| value.as_f64().unwrap() as f32).eq(vectors.values.iter().copied()));
        assert_eq!((items.len(), tokens), (rows, vectors.tokens));
        assert_eq!(body["usage"]["prompt_tokens"], tokens);
    }
}

#[test]
fn no_texts_have_the_shape_of_the_model() {
    let manager = manager(vec![]);
    let none = embed(&manager, &[], to(ENGLISH)).unwrap();
    let one = embed(&manager, &["a"], to(ENGLISH)).unwrap();
    assert_eq!((none.rows, none.width, none.values.len()), (0, one.width, 0));
}

#[test]
fn a_long_list_is_embedded_piece_by_piece_and_its_progress_reported() {
    let manager = manager(vec![("cache_size", SettingValue::Int(0))]);
    let texts: Vec<String> = (0..3000).map(|n| format!("text number {n}, which is like no other")).collect();
    let mut reports = Vec::new();
    let mut progress = |done, all| {
        reports.push((done, all));
        Ok(())
    };
    let all = matrix(manager.embed(texts.clone(), to(ENGLISH), &mut || Ok(()), &mut progress).unwrap());
    assert_eq!(all.rows, 3000);
    assert!(
        reports.windows(2).all(|pair| pair[0].0 < pair[1].0) && reports.last() == Some(&(3000, 3000)),
        "{reports:?}"
    );
    for number in [0, 1234, 2999] {
        let alone = embed(&manager, &[&texts[number]], to(ENGLISH)).unwrap();
        assert_eq!(alone.values, all.values[number * all.width..][..all.width]);
    }
    assert_eq!(manager.statistics().unwrap().queue.queued, 0);
}

#[test]
fn an_interrupt_ends_the_wait_and_leaves_nothing_behind() {
    let manager = manager(vec![("cache_size", SettingValue::Int(0))]);
    let texts: Vec<String> = (0..3000).map(|n| format!("text number {n}")).collect();
    let stop = |done, _| if done > 0 { Err(Error::Cancelled) } else { Ok(()) };
    let mut stop = stop;
    let result = manager.embed(texts, to(ENGLISH), &mut || Ok(()), &mut stop);
    assert_eq!(result, Err(Error::Cancelled));
    assert_eq!(manager.statistics().unwrap().queue.queued, 0);
    assert_eq!(embed(&manager, &["still works"], to(ENGLISH)).unwrap().rows, 1);
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let manager = manager(vec![("max_queue", SettingValue::Int(1)), ("cache_size", SettingValue::Int(0))]);
    let release = Arc::new(Barrier::new(2));
    let gate = Arc::clone(&release);
    // While its loader waits, a slot has a waiting text.
    manager
        .register(
            "slow",
            Spec::Object(Arc::new(move || {
                gate.wait();
                Ok(Arc::new(7_i32))
            })),
            Retention::default(),
            false,
        )
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    let on_done = Box::new(move |result| sender.send(result).unwrap());
    let _ticket = manager.submit(vec!["first".to_owned()], to("slow"), on_done).unwrap();
    let refused = manager.submit(vec!["second".to_owned()], to("slow"), Box::new(|_| ()));
    assert!(matches!(refused.err(), Some(Error::Overloaded { queued: 1, limit: 1, .. })));
    release.wait();
    // An object of the host's is no embedding model; its caller is reports, and the place is free again.
    assert!(matches!(receiver.recv().unwrap(), Err(Error::Task { .. })));
    assert_eq!(manager.statistics().unwrap().queue.queued, 0);
    assert_eq!(manager.statistics().unwrap().queue.rejected, 1);
}

#[test]
fn a_timeout_ends_the_wait_but_not_the_load() {
    let manager = manager(vec![]);
    let release = Arc::new(Barrier::new(2));
    let gate = Arc::clone(&release);
    let loader = Arc::new(move || {
        gate.wait();
        Ok(Arc::new("object") as Arc<dyn std::any::Any + Send + Sync>)
    });
    manager.register("slow", Spec::Object(loader), Retention::default(), false).unwrap();
    let timeout = Some(Duration::from_millis(20));
    let late = manager.load("slow", timeout, &mut || Ok(()));
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    let (sender, receiver) = mpsc::channel();
    let options = EmbedOptions { timeout, ..to("slow") };
    let on_done = Box::new(move |result| sender.send(result).unwrap());
    let _ticket = manager.submit(vec!["text".to_owned()], options, on_done).unwrap();
    assert!(matches!(receiver.recv().unwrap(), Err(Error::Timeout { .. })));
    release.wait();
    manager.load("slow", None, &mut || Ok(())).unwrap();
    assert!(manager.is_loaded("slow").unwrap());
}

#[test]
fn a_cancelled_request_calls_no_callback() {
    let manager = manager(vec![]);
    let release = Arc::new(Barrier::new(2));
    let gate = Arc::clone(&release);
    let loader = Arc::new(move || {
        gate.wait();
        Ok(Arc::new(()) as Arc<dyn std::any::Any + Send + Sync>)
    });
    manager.register("slow", Spec::Object(loader), Retention::default(), false).unwrap();
    let reports = Arc::new(AtomicBool::new(false));
    let report = Arc::clone(&reports);
    let on_done = Box::new(move |_| report.store(true, Ordering::Release));
    let ticket = manager.submit(vec!["text".to_owned()], to("slow"), on_done).unwrap();
    assert!(ticket.cancel() && ticket.is_done());
    release.wait();
    manager.load("slow", None, &mut || Ok(())).unwrap();
    manager.close();
    assert!(!reports.load(Ordering::Acquire));
}

#[test]
fn a_source_that_fails_is_followed_by_its_fallback_and_the_first_error_is_reported() {
    let manager = manager(vec![]);
    let mut spec = EmbeddingSpec::new(SourceSpec::Fixed("/no/such/folder".into()));
    spec.dtype = DTypeChoice::Float32;
    manager.register("lost", Spec::Embedding(spec.clone()), Retention::default(), false).unwrap();
    let error = embed(&manager, &["text"], to("lost")).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
    spec.fallback = vec!["/neither/this".into(), fixture("bert_wordpiece")];
    manager.register("lost", Spec::Embedding(spec), Retention::default(), true).unwrap();
    let found = embed(&manager, &["text"], to("lost")).unwrap();
    assert_eq!(found, embed(&manager, &["text"], to(ENGLISH)).unwrap());
    let described = manager.describe("lost", false, &mut || Ok(())).unwrap().unwrap();
    assert_eq!(described.source, fixture("bert_wordpiece"));
}

#[test]
fn a_load_that_failed_is_tried_again_with_what_the_environment_says_then() {
    let host = Arc::new(Fake::default());
    let set = |name: &str, value: String| host.0.lock().unwrap().insert(name.into(), value);
    set("ENGLISH_FALLBACK_MODEL", "/no/such/folder".into());
    set("HF_HUB_OFFLINE", "1".into());
    let manager = Manager::from_environment(vec![], Arc::clone(&host) as Arc<dyn Host>).unwrap();
    assert!(matches!(embed(&manager, &["text"], to(ENGLISH)), Err(Error::ModelNotFound { .. })));
    set("ENGLISH_FALLBACK_MODEL", fixture("bert_wordpiece"));
    assert_eq!(embed(&manager, &["text"], to(ENGLISH)).unwrap().rows, 1);
}

#[test]
fn keep_alive_zero_unloads_after_use_and_an_object_is_made_anew() {
    let manager = manager(vec![]);
    let loads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&loads);
    let loader = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(()) as Arc<dyn std::any::Any + Send + Sync>)
    });
    let keep = Retention { keep_alive: Some(KeepAlive::AFTER_USE), ..Retention::default() };
    manager.register("brief", Spec::Object(loader), keep, false).unwrap();
    for expected in 1..=3 {
        manager.load("brief", None, &mut || Ok(())).unwrap();
        assert!(!manager.is_loaded("brief").unwrap());
        assert_eq!(loads.load(Ordering::Relaxed), expected);
    }
    let options = EmbedOptions { keep_alive: Some(KeepAlive::AFTER_USE), ..to(ENGLISH) };
    embed(&manager, &["text"], options).unwrap();
    assert_eq!(state(&manager, ENGLISH), "absent");
}

#[test]
fn a_budget_evicts_the_least_recently_used() {
    let fixtures = ["bert_cls", "bert_max", "bert_plain"];
    let with_budget = |bytes: u64| {
        let manager = manager(vec![("memory_budget", SettingValue::Text(format!("{bytes}B")))]);
        for name in fixtures {
            manager.register(name, source(fixture(name)), Retention::default(), false).unwrap();
        }
        manager
    };
    // With no memory at all, each says what it needs.
    let tight = with_budget(2);
    let needs = fixtures.map(|name| match embed(&tight, &["text"], to(name)) {
        Err(Error::Budget { needed, budget: 2, in_use: 0, .. }) => needed,
        other => panic!("{other:?}"),
    });
    // A budget for the largest of them and the leftovers of an estimate.
    let manager = with_budget(*needs.iter().max().unwrap());
    for name in fixtures {
        embed(&manager, &["text"], to(name)).unwrap();
    }
    let statistics = manager.statistics().unwrap();
    assert!(statistics.models <= statistics.budget.unwrap());
    assert_eq!(state(&manager, "bert_plain"), "ready");
    let unloads: u64 = statistics.tracker.unload_counts.values().sum();
    let ready = fixtures.iter().filter(|name| state(&manager, name) == "ready").count() as u64;
    assert_eq!(unloads + ready, 3);
}

#[test]
fn a_model_of_several_names_is_in_the_budget_until_the_last_is_unloaded() {
    let with_budget = |bytes: u64| {
        let manager = manager(vec![("memory_budget", SettingValue::Text(format!("{bytes}B")))]);
        for (name, fixture_name) in [("one", "bert_cls"), ("same", "bert_cls"), ("other", "bert_max")] {
            manager.register(name, source(fixture(fixture_name)), Retention::default(), false).unwrap();
        }
        manager
    };
    let needed = |name| match embed(&with_budget(2), &["text"], to(name)) {
        Err(Error::Budget { needed, .. }) => needed,
        other => panic!("{other:?}"),
    };
    // One of the two models fits.
    let manager = with_budget(needed("one").max(needed("other")));
    let load = |name| manager.load(name, None, &mut || Ok(())).map(drop);
    let states = || ["one", "same", "other"].map(|name| state(&manager, name) == "ready");
    for name in ["one", "same"] {
        load(name).unwrap();
    }
    assert_eq!(states(), [true, true, false]);
    load("other").unwrap();
    assert_eq!(states(), [false, false, true], "both leave for it");
    for name in ["one", "same"] {
        load(name).unwrap();
    }
    assert!(manager.unload("one").unwrap());
    assert_eq!(states(), [false, true, false]);
    load("other").unwrap();
    assert_eq!(states(), [false, false, true], "the memory was still that of \"same\"");
}

#[test]
fn a_closed_manager_says_so() {
    let manager = manager(vec![]);
    embed(&manager, &["text"], to(ENGLISH)).unwrap();
    manager.close();
    manager.close();
    assert!(manager.is_closed());
    assert_eq!(embed(&manager, &["text"], to(ENGLISH)), Err(Error::Closed));
    assert_eq!(manager.statistics().err(), Some(Error::Closed));
}
