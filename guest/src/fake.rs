//! A scripted model with a tiny vocabulary, for the unit tests of the policy.

use crate::features::Features;
use crate::model::Model;
use crate::numeric::log_softmax;
use crate::options::Argument;
use crate::rules::{Rules, TimestampRules};
use crate::Result;
use serde_json::{json, Value};
use std::io::Cursor;

pub const EOT: i32 = 100;
pub const SOT: i32 = 101;
pub const GERMAN: i32 = 103;
pub const TRANSLATE: i32 = 104;
pub const TRANSCRIBE: i32 = 105;
pub const SOT_PREV: i32 = 107;
pub const NO_SPEECH: i32 = 108;
pub const NO_TIMESTAMPS: i32 = 109;
pub const TIMESTAMP_BEGIN: i32 = 110;
pub const N_VOCAB: usize = TIMESTAMP_BEGIN as usize + 1501;

/// An English-only argument with these options.
pub fn argument(options: Value) -> Argument {
    parse(false, json!({}), options)
}

/// English 102 and German 103.
pub fn multilingual(options: Value) -> Argument {
    parse(true, json!({"en": 102, "de": 103}), options)
}

pub fn json_argument(is_multilingual: bool, languages: Value, options: Value) -> Value {
    json!({
        "model": "fake",
        "dims": {"n_mels": 1, "n_audio_ctx": 1500, "n_vocab": N_VOCAB, "n_text_ctx": 448},
        "is_multilingual": is_multilingual,
        "tokens": {
            "sot": SOT, "eot": EOT, "transcribe": TRANSCRIBE, "translate": TRANSLATE, "sot_lm": 106,
            "sot_prev": SOT_PREV, "no_speech": NO_SPEECH, "no_timestamps": NO_TIMESTAMPS,
            "timestamp_begin": TIMESTAMP_BEGIN, "languages": languages,
            "suppress": [1, SOT, TRANSLATE, TRANSCRIBE, 106, SOT_PREV, NO_SPEECH], "blank": [0],
        },
        "options": options,
    })
}

fn parse(is_multilingual: bool, languages: Value, options: Value) -> Argument {
    let json = json_argument(is_multilingual, languages, options).to_string();
    Argument::parse(Some(&json)).expect("a good argument")
}

/// The `rules` tensor as a decoder graph reads it.
pub fn rules_of(tensor: &[i32]) -> Rules {
    let (suppress, begin_suppress) = tensor[8..].split_at(tensor[6] as usize);
    assert_eq!(begin_suppress.len(), tensor[7] as usize);
    Rules {
        eot: tensor[2],
        suppress: suppress.to_vec(),
        begin_suppress: begin_suppress.to_vec(),
        timestamps: (tensor[3] >= 0).then(|| TimestampRules {
            begin: tensor[3],
            no_timestamps: tensor[4],
            max_initial_index: Some(tensor[5]).filter(|&index| index >= 0),
        }),
    }
}

/// Log-mel features of one band: frame i is the number i.
pub fn features(n_frames: usize) -> Features<Cursor<Vec<u8>>> {
    let bytes = (0..n_frames).flat_map(|i| (i as f32).to_le_bytes()).collect();
    Features::new(Cursor::new(bytes), 1)
}

/// Logits from a script: (window, the sequence with its prompt) → the nonzero logits by id.
pub type Script = Box<dyn Fn(usize, &[i32]) -> Vec<(i32, f32)>>;

pub struct FakeModel {
    script: Script,
    pub n_encoded: usize,
    pub mels: Vec<Vec<f32>>,
    pub sequences: Vec<Vec<i32>>,
    rules: Vec<i32>,
    chosen: (Vec<i32>, Vec<f32>),
    /// Each decode's tokens before the first sampled one.
    pub prompts: Vec<Vec<i32>>,
    pub n_computes: usize,
    /// Voice-activity detection's answer for every stretch, and the stretches that it was queried for.
    pub has_speech: bool,
    pub listened: Vec<(usize, usize)>,
    /// Ids → text.
    pub spell: fn(&[i32]) -> String,
}

impl FakeModel {
    pub fn new(script: impl Fn(usize, &[i32]) -> Vec<(i32, f32)> + 'static) -> FakeModel {
        FakeModel {
            script: Box::new(script),
            n_encoded: 0,
            mels: Vec::new(),
            sequences: Vec::new(),
            rules: Vec::new(),
            chosen: Default::default(),
            prompts: Vec::new(),
            n_computes: 0,
            has_speech: true,
            listened: Vec::new(),
            spell: |tokens| tokens.iter().map(|token| format!(" w{token}")).collect(),
        }
    }

    /// Each window says its tokens, then the end of text.
    pub fn saying(windows: &'static [&'static [i32]]) -> FakeModel {
        FakeModel::new(move |window, sequence| {
            let sampled = sampled(sequence);
            let next = windows.get(window).and_then(|tokens| tokens.get(sampled.len())).unwrap_or(&EOT);
            vec![(*next, 20.0)]
        })
    }

    fn row(&self, sequence: &[i32]) -> Vec<f32> {
        let mut logits = vec![0.0; N_VOCAB];
        for (token, logit) in (self.script)(self.n_encoded.max(1) - 1, sequence) {
            logits[token as usize] = logit;
        }
        logits
    }
}

/// The tokens after the prompt, whose last token is SOT, a task or NO_TIMESTAMPS.
pub fn sampled(sequence: &[i32]) -> &[i32] {
    let ends_prompt = |token: &i32| [SOT, TRANSCRIBE, TRANSLATE, NO_TIMESTAMPS].contains(token);
    &sequence[sequence.iter().rposition(ends_prompt).map_or(0, |i| i + 1)..]
}

impl Model for FakeModel {
    fn encode(&mut self, mel: &[f32]) -> Result<()> {
        self.n_encoded += 1;
        self.mels.push(mel.to_vec());
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.sequences.clear();
        Ok(())
    }

    fn set_rules(&mut self, rules: &[i32]) -> Result<()> {
        self.rules = rules.to_vec();
        Ok(())
    }

    fn append(&mut self, tokens: &[i32], n_sequences: usize, origins: Option<&[i32]>) -> Result<()> {
        self.n_computes += 1;
        self.sequences = match origins {
            Some(origins) => origins.iter().map(|&origin| self.sequences[origin as usize].clone()).collect(),
            None if self.sequences.is_empty() => vec![Vec::new(); n_sequences],
            None => std::mem::take(&mut self.sequences),
        };
        assert_eq!(self.sequences.len(), n_sequences);
        for (sequence, new) in self.sequences.iter_mut().zip(tokens.chunks(tokens.len() / n_sequences)) {
            sequence.extend(new);
        }
        let (n_steps, sample_begin) = (self.rules[0] as usize, self.rules[1] as usize);
        if self.sequences[0].len() == sample_begin {
            self.prompts.push(self.sequences[0].clone());
        }
        let rules = rules_of(&self.rules);
        self.chosen = Default::default();
        for step in 1..=n_steps {
            let mut logits = self.row(&self.sequences[0]);
            rules.filter(&self.sequences[0][sample_begin..], &mut logits);
            let mut best = 0;
            for token in 0..N_VOCAB {
                if logits[token] > logits[best] {
                    best = token;
                }
            }
            log_softmax(&mut logits);
            self.chosen.0.push(best as i32);
            self.chosen.1.push(logits[best]);
            if best as i32 == EOT {
                break;
            }
            if step < n_steps {
                self.sequences[0].push(best as i32);
            }
        }
        Ok(())
    }

    fn logits(&mut self, logits: &mut [f32]) -> Result<()> {
        let rows: Vec<f32> = self.sequences.iter().flat_map(|sequence| self.row(sequence)).collect();
        logits.copy_from_slice(&rows);
        Ok(())
    }

    fn chosen(&mut self, n_steps: usize) -> Result<(Vec<i32>, Vec<f32>)> {
        assert!(self.chosen.0.len() <= n_steps);
        Ok(self.chosen.clone())
    }

    fn cross_attention(&mut self, n_tokens: usize) -> Result<Vec<f32>> {
        // Token i attends to frame 20·i and a little after.
        assert_eq!(self.sequences[0].len(), n_tokens);
        let mut scores = vec![0.0; n_tokens * 1500];
        for token in 0..n_tokens {
            scores[token * 1500 + 20 * token..][..20].fill(9.0);
        }
        Ok(scores)
    }

    fn token_probabilities(&mut self, n_tokens: usize) -> Result<Vec<f32>> {
        Ok((0..n_tokens).map(|i| if i == 0 { f32::NAN } else { 0.5 }).collect())
    }

    fn hears_speech(&mut self, first: usize, last: usize) -> Result<bool> {
        self.listened.push((first, last));
        Ok(self.has_speech)
    }

    fn decode_text(&mut self, tokens: &[i32]) -> Result<String> {
        Ok((self.spell)(tokens))
    }

    fn compressed_size(&mut self, text: &str) -> Result<usize> {
        Ok(text.len() + 8)
    }

    fn encode_text(&mut self, text: &str) -> Result<Vec<i32>> {
        Ok(text.split_whitespace().map(|word| word.trim_start_matches('w').parse().unwrap()).collect())
    }
}
