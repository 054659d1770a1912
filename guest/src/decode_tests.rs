//! One window over a scripted model.

use super::*;
use crate::fake::{
    argument, multilingual, sampled, FakeModel, EOT, GERMAN, NO_SPEECH, NO_TIMESTAMPS, SOT, SOT_PREV, TIMESTAMP_BEGIN,
    TRANSCRIBE, TRANSLATE,
};
use serde_json::json;

const T: i32 = TIMESTAMP_BEGIN;

fn decode(argument: &Argument, model: &mut FakeModel, prompt: &[i32], temperature: f64) -> DecodingResult {
    let mut decoder = Decoder::new(argument, "de", model).unwrap();
    model.encode(&[]).unwrap();
    decoder.decode(model, prompt, temperature).unwrap()
}

fn prompt_of(argument: Argument, prompt: &[i32], temperature: f64) -> Vec<i32> {
    let mut model = FakeModel::saying(&[&[]]);
    decode(&argument, &mut model, prompt, temperature);
    model.prompts.remove(0)
}

#[test]
fn prompts_are_whispers() {
    for temperature in [0.0, 1.0] {
        let without = || json!({"without_timestamps": true, "language": "de"});
        let english = || json!({"without_timestamps": true});
        assert_eq!(prompt_of(argument(json!({})), &[], temperature), [SOT]);
        assert_eq!(prompt_of(argument(english()), &[], temperature), [SOT, NO_TIMESTAMPS]);
        assert_eq!(prompt_of(multilingual(without()), &[], temperature), [SOT, GERMAN, TRANSCRIBE, NO_TIMESTAMPS]);
        let options = json!({"language": "de", "task": "translate", "prefix": "w8 w9"});
        assert_eq!(
            prompt_of(multilingual(options), &[6, 7], temperature),
            [SOT_PREV, 6, 7, SOT, GERMAN, TRANSLATE, 8, 9]
        );
    }
}

#[test]
fn a_long_prompt_keeps_its_last_tokens_and_a_long_prefix_with_sample_len_too() {
    let prompt: Vec<i32> = (0..300).map(|i| i % 90).collect();
    let tokens = prompt_of(argument(json!({})), &prompt, 0.0);
    assert_eq!(tokens, [&[SOT_PREV], &prompt[300 - 223..], &[SOT]].concat());
    let options = json!({"prefix": "w2 w3 w4 w5 w6 w7", "sample_len": 220});
    assert_eq!(prompt_of(argument(options), &[], 0.0), [SOT, 4, 5, 6, 7]);
    let prefix = "w5 ".repeat(448);
    let argument = argument(json!({ "prefix": prefix }));
    let mut model = FakeModel::saying(&[&[]]);
    let error = Decoder::new(&argument, "en", &mut model).unwrap().decode(&mut model, &[], 0.0).unwrap_err();
    assert_eq!(error.0, "prompt and prefix take 449 tokens where the model has room for 448");
}

#[test]
fn greedy_tokens_do_not_depend_on_the_run_ahead() {
    let says: &[&[i32]] = &[&[T, 5, 6, 7, T + 50, T + 50, 8, 9, T + 90]];
    let mut results = Vec::new();
    for run_ahead in 1..=12 {
        for without_timestamps in [false, true] {
            let options = json!({"run_ahead": run_ahead, "without_timestamps": without_timestamps});
            let mut model = FakeModel::new(move |window, sequence| {
                vec![(*says[window].get(sampled(sequence).len()).unwrap_or(&EOT), 20.0)]
            });
            let result = decode(&argument(options), &mut model, &[], 0.0);
            assert_eq!(result.tokens, says[0]);
            assert_eq!(result.logprobs.len(), result.tokens.len());
            assert!(model.n_computes <= 2 + 10 / run_ahead + 1, "{} computes", model.n_computes);
            results.push(result.avg_logprob);
        }
    }
    assert!(results.iter().all(|avg_logprob| *avg_logprob == results[0] || *avg_logprob == results[1]));
}

#[test]
fn avg_logprob_counts_the_end_of_text() {
    // Two equally likely tokens at each step, the end of text one of the last two.
    let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
        0 => vec![(5, 50.0), (6, 50.0)],
        _ => vec![(7, 50.0), (EOT, 50.1)],
    };
    let argument = argument(json!({"without_timestamps": true}));
    let result = decode(&argument, &mut FakeModel::new(script), &[], 0.0);
    assert_eq!(result.tokens, [5]);
    let end = -(1.0 + (-0.1f64).exp()).ln();
    assert!((result.avg_logprob - (0.5f64.ln() + end) / 2.0).abs() < 1e-5, "{}", result.avg_logprob);
    assert_eq!(result.compression_ratio, 2.0 / 10.0, "w5 is 2 bytes, 10 compressed");
}

#[test]
fn settled_tokens_count_as_sampled() {
    // [T, 5, T + 50] is settled: the rules allow only a timestamp, of at least T + 50, or the end.
    let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
        3 => vec![(7, 50.0), (T + 40, 40.0), (T + 50, 20.0)],
        4 => vec![(6, 20.0)],
        _ => vec![(EOT, 20.0)],
    };
    for (options, temperature) in [(json!({}), 0.0), (json!({"beam_size": 2}), 0.0), (json!({}), 0.3)] {
        let mut options = options;
        options["settled"] = json!([T, 5, T + 50]);
        let result = decode(&argument(options), &mut FakeModel::new(script), &[9], temperature);
        assert_eq!(result.tokens, [T, 5, T + 50, T + 50, 6]);
        assert_eq!(result.logprobs[..3], [0.0; 3]);
        assert!(result.avg_logprob > -0.1 && result.logprobs.iter().all(|logprob| *logprob > -0.1));
    }
    // With many settled tokens a beam that ends is no likelier than one that goes on.
    let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
        100 => vec![(EOT, 30.0), (6, 30.5)],
        101..=109 => vec![(6, 30.0)],
        _ => vec![(EOT, 30.0)],
    };
    let long = json!({"without_timestamps": true, "beam_size": 2, "settled": vec![5; 100]});
    assert_eq!(decode(&argument(long), &mut FakeModel::new(script), &[], 0.0).tokens.len(), 110);
    let full = json!({"without_timestamps": true, "settled": vec![5; 220]});
    let crowded = decode(&argument(full.clone()), &mut FakeModel::new(|_, _| vec![(EOT, 50.0)]), &[9; 300], 0.0);
    assert_eq!(crowded.tokens.len(), 220, "the prompt makes room");
    let result = decode(&argument(full), &mut FakeModel::new(|_, _| vec![(6, 50.0)]), &[], 0.0);
    assert_eq!(result.tokens, [[5; 220].as_slice(), &[6; 4]].concat(), "half the context, as ever");
}

#[test]
fn without_an_end_sampling_stops_at_half_the_context() {
    for temperature in [0.0, 0.5] {
        let argument = argument(json!({"without_timestamps": true}));
        let mut model = FakeModel::new(|_, _| vec![(5, 100.0)]);
        assert_eq!(decode(&argument, &mut model, &[], temperature).tokens, [5; 224]);
        // 448 positions: start of the previous text, its 223 tokens, two of the prompt; the last token has none.
        assert_eq!(decode(&argument, &mut model, &[9; 300], temperature).tokens, [5; 223]);
        let one = self::argument(json!({"without_timestamps": true, "sample_len": 1}));
        assert_eq!(decode(&one, &mut model, &[], temperature).tokens, [5]);
    }
}

#[test]
fn no_speech_is_read_at_the_start_of_the_transcript() {
    for (options, temperature) in
        [(json!({}), 0.0), (json!({"without_timestamps": true}), 0.0), (json!({"without_timestamps": true}), 1.0)]
    {
        let mut model = FakeModel::new(|_, sequence| match sequence.last() {
            Some(&SOT) => vec![(NO_SPEECH, 50.0), (T, 50.0)],
            _ => vec![(EOT, 50.0)],
        });
        let result = decode(&argument(options), &mut model, &[4, 5], temperature);
        assert!((result.no_speech_prob.unwrap() - 0.5).abs() < 1e-6);
    }
}

#[test]
fn seeds_sample_different_sequences() {
    let script = |_: usize, sequence: &[i32]| match sampled(sequence).len() {
        0 => vec![(5, 30.0), (6, 31.0), (7, 30.0)],
        1 => vec![(8, 30.0)],
        _ => vec![(EOT, 30.0)],
    };
    let of = |seed| {
        let options = json!({"without_timestamps": true, "seed": seed});
        decode(&argument(options), &mut FakeModel::new(script), &[], 1.0)
    };
    assert_eq!((of(3).temperature, of(3).logprobs.len(), of(3).tokens[1]), (1.0, 2, 8));
    let firsts: std::collections::BTreeSet<i32> = (0..40).map(|seed| of(seed).tokens[0]).collect();
    assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [5, 6, 7]);
}

#[test]
fn beams_are_ranked_by_their_mean() {
    let of = |n: usize, sum_logprob| Candidate { tokens: vec![5; n], logprobs: vec![0.0; n], sum_logprob };
    assert!(of(10, -3.0).score(0) > of(2, -1.0).score(0));
    assert_eq!(of(0, -2.0).score(0), -2.0);
}

#[test]
fn the_likeliest_language_is_detected() {
    let mut model = FakeModel::new(|_, _| vec![(GERMAN, 1.0), (T, 9.0)]);
    assert_eq!(detect_language(&multilingual(json!({})), &mut model).unwrap(), "de");
    assert_eq!(model.sequences, [[SOT]]);
    let mut model = FakeModel::new(|_, _| Vec::new());
    assert_eq!(detect_language(&multilingual(json!({})), &mut model).unwrap(), "en");
}
