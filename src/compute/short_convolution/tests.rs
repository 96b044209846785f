//! Convolutions against their definition, and what they keep of sequences against whole sequences.

use proptest::prelude::*;

use super::*;
use crate::compute::linear::activations::spread;
use crate::compute::matrix::StateMatrix;
use crate::compute::memory::Buffer;

/// Numbers from a seed, which bf16 represents exactly.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as i32 % 65 - 32) as f32 / 16.0
    };
    (0..count).map(|_| next()).collect()
}

fn matrix(values: &[f32], columns: usize, format: DType) -> StateMatrix {
    let (rows, stride) = (values.len() / columns, spread(format, columns));
    let data = Buffer::zeroed(rows.max(1) * stride).unwrap();
    let mut matrix = StateMatrix::over(data, rows, columns, stride, format);
    let target = matrix.target();
    for (row, values) in values.chunks_exact(columns).enumerate() {
        // SAFETY: nothing else accesses the matrix.
        unsafe {
            match format {
                DType::F32 => target.row_f32(row).copy_from_slice(values),
                DType::Bf16 => {
                    let to = target.row_bf16(row).iter_mut().zip(values);
                    to.for_each(|(to, x)| *to = half::bf16::from_f32(*x).to_bits());
                }
            }
        }
    }
    matrix
}

fn factors(columns: usize, size: usize, before: usize, shift: bool) -> ShortConvolutionFactors {
    let shift = shift.then(|| Weight::from_f32(&numbers(8, columns), &[columns]).unwrap());
    let factors = Weight::from_f32(&numbers(7, columns * size), &[columns, size]).unwrap();
    ShortConvolutionFactors { factors, shift, before }
}

#[test]
fn outputs_are_those_of_the_definition() {
    for (columns, size, before) in [(1, 2, 1), (7, 3, 2), (300, 4, 3), (515, 3, 1), (256, 4, 2), (40, 64, 63)]
    {
        for (format, shifted) in [(DType::F32, false), (DType::F32, true), (DType::Bf16, true)] {
            let (first, count) = (2, 9);
            let x = numbers(3, (first + count + 1) * 3 * columns);
            let earlier = numbers(4, before * columns);
            let described = factors(columns, size, before, shifted);
            let convolution = ShortConvolution::new(&described).unwrap();
            assert_eq!(convolution.is_causal(), before + 1 == size);
            let x_matrix = matrix(&x, 3 * columns, format);
            let rows = GatedRows { earlier: &earlier, x: &x_matrix, first, count, columns };
            let mut out = matrix(&vec![0.0; count * columns], columns, format);
            let target = out.target();
            // SAFETY: nothing else accesses the matrix.
            (0..count).for_each(|row| unsafe { convolution.write(&rows, row, &target, row) });
            let part = |row: usize, number: usize, column: usize| {
                f64::from(x[((first + row) * 3 + number) * columns + column])
            };
            let weights = described.factors.to_f32().unwrap();
            let shift = described.shift.map(|shift| shift.to_f32().unwrap());
            for (row, column) in (0..count).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                let mut sum = shift.as_ref().map_or(0.0, |shift| f64::from(shift[column]));
                for tap in 0..size {
                    let seen = match (row + tap).checked_sub(before) {
                        None => f64::from(earlier[(row + tap) * columns + column]),
                        Some(own) if own < count => part(own, 0, column) * part(own, 2, column),
                        Some(_) => 0.0,
                    };
                    sum += f64::from(weights[column * size + tap]) * seen;
                }
                let expected = sum * part(row, 1, column);
                let mut found = [0.0];
                out.read(row, column..column + 1, &mut found);
                let allowed = if format == DType::Bf16 { 0.005 * expected.abs() } else { 2e-4 };
                let error = (f64::from(found[0]) - expected).abs();
                assert!(error <= allowed, "{columns} {size} {before} {format:?} {row} {column}: {error}");
            }
        }
    }
}

#[test]
fn numbers_that_do_not_fit_together_are_an_error() {
    assert!(ShortConvolution::new(&factors(4, 3, 3, false)).is_err());
    assert!(ShortConvolution::new(&factors(4, LONGEST_SHORT_CONVOLUTION + 1, 2, false)).is_err());
    let shift = Some(Weight::from_f32(&[0.0; 5], &[5]).unwrap());
    assert!(ShortConvolution::new(&ShortConvolutionFactors { shift, ..factors(4, 3, 2, false) }).is_err());
}

const SHAPE: ShortConvolutionShape = ShortConvolutionShape { layers: 2, before: 3, columns: 5 };

/// `b * x` of a row: `b` is the number itself, and `x` is 1.
fn gated(text: u64, layer: usize, position: usize) -> Vec<f32> {
    numbers(text + 1000 * (2 * position + layer) as u64, SHAPE.columns)
}

/// Appends positions up to `end`, as a pass does.
fn extend(state: &mut ShortConvolutionState, text: u64, end: usize, window: usize) {
    extend_drafting(state, text, end, window, 0);
}

/// The same; the last `drafts` are drafts.
fn extend_drafting(state: &mut ShortConvolutionState, text: u64, end: usize, window: usize, drafts: usize) {
    let start = state.len();
    state.reserve(end).unwrap();
    for layer in 0..SHAPE.layers {
        for first in (start..end).step_by(window) {
            let positions = first..end.min(first + window);
            let drafted = if positions.end == end && drafts < positions.len() { drafts } else { 0 };
            let row = |position: usize| [gated(text, layer, position), vec![9.0; 5], vec![1.0; 5]].concat();
            let x = matrix(&positions.clone().flat_map(row).collect::<Vec<_>>(), 15, DType::F32);
            let earlier = state.before(layer, first).unwrap().to_vec();
            let count = positions.len();
            let rows = GatedRows { earlier: &earlier, x: &x, first: 0, count, columns: 5 };
            state.write(layer, positions, drafted, &rows).unwrap();
        }
    }
    state.extend_to(end);
}

fn check(state: &ShortConvolutionState, text: u64) {
    let len = state.len();
    for layer in 0..SHAPE.layers {
        let row = |back: usize| match (len + back).checked_sub(SHAPE.before) {
            Some(position) => gated(text, layer, position),
            None => vec![0.0; SHAPE.columns],
        };
        let expected = (0..SHAPE.before).flat_map(row).collect::<Vec<_>>();
        assert_eq!(state.before(layer, len).unwrap(), expected, "layer {layer} at {len}");
    }
}

#[derive(Debug, Clone)]
enum Change {
    Extend { by: usize, window: usize },
    Draft { by: usize, stay: usize },
    Truncate(usize),
    Fork(usize),
    Shrink,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1_usize..150, 1_usize..90).prop_map(|(by, window)| Change::Extend { by, window }),
        (0_usize..MOST_DRAFTED + 3, 0_usize..20).prop_map(|(by, stay)| Change::Draft { by, stay }),
        (0_usize..400).prop_map(Change::Truncate),
        (0_usize..400).prop_map(Change::Fork),
        Just(Change::Shrink),
    ]
}

proptest! {
    #[test]
    fn the_rows_before_every_end_are_known(changes in prop::collection::vec(change(), 1..20)) {
        let mut state = ShortConvolutionState::new(SHAPE);
        state.reserve(1).unwrap();
        let mut forks = Vec::new();
        for change in changes {
            let len = state.len();
            match change {
                Change::Extend { by, window } => extend(&mut state, 1, len + by, window),
                Change::Draft { by, stay } => {
                    let stay = stay.min(by);
                    extend_drafting(&mut state, 1, len + 1 + by, 90, by);
                    check(&state, 1);
                    for kept in (stay..=by).rev().filter(|_| by <= MOST_DRAFTED) {
                        let fork = state.fork(len + 1 + kept, len + 200).unwrap();
                        prop_assert_eq!(fork.len(), len + 1 + kept);
                        check(&fork, 1);
                    }
                    let cut = state.cut(len + 1 + stay);
                    prop_assert!(cut == len + 1 + stay || by > MOST_DRAFTED);
                    state.truncate(cut);
                }
                Change::Truncate(wanted) => {
                    let cut = state.cut(wanted.min(len));
                    prop_assert!(cut <= wanted && cut + SNAPSHOT > wanted.min(len));
                    state.truncate(cut);
                    prop_assert_eq!(state.len(), cut);
                }
                Change::Fork(wanted) => {
                    let cut = state.cut(wanted.min(len));
                    forks.push(state.fork(cut, cut + 100).unwrap());
                }
                Change::Shrink => {
                    state.shrink();
                    prop_assert!(len > 0 || state.bytes() == 0);
                    state.reserve(1).unwrap();
                }
            }
            check(&state, 1);
        }
        for mut fork in forks {
            check(&fork, 1);
            // What another sequence appends is not seen here.
            let len = fork.len();
            extend(&mut fork, 1, len + 130, 40);
            check(&fork, 1);
        }
        check(&state, 1);
    }
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut state = ShortConvolutionState::new(SHAPE);
    extend(&mut state, 1, 200, 64);
    let mut fork = state.fork(128, 300).unwrap();
    extend(&mut fork, 1, 190, 7);
    extend(&mut state, 1, 300, 100);
    for (state, len) in [(&mut state, 192), (&mut fork, 128)] {
        state.truncate(len);
        check(state, 1);
    }
}

/// Rows of a pass that failed are not part of the sequence, which goes on as if the pass had not been.
#[test]
fn a_failed_pass_leaves_the_rows_of_the_sequence() {
    let mut state = ShortConvolutionState::new(SHAPE);
    extend(&mut state, 1, 70, 70);
    state.reserve(200).unwrap();
    let x = matrix(&numbers(5, 130 * 15), 15, DType::F32);
    let earlier = state.before(0, 70).unwrap().to_vec();
    let rows = GatedRows { earlier: &earlier, x: &x, first: 0, count: 130, columns: 5 };
    state.write(0, 70..200, 0, &rows).unwrap();
    assert!(state.before(1, 200).is_err() && state.before(0, 71).is_err());
    check(&state, 1);
    extend(&mut state, 1, 140, 33);
    state.truncate(128);
    check(&state, 1);
}

#[test]
fn positions_that_were_not_reserved_are_an_error() {
    let mut state = ShortConvolutionState::new(SHAPE);
    state.reserve(64).unwrap();
    let x = matrix(&numbers(5, 128 * 15), 15, DType::F32);
    let earlier = [0.0; 15];
    let rows = |count| GatedRows { earlier: &earlier, x: &x, first: 0, count, columns: 5 };
    assert!(state.write(0, 0..128, 0, &rows(128)).is_err());
    assert!(state.write(2, 0..64, 0, &rows(64)).is_err());
    assert!(state.write(0, 0..64, 0, &rows(64)).is_ok());
}
