//! Words from timings made by hand, and from a scripted model.

use super::*;
use crate::fake::{argument, multilingual, FakeModel, EOT, NO_TIMESTAMPS, SOT};
use serde_json::json;

fn timing(word: &str, start: f64, end: f64) -> WordTiming {
    WordTiming { word: word.to_string(), n_tokens: 1, start, end, probability: 0.5 }
}

fn word(start: f64, end: f64) -> Word {
    Word { word: " a".to_string(), start, end, probability: 0.5 }
}

fn segment(start: f64, end: f64, tokens: &[i32]) -> Segment {
    Segment {
        id: 0,
        seek: 0,
        start,
        end,
        text: String::new(),
        tokens: tokens.to_vec(),
        temperature: 0.0,
        avg_logprob: 0.0,
        compression_ratio: 1.0,
        no_speech_prob: None,
        logprobs: None,
        words: None,
    }
}

fn heard(time_offset: f64, sound: &Sound) -> Heard<'_> {
    Heard { time_offset, segment_size: 3000, last_speech: time_offset, sound }
}

fn merged(words: &[&str]) -> Vec<(String, usize)> {
    let mut alignment: Vec<WordTiming> = words.iter().map(|word| timing(word, 0.0, 0.1)).collect();
    merge_punctuations(&mut alignment);
    alignment.into_iter().map(|timing| (timing.word, timing.n_tokens)).collect()
}

#[test]
fn punctuation_joins_the_word_it_belongs_to() {
    let of = |pairs: &[(&str, usize)]| pairs.iter().map(|(word, n)| (word.to_string(), *n)).collect::<Vec<_>>();
    assert_eq!(
        merged(&[" He", " said", ",", " \"", "Go", "!", "\""]),
        of(&[(" He", 1), (" said,", 2), ("", 0), ("", 0), (" \"Go!\"", 4), ("", 0), ("", 0),])
    );
    assert_eq!(merged(&[" (", " [", "a"]), of(&[("", 0), ("", 0), (" ( [a", 3)]));
    assert_eq!(merged(&[]), []);
}

#[test]
fn the_median_leaves_out_words_without_duration_and_is_capped() {
    assert_eq!(median_duration(&[timing("a", 1.0, 1.0), timing("b", 1.0, 1.5), timing("c", 1.5, 1.75)]), 0.375);
    assert_eq!(median_duration(&[timing("a", 0.0, 3.0)]), 0.7);
    assert_eq!(median_duration(&[]), 0.0);
}

#[test]
fn a_pause_at_the_end_of_a_sentence_is_cut_off() {
    let mut alignment = [timing(" a", 0.0, 0.2), timing(".", 0.2, 3.0), timing(" b", 3.0, 6.0), timing(" c", 6.0, 9.0)];
    truncate_at_sentence_ends(&mut alignment, 0.5);
    let times: Vec<(f64, f64)> = alignment.iter().map(|timing| (timing.start, timing.end)).collect();
    assert_eq!(times, [(0.0, 0.2), (0.2, 0.7), (5.5, 6.0), (6.0, 9.0)]);
}

#[test]
fn the_first_words_after_a_pause_are_not_stretched_over_it() {
    let mut words = [word(2.0, 6.0), word(6.0, 6.2)];
    let mut of = segment(2.0, 6.2, &[]);
    truncate_at_segment_boundaries(&mut of, &mut words, 0.2, 0.0);
    assert_eq!((words[0].start, words[0].end, of.start), (5.6, 6.0, 5.6));

    let mut words = [word(2.0, 2.1), word(2.1, 6.0)];
    truncate_at_segment_boundaries(&mut segment(2.0, 6.0, &[]), &mut words, 0.25, 0.0);
    assert_eq!((words[0].start, words[0].end, words[1].start), (5.0, 5.5, 5.5));

    let mut words = [word(2.0, 6.0), word(6.0, 6.2)];
    truncate_at_segment_boundaries(&mut segment(2.0, 6.2, &[]), &mut words, 0.2, 5.5);
    assert_eq!(words[0].start, 2.0);
}

#[test]
fn the_segments_own_times_win_where_a_word_is_far_too_long() {
    let mut words = [word(1.0, 4.0), word(4.0, 8.0)];
    let mut of = segment(3.0, 5.0, &[]);
    truncate_at_segment_boundaries(&mut of, &mut words, 0.5, 3.5);
    assert_eq!((words[0].start, words[1].end), (3.0, 5.0));
    assert_eq!((of.start, of.end), (3.0, 5.0));

    let mut words = [word(2.8, 4.0), word(4.0, 5.2)];
    truncate_at_segment_boundaries(&mut of, &mut words, 0.5, 3.5);
    assert_eq!((of.start, of.end), (2.8, 5.2));
}

#[test]
fn words_are_aligned_after_the_prompt_and_shared_out_to_segments() {
    let argument = argument(json!({}));
    let mut model = FakeModel::saying(&[&[]]);
    let mut segments = [segment(0.0, 2.0, &[110, 5, 6, 115]), segment(2.0, 4.0, &[115, 7])];
    let aligner = WordAligner::new(&argument, "en");
    aligner.add_word_timestamps(&mut model, &mut segments, heard(30.0, &Sound::default())).unwrap();
    assert_eq!(model.sequences, [[SOT, NO_TIMESTAMPS, 5, 6, 7, EOT]]);
    let words: Vec<Vec<&str>> = segments.iter().map(|s| words(s).iter().map(|w| w.word.as_str()).collect()).collect();
    assert_eq!(words, [vec![" w5", " w6"], vec![" w7"]]);
    // Token i of the scripted model attends from audio token 20·i on: 0.4 s each. The first word begins with the row
    // before it, which begins with the window.
    let times: Vec<(f64, f64)> = segments.iter().flat_map(|s| words_of(s).map(|w| (w.start, w.end))).collect();
    for (time, expected) in times.iter().zip([(30.0, 30.8), (30.8, 31.2), (31.2, 31.6)]) {
        assert!((time.0 - expected.0).abs() < 0.1 && (time.1 - expected.1).abs() < 0.1, "{times:?}");
    }
    assert_eq!((segments[1].start, segments[1].end), (times[2].0, times[2].1));
    assert_eq!(words_of(&segments[0]).next().unwrap().probability, 0.5);
}

fn words(segment: &Segment) -> &[Word] {
    segment.words.as_deref().unwrap()
}

fn words_of(segment: &Segment) -> impl Iterator<Item = &Word> {
    words(segment).iter()
}

#[test]
fn no_words_are_made_of_no_tokens() {
    let argument = argument(json!({}));
    let mut segments = [segment(0.0, 2.0, &[110, 115])];
    let mut model = FakeModel::saying(&[&[]]);
    let aligner = WordAligner::new(&argument, "en");
    aligner.add_word_timestamps(&mut model, &mut segments, heard(0.0, &Sound::default())).unwrap();
    assert_eq!(segments[0].words, Some(Vec::new()));
    assert_eq!(model.n_computes, 0);
}

/// A model whose tokens are bytes: token 10 + b is byte b of ALPHABET.
fn bytes_of(text: &str) -> Vec<i32> {
    text.bytes().map(|byte| ALPHABET.iter().position(|&b| b == byte).expect("in the alphabet") as i32 + 10).collect()
}

const ALPHABET: &[u8] = " ab.,\u{e4}\u{20ac}\u{e5}日本".as_bytes();

fn spelling() -> FakeModel {
    let mut model = FakeModel::saying(&[&[]]);
    model.spell = |tokens| {
        let bytes: Vec<u8> = tokens.iter().map(|&token| ALPHABET[token as usize - 10]).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    model
}

#[test]
fn tokens_join_to_characters_and_characters_to_words() {
    let argument = argument(json!({}));
    let split =
        |text: &str| WordAligner::new(&argument, "en").split_to_words(&mut spelling(), &bytes_of(text)).unwrap();
    let expected = |words: &[(&str, usize)]| -> Vec<(String, usize)> {
        let end = ("<|endoftext|>", 1);
        words.iter().chain([&end]).map(|(word, n)| (word.to_string(), *n)).collect()
    };
    assert_eq!(split(" ab a.b"), expected(&[(" ab", 3), (" a", 2), (".b", 2)]));
    assert_eq!(split("ä€ b,"), expected(&[("ä€", 5), (" b", 2), (",", 1)]));
}

#[test]
fn where_no_spaces_are_written_every_character_is_a_word() {
    let mut argument = multilingual(json!({}));
    let tokens = bytes_of("日本a");
    argument.tokens.languages.insert("ja".to_string(), 103);
    let words = WordAligner::new(&argument, "ja").split_to_words(&mut spelling(), &tokens).unwrap();
    assert_eq!(words.len(), 4);
    assert_eq!(words[0], ("日".to_string(), 3));
}

#[test]
fn half_a_character_in_the_text_itself_is_not_waited_for() {
    let argument = argument(json!({}));
    let mut tokens = bytes_of("a€");
    tokens.truncate(2);
    tokens.extend(bytes_of(" b"));
    let words = WordAligner::new(&argument, "en").split_to_words(&mut spelling(), &tokens).unwrap();
    let counts: Vec<usize> = words.iter().map(|(_, n)| *n).collect();
    assert_eq!(counts, [2, 2, 1], "{words:?}");
}

/// A sound at these frames, of 3000.
fn sounding(parts: &[Range<usize>]) -> Sound {
    Sound::from_frames((0..3000).map(|frame| parts.iter().any(|part| part.contains(&frame))).collect())
}

fn times(words: &[Word]) -> Vec<(f64, f64)> {
    words.iter().map(|word| (word.start, word.end)).collect()
}

#[test]
fn silence_is_taken_off_words_and_segments() {
    let sound = sounding(&[20..100, 200..300, 340..360]);
    let mut one = segment(10.0, 15.0, &[]);
    one.words = Some(vec![word(10.0, 10.5), word(10.5, 12.4), word(12.4, 13.5), word(13.5, 15.0)]);
    respect_silence(&mut one, heard(10.0, &sound));
    assert_eq!(times(&one.words.unwrap()), [(10.2, 10.5), (10.5, 12.4), (12.4, 13.5), (13.5, 13.6)]);
    assert_eq!((one.start, one.end), (10.2, 13.6));
    let mut words = vec![word(1.0, 2.0), word(1.5, 1.9), word(1.2, 3.0), word(3.0, 3.0)];
    let mut segments = [segment(0.0, 9.0, &[]), segment(0.0, 9.0, &[])];
    segments[1].words = Some(words.split_off(2));
    segments[0].words = Some(words);
    respect_order(&mut segments);
    assert_eq!(times(segments[0].words.as_ref().unwrap()), [(1.0, 1.5), (1.5, 1.5)]);
    assert_eq!(times(segments[1].words.as_ref().unwrap()), [(1.5, 3.0), (3.0, 3.0)]);
    assert_eq!((segments[0].end, segments[1].start), (1.5, 1.5));

    let mut wordless = segment(11.0, 12.0, &[]);
    respect_silence(&mut wordless, heard(10.0, &sound));
    assert_eq!((wordless.start, wordless.end), (11.0, 12.0), "without sound it stays");
}

#[test]
fn nothing_ends_after_the_audio() {
    let mut late = segment(39.0, 41.4, &[]);
    respect_silence(&mut late, heard(10.0, &sounding(&[0..3000])));
    assert_eq!((late.start, late.end), (39.0, 40.0));
    let mut beyond = segment(41.0, 42.0, &[]);
    respect_silence(&mut beyond, heard(10.0, &sounding(&[0..3000])));
    assert_eq!((beyond.start, beyond.end), (40.0, 40.0));
}

#[test]
fn words_lie_in_the_sound_that_they_attend_to() {
    // Token i attends 0.4 s from 0.4·i on; between 0.9 s and 1.7 s there is silence.
    let sound = sounding(&[0..90, 170..3000]);
    let argument = argument(json!({"times": "sound"}));
    let mut segments = [segment(0.0, 3.0, &[5, 6, 7, 8])];
    let mut model = FakeModel::saying(&[]);
    let aligner = WordAligner::new(&argument, "en");
    let shown = aligner.add_word_timestamps(&mut model, &mut segments, heard(0.0, &sound)).unwrap().unwrap();
    let (reference, shown) = (segments[0].words.clone().unwrap(), shown[0].words.clone().unwrap());
    assert_eq!(reference.len(), shown.len());
    let silent = |word: &&Word| word.start < 1.7 && word.end > 0.9;
    assert!(reference.iter().any(|word| silent(&word)), "{reference:?}");
    assert!(!shown.iter().any(|word| silent(&word)), "{shown:?}");
    assert!(shown.windows(2).all(|pair| pair[0].start <= pair[0].end && pair[0].end <= pair[1].start), "{shown:?}");
}
