//! Sampling at a temperature above 0, as `GreedyDecoder` draws tokens.

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
    /// The sequence after the prompt whose last logits, (1, n_vocab), are in `self.logits`.
    pub(crate) fn sample(&mut self, model: &mut dyn Model, max_sampled: usize, temperature: f64) -> Result<Candidate> {
        let eot = self.argument.tokens.eot;
        let mut candidate = self.begun();
        for step in 1.. {
            self.rules.filter(&candidate.tokens, &mut self.logits);
            let token = self.random.categorical(&self.logits, temperature).unwrap_or(eot as usize);
            let logprob = f64::from(self.logits[token]) - log_sum_exp(&self.logits);
            if !candidate.push(token as i32, logprob as f32, eot) || step == max_sampled {
                break;
            }
            model.append(&[token as i32], 1, None)?;
            model.logits(&mut self.logits)?;
        }
        Ok(candidate)
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
