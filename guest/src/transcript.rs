//! The transcript so far: the prompt of the next window, and the text at the end.

use crate::events::Segment;
use crate::model::Model;
use crate::numeric::strip;
use crate::options::Argument;
use crate::Result;

/// Temperature above which a window's text does not prompt the next.
const MAX_PROMPT_TEMPERATURE: f64 = 0.5;

pub struct Transcript<'a> {
    argument: &'a Argument,
    /// The initial prompt's, then every segment's.
    tokens: Vec<i32>,
    n_initial: usize,
    prompt_reset_since: usize,
    n_segments: usize,
}

impl<'a> Transcript<'a> {
    pub fn new(argument: &'a Argument, model: &mut dyn Model) -> Result<Transcript<'a>> {
        let tokens = match &argument.options.initial_prompt {
            Some(prompt) => model.encode_text(&format!(" {}", strip(prompt)))?,
            None => Vec::new(),
        };
        Ok(Transcript { argument, n_initial: tokens.len(), tokens, prompt_reset_since: 0, n_segments: 0 })
    }

    pub fn prompt(&self) -> Vec<i32> {
        if !self.argument.options.carry_initial_prompt {
            let longest = self.tokens.len().saturating_sub(self.argument.dims.n_text_ctx);
            return self.tokens[self.prompt_reset_since.max(longest)..].to_vec();
        }
        let (initial, _) = self.tokens.split_at(self.n_initial);
        let recent = &self.tokens[self.n_initial.max(self.prompt_reset_since)..];
        // As the reference slices: 0 left means no limit, and less than 0 that many fewer.
        let room = self.argument.dims.n_text_ctx as isize / 2 - 1 - self.n_initial as isize;
        let from = if room > 0 { recent.len().saturating_sub(room as usize) } else { recent.len().min(-room as usize) };
        [initial, &recent[from..]].concat()
    }

    /// Number the next segment; one without duration or words is kept, empty.
    pub fn add(&mut self, mut segment: Segment) -> Segment {
        if segment.start == segment.end || strip(&segment.text).is_empty() {
            segment.text.clear();
            segment.tokens.clear();
            segment.logprobs.iter_mut().for_each(Vec::clear);
            segment.words.iter_mut().for_each(Vec::clear);
        }
        self.tokens.extend(&segment.tokens);
        segment.id = self.n_segments;
        self.n_segments += 1;
        segment
    }

    pub fn end_window(&mut self, temperature: f64) {
        if !self.argument.options.condition_on_previous_text || temperature > MAX_PROMPT_TEMPERATURE {
            self.prompt_reset_since = self.tokens.len();
        }
    }

    pub fn text(&self, model: &mut dyn Model) -> Result<String> {
        let begin = self.argument.tokens.timestamp_begin;
        let said = &self.tokens[self.n_initial..];
        let text_tokens: Vec<i32> = said.iter().copied().filter(|&token| token < begin).collect();
        model.decode_text(&text_tokens)
    }
}
