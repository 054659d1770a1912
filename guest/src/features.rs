//! Log-mel frames from stdin, a window at a time: memory stays bounded however long the audio is.

use crate::{Error, Result};
use std::io::{ErrorKind, Read};

const BLOCK_BYTES: usize = 1 << 16;

/// A stream of frames, `n_mels` little-endian f32 each, seen through a window that only moves forward.
pub struct Features<R> {
    input: R,
    n_mels: usize,
    /// Frames from `start` on, possibly followed by the first bytes of one more.
    buffer: Vec<u8>,
    /// Index of the first frame in `buffer`.
    start: usize,
    ended: bool,
}

impl<R: Read> Features<R> {
    pub fn new(input: R, n_mels: usize) -> Features<R> {
        Features { input, n_mels, buffer: Vec::new(), start: 0, ended: false }
    }

    fn frame_bytes(&self) -> usize {
        4 * self.n_mels
    }

    fn end(&self) -> usize {
        self.start + self.buffer.len() / self.frame_bytes()
    }

    /// Read until frame `end` is available or the input ends.
    fn read_to(&mut self, end: usize) -> Result<()> {
        while !self.ended && self.end() < end {
            let filled = self.buffer.len();
            let missing = (end - self.end()) * self.frame_bytes();
            self.buffer.resize(filled + missing.min(BLOCK_BYTES), 0);
            let n = match self.input.read(&mut self.buffer[filled..]) {
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    self.buffer.truncate(filled);
                    continue;
                }
                Err(error) => return Err(Error(format!("reading the features failed: {error}"))),
            };
            self.ended = n == 0;
            self.buffer.truncate(filled + n);
        }
        if self.ended && self.buffer.len() % self.frame_bytes() != 0 {
            return Err(Error(format!("the features end within a frame of {} numbers", self.n_mels)));
        }
        Ok(())
    }

    /// Drop the frames before `seek`.
    fn discard_before(&mut self, seek: usize) -> Result<()> {
        while self.start < seek {
            let next = seek.min(self.start + BLOCK_BYTES / self.frame_bytes() + 1);
            self.read_to(next)?;
            let n = next.min(self.end()) - self.start;
            if n == 0 {
                break;
            }
            self.buffer.drain(..n * self.frame_bytes());
            self.start += n;
        }
        Ok(())
    }

    /// The number available of the `n` frames from `seek` on: fewer only at the end of the audio. Drops earlier frames.
    pub fn available(&mut self, seek: usize, n: usize) -> Result<usize> {
        self.discard_before(seek)?;
        self.read_to(seek.saturating_add(n))?;
        Ok(self.end().saturating_sub(seek).min(n))
    }

    /// Frames `seek` to `seek + n`, which must be available, as (n_mels, n_frames), filled up with `padding`.
    pub fn window(&self, seek: usize, n: usize, n_frames: usize, padding: f32) -> Vec<f32> {
        let mut mel = vec![padding; self.n_mels * n_frames];
        let first = (seek - self.start) * self.frame_bytes();
        let frames = self.buffer[first..first + n * self.frame_bytes()].chunks_exact(self.frame_bytes());
        for (frame, values) in frames.enumerate() {
            for (band, value) in values.chunks_exact(4).enumerate() {
                mel[band * n_frames + frame] = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            }
        }
        mel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a few bytes at a time, as a pipe does.
    struct Trickle(Vec<u8>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = buffer.len().min(7).min(self.0.len() - self.1);
            buffer[..n].copy_from_slice(&self.0[self.1..self.1 + n]);
            self.1 += n;
            Ok(n)
        }
    }

    fn frames(n: usize) -> Features<Trickle> {
        let bytes = (0..2 * n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        Features::new(Trickle(bytes, 0), 2)
    }

    #[test]
    fn a_window_is_transposed_and_padded() {
        let mut features = frames(5);
        assert_eq!(features.available(3, 4).unwrap(), 2);
        assert_eq!(features.window(3, 2, 4, 0.0), [6.0, 8.0, 0.0, 0.0, 7.0, 9.0, 0.0, 0.0]);
        assert_eq!(features.window(3, 1, 2, -1.5), [6.0, -1.5, 7.0, -1.5]);
    }

    #[test]
    fn windows_may_overlap_and_skip() {
        let mut features = frames(100);
        assert_eq!(features.available(0, 10).unwrap(), 10);
        assert_eq!(features.available(4, 10).unwrap(), 10);
        assert_eq!(features.window(4, 1, 1, 0.0), [8.0, 9.0]);
        assert_eq!(features.available(90, 20).unwrap(), 10);
        assert_eq!(features.window(90, 1, 1, 0.0), [180.0, 181.0]);
        assert_eq!(features.available(100, 20).unwrap(), 0);
        assert_eq!(features.available(500, 20).unwrap(), 0);
    }

    #[test]
    fn no_more_than_a_window_is_held() {
        let n_frames = 1_000_000;
        let mut features = Features::new(std::io::repeat(0).take(8 * n_frames), 2);
        let mut largest = 0;
        for seek in (0..n_frames as usize).step_by(3000) {
            features.available(seek, 3000).unwrap();
            largest = largest.max(features.buffer.capacity());
        }
        features.available(n_frames as usize - 5, 10).unwrap();
        assert!(largest <= 4 * (8 * 3000 + BLOCK_BYTES), "{largest} bytes");
    }

    #[test]
    fn half_a_frame_is_an_error() {
        let mut features = Features::new(&[0u8; 12][..], 2);
        assert_eq!(features.available(0, 2).unwrap_err().0, "the features end within a frame of 2 numbers");
    }
}
