//! `hallucination_silence_threshold`: words that look made up, between silences, are heard again or left out.

use crate::events::{Segment, Word};
use crate::numeric::round_half_even;
use crate::options::FRAMES_PER_SECOND;
use crate::Result;

const PUNCTUATION: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";

/// The window whose segments are judged; times in seconds from the start of the audio.
pub struct Window {
    /// In frames.
    pub seek: usize,
    /// Content in frames.
    pub segment_size: usize,
    pub start: f64,
    /// Of a whole window, whether or not there is as much audio.
    pub end: f64,
    pub single_timestamp_ending: bool,
    /// Where speech ended before.
    pub last_speech: f64,
}

/// What becomes of the window.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its segments stand; some of the last may have been taken away. The next window starts at this frame.
    Keep(usize),
    /// It is dropped: hear it again from this frame.
    Again(usize),
}

/// The end of the last word, or of the last segment where none has words.
pub fn last_word_end(segments: &[Segment]) -> Option<f64> {
    let last_word = segments.iter().rev().find_map(|segment| words(segment).last());
    last_word.map(|word| word.end).or_else(|| segments.last().map(|segment| segment.end))
}

pub fn frames(seconds: f64) -> usize {
    round_half_even(seconds * FRAMES_PER_SECOND).max(0.0) as usize
}

/// `seek`: where the next window starts if nothing is wrong. `content_end`: asked whether the audio ends less than
/// `threshold` after that second, and at which frame.
pub fn skip_silence(
    segments: &mut Vec<Segment>,
    window: &Window,
    threshold: f64,
    mut seek: usize,
    content_end: &mut dyn FnMut(f64) -> Result<Option<usize>>,
) -> Result<Verdict> {
    if !window.single_timestamp_ending {
        if let Some(last_word_end) = last_word_end(segments).filter(|&end| end > window.start) {
            let silent = window.end - last_word_end > threshold;
            seek = if silent { frames(last_word_end) } else { window.seek + window.segment_size };
        }
    }

    if let Some(first) = next_words_segment(segments).filter(|segment| is_anomaly(Some(segment))) {
        let gap = first.start - window.start;
        if gap > threshold {
            return Ok(Verdict::Again(window.seek + frames(gap).max(1)));
        }
    }

    let mut last_end = window.last_speech;
    for i in 0..segments.len() {
        let segment = &segments[i];
        if words(segment).is_empty() {
            continue;
        }
        if is_anomaly(Some(segment)) {
            let next = next_words_segment(&segments[i + 1..]);
            let next_start =
                next.map_or(window.start + window.segment_size as f64 / FRAMES_PER_SECOND, |next| words(next)[0].start);
            let silence_before =
                segment.start - last_end > threshold || segment.start < threshold || segment.start - window.start < 2.0;
            let silence_after =
                next_start - segment.end > threshold || is_anomaly(next) || window.end - segment.end < 2.0;
            if silence_before && silence_after {
                seek = match content_end(segment.end)? {
                    Some(content_frames) => content_frames,
                    None => frames((window.start + 1.0).max(segment.start)),
                };
                segments.truncate(i);
                break;
            }
        }
        last_end = segment.end;
    }
    Ok(Verdict::Keep(seek))
}

fn words(segment: &Segment) -> &[Word] {
    segment.words.as_deref().unwrap_or_default()
}

fn next_words_segment(segments: &[Segment]) -> Option<&Segment> {
    segments.iter().find(|segment| !words(segment).is_empty())
}

/// Very long, short or improbable.
fn anomaly_score(word: &Word) -> f64 {
    let duration = word.end - word.start;
    let mut score = 0.0;
    if word.probability < 0.15 {
        score += 1.0;
    }
    if duration < 0.133 {
        score += (0.133 - duration) * 15.0;
    }
    if duration > 2.0 {
        score += duration - 2.0;
    }
    score
}

fn is_anomaly(segment: Option<&Segment>) -> bool {
    let all = segment.map_or(&[][..], words);
    if all.is_empty() {
        return false;
    }
    let first: Vec<&Word> = all.iter().filter(|word| !PUNCTUATION.contains(&word.word)).take(8).collect();
    let score: f64 = first.iter().map(|word| anomaly_score(word)).sum();
    score >= 3.0 || score + 0.01 >= first.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: f64 = 0.9;
    const BAD: f64 = 0.05;

    /// Three words of the same length and probability.
    fn segment(start: f64, end: f64, probability: f64) -> Segment {
        let step = (end - start) / 3.0;
        let words = (0..3).map(|i| Word {
            word: format!(" w{i}"),
            start: start + step * f64::from(i),
            end: start + step * f64::from(i + 1),
            probability,
        });
        Segment {
            id: 0,
            seek: 0,
            start,
            end,
            text: "w".to_string(),
            tokens: vec![5],
            temperature: 0.0,
            avg_logprob: 0.0,
            compression_ratio: 1.0,
            no_speech_prob: None,
            logprobs: None,
            words: Some(words.collect()),
        }
    }

    fn window() -> Window {
        let (seek, last_speech) = (3000, 30.0);
        Window { seek, segment_size: 3000, start: 30.0, end: 60.0, single_timestamp_ending: false, last_speech }
    }

    fn judge(segments: &mut Vec<Segment>, content_end: Option<usize>) -> Verdict {
        skip_silence(segments, &window(), 2.0, 5800, &mut |_| Ok(content_end)).unwrap()
    }

    #[test]
    fn plausible_words_stand() {
        let mut segments = vec![segment(31.0, 33.0, GOOD), segment(57.0, 59.0, GOOD)];
        assert_eq!(judge(&mut segments, None), Verdict::Keep(6000), "less than 2 s of silence are left");
        assert_eq!(segments.len(), 2);
        segments.pop();
        assert_eq!(judge(&mut segments, None), Verdict::Keep(3300));
        let single = Window { single_timestamp_ending: true, ..window() };
        assert_eq!(skip_silence(&mut segments, &single, 2.0, 5800, &mut |_| Ok(None)).unwrap(), Verdict::Keep(5800));
    }

    #[test]
    fn a_doubtful_start_after_silence_is_heard_again() {
        let mut segments = vec![segment(35.0, 36.0, BAD), segment(40.0, 41.0, GOOD)];
        assert_eq!(judge(&mut segments, None), Verdict::Again(3500));
        segments[0] = segment(31.5, 32.5, BAD);
        assert_ne!(judge(&mut segments, None), Verdict::Again(3150));
    }

    #[test]
    fn doubtful_words_between_silences_go() {
        let mut segments = vec![segment(31.0, 33.0, GOOD), segment(40.0, 41.0, BAD), segment(50.0, 51.0, GOOD)];
        assert_eq!(judge(&mut segments, None), Verdict::Keep(4000));
        assert_eq!(segments.len(), 1);

        let mut segments = vec![segment(31.0, 39.0, GOOD), segment(40.0, 49.0, BAD), segment(50.0, 57.9, GOOD)];
        judge(&mut segments, None);
        assert_eq!(segments.len(), 3, "speech is close on both sides");
    }

    #[test]
    fn words_before_the_window_do_not_move_it() {
        assert_eq!(judge(&mut vec![segment(28.0, 29.5, GOOD)], None), Verdict::Keep(5800));
    }

    #[test]
    fn a_window_heard_again_starts_later() {
        let mut segments = vec![segment(30.004, 31.0, BAD)];
        let verdict = skip_silence(&mut segments, &window(), 0.0, 5800, &mut |_| Ok(None)).unwrap();
        assert_eq!(verdict, Verdict::Again(3001));
    }

    #[test]
    fn silence_on_one_side_is_not_enough() {
        for doubtful in [segment(41.5, 49.0, BAD), segment(40.0, 41.0, BAD)] {
            let mut segments = vec![segment(31.0, 39.0, GOOD), doubtful, segment(50.0, 57.9, GOOD)];
            judge(&mut segments, None);
            assert_eq!(segments.len(), 3);
        }
    }

    #[test]
    fn the_start_of_a_window_counts_as_silence() {
        for (start, next_window) in [(31.5, 3150), (30.5, 3100)] {
            let mut segments = vec![segment(start, start + 1.0, BAD), segment(40.0, 41.0, GOOD)];
            assert_eq!(judge(&mut segments, None), Verdict::Keep(next_window));
            assert!(segments.is_empty());
        }
    }

    #[test]
    fn the_start_of_the_audio_counts_as_silence() {
        let first = Window { seek: 0, start: 0.0, end: 30.0, last_speech: 0.0, ..window() };
        let mut segments = vec![segment(3.0, 4.0, BAD), segment(10.0, 11.0, GOOD)];
        let verdict = skip_silence(&mut segments, &first, 4.0, 2800, &mut |_| Ok(None)).unwrap();
        assert_eq!((verdict, segments.len()), (Verdict::Keep(300), 0));
    }

    #[test]
    fn doubtful_words_that_follow_count_as_silence_and_segments_without_words_do_not_end_it() {
        let speech = segment(31.0, 33.0, GOOD);
        let mut segments =
            vec![speech.clone(), segment(40.0, 41.0, BAD), segment(41.5, 42.5, BAD), segment(43.0, 44.0, GOOD)];
        assert_eq!(judge(&mut segments, None), Verdict::Keep(4000));
        assert_eq!(segments.len(), 1);

        let wordless = Segment { words: Some(Vec::new()), ..segment(33.0, 39.5, GOOD) };
        let mut segments = vec![speech, wordless, segment(40.0, 41.0, BAD), segment(50.0, 51.0, GOOD)];
        assert_eq!(judge(&mut segments, None), Verdict::Keep(4000));
        assert_eq!(segments.len(), 2);
    }

    #[test]
    fn at_the_end_of_the_audio_nothing_is_heard_again() {
        let mut segments = vec![segment(31.0, 33.0, GOOD), segment(57.0, 58.5, BAD)];
        assert_eq!(judge(&mut segments, Some(6010)), Verdict::Keep(6010));
        assert_eq!(segments.len(), 1);
    }

    #[test]
    fn words_are_odd_when_short_long_or_improbable() {
        let odd = |start: f64, end: f64, probability: f64| is_anomaly(Some(&segment(start, end, probability)));
        assert!(!odd(0.0, 1.5, GOOD));
        assert!(odd(0.0, 1.5, BAD));
        assert!(odd(0.0, 0.1, GOOD), "three words in a tenth of a second");
        assert!(odd(0.0, 9.0, GOOD), "three seconds each");
        assert!(!odd(0.0, 1.5, 0.15));
        assert!(!is_anomaly(None));
    }

    /// One word after another, half a second each.
    fn is_odd(words: &[(&str, f64)]) -> bool {
        let word = |(i, &(word, probability)): (usize, &(&str, f64))| {
            let start = 0.5 * i as f64;
            Word { word: word.to_string(), start, end: start + 0.5, probability }
        };
        let words = words.iter().enumerate().map(word).collect();
        is_anomaly(Some(&Segment { words: Some(words), ..segment(0.0, 9.0, GOOD) }))
    }

    #[test]
    fn three_odd_words_of_the_first_eight_or_all_of_fewer_are_too_many() {
        let (good, bad) = ((" w", GOOD), (" w", BAD));
        assert!(is_odd(&[good, bad, good, bad, good, bad, good, good]));
        assert!(!is_odd(&[good, bad, good, bad, good, good, good, good, bad, bad]));
        assert!(is_odd(&[bad, bad]) && !is_odd(&[bad, good]));
        assert!(is_odd(&[bad, (".", GOOD), bad]), "punctuation is no word");
        let almost = Word { word: " w".to_string(), start: 0.0, end: 0.0667, probability: GOOD };
        assert!(is_anomaly(Some(&Segment { words: Some(vec![almost]), ..segment(0.0, 1.0, GOOD) })));
    }

    #[test]
    fn the_end_of_speech_is_the_last_words_or_the_last_segments() {
        let mut empty = segment(5.0, 9.0, GOOD);
        empty.words = Some(Vec::new());
        assert_eq!(last_word_end(&[segment(1.0, 4.0, GOOD), empty.clone()]), Some(4.0));
        assert_eq!(last_word_end(&[empty]), Some(9.0));
        assert_eq!(last_word_end(&[]), None);
    }
}
