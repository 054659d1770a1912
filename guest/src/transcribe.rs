//! Transcribes the whole audio: windows that follow the last timestamp, each conditioned on the text before it, cut
//! into segments. openai/whisper's `transcribe()`, reading the features as a stream.

use crate::decode::{detect_language, Decoder, DecodingResult};
use crate::doubt::is_doubtful;
use crate::events::{Event, Events, Segment};
use crate::fallback::{fall_back, is_silence};
use crate::features::Features;
use crate::model::Model;
use crate::options::{Argument, NoSpeech, Times, FRAMES_PER_SECOND};
use crate::segments::{cut, uncut, Slice};
use crate::sound::{leading_silence, NoiseFloor, Sound};
use crate::transcript::Transcript;
use crate::words::{frames, last_word_end, respect_silence, Heard, WordAligner};
use crate::Result;
use std::io::{Read, Write};

/// Frames of digital silence kept before a sound, after a window without any.
const BEFORE_SOUND: usize = 50;

/// Read log-mel frames to their end; write the events.
pub fn transcribe<R: Read, W: Write>(
    argument: &Argument,
    model: &mut dyn Model,
    features: &mut Features<R>,
    events: &mut Events<W>,
) -> Result<()> {
    let options = &argument.options;
    let n_frames = argument.dims.n_frames();
    let language = language(argument, model, features)?;
    let mut transcript = Transcript::new(argument, model)?;
    let mut decoder = Decoder::new(argument, &language, model)?;
    let aligner = options.word_timestamps.then(|| WordAligner::new(argument, &language));
    let mut last_speech = 0.0;
    let mut floor = NoiseFloor::default();
    let mut before = Vec::new();
    let mut after_silence = false;
    let clips = match options.settled {
        Some(_) => vec![(0, Some(n_frames))],
        None => clips(&options.clip_timestamps),
    };
    for (start, end) in clips {
        let mut seek = start;
        while end.map_or(true, |end| seek < end) {
            let wanted = end.map_or(n_frames, |end| n_frames.min(end - seek));
            let segment_size = features.available(seek, wanted)?;
            if segment_size == 0 {
                break;
            }
            let mel = features.window(seek, segment_size, n_frames, 0.0);
            let skips = options.no_speech == NoSpeech::Skip;
            if skips {
                let silent = leading_silence(&mel, n_frames, segment_size, argument.silence);
                // The next window begins shortly before its sound, not wherever the silence happened to be cut.
                let n = if silent == segment_size { silent } else { silent.saturating_sub(BEFORE_SOUND) };
                if silent == segment_size || (after_silence && n > 0) {
                    after_silence = silent == segment_size;
                    seek += n;
                    continue;
                }
                after_silence = false;
            }
            model.encode(&mel)?;
            let prompt = transcript.prompt();
            let first = decoder.decode(model, &prompt, options.temperature[0])?;
            let text = text_tokens(argument, &first.tokens);
            if skips
                && is_doubtful(&first, &text, &before, segment_size)
                && !model.hears_speech(seek, seek + segment_size)?
            {
                seek += segment_size;
                continue;
            }
            let (result, tried) = fall_back(first, &mut decoder, model, &prompt, options)?;
            write_window(argument, &result, seek, events)?;
            if is_silence(&result, options) {
                seek += segment_size;
                continue;
            }
            before = text_tokens(argument, &result.tokens);
            let time_offset = seek as f64 / FRAMES_PER_SECOND;
            let cut = match options.settled {
                Some(_) => uncut(&result.tokens, time_offset, segment_size),
                None => cut(&result.tokens, argument.tokens.timestamp_begin, time_offset, segment_size),
            };
            let mut next_seek = seek + cut.advance;
            let mut segments = Vec::new();
            for slice in cut.slices {
                segments.push(segment(argument, slice, seek, &result, model)?);
            }
            let sound = match options.times {
                Times::Reference => Sound::default(),
                Times::Sound => floor.sound(&mel, n_frames, segment_size, argument.silence),
            };
            let heard = Heard { time_offset, segment_size, last_speech, sound: &sound };
            let mut shown = None;
            if let Some(aligner) = &aligner {
                shown = aligner.add_word_timestamps(model, &mut segments, heard)?;
                if let Some(end) = last_word_end(&segments) {
                    if !cut.single_timestamp_ending && end > time_offset {
                        next_seek = frames(end);
                    }
                }
                last_speech = last_word_end(&segments).unwrap_or(last_speech);
            }
            for (i, segment) in segments.into_iter().enumerate() {
                let mut segment = transcript.add(segment);
                if options.times == Times::Sound {
                    match shown.as_mut().map(|shown| &mut shown[i]) {
                        Some(shown) => take_times(&mut segment, shown),
                        None => respect_silence(&mut segment, heard),
                    }
                }
                events.write(&Event::Segment(segment))?;
            }
            transcript.end_window(tried);
            // The reference would decode the same window forever; here it is skipped.
            seek = if next_seek > seek { next_seek } else { seek + segment_size };
        }
    }
    events.write(&Event::Done { text: &transcript.text(model)?, language: &language })
}

/// Replace a segment's times by those of its counterpart.
fn take_times(segment: &mut Segment, other: &mut Segment) {
    segment.start = other.start;
    segment.end = other.end;
    if segment.words.as_ref().map_or(false, |words| !words.is_empty()) {
        segment.words = other.words.take();
    }
}

fn text_tokens(argument: &Argument, tokens: &[i32]) -> Vec<i32> {
    tokens.iter().copied().filter(|&token| token < argument.tokens.eot).collect()
}

/// (start, end) of each clip in frames; the last may be open-ended.
fn clips(timestamps: &[f64]) -> Vec<(usize, Option<usize>)> {
    let timestamps = if timestamps.is_empty() { &[0.0] } else { timestamps };
    timestamps.chunks(2).map(|clip| (frames(clip[0]), clip.get(1).map(|&end| frames(end)))).collect()
}

/// The requested language, or the likeliest of the first window (of the audio, or of its first clip).
fn language<R: Read>(argument: &Argument, model: &mut dyn Model, features: &mut Features<R>) -> Result<String> {
    if let Some(language) = &argument.options.language {
        return Ok(language.clone());
    }
    if !argument.is_multilingual {
        return Ok("en".to_string());
    }
    let n_frames = argument.dims.n_frames();
    let clips = clips(&argument.options.clip_timestamps);
    let start = if argument.options.detect_in_clips { clips[0].0 } else { 0 };
    let n = features.available(start, n_frames)?;
    model.encode(&features.window(start, n, n_frames, argument.silence))?;
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

/// A slice of a window as a segment, without an id yet.
fn segment(
    argument: &Argument,
    slice: Slice,
    seek: usize,
    result: &DecodingResult,
    model: &mut dyn Model,
) -> Result<Segment> {
    let logprobs = argument.options.emit_tokens.then(|| result.logprobs[slice.first..][..slice.tokens.len()].to_vec());
    let text_tokens = text_tokens(argument, &slice.tokens);
    Ok(Segment {
        id: 0,
        seek,
        start: slice.start,
        end: slice.end,
        text: model.decode_text(&text_tokens)?,
        tokens: slice.tokens,
        temperature: result.temperature,
        avg_logprob: result.avg_logprob,
        compression_ratio: result.compression_ratio,
        no_speech_prob: result.no_speech_prob,
        logprobs,
        words: None,
    })
}

#[cfg(test)]
#[path = "transcribe_tests.rs"]
mod tests;
