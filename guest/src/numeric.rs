//! Arithmetic on logits, times and texts, as the reference's own libraries do it.

/// Log of the softmax, in place; −∞ stays −∞. Doubles carry the sum over the vocabulary.
pub fn log_softmax(logits: &mut [f32]) {
    let normalizer = log_sum_exp(logits);
    for logit in logits {
        *logit = (f64::from(*logit) - normalizer) as f32;
    }
}

/// ln Σ exp(xᵢ); −∞ for nothing but −∞.
pub fn log_sum_exp(values: &[f32]) -> f64 {
    // Terms that small change no double by as much as a float's rounding, whatever the vocabulary's size.
    const NEGLIGIBLE: f32 = -40.0;
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let sum: f64 = values
        .iter()
        .map(|&value| value - largest)
        .filter(|&difference| difference > NEGLIGIBLE)
        .map(|difference| f64::from(difference.exp()))
        .sum();
    f64::from(largest) + sum.ln()
}

/// The softmax at one place.
pub fn probability(logits: &[f32], index: usize) -> f64 {
    (f64::from(logits[index]) - log_sum_exp(logits)).exp()
}

/// The first largest value's index.
pub fn argmax(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Python's `round()`: to the nearest, ties to even.
pub fn round_half_even(value: f64) -> f64 {
    let rounded = value.round();
    if (value - value.trunc()).abs() == 0.5 && rounded % 2.0 != 0.0 {
        rounded - value.signum()
    } else {
        rounded
    }
}

/// Python's `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_sums_to_one_and_keeps_minus_infinity() {
        let mut logits = [1.0, 2.0, f32::NEG_INFINITY, 3.0];
        log_softmax(&mut logits);
        assert!((logits.iter().map(|l| l.exp()).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(logits[2], f32::NEG_INFINITY);
        assert!((logits[3] + 0.407_606).abs() < 1e-5);
    }

    #[test]
    fn log_sum_exp_survives_large_and_absent_values() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1_000.693_147).abs() < 1e-5);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(argmax([1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn rounding_is_pythons() {
        for (value, expected) in [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0), (2.4, 2.0), (2.6, 3.0)]
        {
            assert_eq!(round_half_even(value), expected, "{value}");
        }
    }

    #[test]
    fn strip_takes_what_python_takes() {
        assert_eq!(strip("\u{1c} a b\u{a0}\n"), "a b");
    }
}
