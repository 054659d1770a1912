//! Beam search: openai/whisper's `BeamSearchDecoder`. The device keeps and reorders a cache per beam.

use crate::decode::{Candidate, Decoder};
use crate::model::Model;
use crate::numeric::{argmax, log_sum_exp};
use crate::Result;

/// A beam extended by one token.
struct Extension {
    beam: usize,
    token: i32,
    logprob: f32,
    sum_logprob: f32,
}

impl Decoder<'_> {
    /// The best sequence after the prompt whose last logits, (1, n_vocab), are in `self.logits`.
    pub(crate) fn beam_search(
        &mut self,
        model: &mut dyn Model,
        beam_size: usize,
        max_sampled: usize,
    ) -> Result<Candidate> {
        let eot = self.argument.tokens.eot;
        let mut finished = Vec::new();
        // All beams start as the prompt: a single one, until its extensions differ.
        let mut beams = vec![self.begun()];
        for step in 1.. {
            let mut extensions = self.extensions(&beams, beam_size + 1);
            extensions.sort_by(|a, b| b.sum_logprob.total_cmp(&a.sum_logprob));
            let (mut next, mut origins) = (Vec::new(), Vec::new());
            for extension in extensions {
                let mut candidate = beams[extension.beam].clone();
                if !candidate.push(extension.token, extension.logprob, eot) {
                    if finished.len() < beam_size {
                        finished.push(candidate);
                    }
                    continue;
                }
                next.push(candidate);
                origins.push(extension.beam as i32);
                if next.len() == beam_size {
                    break;
                }
            }
            let unchanged = origins.len() == beams.len() && origins.iter().enumerate().all(|(i, &o)| o == i as i32);
            beams = next;
            if finished.len() >= beam_size || step == max_sampled || beams.is_empty() {
                break;
            }
            let tokens: Vec<i32> = beams.iter().filter_map(|beam| beam.tokens.last().copied()).collect();
            model.append(&tokens, tokens.len(), if unchanged { None } else { Some(&origins) })?;
            self.logits.resize(tokens.len() * self.argument.dims.n_vocab, 0.0);
            model.logits(&mut self.logits)?;
        }
        // Best first; open beams fill the places of unfinished ones.
        let missing = beam_size.saturating_sub(finished.len());
        finished.extend(beams.into_iter().take(missing));
        let n_settled = self.begun().tokens.len();
        let best = argmax(finished.iter().map(|candidate| candidate.score(n_settled)));
        Ok(finished.into_iter().nth(best).unwrap_or_default())
    }

    /// The `n` likeliest next tokens of each beam.
    fn extensions(&mut self, beams: &[Candidate], n: usize) -> Vec<Extension> {
        let mut extensions = Vec::new();
        for (beam, logits) in self.logits.chunks_mut(self.argument.dims.n_vocab).enumerate() {
            self.rules.filter(&beams[beam].tokens, logits);
            let normalizer = log_sum_exp(logits);
            for token in largest(logits, n) {
                let logprob = (f64::from(logits[token]) - normalizer) as f32;
                let sum_logprob = beams[beam].sum_logprob + logprob;
                extensions.push(Extension { beam, token: token as i32, logprob, sum_logprob });
            }
        }
        extensions
    }
}

/// Indices of the `n` largest values above −∞, largest first; ties go to the first.
fn largest(values: &[f32], n: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(n + 1);
    let mut least = f32::NEG_INFINITY;
    for (index, &value) in values.iter().enumerate() {
        if value > least {
            let place = best.partition_point(|&other| values[other] >= value);
            best.insert(place, index);
            best.truncate(n);
            if best.len() == n {
                least = values[best[n - 1]];
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::DecodingResult;
    use crate::fake::{argument, sampled, FakeModel, EOT};
    use serde_json::{json, Value};

    fn decode(options: Value, script: fn(&[i32]) -> Vec<(i32, f32)>) -> (DecodingResult, FakeModel) {
        let mut with = json!({"without_timestamps": true});
        with.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let argument = argument(with);
        let mut model = FakeModel::new(move |_, sequence| script(sampled(sequence)));
        let result = Decoder::new(&argument, "en", &mut model).unwrap().decode(&mut model, &[], 0.0).unwrap();
        (result, model)
    }

    /// Greedy takes 5, which leads nowhere good; 6 is certain afterwards. All other tokens have almost
    /// no probability.
    fn garden_path(sampled: &[i32]) -> Vec<(i32, f32)> {
        match sampled {
            [] => vec![(5, 40.5), (6, 40.0)],
            [5] => vec![(7, 40.0), (8, 40.0), (9, 40.0), (10, 40.0)],
            [6] => vec![(11, 40.0)],
            _ => vec![(EOT, 40.0)],
        }
    }

    #[test]
    fn a_beam_finds_what_greedy_decoding_misses() {
        assert_eq!(decode(json!({}), garden_path).0.tokens[0], 5);
        let (result, _) = decode(json!({"beam_size": 2}), garden_path);
        assert_eq!(result.tokens, [6, 11]);
        let first = -(1.0 + 0.5f64.exp()).ln();
        assert!((result.avg_logprob - first / 3.0).abs() < 1e-5, "{}", result.avg_logprob);
        assert_eq!(result.logprobs.len(), 2);
        assert_eq!(decode(json!({"beam_size": 1}), garden_path).0.tokens[0], 5);
    }

    #[test]
    fn beams_are_cached_sequences_and_follow_their_origins() {
        let (_, model) = decode(json!({"beam_size": 3}), |sampled| match sampled.len() {
            0 => vec![(5, 30.0), (6, 29.0), (7, 28.0)],
            1 => vec![(sampled[0] + 10, 30.0), (sampled[0] + 20, 29.9)],
            2..=4 => vec![(sampled[1], 30.0)],
            _ => vec![(EOT, 30.0)],
        });
        let cached: Vec<&[i32]> = model.sequences.iter().map(|sequence| sampled(sequence)).collect();
        assert_eq!(cached, [[5, 15, 15, 15, 15], [5, 25, 25, 25, 25], [6, 16, 16, 16, 16]]);
    }

    #[test]
    fn open_beams_count_when_time_is_up() {
        let (result, _) = decode(json!({"beam_size": 2, "sample_len": 3}), |_| vec![(5, 30.0)]);
        assert_eq!(result.tokens, [5, 5, 5]);
    }

    #[test]
    fn the_largest_come_in_order_and_never_the_impossible() {
        let values = [1.0, f32::NEG_INFINITY, 3.0, 2.0, 3.0, 0.0];
        assert_eq!(largest(&values, 3), [2, 4, 3]);
        assert_eq!(largest(&values, 9), [2, 4, 3, 0, 5]);
    }
}
