//! One window, one temperature: openai/whisper's `DecodingTask`.

use crate::model::Model;
use crate::numeric::{argmax, probability, strip};
use crate::options::Argument;
use crate::rules::Rules;
use crate::sampling::Random;
use crate::{Error, Result};

/// A sequence being sampled: its tokens after the prompt and before the end of text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidate {
    pub tokens: Vec<i32>,
    /// One for each of `tokens`.
    pub logprobs: Vec<f32>,
    /// Includes the end of text's, if that was sampled.
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

    /// The mean by which `MaximumLikelihoodRanker` ranks, of the tokens after the settled ones. The reference divides by
    /// zero for a sequence without tokens.
    pub(crate) fn score(&self, n_settled: usize) -> f64 {
        f64::from(self.sum_logprob) / (self.tokens.len() - n_settled).max(1) as f64
    }
}

/// openai/whisper's names.
#[derive(Debug, Clone, Default, PartialEq)]
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
    settled: &'a [i32],
    sample_len: usize,
}

impl<'a> Decoder<'a> {
    /// `language`: a code that the model knows; only multilingual models use it.
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
        // Slices like the reference: the default sample_len leaves 0, which means no limit there.
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
            settled: options.settled.as_deref().unwrap_or_default(),
            sample_len: options.sample_len.unwrap_or(half),
        })
    }

    /// [sot_prev, prompt…] sot sequence [prefix…] [settled…]: the prompt's last n_text_ctx / 2 − 1 tokens, or fewer if
    /// the rest needs the room.
    fn initial_tokens(&self, prompt: &[i32]) -> Result<Vec<i32>> {
        let n_text_ctx = self.argument.dims.n_text_ctx;
        let n_rest = 1 + self.sot_sequence.len() + self.prefix.len() + self.settled.len();
        let n_prompt = prompt.len().min(n_text_ctx / 2 - 1).min(n_text_ctx.saturating_sub(n_rest));
        let mut tokens = Vec::new();
        if n_prompt > 0 {
            tokens.push(self.argument.tokens.sot_prev);
            tokens.extend(&prompt[prompt.len() - n_prompt..]);
        }
        tokens.extend(&self.sot_sequence);
        tokens.extend(&self.prefix);
        tokens.extend(self.settled);
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
        let room = self.argument.dims.n_text_ctx + 1 - initial.len();
        let max_sampled = self.sample_len.saturating_sub(self.settled.len()).clamp(1, room);
        model.restart()?;
        let beam_size = options.beam_size.filter(|_| temperature == 0.0);
        let (best, no_speech_prob) = if temperature == 0.0 && beam_size.is_none() {
            self.greedy(model, &initial, max_sampled)?
        } else {
            model.set_rules(&self.rules.tensor(0, initial.len() - self.settled.len()))?;
            let (context, rest) = self.split_at_sot(&initial);
            let no_speech_prob = self.prime(model, context)?;
            if !rest.is_empty() {
                model.append(rest, 1, None)?;
                model.logits(&mut self.logits)?;
            }
            let best = match beam_size {
                Some(beam_size) => self.beam_search(model, beam_size, max_sampled)?,
                None => self.sample(model, max_sampled, temperature)?,
            };
            (best, no_speech_prob)
        };
        let Candidate { tokens, logprobs, sum_logprob } = best;
        let text_tokens: Vec<i32> =
            tokens.iter().copied().filter(|&token| token < self.argument.tokens.timestamp_begin).collect();
        let text = model.decode_text(&text_tokens)?;
        let text = strip(&text);
        let compressed_size = model.compressed_size(text)?;
        Ok(DecodingResult {
            avg_logprob: f64::from(sum_logprob) / (tokens.len() - self.settled.len() + 1) as f64,
            tokens,
            logprobs,
            no_speech_prob,
            temperature,
            compression_ratio: text.len() as f64 / compressed_size as f64,
        })
    }

    /// A sequence before its first sampled token.
    pub(crate) fn begun(&self) -> Candidate {
        Candidate { tokens: self.settled.to_vec(), logprobs: vec![0.0; self.settled.len()], sum_logprob: 0.0 }
    }

    /// The prompt up to the start of the transcript, where no_speech_prob is read, and the rest.
    fn split_at_sot<'t>(&self, initial: &'t [i32]) -> (&'t [i32], &'t [i32]) {
        let sot = initial.iter().position(|&token| token == self.argument.tokens.sot);
        initial.split_at(sot.map_or(initial.len(), |index| index + 1))
    }

    /// Append the tokens up to sot; return the no-speech probability from the logits there.
    fn prime(&mut self, model: &mut dyn Model, context: &[i32]) -> Result<Option<f64>> {
        model.append(context, 1, None)?;
        self.logits.resize(self.argument.dims.n_vocab, 0.0);
        model.logits(&mut self.logits)?;
        Ok(self.argument.tokens.no_speech.map(|token| probability(&self.logits, token as usize)))
    }

    /// The fast path: the device chooses several tokens per compute.
    fn greedy(
        &mut self,
        model: &mut dyn Model,
        initial: &[i32],
        max_sampled: usize,
    ) -> Result<(Candidate, Option<f64>)> {
        let eot = self.argument.tokens.eot;
        let sample_begin = initial.len() - self.settled.len();
        let max_len = self.settled.len() + max_sampled;
        let (context, rest) = self.split_at_sot(initial);
        // Logits are only of the last computed position: with no prompt left after sot, choose one token there first.
        let mut n_steps = usize::from(rest.is_empty());
        model.set_rules(&self.rules.tensor(n_steps, sample_begin))?;
        let no_speech_prob = self.prime(model, context)?;
        let mut candidate = self.begun();
        let mut next = rest.to_vec();
        loop {
            if next.is_empty() {
                let (tokens, logprobs) = model.chosen(n_steps)?;
                for (&token, &logprob) in tokens.iter().zip(&logprobs) {
                    if !candidate.push(token, logprob, eot) || candidate.tokens.len() == max_len {
                        return Ok((candidate, no_speech_prob));
                    }
                }
                next.push(*tokens.last().ok_or_else(|| Error("the decoder chose no token".to_string()))?);
            }
            let wanted = self.argument.options.run_ahead.min(max_len - candidate.tokens.len());
            if wanted != n_steps {
                n_steps = wanted;
                model.set_rules(&self.rules.tensor(n_steps, sample_begin))?;
            }
            model.append(&next, 1, None)?;
            next.clear();
        }
    }
}

/// The likeliest language of the encoded window, from the logits after sot.
pub fn detect_language(argument: &Argument, model: &mut dyn Model) -> Result<String> {
    let tokens = &argument.tokens;
    let mut logits = vec![0.0; argument.dims.n_vocab];
    model.restart()?;
    model.set_rules(&Rules::new(tokens, &argument.options).tensor(0, 1))?;
    model.append(&[tokens.sot], 1, None)?;
    model.logits(&mut logits)?;
    // Ties go to the lower id, as with argmax over the vocabulary.
    let mut languages: Vec<(&String, i32)> = tokens.languages.iter().map(|(code, &token)| (code, token)).collect();
    languages.sort_by_key(|&(_, token)| token);
    let best = argmax(languages.iter().map(|&(_, token)| f64::from(logits[token as usize])));
    languages
        .get(best)
        .map(|(code, _)| code.to_string())
        .ok_or_else(|| Error("the model has no language tokens".to_string()))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
