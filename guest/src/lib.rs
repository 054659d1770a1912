//! Whisper's decoding policy, as in openai/whisper 20250625: everything between log-mel frames and segments except the
//! arithmetic, which is behind [`model::Model`]; on WebAssembly that is WASI-NN.

pub mod alignment;
pub mod beam;
pub mod decode;
pub mod doubt;
pub mod events;
pub mod fallback;
pub mod features;
pub mod model;
#[cfg(target_os = "wasi")]
pub mod nn;
pub mod numeric;
pub mod options;
pub mod repairs;
pub mod rules;
pub mod sampling;
pub mod segments;
pub mod sound;
pub mod transcribe;
pub mod transcript;
pub mod words;

#[cfg(test)]
mod fake;

use std::fmt;

/// Why a run ended: one sentence, for stderr.
#[derive(Debug, PartialEq, Eq)]
pub struct Error(pub String);

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error(error.to_string())
    }
}
