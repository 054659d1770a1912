//! Finds when each word is said: joins tokens to words, aligns them, and keeps them out of silence. openai/whisper's
//! `timing.py` and `split_to_word_tokens`.

use crate::alignment::{Attention, CrossAttention};
use crate::events::{Segment, Word};
use crate::model::Model;
use crate::numeric::{round_half_even, strip};
use crate::options::{Argument, Times, FRAMES_PER_SECOND, INPUT_STRIDE};
use crate::repairs::{median_duration, merge_punctuations, truncate_at_segment_boundaries, truncate_at_sentence_ends};
use crate::rules::Rules;
use crate::sound::Sound;
use crate::Result;
use std::ops::Range;

const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Languages without spaces between words.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];

/// A word with its times in seconds from the window's start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WordTiming {
    pub word: String,
    pub n_tokens: usize,
    pub start: f64,
    pub end: f64,
    pub probability: f64,
}

/// A window's text, aligned with its audio.
struct Alignment {
    /// Text, and its number of tokens.
    words: Vec<(String, usize)>,
    /// Of each token.
    probabilities: Vec<f32>,
    /// A row for the start of each token, and one for the end of the last.
    attention: Attention,
}

/// The input for a window's words.
#[derive(Clone, Copy)]
pub struct Heard<'w> {
    /// The window's start, in seconds.
    pub time_offset: f64,
    /// The window's content, in frames.
    pub segment_size: usize,
    /// The end of the speech before, in seconds.
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
    /// ends. Returns the segments with the times that respect silence, if the options request them.
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
        self.fill_in(segments, alignment.map_or(Vec::new(), |alignment| alignment.timings(None)), heard);
        Ok(respecting)
    }

    /// Assign the words to their segments, after the reference's repairs.
    fn fill_in(&self, segments: &mut [Segment], mut timings: Vec<WordTiming>, heard: Heard<'_>) {
        let mut last_speech = heard.last_speech;
        let median = median_duration(&timings);
        truncate_at_sentence_ends(&mut timings, 2.0 * median);
        merge_punctuations(&mut timings);

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

    /// None without text or audio.
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

    /// (word, number of tokens) of the text followed by the end of text: the last word contains at least that.
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
    /// `sounding`, one per audio token: if given, words begin only there.
    fn timings(&self, sounding: Option<&[bool]>) -> Vec<WordTiming> {
        let times = self.attention.start_times(sounding);
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

    /// Move each word into sound: of several sounds, into the one that it attends to most.
    fn timings_in(&self, sound: &Sound) -> Vec<WordTiming> {
        let sounding: Vec<bool> = (0..sound.n_frames() / INPUT_STRIDE)
            .map(|i| sound.has(INPUT_STRIDE * i) || sound.has(INPUT_STRIDE * i + 1))
            .collect();
        if !sounding.contains(&true) {
            return self.timings(None);
        }
        let mut timings = self.timings(Some(&sounding));
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

/// The shortest runs of tokens that are whole characters; eot is appended as a piece of its own.
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

/// Remove the silence before and after words from them and from the segment; it ends with the audio.
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

/// Let no word begin before the previous one ends: the reference's repairs don't check.
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

/// The end of the last word, or of the last segment if none has words.
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
