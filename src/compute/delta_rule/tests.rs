//! What delta rules keep of sequences, against whole sequences; and numbers that do not fit together.

use proptest::prelude::*;

use super::*;
use crate::compute::isa::Isa;
use crate::compute::short_convolution::MOST_DRAFTED;

const HEADS: DeltaHeads = DeltaHeads { keys: 2, values: 4, key_width: 3, value_width: 5, in_turn: false };
const SHAPE: DeltaRuleShape = DeltaRuleShape { layers: 2, before: 3, heads: HEADS };

fn factors(heads: DeltaHeads) -> DeltaRuleFactors {
    let of = |numbers: usize, shape: &[usize]| Weight::from_f32(&vec![-0.5; numbers], shape).unwrap();
    DeltaRuleFactors {
        heads,
        convolution: of(4 * heads.columns(), &[heads.columns(), 4]),
        rates: of(heads.values, &[heads.values]),
        shift: of(heads.values, &[heads.values]),
        norm: of(heads.value_width, &[heads.value_width]),
        epsilon: 1e-6,
    }
}

#[test]
fn numbers_that_do_not_fit_together_are_an_error() {
    assert!(DeltaRule::new(&factors(HEADS)).is_ok());
    assert!(DeltaRule::new(&factors(DeltaHeads { values: 3, ..HEADS })).is_err());
    assert!(DeltaRule::new(&factors(DeltaHeads { values: 0, ..HEADS })).is_err());
    let other = DeltaHeads { value_width: 6, ..HEADS };
    assert!(DeltaRule::new(&DeltaRuleFactors { heads: other, ..factors(HEADS) }).is_err());
}

#[test]
fn heads_of_values_have_a_head_of_keys() {
    let keys = |in_turn| (0..4).map(|head| DeltaHeads { in_turn, ..HEADS }.key_of(head)).collect::<Vec<_>>();
    assert_eq!((keys(false), keys(true)), (vec![0, 0, 1, 1], vec![0, 1, 0, 1]));
}

#[test]
fn a_head_forgets_by_a_part_that_is_never_beyond_one() {
    let rule = DeltaRule::new(&factors(HEADS)).unwrap();
    for a in [f32::NEG_INFINITY, -200.0, -3.0, 0.0, 5.0, 20.0, 21.0, 1e30] {
        let [kept, stored] = rule.parts(1, 0.3, a);
        let x = f64::from(a) - 0.5;
        let expected = (-0.5 * if x > 20.0 { x } else { x.exp().ln_1p() }).exp();
        assert!((f64::from(kept) - expected).abs() < 1e-6 && (0.0..=1.0).contains(&kept), "{a}: {kept}");
        assert!((f64::from(stored) - 1.0 / (1.0 + (-0.3_f64).exp())).abs() < 1e-6);
    }
}

#[test]
fn queries_and_keys_get_their_length() {
    let rule = DeltaRule::new(&factors(HEADS)).unwrap();
    for isa in Isa::available() {
        let mut row: Vec<f32> = (0..HEADS.columns()).map(|i| (i * 37 % 19) as f32 / 4.0 - 2.0).collect();
        let silu = |x: f32| f64::from(x) / (1.0 + (-f64::from(x)).exp());
        let before: Vec<f64> = row.iter().map(|&x| silu(x)).collect();
        rule.prepare(Kernels::of(isa), &mut row);
        for (index, (found, before)) in row.chunks(3).zip(before.chunks(3)).enumerate() {
            let length = before.iter().map(|x| x * x).sum::<f64>() + f64::from(LENGTH_EPSILON);
            let factor = match index {
                0..2 => 1.0 / (length * 3.0).sqrt(),
                2..4 => 1.0 / length.sqrt(),
                _ => 1.0,
            };
            for (found, x) in found.iter().zip(before) {
                assert!((f64::from(*found) - x * factor).abs() < 1e-6, "{isa} {index}");
            }
        }
    }
}

/// The number of a layer's state after so many tokens of a text: all of its numbers are the same.
fn number(text: u64, layer: usize, position: usize) -> f32 {
    if position == 0 { 0.0 } else { (text * 100_000) as f32 + (10 * position + layer) as f32 }
}

/// Rows of positions, of which each is one number; those before the text are zero.
fn rows_of(text: u64, layer: usize, positions: std::ops::Range<usize>) -> Vec<f32> {
    let before = positions.start..positions.end + SHAPE.before;
    let row =
        |index: usize| (index + 1).checked_sub(SHAPE.before).map_or(0.0, |next| number(text, layer, next));
    before.flat_map(|index| vec![row(index); HEADS.columns()]).collect()
}

/// Appends positions up to `end`, as a pass does.
fn extend(state: &mut DeltaRuleState, text: u64, end: usize, window: usize, prompt: usize) {
    extend_drafting(state, text, end, window, (prompt, 0));
}

/// The same; the last `drafts` are drafts.
fn extend_drafting(
    state: &mut DeltaRuleState,
    text: u64,
    end: usize,
    window: usize,
    (prompt, drafts): (usize, usize),
) {
    let start = state.len();
    state.reserve(end).unwrap();
    for layer in 0..SHAPE.layers {
        for first in (start..end).step_by(window) {
            let positions = first..end.min(first + window);
            let drafted = if positions.end == end && drafts < positions.len() { drafts } else { 0 };
            let part = state.layer(layer, positions.clone(), drafted, prompt).unwrap();
            let DeltaLayer { rows, heads, window, drafts, points } = part;
            let settled = first - drafts.stayed;
            // Where a text begins, a pass clears what it finds.
            assert!(first == 0 || *rows == rows_of(text, layer, first..first), "rows of {layer} at {first}");
            assert!(
                first == 0 || heads.iter().all(|x| *x == number(text, layer, settled)),
                "{layer} {settled}"
            );
            for (index, step) in drafts.steps.chunks(HEADS.step()).take(drafts.stayed).enumerate() {
                assert!(step.iter().all(|x| *x == number(text, layer, settled + index + 1)));
            }
            let settled = positions.end - drafts.drafted;
            heads.fill(number(text, layer, settled));
            rows.copy_from_slice(&rows_of(text, layer, positions.end..positions.end));
            if drafts.drafted > 0 {
                window.copy_from_slice(&rows_of(text, layer, settled..positions.end));
            }
            for (index, step) in drafts.steps.chunks_mut(HEADS.step()).take(drafts.drafted).enumerate() {
                step.fill(number(text, layer, settled + index + 1));
            }
            for (position, rows, heads) in points {
                rows.copy_from_slice(&rows_of(text, layer, position..position));
                heads.fill(number(text, layer, position));
            }
        }
    }
    state.extend_to(end);
}

#[derive(Debug, Clone)]
enum Change {
    Extend { by: usize, window: usize, prompt: usize },
    Draft { by: usize, stay: usize },
    Truncate(usize),
    Fork(usize),
    Fail(usize),
    Shrink,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1_usize..700, 1_usize..400, 0_usize..900).prop_map(|(by, window, prompt)| Change::Extend {
            by,
            window,
            prompt
        }),
        (0_usize..MOST_DRAFTED + 3, 0_usize..20).prop_map(|(by, stay)| Change::Draft { by, stay }),
        (0_usize..1500).prop_map(Change::Truncate),
        (0_usize..1500).prop_map(Change::Fork),
        (1_usize..500).prop_map(Change::Fail),
        Just(Change::Shrink),
    ]
}

proptest! {
    #[test]
    fn what_follows_a_cut_finds_its_states(changes in prop::collection::vec(change(), 1..20)) {
        let mut state = DeltaRuleState::new(SHAPE);
        let (mut len, mut forks) = (0, Vec::new());
        for change in changes {
            match change {
                Change::Extend { by, window, prompt } => {
                    extend(&mut state, 1, len + by, window, prompt);
                    len += by;
                }
                Change::Draft { by, stay } => {
                    let (stay, most) = (stay.min(by), state.most_drafted());
                    prop_assert!(most <= MOST_DRAFTED);
                    extend_drafting(&mut state, 1, len + 1 + by, 90, (0, by));
                    for kept in (stay..=by).filter(|_| by <= MOST_DRAFTED) {
                        let fork = state.fork(len + 1 + kept, len + 200).unwrap();
                        prop_assert_eq!(fork.len(), len + 1 + kept);
                        forks.push(fork);
                    }
                    let cut = state.cut(len + 1 + stay);
                    prop_assert!(cut == len + 1 + stay || by > MOST_DRAFTED);
                    state.truncate(cut);
                    len = cut;
                }
                Change::Truncate(wanted) => {
                    let cut = state.cut(wanted.min(len));
                    prop_assert!(cut <= wanted);
                    prop_assert!(wanted < len || cut == len);
                    state.truncate(cut);
                    len = cut;
                }
                Change::Fork(wanted) => {
                    let cut = state.cut(wanted.min(len));
                    forks.push(state.fork(cut, cut + 100).unwrap());
                }
                // A pass that fails has written some layers.
                Change::Fail(by) => {
                    state.reserve(len + by).unwrap();
                    state.layer(0, len..len + by, by / 30, len + by).unwrap().heads.fill(f32::NAN);
                    let cut = state.cut(len);
                    prop_assert!(cut <= len && state.fork(cut, len).is_ok());
                    state.truncate(cut);
                    len = cut;
                }
                Change::Shrink => {
                    state.shrink();
                    prop_assert!(len > 0 || state.bytes() == 0);
                }
            }
            prop_assert!(state.bytes() <= SHAPE.bytes(len.max(1).max(900)).unwrap());
            if len > 0 {
                extend(&mut state, 1, len + 1, 1, 0);
                len += 1;
            }
        }
        for mut fork in forks {
            let len = fork.len();
            extend(&mut fork, 1, len + 300, 130, len + 200);
        }
        extend(&mut state, 1, len + 30, 7, 0);
    }
}

#[test]
fn a_prompt_keeps_a_state_near_its_end_and_few_others() {
    let mut state = DeltaRuleState::new(SHAPE);
    extend(&mut state, 1, 1100, 300, 1000);
    let cuts: Vec<_> = [1100, 1099, 1024, 1023, 984, 983, 511, 255].map(|len| state.cut(len)).to_vec();
    assert_eq!(cuts, [1100, 1024, 1024, 984, 984, 512, 256, 0]);
    // The next turn replaces the state of the one before.
    extend(&mut state, 1, 2000, 300, 1900);
    assert_eq!([1999, 1883, 1023].map(|len| state.cut(len)), [1884, 1024, 512]);
    assert!(state.bytes() <= SHAPE.bytes(2000).unwrap());
    let other = state.fork(1024, 1100).unwrap();
    assert_eq!(other.cut(1023), 512);
}

/// A state that is to be kept after a power of two of tokens is that of rows that stay.
#[test]
fn drafts_leave_out_positions_whose_states_are_kept() {
    let mut state = DeltaRuleState::new(SHAPE);
    let mut steps = Vec::new();
    while state.len() < 600 {
        let (len, drafted) = (state.len(), state.most_drafted());
        if drafted < MOST_DRAFTED {
            steps.push((len, drafted));
        }
        extend_drafting(&mut state, 1, len + 1 + drafted, 90, (0, drafted));
    }
    assert_eq!(steps, [(510, 0)]);
    let cuts: Vec<_> = [300, 512].map(|len| state.cut(len)).to_vec();
    assert_eq!(cuts, [256, 512]);
}

#[test]
fn bytes_never_decrease_with_more_positions() {
    let bytes: Vec<_> = (0..5000).map(|positions| SHAPE.bytes(positions).unwrap()).collect();
    assert!(bytes.is_sorted() && bytes[0] == 0 && bytes[1] > 0);
    assert_eq!(DeltaRuleShape::NONE.bytes(5000), Some(0));
    // The largest that a file may describe.
    let largest = DeltaHeads { keys: 4096, values: 4096, key_width: 1024, value_width: 1024, in_turn: false };
    assert!(DeltaRuleShape { layers: 4096, before: 63, heads: largest }.bytes(usize::MAX).is_some());
}

#[test]
fn positions_that_do_not_follow_are_an_error() {
    let mut state = DeltaRuleState::new(SHAPE);
    assert!(state.layer(0, 0..1, 0, 1).is_err(), "nothing was reserved");
    extend(&mut state, 1, 10, 10, 10);
    assert!(state.layer(0, 9..11, 0, 10).is_err() && state.layer(2, 10..11, 0, 10).is_err());
    assert!(state.fork(9, 20).is_err(), "its states are not known there");
}
