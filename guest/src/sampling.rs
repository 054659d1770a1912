//! Sampling at a temperature above 0: `best_of` independent sequences, as `GreedyDecoder` draws them.

use crate::decode::{Candidate, Decoder};
use crate::model::Model;
use crate::numeric::log_sum_exp;
use crate::Result;

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same transcript.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An index drawn from softmax(logits / temperature); None if nothing is possible.
    fn categorical(&mut self, logits: &[f32], temperature: f64) -> Option<usize> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| (f64::from(logit - largest) / temperature).exp();
        let possible = || logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let total: f64 = possible().map(|(_, &logit)| weight(logit)).sum();
        let mut left = self.uniform() * total;
        for (index, &logit) in possible() {
            left -= weight(logit);
            if left < 0.0 {
                return Some(index);
            }
        }
        possible().last().map(|(index, _)| index)
    }
}

impl Decoder<'_> {
    /// `n` sequences after the prompt whose last logits, (1, n_vocab), are in `self.logits`.
    pub(crate) fn sample(
        &mut self,
        model: &mut dyn Model,
        n: usize,
        max_sampled: usize,
        temperature: f64,
    ) -> Result<Vec<Candidate>> {
        let (n_vocab, eot) = (self.argument.dims.n_vocab, self.argument.tokens.eot);
        let mut candidates = vec![self.begun(); n];
        // Open sequences, in the order of the cached ones; at first they share the prompt's cache.
        let mut open: Vec<usize> = (0..n).collect();
        let mut rows = vec![0; n];
        for step in 1.. {
            let mut origins = Vec::new();
            let mut next = Vec::new();
            let mut still_open = Vec::new();
            for (place, &sequence) in open.iter().enumerate() {
                let candidate = &mut candidates[sequence];
                let mut logits = self.logits[rows[place] * n_vocab..][..n_vocab].to_vec();
                self.rules.filter(&candidate.tokens, &mut logits);
                let token = self.random.categorical(&logits, temperature).unwrap_or(eot as usize);
                let logprob = f64::from(logits[token]) - log_sum_exp(&logits);
                if candidate.push(token as i32, logprob as f32, eot) {
                    origins.push(rows[place] as i32);
                    next.push(token as i32);
                    still_open.push(sequence);
                }
            }
            open = still_open;
            if open.is_empty() || step == max_sampled {
                break;
            }
            let unchanged = origins.len() == rows.len() && origins.iter().enumerate().all(|(i, &o)| o == i as i32);
            model.append(&next, open.len(), if unchanged { None } else { Some(&origins) })?;
            self.logits.resize(open.len() * n_vocab, 0.0);
            model.logits(&mut self.logits)?;
            rows = (0..open.len()).collect();
        }
        Ok(candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_tempered_distribution() {
        let mut random = Random::new(7);
        let logits = [0.0, 1.0, f32::NEG_INFINITY, 2.0];
        for temperature in [0.5, 1.0] {
            let mut counts = [0; 4];
            for _ in 0..40_000 {
                counts[random.categorical(&logits, temperature).unwrap()] += 1;
            }
            let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                assert!((f64::from(*count) / 40_000.0 - weight / total).abs() < 0.01, "{counts:?}");
            }
        }
    }

    #[test]
    fn nothing_possible_is_said() {
        assert_eq!(Random::new(0).categorical(&[f32::NEG_INFINITY; 3], 1.0), None);
    }

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| (0..4).map(|_| Random::new(seed).uniform()).collect::<Vec<_>>();
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
