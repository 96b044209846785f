//! The tier against servers that fail in every way. A real server is used in tests/python/test_cache_redis.py.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::config::SystemHost;
use crate::output::Item;
use crate::sync::Mutex;

fn tier(url: &str, secret: Option<&str>, clock: &Clock) -> Redis {
    let settings = RedisSettings {
        url: url.into(),
        time_to_live: Duration::from_secs(60),
        timeout: Duration::from_millis(50),
        secret: secret.map(Into::into),
    };
    Redis::new(&settings, &SystemHost, clock).unwrap()
}

fn key(number: u8) -> TierKey {
    TierKey(std::array::from_fn(|at| number.wrapping_mul(31).wrapping_add(at as u8 * 7)))
}

fn item() -> CachedItem {
    CachedItem::new(Item::Dense(vec![1.0, 2.0].into()), 3)
}

/// A server that does `serve` with every connection. Its address, and how many there were.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (connections, serve) = (Arc::new(AtomicUsize::new(0)), Arc::new(serve));
    let counted = Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    (url, connections)
}

/// Answers a request that has `command` with `answer`, and then closes the connection if it is to. Answers every other
/// command with OK.
fn replying(command: &'static str, answer: &'static [u8], closes: bool) -> (String, Arc<AtomicUsize>) {
    server(move |mut stream| {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            let asked = text.contains(&format!("\r\n{command}\r\n"));
            let commands = text.matches("\r\n*").count() + 1;
            let reply = if asked { answer.to_vec() } else { b"+OK\r\n".repeat(commands) };
            if stream.write_all(&reply).is_err() || (asked && closes) {
                return;
            }
        }
    })
}

/// Answers every command but MGET with OK, and MGET with `answer`.
fn answering(answer: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    replying("MGET", answer, answer.ends_with(b"!"))
}

#[test]
fn wrong_addresses_are_refused_by_name_and_without_their_password() {
    let parse = |url: &str| {
        let settings = RedisSettings {
            url: url.into(),
            time_to_live: Duration::from_secs(60),
            timeout: Duration::from_millis(50),
            secret: None,
        };
        Redis::new(&settings, &SystemHost, &Clock::System).err().map(|error| error.to_string())
    };
    for url in ["", " , ", "http://example.com", "redis://user:hunter2@"] {
        let error = parse(url).unwrap();
        assert!(error.starts_with("cache_url") && !error.contains("hunter2"), "{error}");
    }
    let error = parse("redis://:env:NO_SUCH_VARIABLE_AT_ALL@localhost").unwrap();
    assert!(error.contains("NO_SUCH_VARIABLE_AT_ALL"), "{error}");
    let error = parse("redis://user:hunt,er2@localhost").unwrap();
    assert!(error.contains("%2C") && !error.contains("hunt") && !error.contains("er2"), "{error}");
    assert_eq!(parse("redis://user:secret@localhost:6379/2, rediss://other"), None);
}

#[test]
fn a_dead_server_costs_one_attempt_and_then_rests() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let clock = Clock::manual();
    let tier = tier(&url, None, &clock);
    for (advance, errors) in [(0, 1), (0, 1), (1, 2), (1, 2), (1, 3)] {
        clock.advance(Duration::from_secs(advance));
        assert_eq!(tier.get(&[key(1)]), [None]);
        assert_eq!(tier.counts().errors.load(Ordering::Relaxed), errors);
    }
    assert!(!tier.is_working());
}

#[test]
fn a_request_on_a_connection_that_the_server_has_closed_is_repeated() {
    let (url, connections) = replying("MGET", b"*1\r\n$-1\r\n", true);
    let tier = tier(&url, None, &Clock::manual());
    for asked in 1..4 {
        assert_eq!(tier.get(&[key(1)]), [None]);
        let counts = (connections.load(Ordering::SeqCst), tier.counts().errors.load(Ordering::Relaxed));
        assert_eq!((counts, tier.is_working()), ((asked, 0), true));
    }
}

#[test]
fn a_server_that_has_become_a_copy_is_connected_anew() {
    let refusal = b"-READONLY You can't write against a read only replica.\r\n";
    let (url, connections) = replying("SET", refusal, false);
    let tier = tier(&url, None, &Clock::manual());
    for asked in 1..4 {
        tier.put(&[(key(1), item())]);
        let counts = (connections.load(Ordering::SeqCst), tier.counts().errors.load(Ordering::Relaxed));
        assert_eq!((counts, tier.is_working()), ((asked, asked as u64), true));
    }
}

#[test]
fn a_write_says_for_how_many_whole_seconds_its_values_are_kept() {
    for (time_to_live, seconds) in [(90.7, "90"), (0.2, "1")] {
        let received = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&received);
        let (url, _) = server(move |mut stream| {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                requests.lock().extend_from_slice(&bytes[..count]);
                let commands = String::from_utf8_lossy(&bytes[..count]).matches("\r\n*").count() + 1;
                if stream.write_all(&b"+OK\r\n".repeat(commands)).is_err() {
                    return;
                }
            }
        });
        let settings = RedisSettings {
            url,
            time_to_live: Duration::from_secs_f64(time_to_live),
            timeout: Duration::from_secs(60),
            secret: None,
        };
        let tier = Redis::new(&settings, &SystemHost, &Clock::manual()).unwrap();
        tier.put(&[(key(1), item()), (key(2), item())]);
        assert_eq!(tier.counts().writes.load(Ordering::Relaxed), 2);
        let expiry = format!("\r\n$2\r\nEX\r\n${}\r\n{seconds}\r\n", seconds.len());
        let requests = String::from_utf8_lossy(&received.lock()).into_owned();
        assert_eq!(requests.matches(&expiry).count(), 2, "{time_to_live}: {requests:?}");
    }
}

#[test]
fn a_dead_server_does_not_refuse_to_store() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let tier = tier(&url, None, &Clock::manual());
    tier.put(&[(key(1), item())]);
    assert!(!tier.is_working());
}

#[test]
fn a_probe_asks_each_server_and_names_it_without_its_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap();
    drop(listener);
    let (alive, connections) = answering(b"*1\r\n$-1\r\n");
    let urls = format!("redis://user:secret@{dead},{alive}");
    let tier = tier(&urls, None, &Clock::manual());
    // The second time too, although the dead one rests.
    for errors in 1..3 {
        let found = tier.probe();
        assert_eq!(found.iter().map(|(_, answers)| *answers).collect::<Vec<_>>(), [false, true], "{found:?}");
        assert!(found[0].0.contains(&dead.to_string()) && !found[0].0.contains("secret"), "{found:?}");
        assert_eq!(tier.counts().errors.load(Ordering::Relaxed), errors);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_look_up_may_take_as_long_as_its_requests() {
    let of = |urls| tier(urls, None, &Clock::manual());
    let request = Duration::from_millis(250);
    assert_eq!(of("redis://a").patience(1), request);
    assert_eq!(of("redis://a").patience(129), 2 * request);
    // Each server may have some of the keys.
    assert_eq!(of("redis://a,redis://b,redis://c").patience(128), 3 * request);
}

#[test]
fn a_server_that_never_answers_costs_its_timeout_once() {
    let (url, connections) = server(|stream| {
        std::thread::sleep(Duration::from_secs(20));
        drop(stream);
    });
    let tier = tier(&url, None, &Clock::manual());
    for _ in 0..20 {
        assert_eq!(tier.get(&[key(1)]), [None]);
        tier.put(&[(key(1), item())]);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn answers_that_are_no_answers_are_misses() {
    let flipped: &[u8] = b"*1\r\n$28\r\n0123456789012345678901234567\r\n";
    for answer in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(),
        b"*2\r\n$-1\r\n$-1\r\n",
        b"*1\r\n$100\r\nshort!",
        b"*1\r\n$-1\r\n",
        b"$5\r\nhello\r\n",
        b"-ERR no\r\n",
        b"*1\r\n$3\r\nabc\r\n",
        b"*1\r\n$0\r\n\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n$1\r\na\r\n",
        flipped,
    ] {
        let (url, _) = answering(answer);
        let tier = tier(&url, None, &Clock::manual());
        assert_eq!(tier.get(&[key(1)]), [None], "{}", String::from_utf8_lossy(answer));
        assert_eq!(tier.counts().misses.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_value_belongs_to_its_key_and_its_secret() {
    let plain = tier("redis://localhost", None, &Clock::manual());
    let secret = tier("redis://localhost", Some("s1"), &Clock::manual());
    let other = tier("redis://localhost", Some("s2"), &Clock::manual());
    let value = |tier: &Redis, number| {
        let mut value = encode(&item(), ValueFormat::Float32).unwrap();
        value.extend(tier.proof(key(number), &value));
        value
    };
    for owner in [&plain, &secret, &other] {
        let bytes = value(owner, 1);
        assert_eq!(owner.read(key(1), &bytes), Some(item()));
        assert_eq!(owner.read(key(2), &bytes), None);
        for cut in 0..bytes.len() {
            assert_eq!(owner.read(key(1), &bytes[..cut]), None);
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(owner.read(key(1), &flipped), None);
        }
        let strangers =
            [&plain, &secret, &other].into_iter().filter(|stranger| !std::ptr::eq(*stranger, owner));
        for stranger in strangers {
            assert_eq!(stranger.read(key(1), &bytes), None);
            assert_ne!(stranger.name(key(1)), owner.name(key(1)));
        }
    }
    assert_eq!(plain.name(TierKey([0xab; 16])), format!("mm:1:{}", "ab".repeat(16)));
}

#[test]
fn keys_are_spread_evenly_and_only_those_of_a_lost_server_move() {
    let urls = ["redis://a", "redis://b", "redis://c"];
    let keys: Vec<TierKey> = (0..3000_u32)
        .map(|number| {
            let sum = Sha256::digest(number.to_le_bytes());
            TierKey(std::array::from_fn(|at| sum[at]))
        })
        .collect();
    let homes = |urls: &[&str]| {
        let tier = tier(&urls.join(","), None, &Clock::manual());
        let mut homes = vec![String::new(); keys.len()];
        for (url, numbers) in urls.iter().zip(tier.by_host(keys.iter().copied())) {
            assert!(numbers.len() > keys.len() / urls.len() * 8 / 10);
            numbers.iter().for_each(|number| homes[*number] = (*url).to_string());
        }
        homes
    };
    let (all, fewer) = (homes(&urls), homes(&urls[..2]));
    for (before, after) in all.iter().zip(&fewer) {
        assert!(before == after || before == "redis://c");
    }
}
