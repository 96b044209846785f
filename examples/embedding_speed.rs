//! Measures a sentence model: `cargo run --release --no-default-features --example embedding_speed -- MODEL [DTYPE]`.
//!
//! Prints tokens a second for batches of texts of several lengths, wall-clock and for each core's second of work.
#![allow(clippy::print_stdout, reason = "a command line tool")]

use std::path::Path;
use std::time::Instant;

use model_manager::compute::memory::resident_bytes;
use model_manager::compute::{Isa, PackedBatch};
use model_manager::config::DTypeChoice;
use model_manager::models::{Encoder, ModelConfig, ModelFiles, Overrides, Weights, on_cpu};
use model_manager::{Error, Result};

const ROUNDS: usize = 3;
const TOKENS: usize = 2048;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| Error::Input("usage: embedding_speed MODEL [DTYPE]".into()))?;
    let dtype = DTypeChoice::parse(&arguments.next().unwrap_or_else(|| "auto".into()))?;
    let path = Path::new(&path);
    let files = if path.is_dir() {
        ModelFiles::open("model", path)?
    } else {
        ModelFiles::gguf("model", path.into())?
    };
    let isa = Isa::from_env()?;
    let hold = dtype.weight_format(isa);
    let (before, started) = (resident_bytes(), Instant::now());
    let build = |config: &ModelConfig, weights: &Weights| on_cpu(config, weights, isa, hold);
    let encoder = Encoder::load(&files, Overrides::default(), &build)?;
    println!(
        "{} on {isa}, loaded in {:.2} s: {} MB of weights, {} MB resident",
        encoder.dtype(),
        started.elapsed().as_secs_f64(),
        encoder.memory_bytes() >> 20,
        (resident_bytes() - before) >> 20
    );
    for length in [18, 77, 256, 2048] {
        let count = (TOKENS / length).max(1);
        let ids: Vec<u32> = (0..count * length).map(|i| (i * 7919 % 900) as u32).collect();
        let offsets: Vec<u32> = (0..=count).map(|text| (text * length) as u32).collect();
        let batch = PackedBatch::new(&ids, &offsets)?;
        let mut out = vec![0.0; count * encoder.width()];
        let (mut wall, mut work) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..ROUNDS {
            let (started, used) = (Instant::now(), cpu_seconds());
            encoder.encode(&batch, &mut out)?;
            wall = wall.min(started.elapsed().as_secs_f64());
            work = work.min(cpu_seconds() - used);
        }
        let tokens = ids.len() as f64;
        println!(
            "{count} texts of {length} tokens: {:.0} tokens/s, {:.0} for each core's second; {} MB resident",
            tokens / wall,
            tokens / work,
            (resident_bytes() - before) >> 20
        );
    }
    Ok(())
}

/// Seconds of work of all threads of this process; 0 where the system does not report it.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
