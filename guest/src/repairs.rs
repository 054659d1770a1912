//! The reference's repairs of word times: marks join their words, and words that are too long are shortened.

use crate::events::{Segment, Word};
use crate::numeric::strip;
use crate::words::WordTiming;

/// Punctuation that belongs to the word after it.
const PREPENDED: &str = "\"'“¿([{-";
/// Punctuation that belongs to the word before it.
const APPENDED: &str = "\"'.。,，!！?？:：”)]}、";
const SENTENCE_END_MARKS: &str = ".。!！?？";

/// Of the words with a duration; at most 0.7 s.
pub(crate) fn median_duration(timings: &[WordTiming]) -> f64 {
    let mut durations: Vec<f64> =
        timings.iter().map(|timing| timing.end - timing.start).filter(|&duration| duration != 0.0).collect();
    durations.sort_by(f64::total_cmp);
    let n = durations.len();
    let median = match n {
        0 => 0.0,
        _ if n % 2 == 0 => (durations[n / 2 - 1] + durations[n / 2]) / 2.0,
        _ => durations[n / 2],
    };
    median.min(0.7)
}

/// A long pause at the end of a sentence doesn't belong to the words beside it.
pub(crate) fn truncate_at_sentence_ends(timings: &mut [WordTiming], max_duration: f64) {
    for i in 1..timings.len() {
        if timings[i].end - timings[i].start > max_duration {
            if SENTENCE_END_MARKS.contains(&timings[i].word) {
                timings[i].end = timings[i].start + max_duration;
            } else if SENTENCE_END_MARKS.contains(&timings[i - 1].word) {
                timings[i].start = timings[i].end - max_duration;
            }
        }
    }
}

/// Opening marks go to the word after them, closing ones to the word before. Merged marks are left empty.
pub(crate) fn merge_punctuations(timings: &mut [WordTiming]) {
    let mut following = timings.len().saturating_sub(1);
    for previous in (0..following).rev() {
        let word = &timings[previous].word;
        if word.starts_with(' ') && PREPENDED.contains(strip(word)) {
            let word = std::mem::take(&mut timings[previous].word);
            timings[following].word.insert_str(0, &word);
            timings[following].n_tokens += std::mem::take(&mut timings[previous].n_tokens);
        } else {
            following = previous;
        }
    }
    let mut previous = 0;
    for following in 1..timings.len() {
        if !timings[previous].word.ends_with(' ') && APPENDED.contains(&timings[following].word) {
            let word = std::mem::take(&mut timings[following].word);
            timings[previous].word.push_str(&word);
            timings[previous].n_tokens += std::mem::take(&mut timings[following].n_tokens);
        } else {
            previous = following;
        }
    }
}

/// The first words after a pause, and the last, are not stretched over silence; the segment takes the words' times
/// where they agree. `median`: the window's median duration of a word.
pub(crate) fn truncate_at_segment_boundaries(segment: &mut Segment, words: &mut [Word], median: f64, last_speech: f64) {
    let max_duration = 2.0 * median;
    let too_long = words[0].end - words[0].start > max_duration
        || (words.len() > 1 && words[1].end - words[0].start > 2.0 * max_duration);
    if words[0].end - last_speech > 4.0 * median && too_long {
        if words.len() > 1 && words[1].end - words[1].start > max_duration {
            let boundary = (words[1].end / 2.0).max(words[1].end - max_duration);
            words[0].end = boundary;
            words[1].start = boundary;
        }
        words[0].start = (words[0].end - max_duration).max(0.0);
    }

    let first = &mut words[0];
    if segment.start < first.end && segment.start - 0.5 > first.start {
        first.start = (first.end - median).min(segment.start).max(0.0);
    } else {
        segment.start = first.start;
    }
    if let Some(last) = words.last_mut() {
        if segment.end > last.start && segment.end + 0.5 < last.end {
            last.end = (last.start + median).max(segment.end);
        } else {
            segment.end = last.end;
        }
    }
}
