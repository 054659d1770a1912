//! When each word was said: tokens joined to words, aligned, merged with their punctuation, and the reference's repairs
//! of words that are too long. openai/whisper's `timing.py` and `split_to_word_tokens`.

use crate::alignment::{Attention, CrossAttention};
use crate::events::{Segment, Word};
use crate::model::Model;
use crate::numeric::{round_half_even, strip};
use crate::options::{Argument, Times, FRAMES_PER_SECOND, INPUT_STRIDE};
use crate::rules::Rules;
use crate::sound::Sound;
use crate::Result;
use std::ops::Range;

const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
const SENTENCE_END_MARKS: &str = ".。!！?？";
/// Languages whose words no space divides.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];

/// A word with its times in seconds from the window's start.
#[derive(Debug, Clone, PartialEq)]
struct WordTiming {
    word: String,
    n_tokens: usize,
    start: f64,
    end: f64,
    probability: f64,
}

/// A window's text, aligned with its audio.
struct Alignment {
    /// Text, and how many tokens.
    words: Vec<(String, usize)>,
    /// Of each token.
    probabilities: Vec<f32>,
    /// A row for the start of each token, and one for the end of the last.
    attention: Attention,
}

/// What the words are made of.
#[derive(Clone, Copy)]
pub struct Heard<'w> {
    /// Where the window begins, in seconds.
    pub time_offset: f64,
    /// The window's content, in frames.
    pub segment_size: usize,
    /// Where speech ended before, in seconds.
    pub last_speech: f64,
    pub sound: &'w Sound,
}

/// Makes words for the segments of windows, one window after the other.
pub struct WordAligner<'a> {
    argument: &'a Argument,
    language: &'a str,
    /// The prompt that tokens are aligned after: sot sequence and no_timestamps.
    prompt: Vec<i32>,
}

impl<'a> WordAligner<'a> {
    pub fn new(argument: &'a Argument, language: &'a str) -> WordAligner<'a> {
        let mut prompt = argument.sot_sequence(language);
        prompt.push(argument.tokens.no_timestamps);
        WordAligner { argument, language, prompt }
    }

    /// Fill in the words of one window's segments; it must still be the encoded one. May move the segments' starts and
    /// ends. Returns the segments with the times that respect silence, where the options ask for them.
    pub fn add_word_timestamps(
        &self,
        model: &mut dyn Model,
        segments: &mut [Segment],
        heard: Heard<'_>,
    ) -> Result<Option<Vec<Segment>>> {
        let eot = self.argument.tokens.eot;
        let tokens: Vec<i32> =
            segments.iter().flat_map(|segment| &segment.tokens).copied().filter(|&token| token < eot).collect();
        let alignment = self.find_alignment(model, &tokens, heard.segment_size)?;
        let mut respecting = (self.argument.options.times == Times::Sound).then(|| segments.to_vec());
        if let Some(segments) = &mut respecting {
            let timings = alignment.as_ref().map_or(Vec::new(), |alignment| alignment.timings_in(heard.sound));
            self.fill_in(segments, timings, heard);
            segments.iter_mut().for_each(|segment| respect_silence(segment, heard));
            respect_order(segments);
        }
        self.fill_in(segments, alignment.map_or(Vec::new(), |alignment| alignment.timings()), heard);
        Ok(respecting)
    }

    /// Give the words to their segments, after the reference's repairs.
    fn fill_in(&self, segments: &mut [Segment], mut timings: Vec<WordTiming>, heard: Heard<'_>) {
        let mut last_speech = heard.last_speech;
        let median = median_duration(&timings);
        truncate_at_sentence_ends(&mut timings, 2.0 * median);
        let options = &self.argument.options;
        merge_punctuations(&mut timings, &options.prepend_punctuations, &options.append_punctuations);

        let mut timings = timings.into_iter();
        for segment in segments {
            let n_tokens = segment.tokens.iter().filter(|&&token| token < self.argument.tokens.eot).count();
            let mut words = Vec::new();
            let mut saved = 0;
            while saved < n_tokens {
                let timing = match timings.next() {
                    Some(timing) => timing,
                    None => break,
                };
                saved += timing.n_tokens;
                if !timing.word.is_empty() {
                    words.push(Word {
                        start: round_to_hundredths(heard.time_offset + timing.start),
                        end: round_to_hundredths(heard.time_offset + timing.end),
                        probability: timing.probability,
                        word: timing.word,
                    });
                }
            }
            if !words.is_empty() {
                truncate_at_segment_boundaries(segment, &mut words, median, last_speech);
                last_speech = segment.end;
            }
            segment.words = Some(words);
        }
    }

    /// None where there is no text, or no audio.
    fn find_alignment(
        &self,
        model: &mut dyn Model,
        text_tokens: &[i32],
        segment_size: usize,
    ) -> Result<Option<Alignment>> {
        let n_audio = segment_size / INPUT_STRIDE;
        if text_tokens.is_empty() || n_audio == 0 {
            return Ok(None);
        }
        let (tokens, options) = (&self.argument.tokens, &self.argument.options);
        let sequence = [&self.prompt, text_tokens, &[tokens.eot]].concat();
        model.restart()?;
        model.set_rules(&Rules::new(tokens, options).tensor(0, self.prompt.len()))?;
        model.append(&sequence, 1, None)?;
        let attention = CrossAttention {
            scores: model.cross_attention(sequence.len())?,
            n_tokens: sequence.len(),
            n_audio_ctx: self.argument.dims.n_audio_ctx,
        };
        // The row of no_timestamps is where the first word's attention begins.
        let attention = attention.of_tokens(self.prompt.len() - 1, sequence.len() - 1, n_audio);
        let probabilities = model.token_probabilities(sequence.len())?.split_off(self.prompt.len());
        let mut words = self.split_to_words(model, text_tokens)?;
        words.pop();
        Ok(Some(Alignment { words, probabilities, attention }))
    }

    /// (word, how many tokens), of the text with the end of text after it: the last word holds at least that.
    fn split_to_words(&self, model: &mut dyn Model, text_tokens: &[i32]) -> Result<Vec<(String, usize)>> {
        let pieces = split_on_unicode(model, text_tokens, self.argument.tokens.eot)?;
        if self.argument.is_multilingual && WITHOUT_SPACES.contains(&self.language) {
            return Ok(pieces.into_iter().map(|(piece, tokens)| (piece, tokens.len())).collect());
        }
        let mut words: Vec<(String, usize)> = Vec::new();
        for (piece, tokens) in pieces {
            let special = tokens[0] >= self.argument.tokens.eot;
            let starts = special || piece.starts_with(' ') || PUNCTUATION.contains(strip(&piece));
            match words.last_mut() {
                Some(word) if !starts => {
                    word.0.push_str(&piece);
                    word.1 += tokens.len();
                }
                _ => words.push((piece, tokens.len())),
            }
        }
        Ok(words)
    }
}

impl Alignment {
    fn timings(&self) -> Vec<WordTiming> {
        self.timings_from(&self.attention.start_times(None))
    }

    fn timings_from(&self, times: &[f64]) -> Vec<WordTiming> {
        let mut timings = Vec::new();
        let mut first = 0;
        for (word, n_tokens) in &self.words {
            let last = first + n_tokens;
            let sum: f64 = self.probabilities[first..last].iter().copied().map(f64::from).sum();
            timings.push(WordTiming {
                word: word.clone(),
                n_tokens: *n_tokens,
                start: times[first],
                end: times[last],
                probability: sum / *n_tokens as f64,
            });
            first = last;
        }
        timings
    }

    /// Words that begin and end where there is sound: of several sounds, in the one that they attend to most.
    fn timings_in(&self, sound: &Sound) -> Vec<WordTiming> {
        let sounding: Vec<bool> = (0..sound.n_frames() / INPUT_STRIDE)
            .map(|i| sound.has(INPUT_STRIDE * i) || sound.has(INPUT_STRIDE * i + 1))
            .collect();
        if !sounding.contains(&true) {
            return self.timings();
        }
        let mut timings = self.timings_from(&self.attention.start_times(Some(&sounding)));
        let mut first = 0;
        for timing in &mut timings {
            let last = first + timing.n_tokens;
            let columns = |part: &Range<usize>| part.start / INPUT_STRIDE..(part.end + 1) / INPUT_STRIDE;
            let weight = |part: &Range<usize>| self.attention.weight(first..last, columns(part));
            let parts = sound.parts(frames(timing.start)..frames(timing.end));
            if let Some(part) = parts.into_iter().max_by(|a, b| weight(a).total_cmp(&weight(b))) {
                timing.start = timing.start.max(part.start as f64 / FRAMES_PER_SECOND);
                timing.end = part.end as f64 / FRAMES_PER_SECOND;
            }
            first = last;
        }
        timings
    }
}

/// The shortest runs of tokens that are whole characters; eot is appended and is a piece, too.
fn split_on_unicode(model: &mut dyn Model, text_tokens: &[i32], eot: i32) -> Result<Vec<(String, Vec<i32>)>> {
    const REPLACEMENT: char = '\u{fffd}';
    let mut decode = |tokens: &[i32]| -> Result<String> {
        let (text, end) = match tokens {
            [text @ .., last] if *last == eot => (text, "<|endoftext|>"),
            _ => (tokens, ""),
        };
        Ok(model.decode_text(text)? + end)
    };
    let tokens = [text_tokens, &[eot]].concat();
    let full: Vec<char> = decode(&tokens)?.chars().collect();
    let mut pieces = Vec::new();
    let mut current = Vec::new();
    let mut offset = 0;
    for token in tokens {
        current.push(token);
        let decoded = decode(&current)?;
        // A replacement character that the whole text has too doesn't cut a character in two.
        let broken = decoded.chars().position(|c| c == REPLACEMENT);
        if broken.map_or(true, |place| full.get(offset + place) == Some(&REPLACEMENT)) {
            offset += decoded.chars().count();
            pieces.push((decoded, std::mem::take(&mut current)));
        }
    }
    Ok(pieces)
}

/// Of the words with any duration, at most 0.7 s.
fn median_duration(alignment: &[WordTiming]) -> f64 {
    let mut durations: Vec<f64> =
        alignment.iter().map(|timing| timing.end - timing.start).filter(|&duration| duration != 0.0).collect();
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
fn truncate_at_sentence_ends(alignment: &mut [WordTiming], max_duration: f64) {
    if alignment.iter().all(|timing| timing.end == timing.start) {
        return;
    }
    for i in 1..alignment.len() {
        if alignment[i].end - alignment[i].start > max_duration {
            if SENTENCE_END_MARKS.contains(&alignment[i].word) {
                alignment[i].end = alignment[i].start + max_duration;
            } else if SENTENCE_END_MARKS.contains(&alignment[i - 1].word) {
                alignment[i].start = alignment[i].end - max_duration;
            }
        }
    }
}

/// Opening marks go to the word after them, closing ones to the word before. What is merged away is left empty.
fn merge_punctuations(alignment: &mut [WordTiming], prepended: &str, appended: &str) {
    let mut following = alignment.len().saturating_sub(1);
    for previous in (0..following).rev() {
        let word = &alignment[previous].word;
        if word.starts_with(' ') && prepended.contains(strip(word)) {
            let word = std::mem::take(&mut alignment[previous].word);
            alignment[following].word.insert_str(0, &word);
            alignment[following].n_tokens += std::mem::take(&mut alignment[previous].n_tokens);
        } else {
            following = previous;
        }
    }
    let mut previous = 0;
    for following in 1..alignment.len() {
        if !alignment[previous].word.ends_with(' ') && appended.contains(&alignment[following].word) {
            let word = std::mem::take(&mut alignment[following].word);
            alignment[previous].word.push_str(&word);
            alignment[previous].n_tokens += std::mem::take(&mut alignment[following].n_tokens);
        } else {
            previous = following;
        }
    }
}

/// The first words after a pause, and the last, are not stretched over silence; the segment takes the words' times
/// where they agree. `median`: the window's median duration of a word.
fn truncate_at_segment_boundaries(segment: &mut Segment, words: &mut [Word], median: f64, last_speech: f64) {
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

/// Take the silence before and after them off the words, and off the segment; it ends with the audio.
pub fn respect_silence(segment: &mut Segment, heard: Heard<'_>) {
    let narrow = |start: &mut f64, end: &mut f64| {
        let seconds = |frame: usize| round_to_hundredths(heard.time_offset + frame as f64 / FRAMES_PER_SECOND);
        *end = end.min(seconds(heard.segment_size)).max(heard.time_offset);
        *start = start.min(*end);
        let place = |time: f64| frames((time - heard.time_offset).max(0.0));
        if let Some(sound) = heard.sound.hull(place(*start)..place(*end)) {
            *start = start.max(seconds(sound.start));
            *end = end.min(seconds(sound.end));
        }
    };
    narrow(&mut segment.start, &mut segment.end);
    if let Some([words @ ..]) = segment.words.as_deref_mut() {
        words.iter_mut().for_each(|word| narrow(&mut word.start, &mut word.end));
    }
}

/// Let no word begin before the one before it has ended: the reference's repairs do not look.
fn respect_order(segments: &mut [Segment]) {
    let mut words: Vec<&mut Word> =
        segments.iter_mut().filter_map(|segment| segment.words.as_mut()).flatten().collect();
    for i in 1..words.len() {
        let (before, after) = words.split_at_mut(i);
        let (word, next) = (&mut before[i - 1], &mut after[0]);
        if next.start < word.end {
            word.end = next.start.max(word.start);
            next.start = next.start.max(word.end);
            next.end = next.end.max(next.start);
        }
    }
    for segment in segments {
        if let Some([first, ..]) = segment.words.as_deref() {
            segment.start = first.start;
        }
        if let Some([.., last]) = segment.words.as_deref() {
            segment.end = last.end;
        }
    }
}

/// The end of the last word, or of the last segment where none has words.
pub fn last_word_end(segments: &[Segment]) -> Option<f64> {
    let last_word = segments.iter().rev().find_map(|segment| segment.words.as_deref().unwrap_or_default().last());
    last_word.map(|word| word.end).or_else(|| segments.last().map(|segment| segment.end))
}

pub fn frames(seconds: f64) -> usize {
    round_half_even(seconds * FRAMES_PER_SECOND).max(0.0) as usize
}

/// NumPy's `round(x, 2)`.
fn round_to_hundredths(seconds: f64) -> f64 {
    round_half_even(seconds * 100.0) / 100.0
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
