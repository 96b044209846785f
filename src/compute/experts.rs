//! Mixtures of experts: perceptrons of which each row uses a few, and how they are chosen.
//!
//! Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017.

use std::cmp::Ordering;

/// What the scores of experts are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertScores {
    /// The softmax over the outputs of the router for all experts.
    Softmax,
    /// The sigmoid of each of them.
    Sigmoid,
}

/// How the outputs of the router become experts and their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertRouting {
    /// Experts that each row uses: those of the largest scores.
    pub used: usize,
    /// What the scores are made of.
    pub scores: ExpertScores,
    /// Whether a row's weights are divided by their sum plus this number; else they are the scores. With a softmax and 0, this
    /// is the softmax over the used experts alone.
    pub normalized: Option<f32>,
    /// What weights are multiplied by.
    pub factor: f32,
}

impl ExpertRouting {
    /// The experts of one row, in the order of their indices, each with its weight. `scores` are the outputs of the router. Of
    /// equal scores, that of the lower index is larger; a score that is no number is larger than all others, so that it shows in
    /// the result. `choice_bias`, unless it is empty, is added to the scores that choose.
    ///
    /// # Panics
    /// If `chosen` is longer than `scores`.
    pub(crate) fn choose(&self, scores: &mut [f32], choice_bias: &[f32], chosen: &mut [ChosenExpert]) {
        match self.scores {
            ExpertScores::Softmax => softmax(scores),
            ExpertScores::Sigmoid => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
        }
        let key = |index: u32| {
            let key = scores[index as usize] + choice_bias.get(index as usize).copied().unwrap_or(0.0);
            if key.is_nan() { f32::INFINITY } else { key }
        };
        let larger = |a: &u32, b: &u32| {
            key(*b).partial_cmp(&key(*a)).unwrap_or(Ordering::Equal).then_with(|| a.cmp(b))
        };
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let used = chosen.len();
        assert!(used <= order.len(), "{used} of {} experts", order.len());
        if used > 0 && used < order.len() {
            order.select_nth_unstable_by(used - 1, larger);
        }
        let order = &mut order[..used];
        order.sort_unstable();
        let sum: f32 = order.iter().map(|&index| scores[index as usize]).sum();
        let divisor = self.normalized.map_or(1.0, |more| sum + more);
        for (chosen, &index) in chosen.iter_mut().zip(&*order) {
            *chosen = ChosenExpert { index, weight: scores[index as usize] / divisor * self.factor };
        }
    }
}

/// An expert of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ChosenExpert {
    pub index: u32,
    /// What its output is multiplied by.
    pub weight: f32,
}

/// The layers of one perceptron.
#[derive(Debug)]
pub struct ExpertLayers<L> {
    /// The first layer, gated where the perceptron has a gate.
    pub up: L,
    /// The layer after it.
    pub down: L,
}

/// Norms of a mixture whose parts each normalize the states in their own way.
#[derive(Debug)]
pub struct ExpertNorms<N> {
    /// Of the rows that the router reads.
    pub router: N,
    /// Of the rows that the chosen experts read.
    pub input: N,
    /// Of the weighted sum of what the chosen experts make.
    pub output: N,
    /// Of what the expert that all rows use makes.
    pub shared_output: N,
}

/// An expert that all rows use, next to those that they choose.
#[derive(Debug)]
pub struct SharedExpert<L> {
    /// Its layers.
    pub layers: ExpertLayers<L>,
    /// Makes one number of each row, in float32, whose sigmoid multiplies the output.
    pub gate: Option<L>,
}

/// A mixture of experts of linear layers `L` and norms `N`.
#[derive(Debug)]
pub struct Experts<L, N> {
    /// Makes a number for each expert of each row, in float32.
    pub router: L,
    /// How these numbers choose.
    pub routing: ExpertRouting,
    /// Added to the scores that choose, and not to weights; empty if there is none.
    pub choice_bias: Vec<f32>,
    /// What the weights of each expert are multiplied by in addition; empty if nothing.
    pub weight_factors: Vec<f32>,
    /// Those that rows choose from.
    pub experts: Vec<ExpertLayers<L>>,
    /// Of all rows.
    pub shared: Option<SharedExpert<L>>,
    /// Added once to what the experts of a row make together, as long as a row; empty if there is none.
    pub bias: Vec<f32>,
    /// Where not all parts read the normalized states of the block, of which the shared expert then is the only reader.
    pub norms: Option<ExpertNorms<N>>,
}

impl<L, N> Experts<L, N> {
    /// The experts of one row, as [`ExpertRouting::choose`] finds them, with all factors of their weights.
    pub(crate) fn choose(&self, scores: &mut [f32], chosen: &mut [ChosenExpert]) {
        self.routing.choose(scores, &self.choice_bias, chosen);
        if !self.weight_factors.is_empty() {
            chosen.iter_mut().for_each(|chosen| chosen.weight *= self.weight_factors[chosen.index as usize]);
        }
    }
}

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - most).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(routing: ExpertRouting, scores: &[f32], choice_bias: &[f32]) -> Vec<(u32, f32)> {
        let mut chosen = vec![ChosenExpert::default(); routing.used];
        routing.choose(&mut scores.to_vec(), choice_bias, &mut chosen);
        chosen.iter().map(|chosen| (chosen.index, chosen.weight)).collect()
    }

    const SOFTMAX: ExpertRouting =
        ExpertRouting { used: 2, scores: ExpertScores::Softmax, normalized: None, factor: 1.0 };
    const SIGMOID: ExpertRouting =
        ExpertRouting { used: 2, scores: ExpertScores::Sigmoid, normalized: Some(1e-6), factor: 2.0 };

    #[test]
    fn the_largest_scores_choose_and_weigh() {
        let logits = [0.5_f32, 2.0, -1.0, 1.0];
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        let [(1, first), (3, second)] = chosen(SOFTMAX, &logits, &[])[..] else {
            panic!("others are larger")
        };
        assert!((first - 2.0_f32.exp() / sum).abs() < 1e-6 && (second - 1.0_f32.exp() / sum).abs() < 1e-6);
        let normalized = chosen(ExpertRouting { normalized: Some(0.0), ..SOFTMAX }, &logits, &[]);
        let own = 2.0_f32.exp() / (2.0_f32.exp() + 1.0_f32.exp());
        assert!((normalized[0].1 - own).abs() < 1e-6 && (normalized[1].1 - (1.0 - own)).abs() < 1e-6);
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let (plain, biased) =
            (chosen(SIGMOID, &[2.0, 1.0, 0.0], &[]), chosen(SIGMOID, &[2.0, 1.0, 0.0], &[-1.0, 0.0, 0.0]));
        assert_eq!((plain[0].0, plain[1].0, biased[0].0, biased[1].0), (0, 1, 1, 2));
        let sum = sigmoid(1.0) + sigmoid(0.0) + 1e-6;
        assert!((biased[0].1 - 2.0 * sigmoid(1.0) / sum).abs() < 1e-6);
        assert!((biased[1].1 - 2.0 * sigmoid(0.0) / sum).abs() < 1e-6);
    }

    #[test]
    fn equal_scores_choose_the_lower_index() {
        for scores in [[1.0; 5], [0.0; 5], [f32::NEG_INFINITY, 1.0, 1.0, f32::NEG_INFINITY, 1.0]] {
            let first = u32::from(scores[0] == f32::NEG_INFINITY);
            let found: Vec<u32> = chosen(SOFTMAX, &scores, &[]).iter().map(|chosen| chosen.0).collect();
            assert_eq!(found, [first, first + 1], "{scores:?}");
        }
        // A score of zero weighs nothing, and its sign does not choose.
        assert_eq!(chosen(SIGMOID, &[-200.0, -300.0, -200.0], &[])[1].0, 1);
    }

    #[test]
    fn what_is_no_number_shows_in_the_weights() {
        for (routing, scores) in [
            (SOFTMAX, [0.0, f32::NAN, 1.0]),
            (SIGMOID, [9.0, 8.0, f32::NAN]),
            (SOFTMAX, [f32::NAN; 3]),
            (SOFTMAX, [f32::INFINITY, 0.0, f32::NAN]),
        ] {
            assert!(chosen(routing, &scores, &[]).iter().any(|chosen| chosen.1.is_nan()), "{scores:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn choices_are_those_of_a_sort(
            scores in proptest::collection::vec(-4_i8..4, 1..40),
            used in 1_usize..9,
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let mut order: Vec<u32> = (0..scores.len() as u32).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            order.truncate(used.min(scores.len()));
            order.sort_unstable();
            let routing = ExpertRouting { used: order.len(), ..SOFTMAX };
            let found: Vec<u32> = chosen(routing, &scores, &[]).iter().map(|chosen| chosen.0).collect();
            proptest::prop_assert_eq!(found, order);
        }
    }
}
