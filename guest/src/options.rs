//! The guest's one argument: the model's constants and openai/whisper's options. Strict, because silently ignoring a
//! misspelt option gives a wrong transcript.

use crate::{Error, Result};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Seconds per audio token: two frames of 10 ms.
pub const TIME_PRECISION: f64 = 0.02;
/// Mel frames per audio token.
pub const INPUT_STRIDE: usize = 2;
pub const FRAMES_PER_SECOND: f64 = 100.0;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    /// The name under which the graphs are registered.
    pub model: String,
    pub dims: Dimensions,
    pub is_multilingual: bool,
    pub tokens: Tokens,
    #[serde(default)]
    pub options: Options,
    /// Log-mel value of digital silence in this audio: pads a short window for language detection, where the reference
    /// has features of padded audio rather than padded features. Its frames never count as sound.
    #[serde(default)]
    pub silence: f32,
}

/// OpenAI's names.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dimensions {
    pub n_mels: usize,
    pub n_audio_ctx: usize,
    pub n_vocab: usize,
    pub n_text_ctx: usize,
}

impl Dimensions {
    /// Mel frames in a window: 3000 where n_audio_ctx is 1500.
    pub fn n_frames(&self) -> usize {
        INPUT_STRIDE * self.n_audio_ctx
    }
}

/// Ids of the special tokens, and sets of tokens that are never sampled.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    pub sot: i32,
    pub eot: i32,
    pub transcribe: i32,
    pub translate: i32,
    pub sot_lm: i32,
    pub sot_prev: i32,
    pub no_speech: Option<i32>,
    pub no_timestamps: i32,
    pub timestamp_begin: i32,
    /// Language code → token; empty for an English-only model.
    pub languages: BTreeMap<String, i32>,
    pub suppress: Vec<i32>,
    pub blank: Vec<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    Transcribe,
    Translate,
}

/// The handling of windows without speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoSpeech {
    /// The no-speech gate alone decides.
    Reference,
    /// Skips digital silence, and doubtful windows in which the host hears no speech.
    Skip,
}

/// The attempt to keep if every temperature fails its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastRung {
    /// The last.
    Reference,
    Best,
}

/// The times at which words and segments begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Times {
    Reference,
    /// When their sound does.
    Sound,
}

/// Arguments of openai/whisper's `transcribe()` and `DecodingOptions`, with its defaults; then our own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub task: Task,
    pub language: Option<String>,
    #[serde(deserialize_with = "numbers")]
    pub temperature: Vec<f64>,
    pub beam_size: Option<usize>,
    pub sample_len: Option<usize>,
    pub without_timestamps: bool,
    pub max_initial_timestamp: Option<f64>,
    pub suppress_blank: bool,
    pub prefix: Option<String>,
    /// For live speech: transcribe the first window only, as one segment that begins with these tokens. The rules
    /// count them as sampled.
    pub settled: Option<Vec<i32>>,
    pub initial_prompt: Option<String>,
    pub carry_initial_prompt: bool,
    pub condition_on_previous_text: bool,
    pub no_speech_threshold: Option<f64>,
    pub logprob_threshold: Option<f64>,
    pub compression_ratio_threshold: Option<f64>,
    #[serde(deserialize_with = "numbers")]
    pub clip_timestamps: Vec<f64>,
    pub word_timestamps: bool,
    pub no_speech: NoSpeech,
    pub last_rung: LastRung,
    pub times: Times,
    /// Seeds the random numbers at temperatures above 0.
    pub seed: u64,
    /// Greedy tokens per compute.
    pub run_ahead: usize,
    /// Whether to write an event for each token, and each segment's log-probabilities.
    pub emit_tokens: bool,
    /// Whether to detect the language where the first clip begins, not where the audio does.
    pub detect_in_clips: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            task: Task::Transcribe,
            language: None,
            temperature: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            beam_size: None,
            sample_len: None,
            without_timestamps: false,
            max_initial_timestamp: Some(1.0),
            suppress_blank: true,
            prefix: None,
            settled: None,
            initial_prompt: None,
            carry_initial_prompt: false,
            condition_on_previous_text: true,
            no_speech_threshold: Some(0.6),
            logprob_threshold: Some(-1.0),
            compression_ratio_threshold: Some(2.4),
            clip_timestamps: vec![0.0],
            word_timestamps: false,
            no_speech: NoSpeech::Reference,
            last_rung: LastRung::Reference,
            times: Times::Reference,
            seed: 0,
            run_ahead: 8,
            emit_tokens: false,
            detect_in_clips: false,
        }
    }
}

/// One number or a list of numbers.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number or a list of numbers")]
enum Numbers {
    One(f64),
    List(Vec<f64>),
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<f64>, D::Error> {
    Ok(match Numbers::deserialize(deserializer)? {
        Numbers::One(number) => vec![number],
        Numbers::List(numbers) => numbers,
    })
}

impl Argument {
    /// [sot], or [sot, language, task].
    pub fn sot_sequence(&self, language: &str) -> Vec<i32> {
        let mut sequence = vec![self.tokens.sot];
        if self.is_multilingual {
            let task = match self.options.task {
                Task::Transcribe => self.tokens.transcribe,
                Task::Translate => self.tokens.translate,
            };
            sequence.extend([self.tokens.languages[language], task]);
        }
        sequence
    }

    /// Parse and check; errors name the fault and the expected value.
    pub fn parse(json: Option<&str>) -> Result<Argument> {
        let json = json.ok_or_else(|| Error("expected one argument: a JSON object".to_string()))?;
        let argument: Argument = serde_json::from_str(json).map_err(|error| Error(format!("bad argument: {error}")))?;
        argument.check().map_err(|Error(reason)| Error(format!("bad argument: {reason}")))?;
        Ok(argument)
    }

    fn check(&self) -> Result<()> {
        let require = |holds: bool, reason: &str| if holds { Ok(()) } else { Err(Error(reason.to_string())) };
        let Dimensions { n_mels, n_audio_ctx, n_vocab, n_text_ctx } = self.dims;
        let (tokens, options) = (&self.tokens, &self.options);
        require(n_mels > 0 && n_audio_ctx > 0 && n_vocab > 0, "dims must be at least 1")?;
        require(n_text_ctx >= 8, "n_text_ctx must be at least 8")?;
        let specials = [tokens.sot, tokens.eot, tokens.transcribe, tokens.translate, tokens.sot_lm, tokens.sot_prev];
        let ids = specials.iter().chain(&tokens.no_speech).chain(&tokens.suppress).chain(&tokens.blank);
        let ids = ids.chain(tokens.languages.values()).chain([&tokens.no_timestamps, &tokens.timestamp_begin]);
        let in_vocabulary = |id: &i32| *id >= 0 && (*id as usize) < n_vocab;
        require(ids.clone().all(in_vocabulary), "a token id is not below n_vocab")?;
        require(options.settled.iter().flatten().all(in_vocabulary), "a settled token is not below n_vocab")?;

        match &options.language {
            Some(language) if self.is_multilingual => require(
                tokens.languages.contains_key(language),
                &format!("language `{language}` is none of the model's"),
            )?,
            Some(language) => require(language == "en", "an English-only model has no other language than `en`")?,
            None => require(
                !self.is_multilingual || !tokens.languages.is_empty(),
                "a multilingual model needs its language tokens",
            )?,
        }
        require(self.is_multilingual || options.task == Task::Transcribe, "an English-only model cannot translate")?;
        require(!options.temperature.is_empty(), "temperature must hold at least one number")?;
        require(options.temperature.iter().all(|t| *t >= 0.0 && t.is_finite()), "temperature must not be negative")?;
        require(options.beam_size.map_or(true, |n| (1..n_vocab).contains(&n)), "beam_size must be at least 1")?;
        require(options.sample_len != Some(0), "sample_len must be at least 1")?;
        require(
            options.max_initial_timestamp.map_or(true, |t| t >= 0.0),
            "max_initial_timestamp must not be negative",
        )?;
        let clips = &options.clip_timestamps;
        require(
            clips.iter().all(|t| *t >= 0.0 && t.is_finite()) && clips.windows(2).all(|pair| pair[0] <= pair[1]),
            "clip_timestamps must not go back: the audio is read once",
        )?;
        require(options.run_ahead >= 1, "run_ahead must be at least 1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::json_argument;
    use serde_json::{json, Value};

    fn error(is_multilingual: bool, options: Value) -> String {
        let languages = if is_multilingual { json!({"en": 102, "de": 103}) } else { json!({}) };
        let json = json_argument(is_multilingual, languages, options).to_string();
        Argument::parse(Some(&json)).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn every_bad_option_is_named() {
        for (options, expected) in [
            (json!({"temprature": 0}), "unknown field `temprature`"),
            (json!({"temperature": "hot"}), "expected a number or a list of numbers"),
            (json!({"temperature": []}), "temperature must hold at least one number"),
            (json!({"temperature": [-1]}), "temperature must not be negative"),
            (json!({"suppress_blank": 1}), "invalid type: integer `1`, expected a boolean"),
            (json!({"task": "sing"}), "unknown variant `sing`"),
            (json!({"task": "translate"}), "an English-only model cannot translate"),
            (json!({"language": "de"}), "no other language than `en`"),
            (json!({"run_ahead": 0}), "run_ahead must be at least 1"),
            (json!({"settled": [5000]}), "a settled token is not below n_vocab"),
            (json!({"beam_size": 0}), "beam_size must be at least 1"),
            (json!({"sample_len": 0}), "sample_len must be at least 1"),
            (json!({"clip_timestamps": [5, 2]}), "clip_timestamps must not go back"),
            (json!({"no_speech": "off"}), "unknown variant `off`, expected `reference` or `skip`"),
            (json!({"last_rung": true}), "expected"),
            (json!({"times": "exact"}), "unknown variant `exact`, expected `reference` or `sound`"),
            (json!({"clip_timestamps": "5;2"}), "expected a number or a list of numbers"),
            (json!({"max_initial_timestamp": -1}), "max_initial_timestamp must not be negative"),
        ] {
            let error = error(false, options);
            assert!(error.starts_with("bad argument: ") && error.contains(expected), "{error}");
        }
        assert!(error(true, json!({"language": "fr"})).contains("language `fr` is none of the model's"));
        assert_eq!(Argument::parse(None).unwrap_err().0, "expected one argument: a JSON object");
    }

    #[test]
    fn token_ids_lie_in_the_vocabulary() {
        let mut json = json_argument(false, json!({}), json!({}));
        json["tokens"]["suppress"] = json!([5, 5000]);
        let error = Argument::parse(Some(&json.to_string())).unwrap_err().0;
        assert_eq!(error, "bad argument: a token id is not below n_vocab");
    }

    #[test]
    fn numbers_come_alone_and_in_lists() {
        for (json, expected) in [(json!(0), vec![0.0]), (json!(0.5), vec![0.5]), (json!([0, 0.2]), vec![0.0, 0.2])] {
            let options: Options = serde_json::from_value(json!({ "temperature": json })).unwrap();
            assert_eq!(options.temperature, expected);
        }
    }
}
