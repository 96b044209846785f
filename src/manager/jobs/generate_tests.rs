use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;

use super::*;
use crate::config::{SettingValue, SystemHost};
use crate::generation::FinishReason;
use crate::manager::{HostObject, Manager, Retention, Spec};

/// Long enough for any machine; reached only by a call that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A manager whose generator is the tiny GPT-2.
fn manager(settings: Vec<(&str, SettingValue)>) -> Manager {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    let mut keywords = vec![
        ("generator_model".to_owned(), SettingValue::Text(model.to_str().unwrap().into())),
        ("generator_dtype".to_owned(), SettingValue::Text("float32".into())),
    ];
    keywords.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Manager::from_environment(keywords, Arc::new(SystemHost)).unwrap()
}

/// A slot whose load waits at the barrier.
fn slow(manager: &Manager) -> Arc<Barrier> {
    let release = Arc::new(Barrier::new(2));
    let gate = Arc::clone(&release);
    let loader = Arc::new(move || {
        gate.wait();
        Ok(Arc::new(7_i32) as HostObject)
    });
    manager.register("slow", Spec::Object(loader), Retention::default(), false).unwrap();
    release
}

fn to(model: &str, timeout: Option<Duration>) -> GenerateOptions {
    GenerateOptions { model: Some(model.into()), timeout, ..Default::default() }
}

fn submit(manager: &Manager, options: &GenerateOptions) -> (Receiver<Event>, GenerationTicket) {
    let (sender, receiver) = mpsc::channel();
    let on_event = Box::new(move |event| sender.send(event).unwrap());
    let prompt = OwnedPrompt::Text("Merhaba".into());
    let ticket = manager.submit_generation(prompt, GenerationParams::default(), options, on_event);
    (receiver, ticket.unwrap())
}

#[test]
fn a_timeout_ends_the_wait_for_a_load_but_not_the_load() {
    let brief = Duration::from_millis(20);
    for (settings, timeout) in
        [(vec![], Some(brief)), (vec![("load_timeout", SettingValue::Float(0.02))], None)]
    {
        let manager = manager(settings);
        let release = slow(&manager);
        let (events, _ticket) = submit(&manager, &to("slow", timeout));
        let late = Error::Timeout { what: "model \"slow\"".into(), after: brief };
        assert_eq!(events.recv_timeout(PATIENCE), Ok(Event::Done(Err(late))));
        assert!(!manager.is_loaded("slow").unwrap());
        release.wait();
        manager.load("slow", Some(PATIENCE), &mut || Ok(())).unwrap();
        // Its load has ended, and nothing more is reports: the callback is gone.
        assert_eq!(events.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

#[test]
fn a_load_in_time_is_reported_once() {
    let manager = manager(vec![]);
    let release = slow(&manager);
    let (events, _ticket) = submit(&manager, &to("slow", Some(PATIENCE)));
    release.wait();
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::Done(Err(Error::NoGenerator { .. })))));
    assert_eq!(events.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn the_timeout_is_one_for_the_answer_and_the_limit_of_loads_is_not() {
    let manager = manager(vec![("load_timeout", SettingValue::Float(0.0))]);
    let generator = crate::manager::GENERATOR;
    manager.load(generator, Some(PATIENCE), &mut || Ok(())).unwrap();
    let last = |timeout| submit(&manager, &to(generator, timeout)).0.iter().last();
    let late = last(Some(Duration::ZERO));
    assert!(matches!(late, Some(Event::Done(Err(Error::Timeout { .. })))), "{late:?}");
    for timeout in [None, Some(PATIENCE)] {
        let answered = last(timeout);
        assert!(matches!(answered, Some(Event::Done(Ok(_)))), "{answered:?}");
    }
}

/// Asks for answers, each in another way, until the manager is closed; received how each call ended.
fn keep_asking(manager: &Manager, way: usize, written: &AtomicUsize, reports: &Sender<Result<Completion>>) {
    let params =
        GenerationParams { max_new_tokens: Some(40), min_new_tokens: 40, ..GenerationParams::default() };
    let (prompt, options) = (OwnedPrompt::Text("Merhaba dünya".into()), GenerateOptions::default());
    loop {
        let outcome = match way {
            0 => manager.generate(&prompt, params.clone(), &options, &mut || Ok(())),
            1 => manager.stream(&prompt, params.clone(), &options, &mut || Ok(())).and_then(|mut stream| {
                while stream.next(&mut || Ok(()))?.is_some() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
                stream.completion().cloned().ok_or(Error::Cancelled)
            }),
            _ => {
                let (sender, events) = mpsc::channel();
                let on_event = Box::new(move |event| drop(sender.send(event)));
                let submitted = manager.submit_generation(prompt.clone(), params.clone(), &options, on_event);
                submitted.and_then(|_ticket| match events.iter().last() {
                    Some(Event::Done(outcome)) => outcome,
                    other => panic!("the last event was {other:?}"),
                })
            }
        };
        written.fetch_add(1, Ordering::Relaxed);
        let over = outcome.is_err();
        reports.send(outcome).unwrap();
        if over {
            return;
        }
    }
}

#[test]
fn closing_ends_every_answer_of_racing_threads() {
    // Closed before, during and after the load, with answers queued, under way and finished.
    for pieces in [0, 0, 1, 2, 20, 100] {
        let manager = Arc::new(manager(vec![]));
        let written = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(7));
        let (sender, outcomes) = mpsc::channel();
        for thread in 0..6 {
            let (manager, written, start) = (Arc::clone(&manager), Arc::clone(&written), Arc::clone(&start));
            let sender = sender.clone();
            thread::spawn(move || {
                start.wait();
                keep_asking(&manager, thread % 3, &written, &sender);
            });
        }
        drop(sender);
        start.wait();
        let mut finished = 0;
        let mut take = |outcome: Result<Completion>| match outcome {
            Ok(completion) => {
                assert_eq!((completion.reason, completion.tokens.len()), (FinishReason::Length, 40));
                finished += 1;
                false
            }
            Err(error) => {
                assert_eq!(error, Error::Closed);
                true
            }
        };
        while written.load(Ordering::Relaxed) < pieces {
            // Nothing fails before the end.
            if let Ok(outcome) = outcomes.recv_timeout(Duration::from_millis(1)) {
                assert!(!take(outcome));
            }
        }
        manager.close();
        let mut closed = 0;
        while let Ok(outcome) = outcomes.recv_timeout(PATIENCE) {
            closed += usize::from(take(outcome));
        }
        assert_eq!(closed, 6, "a call hangs; {finished} answers were finished");
    }
}
