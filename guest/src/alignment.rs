//! Aligns a text's tokens with audio frames: dynamic time warping over cross-attention, like `find_alignment`.

use std::f32;
use std::ops::Range;

const MEDIAN_FILTER_WIDTH: usize = 7;
/// Audio tokens per second.
const TOKENS_PER_SECOND: f64 = 50.0;

/// Scaled scores of the alignment heads before the softmax, (n_heads, n_tokens, n_audio_ctx).
pub struct CrossAttention {
    pub scores: Vec<f32>,
    pub n_tokens: usize,
    pub n_audio_ctx: usize,
}

/// The attention of some tokens to each audio token with content: (n_tokens, n_audio).
pub struct Attention {
    weights: Vec<f32>,
    n_audio: usize,
}

impl CrossAttention {
    /// Of the tokens `first..last`; `n_audio`: number of audio tokens with content.
    pub fn of_tokens(&self, first: usize, last: usize, n_audio: usize) -> Attention {
        let weights = self.weights(n_audio)[first * n_audio..last * n_audio].to_vec();
        Attention { weights, n_audio }
    }

    /// (n_tokens, n_audio): attention over the content, each frame normalised over the tokens, smoothed along the
    /// audio, averaged over the heads.
    fn weights(&self, n_audio: usize) -> Vec<f32> {
        let n_tokens = self.n_tokens;
        let n_heads = self.scores.len() / (n_tokens * self.n_audio_ctx);
        let mut average = vec![0f64; n_tokens * n_audio];
        let mut head = vec![0f32; n_tokens * n_audio];
        for scores in self.scores.chunks_exact(n_tokens * self.n_audio_ctx) {
            for (row, scores) in head.chunks_exact_mut(n_audio).zip(scores.chunks_exact(self.n_audio_ctx)) {
                row.copy_from_slice(&scores[..n_audio]);
                softmax(row);
            }
            normalize_columns(&mut head, n_audio);
            for (row, average) in head.chunks_exact(n_audio).zip(average.chunks_exact_mut(n_audio)) {
                median_filter(row, average);
            }
        }
        average.into_iter().map(|sum| (sum / n_heads as f64) as f32).collect()
    }
}

impl Attention {
    /// The second at which each token begins. `sounding`, one per audio token: if given, tokens begin only there.
    pub fn start_times(&self, sounding: Option<&[bool]>) -> Vec<f64> {
        let heard: Vec<usize> = (0..self.n_audio).filter(|&i| sounding.map_or(true, |sounding| sounding[i])).collect();
        let rows = self.weights.chunks_exact(self.n_audio);
        let matrix: Vec<f32> = rows.flat_map(|row| heard.iter().map(move |&i| row[i])).collect();
        warp(&matrix, heard.len()).into_iter().map(|place| heard[place] as f64 / TOKENS_PER_SECOND).collect()
    }

    /// The attention of the tokens `rows` to the audio tokens `columns`.
    pub fn weight(&self, rows: Range<usize>, columns: Range<usize>) -> f64 {
        let columns = columns.start.min(self.n_audio)..columns.end.min(self.n_audio);
        let rows = self.weights.chunks_exact(self.n_audio).skip(rows.start).take(rows.len());
        rows.flat_map(|row| &row[columns.clone()]).map(|&weight| f64::from(weight.max(0.0))).sum()
    }
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f64;
    for value in row.iter_mut() {
        *value = (*value - largest).exp();
        sum += f64::from(*value);
    }
    for value in row {
        *value = (f64::from(*value) / sum) as f32;
    }
}

/// Scale each column to mean 0 and standard deviation 1.
fn normalize_columns(matrix: &mut [f32], n_columns: usize) {
    let n_rows = (matrix.len() / n_columns) as f64;
    let mut mean = vec![0f64; n_columns];
    for row in matrix.chunks_exact(n_columns) {
        mean.iter_mut().zip(row).for_each(|(mean, &value)| *mean += f64::from(value) / n_rows);
    }
    let mut variance = vec![0f64; n_columns];
    for row in matrix.chunks_exact(n_columns) {
        for ((variance, mean), &value) in variance.iter_mut().zip(&mean).zip(row) {
            *variance += (f64::from(value) - mean).powi(2) / n_rows;
        }
    }
    for row in matrix.chunks_exact_mut(n_columns) {
        for ((value, mean), variance) in row.iter_mut().zip(&mean).zip(&variance) {
            *value = ((f64::from(*value) - mean) / variance.sqrt()) as f32;
        }
    }
}

/// Add the row's running median to `sum`; the row is mirrored at its ends. A row too short for that is added unchanged.
fn median_filter(row: &[f32], sum: &mut [f64]) {
    const HALF: usize = MEDIAN_FILTER_WIDTH / 2;
    if row.len() <= HALF {
        sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        return;
    }
    let last = row.len() - 1;
    let mirrored = |i: usize| {
        let distance = (i as isize - HALF as isize).unsigned_abs();
        row[if distance > last { 2 * last - distance } else { distance }]
    };
    // The window's values in order; one leaves and one enters at each step.
    let mut window: Vec<f32> = (0..MEDIAN_FILTER_WIDTH).map(mirrored).collect();
    window.sort_by(f32::total_cmp);
    sum[0] += f64::from(window[HALF]);
    for (i, sum) in sum.iter_mut().enumerate().skip(1) {
        let (leaving, entering) = (mirrored(i - 1), mirrored(i + MEDIAN_FILTER_WIDTH - 1));
        let mut place = window.iter().position(|value| value.total_cmp(&leaving).is_eq()).unwrap_or(0);
        while place + 1 < MEDIAN_FILTER_WIDTH && window[place + 1].total_cmp(&entering).is_lt() {
            window[place] = window[place + 1];
            place += 1;
        }
        while place > 0 && window[place - 1].total_cmp(&entering).is_gt() {
            window[place] = window[place - 1];
            place -= 1;
        }
        window[place] = entering;
        *sum += f64::from(window[HALF]);
    }
}

/// The column at which the best monotonic path through `matrix` enters each row: dynamic time warping on −matrix.
fn warp(matrix: &[f32], n_columns: usize) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Step {
        Diagonal,
        Down,
        Right,
    }
    let n_rows = matrix.len() / n_columns;
    let width = n_columns + 1;
    let mut steps = vec![Step::Right; (n_rows + 1) * width];
    // Costs are floats in the reference: sums of doubles and floats, rounded to floats.
    let mut above = vec![f32::INFINITY; width];
    above[0] = 0.0;
    for row in 1..=n_rows {
        let mut current = vec![f32::INFINITY; width];
        steps[row * width] = Step::Down;
        for column in 1..width {
            let (diagonal, down, right) = (above[column - 1], above[column], current[column - 1]);
            let (cost, step) = if diagonal < down && diagonal < right {
                (diagonal, Step::Diagonal)
            } else if down < diagonal && down < right {
                (down, Step::Down)
            } else {
                (right, Step::Right)
            };
            let value = f64::from(matrix[(row - 1) * n_columns + column - 1]);
            current[column] = (f64::from(cost) - value) as f32;
            steps[row * width + column] = step;
        }
        above = current;
    }
    let (mut row, mut column) = (n_rows, n_columns);
    let mut entered = vec![0; n_rows];
    while row > 0 {
        entered[row - 1] = column.max(1) - 1;
        match steps[row * width + column] {
            Step::Diagonal => {
                row -= 1;
                column -= 1;
            }
            Step::Down => row -= 1,
            Step::Right => column -= 1,
        }
    }
    entered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_follows_the_ridge() {
        #[rustfmt::skip]
        let matrix = [
            9.0, 9.0, -1.0, -1.0, -1.0, -1.0,
            -1.0, -1.0, 9.0, -1.0, -1.0, -1.0,
            -1.0, -1.0, -1.0, 9.0, 9.0, 9.0,
        ];
        assert_eq!(warp(&matrix, 6), [0, 2, 3]);
    }

    #[test]
    fn more_rows_than_columns_share_a_column() {
        assert_eq!(warp(&[1.0, -1.0, 0.5, -1.0, -1.0, 1.0], 2), [0, 0, 1]);
    }

    #[test]
    fn the_median_is_a_sorted_windows_middle() {
        let row: Vec<f32> = (0..40u32).map(|i| (i * 7919 % 31) as f32).collect();
        for n in [4, 5, 7, 40] {
            let row = &row[..n];
            let mut sum = vec![0.5; n];
            median_filter(row, &mut sum);
            for (i, sum) in sum.iter().enumerate() {
                let at = |j: isize| {
                    let j = (i as isize + j).abs();
                    let last = n as isize - 1;
                    row[if j > last { 2 * last - j } else { j } as usize]
                };
                let mut window: Vec<f32> = (-3..=3).map(at).collect();
                window.sort_by(f32::total_cmp);
                assert_eq!(*sum, f64::from(window[3]) + 0.5, "{i} of {n}");
            }
        }
        let mut short = vec![0.0; 3];
        median_filter(&[3.0, 1.0, 2.0], &mut short);
        assert_eq!(short, [3.0, 1.0, 2.0]);
    }

    #[test]
    fn attention_is_normalised_over_the_tokens() {
        // Frame 0 attracts every token; only the deviation from that counts.
        let n_audio_ctx = 60;
        let mut scores = vec![0.0; 3 * n_audio_ctx];
        for token in 0..3 {
            scores[token * n_audio_ctx] = 9.0;
            scores[token * n_audio_ctx + 20 * token..][..20].fill(6.0);
        }
        let attention = CrossAttention { scores, n_tokens: 3, n_audio_ctx };
        let all = attention.of_tokens(0, 3, 60);
        assert_eq!(all.start_times(None), [0.0, 0.4, 0.8]);
        assert!(attention.of_tokens(0, 3, 30).start_times(None)[2] < 0.6);
        assert!(all.weight(1..2, 20..40) > 10.0 * all.weight(1..2, 0..20));
        assert_eq!(all.weight(0..3, 60..90), 0.0);
        let sounding: Vec<bool> = (0..60).map(|i| !(15..45).contains(&i)).collect();
        let starts = all.start_times(Some(&sounding));
        assert!(starts.iter().all(|start| sounding[(start * 50.0).round() as usize]), "{starts:?}");
    }
}
