//! Which tokens may come next: openai/whisper's `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules`, in that
//! order. On the fast path the device applies them, see [`Rules::tensor`]; otherwise [`Rules::filter`] does.

use crate::numeric::{log_sum_exp, round_half_even};
use crate::options::{Options, Tokens, TIME_PRECISION};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub(crate) eot: i32,
    pub(crate) suppress: Vec<i32>,
    /// Not to be sampled first.
    pub(crate) begin_suppress: Vec<i32>,
    pub(crate) timestamps: Option<TimestampRules>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimestampRules {
    pub begin: i32,
    pub no_timestamps: i32,
    pub max_initial_index: Option<i32>,
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

    /// Set to −∞ the logits of tokens that may not follow `sampled`, those after the prompt. `logits`: (n_vocab).
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

        // They must not decrease, and a segment must not be empty, or decoding could loop forever.
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

        // If all timestamps together are likelier than any single other token, one of them is next.
        let likeliest_text = logits[..begin].iter().copied().fold(forbidden, f32::max);
        if log_sum_exp(&logits[begin..]) > f64::from(likeliest_text) {
            logits[..begin].fill(forbidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{argument, rules_of, EOT, NO_TIMESTAMPS, TIMESTAMP_BEGIN};
    use serde_json::{json, Value};

    fn tokens(list: &Value) -> Vec<i32> {
        list.as_array().into_iter().flatten().map(|token| token.as_i64().unwrap() as i32).collect()
    }

    /// tests/rules.json, which also tests the rules of the device and of the host.
    #[test]
    fn each_case_of_the_table() {
        let table: Value = serde_json::from_str(include_str!("../../tests/rules.json")).unwrap();
        let id = |name: &str| table[name].as_i64().unwrap() as i32;
        for case in table["cases"].as_array().unwrap() {
            let rules = Rules {
                eot: id("eot"),
                suppress: tokens(&case["suppress"]),
                begin_suppress: tokens(&case["begin_suppress"]),
                timestamps: case["timestamps"].as_bool().unwrap_or(true).then(|| TimestampRules {
                    begin: id("timestamp_begin"),
                    no_timestamps: id("no_timestamps"),
                    max_initial_index: case["limit"].as_i64().map(|index| index as i32),
                }),
            };
            let mut logits = vec![-20.0; id("n_vocab") as usize];
            for (token, logit) in case["logits"].as_object().unwrap() {
                logits[token.parse::<usize>().unwrap()] = logit.as_f64().unwrap() as f32;
            }
            rules.filter(&tokens(&case["sampled"]), &mut logits);
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let chosen = logits.iter().position(|&logit| logit == best && logit > f32::NEG_INFINITY);
            assert_eq!(chosen.map(|token| token as i64), case["chosen"].as_i64(), "{}", case["rule"]);
        }
    }

    #[test]
    fn the_tensor_says_the_same() {
        let argument = argument(json!({}));
        let rules = Rules::new(&argument.tokens, &argument.options);
        let suppress = argument.tokens.suppress.clone();
        let head = [4, 3, EOT, TIMESTAMP_BEGIN, NO_TIMESTAMPS, 50, suppress.len() as i32, 2];
        assert_eq!(rules.tensor(4, 3), [&head[..], &suppress, &[0, EOT]].concat());
        assert_eq!(rules_of(&rules.tensor(4, 3)), rules);
        let options = Options { without_timestamps: true, suppress_blank: false, ..argument.options };
        let tensor = Rules::new(&argument.tokens, &options).tensor(1, 1);
        assert_eq!(tensor[3..8], [-1, -1, -1, suppress.len() as i32, 0]);
    }

    #[test]
    fn the_limit_is_rounded_as_python_rounds() {
        let limit = |seconds: Value| {
            let argument = argument(json!({ "max_initial_timestamp": seconds }));
            Rules::new(&argument.tokens, &argument.options).tensor(1, 1)[5]
        };
        // Slightly inexact quotients, and halves.
        assert_eq!([0.04, 0.58, 0.05, 0.07].map(|seconds| limit(json!(seconds))), [2, 29, 2, 4]);
        assert_eq!([json!(null), json!(0.0)].map(limit), [-1, -1]);
    }
}
