//! The guest's events on stdout: one JSON object per line, written immediately.

use crate::Result;
use serde::Serialize;
use std::io::Write;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// A decoded window, before the no-speech gate and the cutting: `seek` in frames; ids without prompt and end.
    Window {
        seek: usize,
        tokens: &'a [i32],
        temperature: f64,
        avg_logprob: f64,
        compression_ratio: f64,
        no_speech_prob: Option<f64>,
    },
    /// One of the window's tokens.
    Token {
        id: i32,
        logprob: f32,
    },
    Segment(Segment),
    /// The last event.
    Done {
        text: &'a str,
        language: &'a str,
    },
}

/// As in openai/whisper's result: `seek` in frames, `start` and `end` in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Segment {
    pub id: usize,
    pub seek: usize,
    pub start: f64,
    pub end: f64,
    pub text: String,
    pub tokens: Vec<i32>,
    pub temperature: f64,
    pub avg_logprob: f64,
    pub compression_ratio: f64,
    pub no_speech_prob: Option<f64>,
    /// One for each of `tokens`, only where token events are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
}

/// `start` and `end` in seconds; `word` with the space before it and its punctuation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Word {
    pub word: String,
    pub start: f64,
    pub end: f64,
    pub probability: f64,
}

pub struct Events<W>(W);

impl<W: Write> Events<W> {
    pub fn new(output: W) -> Events<W> {
        Events(output)
    }

    pub fn write(&mut self, event: &Event<'_>) -> Result<()> {
        let mut line = serde_json::to_vec(event).map_err(std::io::Error::from)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(self.0.flush()?)
    }
}
