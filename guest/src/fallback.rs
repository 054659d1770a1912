//! The temperature ladder: decode again, hotter, where the result looks repetitive or unsure.

use crate::decode::{Decoder, DecodingResult};
use crate::model::Model;
use crate::options::{LastRung, Options};
use crate::Result;

/// `decode_with_fallback` after its first attempt: the first result that passes, else the choice of `last_rung`; and
/// the last temperature tried.
pub fn fall_back(
    first: DecodingResult,
    decoder: &mut Decoder<'_>,
    model: &mut dyn Model,
    prompt: &[i32],
    options: &Options,
) -> Result<(DecodingResult, f64)> {
    let mut attempts = vec![first];
    for &temperature in &options.temperature[1..] {
        match attempts.last() {
            Some(last) if needs_fallback(last, options) => attempts.push(decoder.decode(model, prompt, temperature)?),
            _ => break,
        }
    }
    let last = attempts.pop().expect("there is the first");
    let tried = last.temperature;
    let best = match options.last_rung {
        LastRung::Best if needs_fallback(&last, options) => best(attempts, last, options),
        _ => last,
    };
    Ok((best, tried))
}

/// The likeliest attempt that doesn't repeat itself; if all do, the least repetitive one: longer loops are
/// likelier.
fn best(attempts: Vec<DecodingResult>, last: DecodingResult, options: &Options) -> DecodingResult {
    let score = |result: &DecodingResult| {
        if is_repetitive(result, options) {
            (false, -result.compression_ratio)
        } else {
            (true, result.avg_logprob)
        }
    };
    attempts.into_iter().rev().fold(last, |best, result| if score(&result) >= score(&best) { result } else { best })
}

fn is_repetitive(result: &DecodingResult, options: &Options) -> bool {
    options.compression_ratio_threshold.map_or(false, |most| result.compression_ratio > most)
}

fn needs_fallback(result: &DecodingResult, options: &Options) -> bool {
    let too_repetitive = is_repetitive(result, options);
    let too_unlikely = options.logprob_threshold.map_or(false, |least| result.avg_logprob < least);
    let silent = exceeds(result.no_speech_prob, options.no_speech_threshold) && too_unlikely;
    (too_repetitive || too_unlikely) && !silent
}

/// Whether to skip a window as silence.
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
        let no_speech_prob = Some(no_speech_prob);
        DecodingResult { avg_logprob, compression_ratio, no_speech_prob, ..DecodingResult::default() }
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

    #[test]
    fn of_attempts_that_fail_the_likeliest_that_does_not_repeat_itself_is_best() {
        let options = Options::default();
        for (attempts, expected) in [
            ([(-1.2, 1.0), (-1.1, 1.0), (-3.0, 1.0)], 1),
            ([(-0.1, 9.0), (-1.5, 1.0), (-3.0, 1.0)], 1),
            ([(-0.1, 9.0), (-0.3, 3.0), (-0.2, 5.0)], 1),
            ([(-1.5, 1.0), (-1.5, 1.0), (-2.0, 1.0)], 0),
            ([(-1.5, 2.4), (-0.1, 2.5), (-2.0, 1.0)], 0),
            ([(-3.0, 1.0), (-0.2, 3.0), (-1.1, 1.0)], 2),
        ] {
            let mut made: Vec<_> = attempts.iter().map(|&(logprob, ratio)| result(logprob, ratio, 0.0)).collect();
            let wanted = made[expected].clone();
            let last = made.pop().unwrap();
            assert_eq!(best(made, last, &options), wanted, "{attempts:?}");
        }
    }
}
