//! The temperature ladder: decode again, hotter, where the result looks repetitive or unsure.

use crate::decode::{Decoder, DecodingResult};
use crate::model::Model;
use crate::options::Options;
use crate::Result;

/// `decode_with_fallback`: the first result that passes, else the last.
pub fn decode_with_fallback(
    decoder: &mut Decoder<'_>,
    model: &mut dyn Model,
    prompt: &[i32],
    options: &Options,
) -> Result<DecodingResult> {
    let (last, ladder) = options.temperature.0.split_last().expect("the options hold at least one temperature");
    for &temperature in ladder {
        let result = decoder.decode(model, prompt, temperature)?;
        if !needs_fallback(&result, options) {
            return Ok(result);
        }
    }
    decoder.decode(model, prompt, *last)
}

fn needs_fallback(result: &DecodingResult, options: &Options) -> bool {
    let too_repetitive = options.compression_ratio_threshold.map_or(false, |most| result.compression_ratio > most);
    let too_unlikely = options.logprob_threshold.map_or(false, |least| result.avg_logprob < least);
    let silent = exceeds(result.no_speech_prob, options.no_speech_threshold) && too_unlikely;
    (too_repetitive || too_unlikely) && !silent
}

/// Whether a window is skipped as silence.
pub fn is_silence(result: &DecodingResult, options: &Options) -> bool {
    let likely = options.logprob_threshold.map_or(false, |least| result.avg_logprob > least);
    exceeds(result.no_speech_prob, options.no_speech_threshold) && !likely
}

fn exceeds(value: Option<f64>, threshold: Option<f64>) -> bool {
    matches!((value, threshold), (Some(value), Some(threshold)) if value > threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(avg_logprob: f64, compression_ratio: f64, no_speech_prob: f64) -> DecodingResult {
        DecodingResult {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            avg_logprob,
            no_speech_prob: Some(no_speech_prob),
            temperature: 0.0,
            compression_ratio,
        }
    }

    #[test]
    fn repetition_and_unlikely_text_need_another_try_but_silence_does_not() {
        let options = Options::default();
        for (avg_logprob, compression_ratio, no_speech_prob, expected) in [
            (-0.5, 1.0, 0.0, false),
            (-0.5, 2.5, 0.0, true),
            (-0.5, 2.5, 0.9, true),
            (-1.5, 1.0, 0.0, true),
            (-1.5, 1.0, 0.9, false),
            (-1.5, 2.5, 0.9, false),
            (-1.0, 2.4, 0.0, false),
            (-1.5, 1.0, 0.6, true),
        ] {
            let result = result(avg_logprob, compression_ratio, no_speech_prob);
            assert_eq!(needs_fallback(&result, &options), expected, "{result:?}");
        }
        let options = Options { compression_ratio_threshold: None, logprob_threshold: None, ..options };
        assert!(!needs_fallback(&result(-9.0, 9.0, 0.0), &options));
    }

    #[test]
    fn silence_is_unlikely_text_with_a_high_no_speech_probability() {
        let options = Options::default();
        for (avg_logprob, no_speech_prob, expected) in
            [(-1.5, 0.7, true), (-0.5, 0.7, false), (-1.5, 0.6, false), (-1.0, 0.7, true)]
        {
            assert_eq!(is_silence(&result(avg_logprob, 1.0, no_speech_prob), &options), expected);
        }
        let without = Options { no_speech_threshold: None, ..Options::default() };
        assert!(!is_silence(&result(-1.5, 1.0, 0.9), &without));
        let alone = Options { logprob_threshold: None, ..Options::default() };
        assert!(is_silence(&result(-0.5, 1.0, 0.9), &alone));
    }
}
