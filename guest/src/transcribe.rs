//! The whole audio: windows that follow the last timestamp, each conditioned on the text before it, cut into segments.
//! openai/whisper's `transcribe()`, reading the features as a stream.

use crate::decode::{detect_language, Decoder, DecodingResult};
use crate::events::{Event, Events, Segment};
use crate::fallback::{decode_with_fallback, is_silence};
use crate::features::Features;
use crate::hallucination::{frames, last_word_end, skip_silence, Verdict, Window};
use crate::model::Model;
use crate::options::{Argument, FRAMES_PER_SECOND};
use crate::segments::{cut, Slice};
use crate::transcript::Transcript;
use crate::words::WordAligner;
use crate::Result;
use std::io::{Read, Write};

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
    for (start, end) in clips(&options.clip_timestamps.0) {
        let mut seek = start;
        while end.map_or(true, |end| seek < end) {
            let wanted = end.map_or(n_frames, |end| n_frames.min(end - seek));
            let segment_size = features.available(seek, wanted)?;
            if segment_size == 0 {
                break;
            }
            model.encode(&features.window(seek, segment_size, n_frames, 0.0))?;
            let result = decode_with_fallback(&mut decoder, model, &transcript.prompt(), options)?;
            write_window(argument, &result, seek, events)?;
            if is_silence(&result, options) {
                seek += segment_size;
                continue;
            }
            let time_offset = seek as f64 / FRAMES_PER_SECOND;
            let cut = cut(&result.tokens, argument.tokens.timestamp_begin, time_offset, segment_size);
            let mut next_seek = seek + cut.advance;
            let mut segments = Vec::new();
            for slice in cut.slices {
                segments.push(segment(argument, slice, seek, &result, model)?);
            }
            if let Some(aligner) = &aligner {
                aligner.add_word_timestamps(model, &mut segments, time_offset, segment_size, last_speech)?;
                if let Some(end) = last_word_end(&segments) {
                    if !cut.single_timestamp_ending && end > time_offset {
                        next_seek = frames(end);
                    }
                }
                if let Some(threshold) = options.hallucination_silence_threshold {
                    let window = Window {
                        seek,
                        segment_size,
                        start: time_offset,
                        end: (seek + n_frames) as f64 / FRAMES_PER_SECOND,
                        single_timestamp_ending: cut.single_timestamp_ending,
                        last_speech,
                    };
                    let mut content_end = |speech_end: f64| {
                        let content = features.end_by(((speech_end + threshold) * FRAMES_PER_SECOND).ceil() as usize)?;
                        Ok(content.filter(|&n| n as f64 / FRAMES_PER_SECOND - speech_end < threshold))
                    };
                    match skip_silence(&mut segments, &window, threshold, next_seek, &mut content_end)? {
                        Verdict::Keep(frame) => next_seek = frame,
                        Verdict::Again(frame) => {
                            seek = frame;
                            continue;
                        }
                    }
                }
                last_speech = last_word_end(&segments).unwrap_or(last_speech);
            }
            for segment in segments {
                events.write(&Event::Segment(transcript.add(segment)))?;
            }
            transcript.end_window(result.temperature);
            // Where the reference would hear the same window for ever, it is passed over.
            seek = if next_seek > seek { next_seek } else { seek + segment_size };
        }
    }
    events.write(&Event::Done { text: &transcript.text(model)?, language: &language })
}

/// (start, end) of each clip in frames; the last may be open-ended.
fn clips(timestamps: &[f64]) -> Vec<(usize, Option<usize>)> {
    let timestamps = if timestamps.is_empty() { &[0.0] } else { timestamps };
    timestamps.chunks(2).map(|clip| (frames(clip[0]), clip.get(1).map(|&end| frames(end)))).collect()
}

/// The language asked for, or the likeliest of the first window (of the audio, or of its first clip).
fn language<R: Read>(argument: &Argument, model: &mut dyn Model, features: &mut Features<R>) -> Result<String> {
    if let Some(language) = &argument.options.language {
        return Ok(language.clone());
    }
    if !argument.is_multilingual {
        return Ok("en".to_string());
    }
    let n_frames = argument.dims.n_frames();
    let clips = clips(&argument.options.clip_timestamps.0);
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

/// A slice of a window as a segment, its id still open.
fn segment(
    argument: &Argument,
    slice: Slice,
    seek: usize,
    result: &DecodingResult,
    model: &mut dyn Model,
) -> Result<Segment> {
    let logprobs = argument.options.emit_tokens.then(|| result.logprobs[slice.first..][..slice.tokens.len()].to_vec());
    let text_tokens: Vec<i32> = slice.tokens.iter().copied().filter(|&token| token < argument.tokens.eot).collect();
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
