//! `seeds TARGET FOLDER` writes a target's seeds where libFuzzer looks for its corpus.

use std::path::Path;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(folder)) = (arguments.next(), arguments.next()) else {
        panic!("usage: seeds TARGET FOLDER");
    };
    for (index, seed) in (model_manager_fuzz::target(&name).seeds)().iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{index}")), seed).expect("a writable folder");
    }
}
