//! One window, one temperature: openai/whisper's `DecodingTask`.

use crate::model::Model;
use crate::numeric::{argmax, probability, strip};
use crate::options::Argument;
use crate::rules::Rules;
use crate::sampling::Random;
use crate::zlib::compressed_size;
use crate::{Error, Result};

/// A sequence being sampled: its tokens after the prompt and before the end of text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidate {
    pub tokens: Vec<i32>,
    /// One for each of `tokens`.
    pub logprobs: Vec<f32>,
    /// With the end of text's, if that was sampled.
    pub sum_logprob: f32,
}

impl Candidate {
    /// Take the next token; false if it ends the sequence.
    pub(crate) fn push(&mut self, token: i32, logprob: f32, eot: i32) -> bool {
        self.sum_logprob += logprob;
        if token == eot {
            return false;
        }
        self.tokens.push(token);
        self.logprobs.push(logprob);
        true
    }

    /// `MaximumLikelihoodRanker`'s score.
    fn score(&self, length_penalty: Option<f64>) -> f64 {
        let length = self.tokens.len() as f64;
        let penalty = match length_penalty {
            None => length.max(1.0), // the reference divides by zero for a sequence without tokens
            Some(alpha) => ((5.0 + length) / 6.0).powf(alpha),
        };
        f64::from(self.sum_logprob) / penalty
    }
}

/// openai/whisper's names.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodingResult {
    pub tokens: Vec<i32>,
    pub logprobs: Vec<f32>,
    pub avg_logprob: f64,
    /// None for a model without that token.
    pub no_speech_prob: Option<f64>,
    pub temperature: f64,
    pub compression_ratio: f64,
}

pub struct Decoder<'a> {
    pub(crate) argument: &'a Argument,
    pub(crate) rules: Rules,
    pub(crate) random: Random,
    /// (n_sequences, n_vocab), of the last step that read them.
    pub(crate) logits: Vec<f32>,
    /// [sot], or [sot, language, task]; and no_timestamps.
    sot_sequence: Vec<i32>,
    prefix: Vec<i32>,
    sample_len: usize,
}

impl<'a> Decoder<'a> {
    /// `language`: a code that the model has; it matters only to a multilingual one.
    pub fn new(argument: &'a Argument, language: &str, model: &mut dyn Model) -> Result<Decoder<'a>> {
        let (tokens, options) = (&argument.tokens, &argument.options);
        let mut sot_sequence = argument.sot_sequence(language);
        if options.without_timestamps {
            sot_sequence.push(tokens.no_timestamps);
        }
        let half = argument.dims.n_text_ctx / 2;
        let mut prefix = match &options.prefix {
            Some(prefix) => model.encode_text(&format!(" {}", strip(prefix)))?,
            None => Vec::new(),
        };
        // As the reference slices: the default sample_len leaves 0, which there means no limit.
        let max_prefix = half.saturating_sub(options.sample_len.unwrap_or(half));
        if max_prefix > 0 && prefix.len() > max_prefix {
            prefix.drain(..prefix.len() - max_prefix);
        }
        Ok(Decoder {
            argument,
            rules: Rules::new(tokens, options),
            random: Random::new(options.seed),
            logits: Vec::new(),
            sot_sequence,
            prefix,
            sample_len: options.sample_len.unwrap_or(half),
        })
    }

    /// [sot_prev, prompt…] sot sequence [prefix…]: the prompt's last n_text_ctx / 2 − 1 tokens.
    fn initial_tokens(&self, prompt: &[i32]) -> Result<Vec<i32>> {
        let n_text_ctx = self.argument.dims.n_text_ctx;
        let mut tokens = Vec::new();
        if !prompt.is_empty() {
            tokens.push(self.argument.tokens.sot_prev);
            tokens.extend(&prompt[prompt.len().saturating_sub(n_text_ctx / 2 - 1)..]);
        }
        tokens.extend(&self.sot_sequence);
        tokens.extend(&self.prefix);
        if tokens.len() > n_text_ctx {
            return Err(Error(format!(
                "prompt and prefix take {} tokens where the model has room for {n_text_ctx}",
                tokens.len()
            )));
        }
        Ok(tokens)
    }

    /// Decode the encoded window.
    pub fn decode(&mut self, model: &mut dyn Model, prompt: &[i32], temperature: f64) -> Result<DecodingResult> {
        let options = &self.argument.options;
        let initial = self.initial_tokens(prompt)?;
        let max_sampled = self.sample_len.min(self.argument.dims.n_text_ctx + 1 - initial.len());
        model.restart()?;
        let beam_size = options.beam_size.filter(|_| temperature == 0.0);
        let (candidates, no_speech_prob) = if temperature == 0.0 && beam_size.is_none() {
            self.greedy(model, &initial, max_sampled)?
        } else {
            model.set_rules(&self.rules.tensor(0, initial.len()))?;
            let (context, rest) = self.split_at_sot(&initial);
            let no_speech_prob = self.prime(model, context)?;
            if !rest.is_empty() {
                model.append(rest, 1, None)?;
                model.logits(&mut self.logits)?;
            }
            let candidates = match beam_size {
                Some(beam_size) => self.beam_search(model, beam_size, max_sampled)?,
                None => self.sample(model, options.best_of.unwrap_or(1), max_sampled, temperature)?,
            };
            (candidates, no_speech_prob)
        };
        let best = argmax(candidates.iter().map(|candidate| candidate.score(options.length_penalty)));
        let Candidate { tokens, logprobs, sum_logprob } = candidates.into_iter().nth(best).unwrap_or_default();
        let text_tokens: Vec<i32> =
            tokens.iter().copied().filter(|&token| token < self.argument.tokens.timestamp_begin).collect();
        let text = model.decode_text(&text_tokens)?;
        let text = strip(&text).as_bytes();
        Ok(DecodingResult {
            avg_logprob: f64::from(sum_logprob) / (tokens.len() + 1) as f64,
            tokens,
            logprobs,
            no_speech_prob,
            temperature,
            compression_ratio: text.len() as f64 / compressed_size(text) as f64,
        })
    }

    /// The prompt up to the start of the transcript, where no_speech_prob is read, and the rest.
    fn split_at_sot<'t>(&self, initial: &'t [i32]) -> (&'t [i32], &'t [i32]) {
        let sot = initial.iter().position(|&token| token == self.argument.tokens.sot);
        initial.split_at(sot.map_or(initial.len(), |index| index + 1))
    }

    /// Append the tokens up to sot; the no-speech probability from the logits there.
    fn prime(&mut self, model: &mut dyn Model, context: &[i32]) -> Result<Option<f64>> {
        model.append(context, 1, None)?;
        self.logits.resize(self.argument.dims.n_vocab, 0.0);
        model.logits(&mut self.logits)?;
        Ok(self.argument.tokens.no_speech.map(|token| probability(&self.logits, token as usize)))
    }

    /// The fast path: the device chooses, several tokens a compute.
    fn greedy(
        &mut self,
        model: &mut dyn Model,
        initial: &[i32],
        max_sampled: usize,
    ) -> Result<(Vec<Candidate>, Option<f64>)> {
        let eot = self.argument.tokens.eot;
        let (context, rest) = self.split_at_sot(initial);
        // Logits are those of the last position computed: with no prompt left after sot, choose one token there first.
        let mut n_steps = usize::from(rest.is_empty());
        model.set_rules(&self.rules.tensor(n_steps, initial.len()))?;
        let no_speech_prob = self.prime(model, context)?;
        let mut candidate = Candidate::default();
        let mut next = rest.to_vec();
        loop {
            if next.is_empty() {
                let (tokens, logprobs) = model.chosen(n_steps)?;
                for (&token, &logprob) in tokens.iter().zip(&logprobs) {
                    if !candidate.push(token, logprob, eot) || candidate.tokens.len() == max_sampled {
                        return Ok((vec![candidate], no_speech_prob));
                    }
                }
                next.push(*tokens.last().ok_or_else(|| Error("the decoder chose no token".to_string()))?);
            }
            let wanted = self.argument.options.run_ahead.min(max_sampled - candidate.tokens.len());
            if wanted != n_steps {
                n_steps = wanted;
                model.set_rules(&self.rules.tensor(n_steps, initial.len()))?;
            }
            model.append(&next, 1, None)?;
            next.clear();
        }
    }
}

/// The likeliest language of the encoded window, by the logits after sot.
pub fn detect_language(argument: &Argument, model: &mut dyn Model) -> Result<String> {
    let tokens = &argument.tokens;
    let mut logits = vec![0.0; argument.dims.n_vocab];
    model.restart()?;
    model.set_rules(&Rules::new(tokens, &argument.options).tensor(0, 1))?;
    model.append(&[tokens.sot], 1, None)?;
    model.logits(&mut logits)?;
    // Ties go to the lower id, as argmax over the vocabulary does.
    let mut languages: Vec<(&String, i32)> = tokens.languages.iter().map(|(code, &token)| (code, token)).collect();
    languages.sort_by_key(|&(_, token)| token);
    let best = argmax(languages.iter().map(|&(_, token)| f64::from(logits[token as usize])));
    languages
        .get(best)
        .map(|(code, _)| code.to_string())
        .ok_or_else(|| Error("the model has no language tokens".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{
        argument, multilingual, sampled, FakeModel, EOT, GERMAN, NO_SPEECH, NO_TIMESTAMPS, SOT, SOT_PREV,
        TIMESTAMP_BEGIN, TRANSCRIBE, TRANSLATE,
    };
    use serde_json::json;

    const T: i32 = TIMESTAMP_BEGIN;

    fn decode(argument: &Argument, model: &mut FakeModel, prompt: &[i32], temperature: f64) -> DecodingResult {
        let mut decoder = Decoder::new(argument, "de", model).unwrap();
        model.encode(&[]).unwrap();
        decoder.decode(model, prompt, temperature).unwrap()
    }

    fn prompt_of(argument: Argument, prompt: &[i32], temperature: f64) -> Vec<i32> {
        let mut model = FakeModel::saying(&[&[]]);
        decode(&argument, &mut model, prompt, temperature);
        model.prompts.remove(0)
    }

    #[test]
    fn prompts_are_whispers() {
        for temperature in [0.0, 1.0] {
            let without = || json!({"without_timestamps": true, "language": "de"});
            let english = || json!({"without_timestamps": true});
            assert_eq!(prompt_of(argument(json!({})), &[], temperature), [SOT]);
            assert_eq!(prompt_of(argument(english()), &[], temperature), [SOT, NO_TIMESTAMPS]);
            assert_eq!(prompt_of(multilingual(without()), &[], temperature), [SOT, GERMAN, TRANSCRIBE, NO_TIMESTAMPS]);
            let options = json!({"language": "de", "task": "translate", "prefix": "w8 w9"});
            assert_eq!(
                prompt_of(multilingual(options), &[6, 7], temperature),
                [SOT_PREV, 6, 7, SOT, GERMAN, TRANSLATE, 8, 9]
            );
        }
    }

    #[test]
    fn a_long_prompt_keeps_its_last_tokens_and_a_long_prefix_with_sample_len_too() {
        let prompt: Vec<i32> = (0..300).map(|i| i % 90).collect();
        let tokens = prompt_of(argument(json!({})), &prompt, 0.0);
        assert_eq!(tokens, [&[SOT_PREV], &prompt[300 - 223..], &[SOT]].concat());
        let options = json!({"prefix": "w2 w3 w4 w5 w6 w7", "sample_len": 220});
        assert_eq!(prompt_of(argument(options), &[], 0.0), [SOT, 4, 5, 6, 7]);
        let prefix = "w5 ".repeat(448);
        let argument = argument(json!({ "prefix": prefix }));
        let mut model = FakeModel::saying(&[&[]]);
        let error = Decoder::new(&argument, "en", &mut model).unwrap().decode(&mut model, &[], 0.0).unwrap_err();
        assert_eq!(error.0, "prompt and prefix take 449 tokens where the model has room for 448");
    }

    #[test]
    fn greedy_tokens_do_not_depend_on_the_run_ahead() {
        let says: &[&[i32]] = &[&[T, 5, 6, 7, T + 50, T + 50, 8, 9, T + 90]];
        let mut results = Vec::new();
        for run_ahead in 1..=12 {
            for without_timestamps in [false, true] {
                let options = json!({"run_ahead": run_ahead, "without_timestamps": without_timestamps});
                let mut model = FakeModel::new(move |window, sequence| {
                    vec![(*says[window].get(sampled(sequence).len()).unwrap_or(&EOT), 20.0)]
                });
                let result = decode(&argument(options), &mut model, &[], 0.0);
                assert_eq!(result.tokens, says[0]);
                assert_eq!(result.logprobs.len(), result.tokens.len());
                assert!(model.n_computes <= 2 + 10 / run_ahead + 1, "{} computes", model.n_computes);
                results.push(result.avg_logprob);
            }
        }
        assert!(results.iter().all(|avg_logprob| *avg_logprob == results[0] || *avg_logprob == results[1]));
    }

    #[test]
    fn avg_logprob_counts_the_end_of_text() {
        // Two equally likely tokens at each step, the end of text one of the last two.
        let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
            0 => vec![(5, 50.0), (6, 50.0)],
            _ => vec![(7, 50.0), (EOT, 50.1)],
        };
        let argument = argument(json!({"without_timestamps": true}));
        let result = decode(&argument, &mut FakeModel::new(script), &[], 0.0);
        assert_eq!(result.tokens, [5]);
        let end = -(1.0 + (-0.1f64).exp()).ln();
        assert!((result.avg_logprob - (0.5f64.ln() + end) / 2.0).abs() < 1e-5, "{}", result.avg_logprob);
        assert_eq!(result.compression_ratio, 2.0 / 10.0, "w5 is 2 bytes, 10 compressed");
    }

    #[test]
    fn without_an_end_sampling_stops_at_half_the_context() {
        for temperature in [0.0, 0.5] {
            let argument = argument(json!({"without_timestamps": true}));
            let mut model = FakeModel::new(|_, _| vec![(5, 100.0)]);
            assert_eq!(decode(&argument, &mut model, &[], temperature).tokens, [5; 224]);
            // 448 positions: start of the previous text, its 223 tokens, two of the prompt; the last token has none.
            assert_eq!(decode(&argument, &mut model, &[9; 300], temperature).tokens, [5; 223]);
            let one = self::argument(json!({"without_timestamps": true, "sample_len": 1}));
            assert_eq!(decode(&one, &mut model, &[], temperature).tokens, [5]);
        }
    }

    #[test]
    fn no_speech_is_read_at_the_start_of_the_transcript() {
        for (options, temperature) in
            [(json!({}), 0.0), (json!({"without_timestamps": true}), 0.0), (json!({"without_timestamps": true}), 1.0)]
        {
            let mut model = FakeModel::new(|_, sequence| match sequence.last() {
                Some(&SOT) => vec![(NO_SPEECH, 50.0), (T, 50.0)],
                _ => vec![(EOT, 50.0)],
            });
            let result = decode(&argument(options), &mut model, &[4, 5], temperature);
            assert!((result.no_speech_prob.unwrap() - 0.5).abs() < 1e-6);
        }
    }

    #[test]
    fn the_best_of_several_samples_is_taken() {
        let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
            0 => vec![(5, 30.0), (6, 31.0), (7, 30.0)],
            1 => vec![(8, 30.0)],
            _ => vec![(EOT, 30.0)],
        };
        let options = |best_of: usize| json!({"without_timestamps": true, "best_of": best_of, "seed": 3});
        let of = |best_of| decode(&argument(options(best_of)), &mut FakeModel::new(script), &[], 1.0);
        let best = of(40);
        assert_eq!(best.tokens, [6, 8]);
        assert_eq!((best.temperature, best.logprobs.len()), (1.0, 2));
        let firsts: std::collections::BTreeSet<i32> = (0..40)
            .map(|seed| {
                let options = json!({"without_timestamps": true, "seed": seed});
                decode(&argument(options), &mut FakeModel::new(script), &[], 1.0).tokens[0]
            })
            .collect();
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [5, 6, 7]);
    }

    #[test]
    fn samples_of_different_length_each_keep_their_own_cache() {
        // A sequence that starts with 5 has to go on with 15, one with 6 with 16; 7 ends at once.
        let script = |_: usize, sequence: &[i32]| match sampled(sequence) {
            [] => vec![(5, 30.0), (6, 30.0), (7, 30.0)],
            [7] => vec![(EOT, 60.0)],
            [first, rest @ ..] if rest.len() < 3 => vec![(first + 10, 60.0)],
            _ => vec![(EOT, 60.0)],
        };
        let argument = argument(json!({"without_timestamps": true, "best_of": 30}));
        let mut decoder = Decoder::new(&argument, "en", &mut FakeModel::saying(&[])).unwrap();
        let mut model = FakeModel::new(script);
        model.set_rules(&decoder.rules.tensor(0, 2)).unwrap();
        decoder.prime(&mut model, &[SOT, NO_TIMESTAMPS]).unwrap();
        let candidates = decoder.sample(&mut model, 30, 224, 1.0).unwrap();
        for candidate in &candidates {
            let first = candidate.tokens[0];
            let expected = if first == 7 { vec![7] } else { vec![first, first + 10, first + 10, first + 10] };
            assert_eq!(candidate.tokens, expected);
        }
        assert_eq!(candidates.len(), 30);
    }

    #[test]
    fn length_penalty_weighs_long_against_short() {
        let of = |n: usize, sum_logprob| Candidate { tokens: vec![5; n], logprobs: vec![0.0; n], sum_logprob };
        let (short, long) = (of(2, -1.0), of(10, -3.0));
        assert!(long.score(None) > short.score(None));
        assert!(long.score(Some(0.0)) < short.score(Some(0.0)));
        assert_eq!(of(1, -2.0).score(Some(1.0)), -2.0);
        assert_eq!(of(0, -2.0).score(None), -2.0);
    }

    #[test]
    fn the_likeliest_language_is_detected() {
        let mut model = FakeModel::new(|_, _| vec![(GERMAN, 1.0), (T, 9.0)]);
        assert_eq!(detect_language(&multilingual(json!({})), &mut model).unwrap(), "de");
        assert_eq!(model.sequences, [[SOT]]);
        let mut model = FakeModel::new(|_, _| Vec::new());
        assert_eq!(detect_language(&multilingual(json!({})), &mut model).unwrap(), "en");
    }
}
