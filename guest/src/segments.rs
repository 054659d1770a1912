//! Cuts a window's tokens into segments at its timestamps, and finds where the next window starts.

use crate::options::{INPUT_STRIDE, TIME_PRECISION};

/// Tokens between two timestamps, inclusive; times in seconds from the start of the audio.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    pub start: f64,
    pub end: f64,
    /// The index of its first token in the window.
    pub first: usize,
    pub tokens: Vec<i32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    pub slices: Vec<Slice>,
    /// Frames from this window's start to the next one's.
    pub advance: usize,
    /// A single timestamp at the end: no speech follows it in this window.
    pub single_timestamp_ending: bool,
}

/// As `transcribe()` cuts: at each pair of timestamps; with none, one segment that ends at the last timestamp or with
/// the window. `segment_size`: the window's content in frames.
pub fn cut(tokens: &[i32], timestamp_begin: i32, time_offset: f64, segment_size: usize) -> Cut {
    let is_timestamp = |token: i32| token >= timestamp_begin;
    let position = |token: i32| token - timestamp_begin;
    let seconds = |token: i32| f64::from(position(token)) * TIME_PRECISION;
    let single_timestamp_ending = matches!(tokens, [.., before, last] if !is_timestamp(*before) && is_timestamp(*last));
    let mut ends: Vec<usize> =
        (1..tokens.len()).filter(|&i| is_timestamp(tokens[i - 1]) && is_timestamp(tokens[i])).collect();

    if ends.is_empty() {
        let mut duration = segment_size as f64 / crate::options::FRAMES_PER_SECOND;
        if let Some(&last) = tokens.iter().rev().find(|&&token| is_timestamp(token)) {
            if last != timestamp_begin {
                duration = seconds(last);
            }
        }
        let slice = Slice { start: time_offset, end: time_offset + duration, first: 0, tokens: tokens.to_vec() };
        return Cut { slices: vec![slice], advance: segment_size, single_timestamp_ending };
    }

    if single_timestamp_ending {
        ends.push(tokens.len());
    }
    let mut start = 0;
    let mut slices = Vec::new();
    for &end in &ends {
        let slice = &tokens[start..end];
        slices.push(Slice {
            start: time_offset + seconds(slice[0]),
            end: time_offset + seconds(slice[slice.len() - 1]),
            first: start,
            tokens: slice.to_vec(),
        });
        start = end;
    }
    let advance = if single_timestamp_ending {
        segment_size
    } else {
        // The segment after the last pair is unfinished: the next window decodes it again.
        position(tokens[start - 1]).max(0) as usize * INPUT_STRIDE
    };
    Cut { slices, advance, single_timestamp_ending }
}

/// The whole window as one segment.
pub fn uncut(tokens: &[i32], time_offset: f64, segment_size: usize) -> Cut {
    let end = time_offset + segment_size as f64 / crate::options::FRAMES_PER_SECOND;
    let slice = Slice { start: time_offset, end, first: 0, tokens: tokens.to_vec() };
    Cut { slices: vec![slice], advance: segment_size, single_timestamp_ending: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i32 = 100;

    fn summary(tokens: &[i32], size: usize) -> (Vec<(f64, f64, usize)>, usize, bool) {
        let cut = cut(tokens, T, 10.0, size);
        for slice in &cut.slices {
            assert_eq!(slice.tokens, tokens[slice.first..][..slice.tokens.len()]);
        }
        let slices = cut.slices.iter().map(|s| (s.start, s.end, s.tokens.len())).collect();
        (slices, cut.advance, cut.single_timestamp_ending)
    }

    #[test]
    fn pairs_of_timestamps_cut_and_the_unfinished_rest_is_left() {
        let tokens = [T, 1, 2, T + 50, T + 60, 3, T + 100, T + 100, 4];
        let expected = vec![(10.0, 11.0, 4), (10.0 + 60.0 * 0.02, 12.0, 3)];
        assert_eq!(summary(&tokens, 3000), (expected, 200, false));
    }

    #[test]
    fn a_single_timestamp_at_the_end_closes_the_window() {
        let tokens = [T, 1, T + 50, T + 50, 2, T + 100];
        assert_eq!(summary(&tokens, 3000), (vec![(10.0, 11.0, 3), (11.0, 12.0, 3)], 3000, true));
        assert_eq!(summary(&[T, 1, T + 50], 1200), (vec![(10.0, 11.0, 3)], 1200, true));
    }

    #[test]
    fn a_pair_at_the_end_does_not() {
        assert_eq!(summary(&[T, 1, T + 50, T + 50], 3000), (vec![(10.0, 11.0, 3)], 100, false));
    }

    #[test]
    fn without_pairs_there_is_one_segment() {
        assert_eq!(summary(&[1, 2], 1200), (vec![(10.0, 22.0, 2)], 1200, false));
        assert_eq!(summary(&[T, 1, 2], 1200), (vec![(10.0, 22.0, 3)], 1200, false));
        assert_eq!(summary(&[T + 5, 1, 2], 1200), (vec![(10.0, 10.1, 3)], 1200, false));
        assert_eq!(summary(&[], 1200), (vec![(10.0, 22.0, 0)], 1200, false));
    }
}
