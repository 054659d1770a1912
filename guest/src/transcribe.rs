//! The whole audio: windows that follow the last timestamp, each conditioned on the text before it, cut into segments.
//! openai/whisper's `transcribe()`, reading the features as a stream.

use crate::decode::{detect_language, Decoder, DecodingResult};
use crate::events::{Event, Events, Segment};
use crate::fallback::{decode_with_fallback, is_silence};
use crate::features::Features;
use crate::model::Model;
use crate::numeric::{round_half_even, strip};
use crate::options::{Argument, FRAMES_PER_SECOND};
use crate::segments::{cut, Slice};
use crate::Result;
use std::io::{Read, Write};

/// Temperature above which a window's text does not prompt the next.
const MAX_PROMPT_TEMPERATURE: f64 = 0.5;

/// Read log-mel frames to their end; write the events.
pub fn transcribe<R: Read, W: Write>(
    argument: &Argument,
    model: &mut dyn Model,
    features: &mut Features<R>,
    events: &mut Events<W>,
) -> Result<()> {
    let language = language(argument, model, features)?;
    let mut transcript = Transcript::new(argument, model)?;
    let mut decoder = Decoder::new(argument, &language, model)?;
    for (start, end) in clips(&argument.options.clip_timestamps.0) {
        let mut seek = start;
        while end.map_or(true, |end| seek < end) {
            let n_frames = argument.dims.n_frames();
            let wanted = end.map_or(n_frames, |end| n_frames.min(end - seek));
            let segment_size = features.available(seek, wanted)?;
            if segment_size == 0 {
                break;
            }
            model.encode(&features.window(seek, segment_size, n_frames, 0.0))?;
            let prompt = transcript.prompt();
            let result = decode_with_fallback(&mut decoder, model, &prompt, &argument.options)?;
            write_window(argument, &result, seek, events)?;
            if is_silence(&result, &argument.options) {
                seek += segment_size;
                continue;
            }
            let time_offset = seek as f64 / FRAMES_PER_SECOND;
            let cut = cut(
                &result.tokens,
                argument.tokens.timestamp_begin,
                time_offset,
                segment_size,
            );
            for slice in cut.slices {
                let segment = transcript.add(slice, seek, &result, model)?;
                events.write(&Event::Segment(segment))?;
            }
            transcript.end_window(result.temperature);
            seek += cut.advance;
        }
    }
    events.write(&Event::Done {
        text: &transcript.text(model)?,
        language: &language,
    })
}

/// (start, end) of each clip in frames; the last may be open-ended.
fn clips(timestamps: &[f64]) -> Vec<(usize, Option<usize>)> {
    let frames = |seconds: f64| round_half_even(seconds * FRAMES_PER_SECOND) as usize;
    let timestamps = if timestamps.is_empty() { &[0.0] } else { timestamps };
    timestamps
        .chunks(2)
        .map(|clip| (frames(clip[0]), clip.get(1).map(|&end| frames(end))))
        .collect()
}

/// The language asked for, or the first window's likeliest.
fn language<R: Read>(argument: &Argument, model: &mut dyn Model, features: &mut Features<R>) -> Result<String> {
    if let Some(language) = &argument.options.language {
        return Ok(language.clone());
    }
    if !argument.is_multilingual {
        return Ok("en".to_string());
    }
    let n_frames = argument.dims.n_frames();
    let n = features.available(0, n_frames)?;
    model.encode(&features.window(0, n, n_frames, argument.silence))?;
    detect_language(argument, model)
}

fn write_window<W: Write>(
    argument: &Argument,
    result: &DecodingResult,
    seek: usize,
    events: &mut Events<W>,
) -> Result<()> {
    events.write(&Event::Window {
        seek,
        tokens: &result.tokens,
        temperature: result.temperature,
        avg_logprob: result.avg_logprob,
        compression_ratio: result.compression_ratio,
        no_speech_prob: result.no_speech_prob,
    })?;
    if argument.options.emit_tokens {
        for (&id, &logprob) in result.tokens.iter().zip(&result.logprobs) {
            events.write(&Event::Token { id, logprob })?;
        }
    }
    Ok(())
}

/// What has been said so far: the prompt of the next window, and the text at the end.
struct Transcript<'a> {
    argument: &'a Argument,
    /// The initial prompt's, then every segment's.
    tokens: Vec<i32>,
    n_initial: usize,
    prompt_reset_since: usize,
    n_segments: usize,
}

impl<'a> Transcript<'a> {
    fn new(argument: &'a Argument, model: &mut dyn Model) -> Result<Transcript<'a>> {
        let tokens = match &argument.options.initial_prompt {
            Some(prompt) => model.encode_text(&format!(" {}", strip(prompt)))?,
            None => Vec::new(),
        };
        Ok(Transcript {
            argument,
            n_initial: tokens.len(),
            tokens,
            prompt_reset_since: 0,
            n_segments: 0,
        })
    }

    fn prompt(&self) -> Vec<i32> {
        if !self.argument.options.carry_initial_prompt {
            let longest = self.tokens.len().saturating_sub(self.argument.dims.n_text_ctx);
            return self.tokens[self.prompt_reset_since.max(longest)..].to_vec();
        }
        let (initial, _) = self.tokens.split_at(self.n_initial);
        let recent = &self.tokens[self.n_initial.max(self.prompt_reset_since)..];
        // As the reference slices: 0 left means no limit, and less than 0 that many fewer.
        let room = self.argument.dims.n_text_ctx as isize / 2 - 1 - self.n_initial as isize;
        let from = if room > 0 {
            recent.len().saturating_sub(room as usize)
        } else {
            recent.len().min(-room as usize)
        };
        [initial, &recent[from..]].concat()
    }

    /// The next segment; one without duration or words is kept, empty.
    fn add(&mut self, slice: Slice, seek: usize, result: &DecodingResult, model: &mut dyn Model) -> Result<Segment> {
        let Slice { start, end, mut tokens } = slice;
        let eot = self.argument.tokens.eot;
        let text_tokens: Vec<i32> = tokens.iter().copied().filter(|&token| token < eot).collect();
        let mut text = model.decode_text(&text_tokens)?;
        if start == end || strip(&text).is_empty() {
            text.clear();
            tokens.clear();
        }
        self.tokens.extend(&tokens);
        let id = self.n_segments;
        self.n_segments += 1;
        Ok(Segment {
            id,
            seek,
            start,
            end,
            text,
            tokens,
            temperature: result.temperature,
            avg_logprob: result.avg_logprob,
            compression_ratio: result.compression_ratio,
            no_speech_prob: result.no_speech_prob,
        })
    }

    fn end_window(&mut self, temperature: f64) {
        if !self.argument.options.condition_on_previous_text || temperature > MAX_PROMPT_TEMPERATURE {
            self.prompt_reset_since = self.tokens.len();
        }
    }

    fn text(&self, model: &mut dyn Model) -> Result<String> {
        let begin = self.argument.tokens.timestamp_begin;
        let said = &self.tokens[self.n_initial..];
        let text_tokens: Vec<i32> = said.iter().copied().filter(|&token| token < begin).collect();
        model.decode_text(&text_tokens)
    }
}
