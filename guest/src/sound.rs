//! Finds the sound in a window, frame by frame: louder, band by band, than the recording's quietest frames.

use std::ops::Range;

/// A shorter silence is a part of the word around it: stops such as p and k are silent for up to 120 ms.
const MIN_SILENCE: usize = 14;
/// Frames kept around sound: a word begins and ends too quietly to be distinguished from the noise.
const MARGIN: usize = 5;
/// dB in one unit of a log-mel value, which is (log10 of the power + 4) / 4.
const DECIBELS: f32 = 40.0;
/// How far the loud frames must stand out of the quiet ones for any to count as silence, in dB.
const MIN_RANGE: f32 = 12.0;
/// Sound is louder than the quiet frames by this share of that range, within these bounds in dB.
const SHARE: f32 = 0.2;
const LEAST: f32 = 3.0;
const MOST: f32 = 8.0;

/// How quiet the recording has been so far.
pub struct NoiseFloor {
    /// The level of each band in the quiet frames.
    bands: Vec<f32>,
    /// How far above those the quiet frames are on average, in dB.
    quiet: f32,
}

impl Default for NoiseFloor {
    fn default() -> NoiseFloor {
        NoiseFloor { bands: Vec::new(), quiet: f32::INFINITY }
    }
}

/// Whether each of a window's frames belongs to a sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sound(Vec<bool>);

/// How many frames of digital silence the first `n` frames of `mel`, (n_mels, n_frames), begin with.
pub fn leading_silence(mel: &[f32], n_frames: usize, n: usize, silence: f32) -> usize {
    let silent = |band: &[f32]| band[..n].iter().take_while(|&&value| value <= silence).count();
    mel.chunks_exact(n_frames).map(silent).min().unwrap_or(0)
}

impl NoiseFloor {
    /// The sound in the first `n` frames of `mel`, (n_mels, n_frames).
    pub fn sound(&mut self, mel: &[f32], n_frames: usize, n: usize, silence: f32) -> Sound {
        let live: Vec<usize> =
            (0..n).filter(|&frame| mel.chunks_exact(n_frames).any(|band| band[frame] > silence)).collect();
        if live.is_empty() {
            return Sound(vec![false; n]);
        }
        self.bands.resize(mel.len() / n_frames, f32::INFINITY);
        let mut level = vec![0f32; n];
        for (band, floor) in mel.chunks_exact(n_frames).zip(&mut self.bands) {
            let mut values: Vec<f32> = live.iter().map(|&frame| band[frame]).collect();
            *floor = floor.min(quantile(&mut values, 0.1));
            for (level, value) in level.iter_mut().zip(band) {
                *level += (value - *floor).max(0.0) * DECIBELS;
            }
        }
        let n_mels = self.bands.len() as f32;
        let mut levels: Vec<f32> = live.iter().map(|&frame| level[frame] / n_mels).collect();
        self.quiet = self.quiet.min(quantile(&mut levels, 0.1));
        let range = quantile(&mut levels, 0.95) - self.quiet;
        let threshold =
            if range < MIN_RANGE { f32::NEG_INFINITY } else { self.quiet + (SHARE * range).max(LEAST).min(MOST) };
        let mut sounding = vec![false; n];
        for frame in live {
            sounding[frame] = level[frame] / n_mels > threshold;
        }
        Sound::smooth(sounding)
    }
}

/// The value that the share `q` of them is below.
fn quantile(values: &mut [f32], q: f32) -> f32 {
    let place = ((values.len() - 1) as f32 * q) as usize;
    *values.select_nth_unstable_by(place, f32::total_cmp).1
}

impl Sound {
    #[cfg(test)]
    pub fn from_frames(sounding: Vec<bool>) -> Sound {
        Sound(sounding)
    }

    /// Fill the short silences, and keep a margin on both sides of each sound.
    fn smooth(sounding: Vec<bool>) -> Sound {
        let n = sounding.len();
        let mut smooth = vec![true; n];
        let mut start = 0;
        while start < n {
            if sounding[start] {
                start += 1;
                continue;
            }
            let end = (start..n).find(|&frame| sounding[frame]).unwrap_or(n);
            if end - start >= MIN_SILENCE || start == 0 || end == n {
                let from = if start == 0 { 0 } else { start + MARGIN };
                let to = if end == n { n } else { end.saturating_sub(MARGIN) };
                (from..to).for_each(|frame| smooth[frame] = false);
            }
            start = end;
        }
        Sound(smooth)
    }

    pub fn n_frames(&self) -> usize {
        self.0.len()
    }

    pub fn has(&self, frame: usize) -> bool {
        self.0.get(frame).copied().unwrap_or(false)
    }

    /// The sounds of `frames`, in order.
    pub fn parts(&self, frames: Range<usize>) -> Vec<Range<usize>> {
        let end = frames.end.min(self.0.len());
        let mut parts: Vec<Range<usize>> = Vec::new();
        for frame in (frames.start..end).filter(|&frame| self.0[frame]) {
            match parts.last_mut() {
                Some(part) if part.end == frame => part.end += 1,
                _ => parts.push(frame..frame + 1),
            }
        }
        parts
    }

    /// From the first sound of `frames` to the end of the last.
    pub fn hull(&self, frames: Range<usize>) -> Option<Range<usize>> {
        let parts = self.parts(frames);
        Some(parts.first()?.start..parts.last()?.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 400;
    const SILENCE: f32 = -1.5;

    /// Four bands: noise between −60 and −57 dB of the loudest, and 20 to 60 dB above it in `loud`.
    fn mel(loud: &[Range<usize>], decibels: f32) -> Vec<f32> {
        let noise = |i: usize| (i * 7919 % 31) as f32 / 31.0 * 3.0 / DECIBELS;
        let value =
            |frame: usize| if loud.iter().any(|range| range.contains(&frame)) { decibels / DECIBELS } else { 0.0 };
        (0..4 * N).map(|i| noise(i) + value(i % N)).collect()
    }

    fn sound(mel: &[f32]) -> Sound {
        NoiseFloor::default().sound(mel, N, N, SILENCE)
    }

    #[test]
    fn sounds_stand_out_of_the_noise_with_a_margin() {
        for decibels in [20.0, 60.0] {
            let parts = sound(&mel(&[50..100, 200..300], decibels)).parts(0..N);
            assert_eq!(parts, [45..105, 195..305]);
        }
    }

    #[test]
    fn short_silences_belong_to_the_sound_around_them() {
        let parts = sound(&mel(&[50..100, 112..150, 170..200], 40.0)).parts(0..N);
        assert_eq!(parts, [45..155, 165..205]);
    }

    #[test]
    fn where_nothing_stands_out_all_is_sound() {
        assert_eq!(sound(&mel(&[], 0.0)).hull(0..N), Some(0..N));
        assert_eq!(sound(&mel(&[50..100], 6.0)).hull(0..N), Some(0..N));
    }

    #[test]
    fn digital_silence_is_never_sound() {
        let mut mel = mel(&[], 0.0);
        mel.chunks_exact_mut(N).for_each(|band| band[100..200].fill(SILENCE));
        assert_eq!(sound(&mel).parts(0..N), [0..105, 195..N]);
        assert_eq!(leading_silence(&mel, N, N, SILENCE), 0);
        mel.fill(SILENCE);
        assert_eq!(leading_silence(&mel, N, N, SILENCE), N);
        assert_eq!(sound(&mel).hull(0..N), None);
        mel[N + 7] = 0.0;
        assert_eq!(leading_silence(&mel, N, N, SILENCE), 7);
        assert_eq!(leading_silence(&mel, N, 5, SILENCE), 5, "of the content alone");
    }

    #[test]
    fn the_noise_floor_is_the_recordings() {
        let mut floor = NoiseFloor::default();
        floor.sound(&mel(&[50..300], 40.0), N, N, SILENCE);
        let loud = mel(&[0..370], 40.0);
        assert_eq!(floor.sound(&loud, N, N, SILENCE).parts(0..N), [0..375]);
    }

    #[test]
    fn parts_stay_within_the_frames_that_there_are() {
        let sound = sound(&mel(&[50..100, 200..N], 40.0));
        assert_eq!(sound.parts(60..250), [60..105, 195..250]);
        assert_eq!(sound.hull(0..9 * N), Some(45..N));
        assert_eq!(sound.hull(120..190), None);
        assert!(sound.has(60) && !sound.has(150) && !sound.has(9 * N));
    }
}
