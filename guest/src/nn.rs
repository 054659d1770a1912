//! The WASI-NN calls: `wasi_ephemeral_nn`'s imports made safe, and [`NnModel`], a Whisper behind them.

use crate::model::Model;
use crate::options::Dimensions;
use crate::{Error, Result};

mod imports {
    /// The ABI's tensor record: 20 bytes, little endian; lengths of data in bytes.
    #[repr(C)]
    pub struct Tensor {
        pub dimensions: *const u32,
        pub n_dimensions: u32,
        pub kind: u8,
        pub data: *const u8,
        pub data_length: u32,
    }

    #[link(wasm_import_module = "wasi_ephemeral_nn")]
    extern "C" {
        pub fn load_by_name(name: *const u8, name_length: u32, graph: *mut u32) -> u32;
        pub fn init_execution_context(graph: u32, context: *mut u32) -> u32;
        pub fn set_input(context: u32, index: u32, tensor: *const Tensor) -> u32;
        pub fn compute(context: u32) -> u32;
        pub fn get_output(context: u32, index: u32, buffer: *mut u8, length: u32, written: *mut u32) -> u32;
    }
}

const ERRNO_TOO_LARGE: u32 = 7;

/// Element types that tensors have here.
pub trait Element: Copy + Default {
    /// The ABI's tensor type.
    const KIND: u8;
}

impl Element for f32 {
    const KIND: u8 = 1;
}

impl Element for u8 {
    const KIND: u8 = 3;
}

impl Element for i32 {
    const KIND: u8 = 4;
}

fn check(errno: u32, call: &str, what: &str) -> Result<()> {
    let name = match errno {
        0 => return Ok(()),
        1 => "invalid argument",
        2 => "invalid encoding",
        3 => "missing memory",
        4 => "busy",
        5 => "runtime error",
        6 => "unsupported operation",
        ERRNO_TOO_LARGE => "too large",
        8 => "not found",
        _ => "unknown error",
    };
    Err(Error(format!("WASI-NN {call} of {what} failed: {name} (errno {errno})")))
}

/// An execution context of a named graph. The instance owns it: it ends with the process.
pub struct Context {
    name: String,
    handle: u32,
}

impl Context {
    pub fn new(name: &str) -> Result<Context> {
        let (mut graph, mut handle) = (0, 0);
        // SAFETY: the pointers are to live values of the sizes given; the host writes one u32 to each out-pointer.
        check(unsafe { imports::load_by_name(name.as_ptr(), name.len() as u32, &mut graph) }, "load_by_name", name)?;
        // SAFETY: as above.
        check(unsafe { imports::init_execution_context(graph, &mut handle) }, "init_execution_context", name)?;
        Ok(Context { name: name.to_string(), handle })
    }

    pub fn set_input<T: Element>(&mut self, index: u32, dimensions: &[u32], data: &[T]) -> Result<()> {
        let tensor = imports::Tensor {
            dimensions: dimensions.as_ptr(),
            n_dimensions: dimensions.len() as u32,
            kind: T::KIND,
            data: data.as_ptr().cast(),
            data_length: std::mem::size_of_val(data) as u32,
        };
        // SAFETY: the record points at slices that outlive the call; the host only reads.
        check(unsafe { imports::set_input(self.handle, index, &tensor) }, "set_input", &self.name)
    }

    pub fn compute(&mut self) -> Result<()> {
        // SAFETY: no pointers.
        check(unsafe { imports::compute(self.handle) }, "compute", &self.name)
    }

    /// Elements written, or None where `output` is too short.
    fn read<T: Element>(&mut self, index: u32, output: &mut [T]) -> Result<Option<usize>> {
        let mut written = 0;
        let length = std::mem::size_of_val(output) as u32;
        // SAFETY: the host writes at most `length` bytes, and every bit pattern is a valid element.
        let errno =
            unsafe { imports::get_output(self.handle, index, output.as_mut_ptr().cast(), length, &mut written) };
        if errno == ERRNO_TOO_LARGE {
            return Ok(None);
        }
        check(errno, "get_output", &self.name)?;
        Ok(Some(written as usize / std::mem::size_of::<T>()))
    }

    /// Output `index` into `output`, which it must fill exactly.
    pub fn fill<T: Element>(&mut self, index: u32, output: &mut [T]) -> Result<()> {
        match self.read(index, output)? {
            Some(n) if n == output.len() => Ok(()),
            n => Err(Error(format!(
                "output {index} of {} has {} elements where {} were expected",
                self.name,
                n.map_or("more".to_string(), |n| n.to_string()),
                output.len()
            ))),
        }
    }

    /// Output `index`, of a size not known before; `expected` elements are room enough as a rule.
    pub fn output<T: Element>(&mut self, index: u32, expected: usize) -> Result<Vec<T>> {
        let mut output = vec![T::default(); expected.max(1)];
        loop {
            if let Some(n) = self.read(index, &mut output)? {
                output.truncate(n);
                return Ok(output);
            }
            let longer = output.len() * 2;
            drop(std::mem::take(&mut output)); // never both: they are large
            output = vec![T::default(); longer];
        }
    }
}

/// `NAME/encoder`, `NAME/decoder`, `NAME/tokenizer` and `NAME/zlib`; `NAME/voice` where the host has it.
pub struct NnModel {
    name: String,
    encoder: Context,
    decoder: Context,
    tokenizer: Context,
    zlib: Context,
    voice: Option<Context>,
    mel_dimensions: [u32; 3],
    n_audio_ctx: usize,
}

impl NnModel {
    pub fn load(name: &str, dims: &Dimensions) -> Result<NnModel> {
        Ok(NnModel {
            name: name.to_string(),
            encoder: Context::new(&format!("{name}/encoder"))?,
            decoder: Context::new(&format!("{name}/decoder"))?,
            tokenizer: Context::new(&format!("{name}/tokenizer"))?,
            zlib: Context::new(&format!("{name}/zlib"))?,
            voice: None,
            mel_dimensions: [1, dims.n_mels as u32, dims.n_frames() as u32],
            n_audio_ctx: dims.n_audio_ctx,
        })
    }
}

const EMPTY_ZLIB: i32 = 8; // bytes of a stream without content
const AUDIO: u32 = 0;
const TOKENS: u32 = 1;
const ORIGINS: u32 = 2;
const RULES: u32 = 3;
const LOGITS: u32 = 0;
const CHOSEN: u32 = 1;
const LOG_PROBABILITIES: u32 = 2;
const CROSS_ATTENTION: u32 = 3;
const TOKEN_PROBABILITIES: u32 = 4;

/// Tiny and base have 6 to 8, large has 10.
const USUAL_ALIGNMENT_HEADS: usize = 10;

impl Model for NnModel {
    fn encode(&mut self, mel: &[f32]) -> Result<()> {
        self.encoder.set_input(0, &self.mel_dimensions, mel)?;
        self.encoder.compute()
    }

    fn restart(&mut self) -> Result<()> {
        self.decoder.set_input(AUDIO, &[1], &[self.encoder.handle as i32])
    }

    fn set_rules(&mut self, rules: &[i32]) -> Result<()> {
        self.decoder.set_input(RULES, &[rules.len() as u32], rules)
    }

    fn append(&mut self, tokens: &[i32], n_sequences: usize, origins: Option<&[i32]>) -> Result<()> {
        let n_new = tokens.len() / n_sequences;
        self.decoder.set_input(TOKENS, &[n_sequences as u32, n_new as u32], tokens)?;
        if let Some(origins) = origins {
            self.decoder.set_input(ORIGINS, &[origins.len() as u32], origins)?;
        }
        self.decoder.compute()
    }

    fn logits(&mut self, logits: &mut [f32]) -> Result<()> {
        self.decoder.fill(LOGITS, logits)
    }

    fn chosen(&mut self, n_steps: usize) -> Result<(Vec<i32>, Vec<f32>)> {
        let tokens = self.decoder.output(CHOSEN, n_steps)?;
        let log_probabilities = self.decoder.output(LOG_PROBABILITIES, n_steps)?;
        Ok((tokens, log_probabilities))
    }

    fn cross_attention(&mut self, n_tokens: usize) -> Result<Vec<f32>> {
        let expected = USUAL_ALIGNMENT_HEADS * n_tokens * self.n_audio_ctx;
        let scores: Vec<f32> = self.decoder.output(CROSS_ATTENTION, expected)?;
        if scores.is_empty() || scores.len() % (n_tokens * self.n_audio_ctx) != 0 {
            return Err(Error(format!("the cross-attention of {n_tokens} tokens has {} scores", scores.len())));
        }
        Ok(scores)
    }

    fn token_probabilities(&mut self, n_tokens: usize) -> Result<Vec<f32>> {
        let mut probabilities = vec![0.0; n_tokens];
        self.decoder.fill(TOKEN_PROBABILITIES, &mut probabilities)?;
        Ok(probabilities)
    }

    fn hears_speech(&mut self, first: usize, last: usize) -> Result<bool> {
        let made = || Context::new(&format!("{}/voice", self.name)).ok();
        let voice = match self.voice.take().or_else(made) {
            Some(voice) => self.voice.insert(voice),
            None => return Ok(true),
        };
        voice.set_input(0, &[2], &[first as i32, last as i32])?;
        voice.compute()?;
        let mut speech = [0];
        voice.fill(0, &mut speech)?;
        Ok(speech[0] != 0i32)
    }

    fn decode_text(&mut self, tokens: &[i32]) -> Result<String> {
        if tokens.is_empty() {
            return Ok(String::new());
        }
        self.tokenizer.set_input(0, &[tokens.len() as u32], tokens)?;
        self.tokenizer.compute()?;
        let bytes = self.tokenizer.output(0, 16 * tokens.len())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn compressed_size(&mut self, text: &str) -> Result<usize> {
        let mut size = [EMPTY_ZLIB];
        if !text.is_empty() {
            self.zlib.set_input(0, &[text.len() as u32], text.as_bytes())?;
            self.zlib.compute()?;
            self.zlib.fill(0, &mut size)?;
        }
        Ok(size[0] as usize)
    }

    fn encode_text(&mut self, text: &str) -> Result<Vec<i32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        self.tokenizer.set_input(0, &[text.len() as u32], text.as_bytes())?;
        self.tokenizer.compute()?;
        self.tokenizer.output(0, text.len())
    }
}
