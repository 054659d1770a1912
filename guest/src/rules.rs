//! What may be sampled next: openai/whisper's `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules`, in that
//! order. On the fast path the device applies them (see [`Rules::tensor`]); else [`Rules::filter`] does, to raw logits.

use crate::numeric::{log_sum_exp, round_half_even};
use crate::options::{Options, Tokens, TIME_PRECISION};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    eot: i32,
    suppress: Vec<i32>,
    /// Not to be sampled first.
    begin_suppress: Vec<i32>,
    timestamps: Option<TimestampRules>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TimestampRules {
    begin: i32,
    no_timestamps: i32,
    max_initial_index: Option<i32>,
}

impl Rules {
    pub fn new(tokens: &Tokens, options: &Options) -> Rules {
        let blank = tokens.blank.iter().copied().chain([tokens.eot]);
        // 0 means no limit, as in the reference.
        let max_initial = options.max_initial_timestamp.filter(|seconds| *seconds > 0.0);
        Rules {
            eot: tokens.eot,
            suppress: tokens.suppress.clone(),
            begin_suppress: if options.suppress_blank { blank.collect() } else { Vec::new() },
            timestamps: (!options.without_timestamps).then(|| TimestampRules {
                begin: tokens.timestamp_begin,
                no_timestamps: tokens.no_timestamps,
                max_initial_index: max_initial.map(|seconds| round_half_even(seconds / TIME_PRECISION) as i32),
            }),
        }
    }

    /// The decoder graph's `rules` input: [n_steps, sample_begin, eot, timestamp_begin, no_timestamps,
    /// max_initial_timestamp_index, n_suppress, n_begin_suppress, suppress…, begin_suppress…].
    pub fn tensor(&self, n_steps: usize, sample_begin: usize) -> Vec<i32> {
        let timestamps = self.timestamps.as_ref();
        let mut tensor = vec![
            n_steps as i32,
            sample_begin as i32,
            self.eot,
            timestamps.map_or(-1, |rules| rules.begin),
            timestamps.map_or(-1, |rules| rules.no_timestamps),
            timestamps.and_then(|rules| rules.max_initial_index).unwrap_or(-1),
            self.suppress.len() as i32,
            self.begin_suppress.len() as i32,
        ];
        tensor.extend(&self.suppress);
        tensor.extend(&self.begin_suppress);
        tensor
    }

    /// Set to −∞ what may not follow `sampled`, the tokens after the prompt. `logits`: (n_vocab).
    pub fn filter(&self, sampled: &[i32], logits: &mut [f32]) {
        let forbidden = f32::NEG_INFINITY;
        if sampled.is_empty() {
            for &token in &self.begin_suppress {
                logits[token as usize] = forbidden;
            }
        }
        for &token in &self.suppress {
            logits[token as usize] = forbidden;
        }
        if let Some(rules) = &self.timestamps {
            rules.filter(sampled, logits, self.eot as usize);
        }
    }
}

#[cfg(test)]
impl Rules {
    /// What a decoder graph understands of the tensor.
    pub fn from_tensor(tensor: &[i32]) -> Rules {
        let (suppress, begin_suppress) = tensor[8..].split_at(tensor[6] as usize);
        assert_eq!(begin_suppress.len(), tensor[7] as usize);
        Rules {
            eot: tensor[2],
            suppress: suppress.to_vec(),
            begin_suppress: begin_suppress.to_vec(),
            timestamps: (tensor[3] >= 0).then(|| TimestampRules {
                begin: tensor[3],
                no_timestamps: tensor[4],
                max_initial_index: Some(tensor[5]).filter(|&index| index >= 0),
            }),
        }
    }
}

impl TimestampRules {
    fn filter(&self, sampled: &[i32], logits: &mut [f32], eot: usize) {
        let forbidden = f32::NEG_INFINITY;
        let begin = self.begin as usize;
        logits[self.no_timestamps as usize] = forbidden;

        // Timestamps come in pairs, except right before the end of text.
        let last_was_timestamp = sampled.last().map_or(false, |&token| token >= self.begin);
        let penultimate_was_timestamp = sampled.len() < 2 || sampled[sampled.len() - 2] >= self.begin;
        if last_was_timestamp {
            if penultimate_was_timestamp {
                logits[begin..].fill(forbidden);
            } else {
                logits[..eot].fill(forbidden);
            }
        }

        // They do not decrease, and a segment is not empty, or decoding could loop for ever.
        if let Some(&last) = sampled.iter().rev().find(|&&token| token >= self.begin) {
            let may_repeat = last_was_timestamp && !penultimate_was_timestamp;
            let least = if may_repeat { last } else { last + 1 };
            let least = (least as usize).min(logits.len());
            logits[begin..least].fill(forbidden);
        }

        if sampled.is_empty() {
            logits[..begin].fill(forbidden);
            if let Some(index) = self.max_initial_index {
                let first_forbidden = (begin + index as usize + 1).min(logits.len());
                logits[first_forbidden..].fill(forbidden);
            }
        }

        // Where all timestamps together are likelier than any one other token, one of them is next.
        let likeliest_text = logits[..begin].iter().copied().fold(forbidden, f32::max);
        if log_sum_exp(&logits[begin..]) > f64::from(likeliest_text) {
            logits[..begin].fill(forbidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{argument, EOT, NO_TIMESTAMPS, N_VOCAB, TIMESTAMP_BEGIN};
    use serde_json::json;

    fn allowed(options: serde_json::Value, sampled: &[i32], logits: &[(i32, f32)]) -> Vec<i32> {
        let argument = argument(options);
        let mut values = vec![0.0; N_VOCAB];
        for &(token, logit) in logits {
            values[token as usize] = logit;
        }
        Rules::new(&argument.tokens, &argument.options).filter(sampled, &mut values);
        (0..N_VOCAB as i32).filter(|&token| values[token as usize] > f32::NEG_INFINITY).collect()
    }

    const T: i32 = TIMESTAMP_BEGIN;
    /// Keeps the sum of the timestamps below the likeliest text token.
    const LIKELY_TEXT: (i32, f32) = (5, 10.0);

    #[test]
    fn the_first_token_is_an_early_timestamp() {
        assert_eq!(allowed(json!({}), &[], &[LIKELY_TEXT]), (T..=T + 50).collect::<Vec<_>>());
        assert_eq!(allowed(json!({"max_initial_timestamp": 0.04}), &[], &[]), [T, T + 1, T + 2]);
        let last_of = |seconds: f64| *allowed(json!({ "max_initial_timestamp": seconds }), &[], &[]).last().unwrap();
        // Python's round(), of quotients a little off and of halves.
        assert_eq!((last_of(0.58), last_of(0.05), last_of(0.07)), (T + 29, T + 2, T + 4));
        for unlimited in [json!(null), json!(0.0)] {
            let options = json!({ "max_initial_timestamp": unlimited });
            assert_eq!(allowed(options, &[], &[]), (T..N_VOCAB as i32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn text_follows_an_opening_timestamp() {
        let allowed = allowed(json!({}), &[T + 3], &[LIKELY_TEXT]);
        assert!(allowed.contains(&5) && allowed.contains(&EOT));
        assert!(allowed.iter().all(|&token| token < T && token != NO_TIMESTAMPS));
    }

    #[test]
    fn a_closing_timestamp_is_followed_by_a_timestamp_or_the_end() {
        let allowed = allowed(json!({}), &[T + 3, 5, T + 9], &[(EOT, 20.0)]);
        assert_eq!(allowed[0], EOT);
        assert_eq!(allowed.iter().find(|&&token| token >= T), Some(&(T + 9)));
    }

    #[test]
    fn timestamps_neither_decrease_nor_close_an_empty_segment() {
        let after_text = allowed(json!({}), &[T + 3, 5], &[LIKELY_TEXT]);
        assert_eq!(after_text.iter().find(|&&token| token >= T), Some(&(T + 4)));
        let last = N_VOCAB as i32 - 1;
        assert!(allowed(json!({}), &[last, 5], &[LIKELY_TEXT]).iter().all(|&token| token < T));
    }

    #[test]
    fn likely_timestamps_together_exclude_text() {
        let next = allowed(json!({}), &[T, 5], &[(5, 1.0)]);
        assert!(next.iter().all(|&token| token > T));
    }

    #[test]
    fn blank_and_end_are_not_first_and_suppressed_tokens_never_come() {
        let options = json!({"without_timestamps": true});
        let first = allowed(options.clone(), &[], &[]);
        let second = allowed(options, &[5], &[]);
        for token in [0, EOT] {
            assert!(!first.contains(&token) && second.contains(&token));
        }
        assert!(!first.contains(&1) && !second.contains(&1));
        assert!(second.contains(&NO_TIMESTAMPS) && second.contains(&T));
        let options = json!({"without_timestamps": true, "suppress_blank": false});
        assert!(allowed(options, &[], &[]).contains(&0));
    }

    #[test]
    fn the_tensor_says_the_same() {
        let argument = argument(json!({}));
        let rules = Rules::new(&argument.tokens, &argument.options);
        let suppress = argument.tokens.suppress.clone();
        let head = [4, 3, EOT, T, NO_TIMESTAMPS, 50, suppress.len() as i32, 2];
        assert_eq!(rules.tensor(4, 3), [&head[..], &suppress, &[0, EOT]].concat());
        let options = Options { without_timestamps: true, suppress_blank: false, ..argument.options };
        let tensor = Rules::new(&argument.tokens, &options).tensor(1, 1);
        assert_eq!(tensor[3..8], [-1, -1, -1, suppress.len() as i32, 0]);
    }
}
