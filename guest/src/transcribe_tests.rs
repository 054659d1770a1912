//! Whole runs over a scripted model: the transcript, and the calls to the model.

use super::*;
use crate::fake::{self, argument, multilingual, sampled, FakeModel, EOT, GERMAN, NO_SPEECH, SOT, SOT_PREV};
use serde_json::{json, Value};

const T: i32 = fake::TIMESTAMP_BEGIN;

fn run(argument: &Argument, model: &mut FakeModel, n_frames: usize) -> Vec<Value> {
    let mut output = Vec::new();
    transcribe(argument, model, &mut fake::features(n_frames), &mut Events::new(&mut output)).unwrap();
    let lines = std::str::from_utf8(&output).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

fn seeks(events: &[Value]) -> Vec<u64> {
    of(events, "window").iter().map(|window| window["seek"].as_u64().unwrap()).collect()
}

#[test]
fn windows_follow_the_last_timestamp_and_prompt_the_next() {
    let windows: &[&[i32]] = &[&[T, 5, T + 500, T + 500, 6, T + 1000, T + 1000, 7], &[T, 8, T + 200], &[T, 9, T + 100]];
    let mut model = FakeModel::saying(windows);
    let events = run(&argument(json!({})), &mut model, 5500);
    assert_eq!(seeks(&events), [0, 2000, 5000]);
    let segments = of(&events, "segment");
    let summary: Vec<Value> =
        segments.iter().map(|s| json!([s["id"], s["seek"], s["start"], s["end"], s["text"]])).collect();
    let expected = json!([
        [0, 0, 0.0, 10.0, " w5"],
        [1, 0, 10.0, 20.0, " w6"],
        [2, 2000, 20.0, 24.0, " w8"],
        [3, 5000, 50.0, 52.0, " w9"]
    ]);
    assert_eq!(Value::from(summary), expected);
    assert_eq!(segments[1]["tokens"], json!([T + 500, 6, T + 1000]));
    let so_far = [T, 5, T + 500, T + 500, 6, T + 1000];
    assert_eq!(model.prompts[0], [SOT]);
    assert_eq!(model.prompts[1], [&[SOT_PREV], &so_far[..], &[SOT]].concat());
    assert_eq!(model.prompts[2], [&[SOT_PREV], &so_far[..], &[T, 8, T + 200, SOT]].concat());
    assert_eq!(events.last().unwrap(), &json!({"event": "done", "text": " w5 w6 w8 w9", "language": "en"}));
    // Frame 5500 is the end: the last window is 500 frames, then zeros.
    assert_eq!(model.mels[1][0], 2000.0);
    assert_eq!((model.mels[2][499], model.mels[2][500]), (5499.0, 0.0));
    assert!(model.mels.iter().all(|mel| mel.len() == 3000));
}

#[test]
fn live_speech_is_one_window_as_one_segment() {
    let says: &[&[i32]] = &[&[T, 5, T + 500, T + 500, 6], &[T, 7, T + 100]];
    let mut model = FakeModel::saying(says);
    let events = run(&argument(json!({"settled": [T, 5], "emit_tokens": true})), &mut model, 3400);
    let segments = of(&events, "segment");
    assert_eq!((segments.len(), model.n_encoded), (1, 1));
    assert_eq!(segments[0]["tokens"], json!(says[0]));
    assert_eq!((&segments[0]["start"], &segments[0]["end"]), (&json!(0.0), &json!(30.0)));
    assert_eq!(segments[0]["logprobs"].as_array().unwrap().len(), 5);
    assert_eq!(events.last().unwrap()["text"], " w5 w6");
}

#[test]
fn no_audio_is_no_text() {
    let events = run(&argument(json!({})), &mut FakeModel::saying(&[]), 0);
    assert_eq!(events, [json!({"event": "done", "text": "", "language": "en"})]);
}

#[test]
fn a_silent_window_is_passed_over() {
    let script = |window: usize, sequence: &[i32]| match (window, sampled(sequence).len()) {
        (0, _) => vec![(NO_SPEECH, 9.0)],
        (_, 0) => vec![(T, 20.0)],
        (_, 1) => vec![(5, 20.0)],
        _ => vec![(EOT, 20.0)],
    };
    let options = |threshold: f64| json!({"temperature": 0, "no_speech_threshold": threshold});
    let events = run(&argument(options(0.6)), &mut FakeModel::new(script), 4000);
    assert_eq!(seeks(&events), [0, 3000]);
    assert_eq!(of(&events, "segment").len(), 1);
    assert_eq!(of(&events, "segment")[0]["seek"], 3000);
    assert_eq!(of(&events, "segment")[0]["id"], 0);
    let events = run(&argument(options(0.99)), &mut FakeModel::new(script), 4000);
    assert_eq!(of(&events, "segment")[0]["seek"], 0);
}

#[test]
fn text_does_not_prompt_the_next_window_when_told_or_when_sampled_hot() {
    let windows: &[&[i32]] = &[&[T, 5, T + 100], &[T, 6, T + 100]];
    let mut model = FakeModel::saying(windows);
    run(&argument(json!({"condition_on_previous_text": false})), &mut model, 6000);
    assert_eq!(model.prompts, [[SOT], [SOT]]);
    for (temperature, prompted) in [(0.5, true), (0.6, false)] {
        let mut model = FakeModel::saying(windows);
        run(&argument(json!({ "temperature": temperature })), &mut model, 6000);
        assert_eq!(model.prompts[1].len() > 1, prompted);
    }
}

#[test]
fn an_unlikely_result_is_decoded_again_hotter() {
    // Nothing stands out: greedy tokens are unlikely.
    let mut model = FakeModel::new(|_, sequence| match sampled(sequence).len() {
        0 => vec![(T, 20.0)],
        1 => vec![],
        _ => vec![(EOT, 20.0)],
    });
    let events = run(&argument(json!({"temperature": [0, 0.4, 0.8]})), &mut model, 1000);
    assert_eq!(model.prompts.len(), 3);
    assert_eq!(of(&events, "window").len(), 1);
    assert_eq!(events[0]["temperature"], 0.8);
    assert_eq!(model.n_encoded, 1);
}

#[test]
fn the_initial_prompt_comes_first_or_is_carried() {
    let windows: &[&[i32]] = &[&[T, 5, T + 100], &[T, 6, T + 100], &[T, 7, T + 100]];
    let mut model = FakeModel::saying(windows);
    let events = run(&argument(json!({"initial_prompt": " w30 w31 "})), &mut model, 6000);
    assert_eq!(model.prompts[0], [SOT_PREV, 30, 31, SOT]);
    assert_eq!(model.prompts[1], [SOT_PREV, 30, 31, T, 5, T + 100, SOT]);
    assert_eq!(events.last().unwrap()["text"], " w5 w6");

    let mut model = FakeModel::saying(windows);
    let options = json!({
        "initial_prompt": "w30", "carry_initial_prompt": true, "condition_on_previous_text": false
    });
    run(&argument(options), &mut model, 6000);
    assert_eq!(model.prompts[1], [SOT_PREV, 30, SOT]);
    let mut model = FakeModel::saying(windows);
    let prompt = "w30 ".repeat(220);
    run(&argument(json!({"initial_prompt": prompt, "carry_initial_prompt": true})), &mut model, 9000);
    assert_eq!(model.prompts[2][..3], [SOT_PREV, 30, 30]);
    assert_eq!(model.prompts[2][218..], [30, 30, 30, T, 6, T + 100, SOT]);
}

#[test]
fn clips_alone_are_heard() {
    let mut model = FakeModel::saying(&[&[T, 5, T + 50], &[T, 6, T + 50], &[T, 7, T + 50]]);
    let events = run(&argument(json!({"clip_timestamps": [1.005, 11, 20]})), &mut model, 5500);
    assert_eq!(seeks(&events), [100, 2000, 5000]);
    assert_eq!((model.mels[0][999], model.mels[0][1000]), (1099.0, 0.0));
    assert_eq!(of(&events, "segment")[1]["start"], 20.0);
}

#[test]
fn a_segment_without_words_is_kept_empty() {
    let mut model = FakeModel::saying(&[&[T + 10, 5, T + 20], &[T + 30]]);
    let events = run(&argument(json!({})), &mut model, 4000);
    let segments = of(&events, "segment");
    assert_eq!((&segments[0]["text"], &segments[0]["tokens"]), (&json!(" w5"), &json!([T + 10, 5, T + 20])));
    assert_eq!((&segments[1]["text"], &segments[1]["tokens"]), (&json!(""), &json!([])));
    assert_eq!((&segments[1]["start"], &segments[1]["end"]), (&json!(30.0), &json!(30.6)));
}

#[test]
fn the_language_is_detected_once_on_the_first_window() {
    let script = |_: usize, sequence: &[i32]| match sequence {
        [SOT] => vec![(GERMAN, 5.0)],
        _ if sampled(sequence).is_empty() => vec![(T, 20.0)],
        _ => vec![(EOT, 20.0)],
    };
    let mut argument = multilingual(json!({}));
    argument.silence = -0.5;
    let mut model = FakeModel::new(script);
    let events = run(&argument, &mut model, 4000);
    assert_eq!(events.last().unwrap()["language"], "de");
    assert_eq!(model.n_encoded, 3);
    let mut model = FakeModel::new(script);
    run(&argument, &mut model, 10);
    assert_eq!((model.mels[0][9], model.mels[0][10], model.mels[1][10]), (9.0, -0.5, 0.0));
}

#[test]
fn the_language_is_detected_at_the_start_or_where_the_first_clip_begins() {
    for (options, heard) in [
        (json!({"clip_timestamps": [10, 12]}), 0.0),
        (json!({"clip_timestamps": [10, 12], "detect_in_clips": true}), 1000.0),
        (json!({"detect_in_clips": true}), 0.0),
    ] {
        let mut model = FakeModel::saying(&[&[T, 5, T + 50], &[T, 5, T + 50], &[T, 5, T + 50]]);
        let events = run(&multilingual(options), &mut model, 2000);
        assert_eq!(model.mels[0][0], heard);
        assert!(!of(&events, "segment").is_empty());
    }
}

#[test]
fn an_empty_clip_is_no_text() {
    let mut model = FakeModel::saying(&[&[T, 5, T + 50]]);
    let events = run(&argument(json!({"clip_timestamps": [0, 0]})), &mut model, 2000);
    assert_eq!(events, [json!({"event": "done", "text": "", "language": "en"})]);
}

#[test]
fn token_events_follow_their_window() {
    let mut model = FakeModel::saying(&[&[T, 5, T + 50]]);
    let events = run(&argument(json!({"emit_tokens": true})), &mut model, 1000);
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["window", "token", "token", "token", "segment", "done"]);
    assert_eq!(events[2]["id"], 5);
    assert!(events[2]["logprob"].as_f64().unwrap() > -0.01);
}

#[test]
fn each_segment_has_the_log_probabilities_of_its_own_tokens() {
    // The first window's last segment is unfinished, the second's empty.
    let windows: &[&[i32]] = &[&[T, 5, 6, T + 50, T + 50, 7, T + 100, T + 100, 8], &[T + 30]];
    let options = json!({"emit_tokens": true, "temperature": 0});
    let events = run(&argument(options), &mut FakeModel::saying(windows), 3200);
    let tokens: Vec<_> = of(&events, "token").iter().map(|token| (&token["id"], &token["logprob"])).collect();
    let segments = of(&events, "segment");
    let of_segments = segments.iter().flat_map(|segment| {
        let (ids, logprobs) = (segment["tokens"].as_array().unwrap(), segment["logprobs"].as_array().unwrap());
        assert_eq!(ids.len(), logprobs.len());
        ids.iter().zip(logprobs)
    });
    assert_eq!(of_segments.collect::<Vec<_>>(), tokens[..7]);
    assert_eq!((tokens.len(), segments.len()), (10, 3));
    let quiet = run(&argument(json!({})), &mut FakeModel::saying(windows), 3200);
    assert!(of(&quiet, "segment").iter().all(|segment| segment.get("logprobs").is_none()));
}

#[test]
fn timestamps_that_lead_nowhere_do_not_stop_the_audio() {
    let mut model = FakeModel::saying(&[&[T, T, 5], &[5]]);
    let events = run(&argument(json!({"without_timestamps": true})), &mut model, 4000);
    assert_eq!(seeks(&events), [0, 3000]);
}

#[test]
fn words_move_the_next_window_to_the_end_of_speech() {
    let windows: &[&[i32]] = &[&[T, 5, T + 100, T + 100, 6, 7, T + 1000, T + 1000, 8], &[T, 9, T + 100]];
    let mut model = FakeModel::saying(windows);
    let events = run(&argument(json!({"word_timestamps": true})), &mut model, 6000);
    let segments = of(&events, "segment");
    assert_eq!(segments[1]["words"][1]["word"], " w7");
    let end = segments[1]["end"].as_f64().unwrap();
    assert!((end - 1.6).abs() < 0.1, "the scripted attention is 0.4 s a token: {end}");
    assert_eq!(seeks(&events)[1], (end * 100.0).round() as u64);
    assert!(run(&argument(json!({})), &mut FakeModel::saying(windows), 6000)[1].get("words").is_none());
}

#[test]
fn a_doubtful_window_without_speech_is_passed_over() {
    // The first two windows have little text for their length, the third enough.
    let script = |window: usize, sequence: &[i32]| match (window, sampled(sequence).len()) {
        (_, 0) => vec![(T, 20.0)],
        (2, n) if n < 25 => vec![(4 + n as i32, 20.0)],
        (_, 1) => vec![(5, 20.0)],
        _ => vec![(EOT, 20.0)],
    };
    for (has_speech, no_speech, heard, listened) in [
        (false, "skip", vec![6000], vec![(0, 3000), (3000, 6000)]),
        (true, "skip", vec![0, 3000, 6000], vec![(0, 3000), (3000, 6000)]),
        (false, "reference", vec![0, 3000, 6000], vec![]),
    ] {
        let mut model = FakeModel::new(script);
        model.has_speech = has_speech;
        let mut argument = argument(json!({ "no_speech": no_speech, "temperature": 0 }));
        argument.silence = -9.0;
        let events = run(&argument, &mut model, 8000);
        assert_eq!(seeks(&events), heard);
        assert_eq!(model.listened, listened);
        assert_eq!(model.n_encoded, 3);
        let prompted = model.prompts.last().unwrap().len() > 1;
        assert_eq!(prompted, heard.len() > 1, "what is passed over prompts nothing");
    }
}

#[test]
fn digital_silence_is_not_even_encoded() {
    let windows: &[&[i32]] = &[&[T, 5, T + 100], &[T, 6, T + 100]];
    for (silence, n_encoded) in [(2999.0, 1), (2998.0, 2)] {
        let mut model = FakeModel::saying(windows);
        let mut argument = argument(json!({"no_speech": "skip"}));
        argument.silence = silence;
        let events = run(&argument, &mut model, 6000);
        assert_eq!(model.n_encoded, n_encoded);
        assert_eq!(of(&events, "segment").len(), n_encoded);
    }
}

#[test]
fn after_a_window_of_digital_silence_the_next_begins_shortly_before_the_sound() {
    for (silence, expected) in [(2998.0, vec![0, 3000]), (4000.0, vec![3951]), (3010.0, vec![3000]), (9e9, vec![])] {
        let mut model = FakeModel::saying(&[&[T, 5, T + 100], &[T, 6, T + 100]]);
        let mut argument = argument(json!({"no_speech": "skip"}));
        argument.silence = silence;
        assert_eq!(seeks(&run(&argument, &mut model, 6000)), expected);
    }
}

#[test]
fn of_attempts_that_all_fail_the_best_is_kept_and_prompts_as_little_as_the_last() {
    // Each attempt is less likely than the one before: more of its tokens have uniform logits.
    let script = |window: usize, sequence: &[i32]| match (window, sampled(sequence).len()) {
        (_, 0) => vec![(T, 20.0)],
        (0, 1..=4) => vec![(5, 1.0)],
        (1, 1) => vec![(6, 20.0)],
        _ => vec![(EOT, 20.0)],
    };
    let ladder = json!([0.0, 0.5, 1.0]);
    for (last_rung, expected) in [("reference", json!(1.0)), ("best", json!(0.0))] {
        let mut model = FakeModel::new(script);
        let options = json!({"temperature": ladder, "last_rung": last_rung});
        let events = run(&argument(options), &mut model, 6000);
        assert_eq!(events[0]["temperature"], expected);
        assert_eq!(model.prompts[3], [SOT]);
    }
}

#[test]
fn segments_end_with_their_sound_and_the_windows_follow_the_reference_all_the_same() {
    // The features rise: the quiet first frames are silence, which the text ignores.
    let windows: &[&[i32]] = &[&[T, 5, T + 1000, T + 1000, 6], &[T, 6, T + 1400]];
    let (mut model, mut reference) = (FakeModel::saying(windows), FakeModel::saying(windows));
    let heard = run(&argument(json!({"times": "sound"})), &mut model, 4000);
    let plain = run(&argument(json!({})), &mut reference, 4000);
    assert_eq!(seeks(&heard), seeks(&plain));
    assert_eq!(model.prompts, reference.prompts);
    let (heard, plain) = (of(&heard, "segment"), of(&plain, "segment"));
    assert!(heard[0]["start"].as_f64() > plain[0]["start"].as_f64());
    assert_eq!((&heard[1]["end"], &plain[1]["end"]), (&json!(40.0), &json!(48.0)));
}
