//! Every fuzz target takes a bounded number of seeded mutations of its seeds. `make fuzz` runs the same targets with
//! coverage, for as long as one likes.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

#[allow(dead_code, unreachable_pub)] // a crate of its own
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use targets::target;

/// Mutations of each target, unless the environment asks for more: a run of all takes a few seconds.
const MUTATIONS: u64 = 200;

/// Mutations of a target that takes microseconds.
const MUTATIONS_OF_QUICK: u64 = 20_000;

/// A number of the environment: `FUZZ_MUTATIONS`, `FUZZ_SEED`.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Values that break arithmetic on sizes.
const NUMBERS: [u64; 9] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

/// Texts that mean something to one of the parsers.
const TOKENS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "1e999",
    "9223372036854775807",
    "[[[[[[[[",
    "{\"a\":",
    "\"\"",
    "\\ud800",
    "\u{130}",
    "{{",
    "}}",
    "{%",
    "%}",
    "|upper",
    " not ",
    "range(99999999)",
    "* 99999999",
    "((((",
    ").\u{85}",
    "R",
    "}\u{94}",
    "\u{0}",
    "NaN",
];

fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let below = |rng: &mut ChaCha8Rng, n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    let mut data = seeds[below(rng, seeds.len())].clone();
    for _ in 0..=below(rng, 4) {
        let at = below(rng, data.len());
        match below(rng, 7) {
            0 => data.truncate(at),
            1 if !data.is_empty() => data[at] ^= 1 << below(rng, 8),
            2 if !data.is_empty() => data[at] = rng.next_u32() as u8,
            3 => {
                let bytes = NUMBERS[below(rng, NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][below(rng, 4)];
                data.iter_mut().skip(at).zip(&bytes[..width]).for_each(|(to, from)| *to = *from);
            }
            4 => {
                let token = TOKENS[below(rng, TOKENS.len())];
                let times = [1, 1, 1, 300][below(rng, 4)];
                data.splice(at..at, token.repeat(times).into_bytes());
            }
            5 => {
                let end = (at + 1 + below(rng, 40)).min(data.len());
                data.drain(at..end);
            }
            _ => {
                let from = below(rng, data.len());
                let piece = data[from..(from + 1 + below(rng, 60)).min(data.len())].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}

fn run(name: &str) {
    let target = target(name);
    let seeds = (target.seeds)();
    seeds.iter().for_each(|seed| (target.run)(seed));
    let mut rng = ChaCha8Rng::seed_from_u64(number("FUZZ_SEED", 20));
    let mutations = if name == "arrow_column" { MUTATIONS_OF_QUICK } else { MUTATIONS };
    for _ in 0..number("FUZZ_MUTATIONS", mutations) {
        (target.run)(&mutate(&mut rng, &seeds));
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        #[test]
        fn every_target_runs_here_and_has_a_binary() {
            let here = [$(stringify!($name)),*];
            let named: Vec<_> = targets::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(here.as_slice(), named);
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            for name in here {
                let source = std::fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
                assert!(source.contains(&format!("target(\"{name}\")")), "{name}");
            }
        }
    };
}

targets! { safetensors pickle gguf config modules tokenizer chat_template vocabulary http_body arrow_column cache_segment
remote_reply }
