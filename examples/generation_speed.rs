//! Measures a generator: `cargo run --release --no-default-features --example generation_speed -- MODEL [DTYPE]`.
//!
//! Prints tokens a second for reading a prompt, for writing one answer, and for four answers at once.
#![allow(clippy::print_stdout, reason = "a command line tool")]

use std::path::Path;
use std::time::Instant;

use model_manager::chat::Conversation;
use model_manager::compute::Isa;
use model_manager::compute::memory::resident_bytes;
use model_manager::config::DTypeChoice;
use model_manager::generation::{Completion, GenerationParams, Generator, Prompt, TextFiles, TextModel};
use model_manager::models::ModelFiles;
use model_manager::{Error, Result};

const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path =
        arguments.next().ok_or_else(|| Error::Input("usage: generation_speed MODEL [DTYPE]".into()))?;
    let dtype = DTypeChoice::parse(&arguments.next().unwrap_or_else(|| "auto".into()))?;
    let isa = Isa::from_env()?;
    let hold = dtype.weight_format(isa);
    let before = resident_bytes();
    let started = Instant::now();
    let path = Path::new(&path);
    let files = if path.is_dir() {
        TextFiles::Folder(ModelFiles::open("model", path)?)
    } else {
        TextFiles::Gguf(vec![path.to_path_buf()])
    };
    let model = TextModel::open("model", &files, hold, isa)?;
    let generator = Generator::start(model, |settings| settings.kept_prefixes = 0)?;
    println!(
        "loaded in {:.2} s: {} MB of weights, {} MB resident",
        started.elapsed().as_secs_f64(),
        generator.memory_bytes() >> 20,
        (resident_bytes() - before) >> 20
    );
    let conversation =
        Conversation::of(&[("user", "What is the capital of Turkey? Answer in one sentence.")])?;
    let asked = if generator.model().templates.is_some() {
        Prompt::Chat(&conversation)
    } else {
        Prompt::Text("Ankara")
    };
    let answer = run(&generator, asked, 40)?;
    println!("{:?} ({})", answer.text, answer.reason.as_str());
    let text = "The quick brown fox jumps over the lazy dog near the river bank. ".repeat(100);
    let words: String = text.split_inclusive(' ').take(430).collect();
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    let mut prompt_tokens = 0;
    for _ in 0..ROUNDS {
        let prompt = run(&generator, Prompt::Text(&words), 1)?;
        prompt_tokens = prompt.prompt_tokens;
        rates[0].push(prompt_tokens as f64 / prompt.prefill.as_secs_f64());
        rates[1].push(run(&generator, Prompt::Text("Once upon a time"), 128)?.tokens_per_second());
        let started = Instant::now();
        std::thread::scope(|scope| {
            let one = || run(&generator, Prompt::Text("Once upon a time"), 128);
            let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            all.into_iter().for_each(|thread| drop(thread.join()));
        });
        rates[2].push(4.0 * 128.0 / started.elapsed().as_secs_f64());
    }
    let [prefill, decode, four] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    println!("prompt of {prompt_tokens} tokens: {prefill:.0} tokens/s");
    println!("one answer: {decode:.1} tokens/s; four at once: {four:.1} tokens/s in all");
    println!("{} MB resident", (resident_bytes() - before) >> 20);
    Ok(())
}

fn run(generator: &Generator, prompt: Prompt<'_>, tokens: usize) -> Result<Completion> {
    let params =
        GenerationParams { max_new_tokens: Some(tokens), min_new_tokens: tokens, ..Default::default() };
    generator.generate(prompt, params, &mut || Ok(()))
}
