//! The policy's interface to a Whisper model: encode a window, append tokens to cached sequences, read the results.

use crate::Result;

/// One window's encoder and decoder, and the tokenizer. Outputs are those of the last `append`.
pub trait Model {
    /// (n_mels, 2·n_audio_ctx) log-mel → the window that the decoder attends from the next `restart` on.
    fn encode(&mut self, mel: &[f32]) -> Result<()>;

    /// Forget the cached sequences; attend the last encoded window.
    fn restart(&mut self) -> Result<()>;

    /// The `rules` tensor (see [`crate::rules::Rules::tensor`]) for the following `append`s.
    fn set_rules(&mut self, rules: &[i32]) -> Result<()>;

    /// Append `tokens` (n_sequences, n_new), row after row; sequence i continues cached sequence `origins[i]`, or i.
    fn append(&mut self, tokens: &[i32], n_sequences: usize, origins: Option<&[i32]>) -> Result<()>;

    /// Raw logits after the last position, (n_sequences, n_vocab), into a slice of exactly that size.
    fn logits(&mut self, logits: &mut [f32]) -> Result<()>;

    /// The tokens chosen greedily under the rules for the only sequence, and their log-probabilities: at most `n_steps`.
    fn chosen(&mut self, n_steps: usize) -> Result<(Vec<i32>, Vec<f32>)>;

    /// Scores of the alignment heads for the last `append`'s tokens: (n_heads, n_tokens, n_audio_ctx), scaled, before the
    /// softmax.
    fn cross_attention(&mut self, n_tokens: usize) -> Result<Vec<f32>>;

    /// How likely each of the last `append`'s tokens was among the text tokens, (n_tokens); NaN for the first.
    fn token_probabilities(&mut self, n_tokens: usize) -> Result<Vec<f32>>;

    /// Whether voice-activity detection hears speech in the audio of the frames `first..last`; true where the host has
    /// none.
    fn hears_speech(&mut self, first: usize, last: usize) -> Result<bool>;

    /// Token ids → text, without special tokens; invalid UTF-8 becomes U+FFFD.
    fn decode_text(&mut self, tokens: &[i32]) -> Result<String>;

    /// Bytes of the text compressed by zlib at its default level.
    fn compressed_size(&mut self, text: &str) -> Result<usize>;

    /// Text → token ids, no special tokens added.
    fn encode_text(&mut self, text: &str) -> Result<Vec<i32>>;
}
