//! Windows that may have no speech: the signs of that in a first decode.

use crate::decode::DecodingResult;
use crate::options::FRAMES_PER_SECOND;

/// 1 in 20 windows of 256 recordings of speech has a higher no-speech probability.
const NO_SPEECH_PROB: f64 = 0.3;
const AVG_LOGPROB: f64 = -0.6;
const COMPRESSION_RATIO: f64 = 2.0;
/// Below the slowest speakers.
const TOKENS_PER_SECOND: f64 = 1.0;

/// Whether the host should listen for speech. `text`: of the first decode. `before`: text of the previous window, if
/// any. `n_frames`: of the window's content.
pub fn is_doubtful(result: &DecodingResult, text: &[i32], before: &[i32], n_frames: usize) -> bool {
    let seconds = n_frames as f64 / FRAMES_PER_SECOND;
    result.no_speech_prob.map_or(false, |probability| probability > NO_SPEECH_PROB)
        || result.avg_logprob < AVG_LOGPROB
        || result.compression_ratio > COMPRESSION_RATIO
        || (text.len() as f64) < TOKENS_PER_SECOND * seconds
        || repeats(text, before)
}

/// Whether `text` occurs in `before`; an empty text doesn't.
fn repeats(text: &[i32], before: &[i32]) -> bool {
    !before.is_empty() && before.windows(text.len().max(1)).any(|said| said == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(no_speech_prob: Option<f64>, avg_logprob: f64, compression_ratio: f64) -> DecodingResult {
        DecodingResult { no_speech_prob, avg_logprob, compression_ratio, ..DecodingResult::default() }
    }

    #[test]
    fn each_sign_alone_is_reason_to_listen() {
        let text: Vec<i32> = (0..60).collect();
        let confident = result(Some(0.05), -0.3, 1.4);
        let doubtful = |result: &DecodingResult| is_doubtful(result, &text, &[], 3000);
        assert!(!doubtful(&confident));
        assert!(!doubtful(&result(None, -0.3, 1.4)), "a model without that token");
        assert!(doubtful(&result(Some(0.4), -0.3, 1.4)));
        assert!(doubtful(&result(Some(0.05), -0.8, 1.4)));
        assert!(doubtful(&result(Some(0.05), -0.3, 2.2)));
        assert!(is_doubtful(&confident, &text[..20], &[], 3000), "20 tokens in 30 s");
        assert!(!is_doubtful(&confident, &text[..20], &[], 1000));
        assert!(is_doubtful(&confident, &[], &[], 10));
    }

    #[test]
    fn text_that_was_said_before_is_doubtful() {
        let (text, confident): (Vec<i32>, _) = ((0..60).collect(), result(Some(0.05), -0.3, 1.4));
        let after = |before: &[i32]| is_doubtful(&confident, &text[20..50], before, 2000);
        assert!(after(&text) && after(&text[20..50]));
        assert!(!after(&text[..45]) && !after(&[]));
    }
}
