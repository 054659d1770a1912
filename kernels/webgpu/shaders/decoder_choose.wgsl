// The next token of every sequence, as openai/whisper's GreedyDecoder with ApplyTimestampRules: the best allowed text token, unless
// the timestamps together are likelier than it: then the best timestamp. Its log-probability is over what remained allowed.
// Then state moves on one position and x becomes the chosen token's embedding + position. A sequence that has chosen the end
// goes on choosing it with log-probability 0; when all have, state.stopped is set and the launches that follow return at once.
//
// One workgroup; invocation i joins every WORKGROUP-th entry of partials and embeds every WORKGROUP-th 8 columns.
//   partials   (sequences, N_GROUPS, 2) × (max, token, sum of exp(logit - max), 0) f32, text then timestamps, see decoder_ln_logits.wgsl
//   table      (N_RANGE, N_IN) f16, the first N_RANGE tokens; a later one is embedded by decoder_embed.wgsl
//   positions  (N_TEXT_CTX, N_IN) f32
//   state      State  in and out
//   x          (sequences, N_IN) f32  out
//   chosen     (steps, sequences) × (token, log-probability's bits) u32  out
// dispatch (1, 1, 1)
{% from "shared.wgsl" import columns, join, state with context %}
{{ state() }}
@group(0) @binding(0) var<storage, read> partials: array<vec4f>;
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> positions: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> state: State;
@group(0) @binding(4) var<storage, read_write> x: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> chosen: array<vec2<u32>>;

override WORKGROUP = 64u;  // a power of two
override N_IN = 384u;
override N_RANGE = 51864u;
override N_GROUPS = 811u;
override N_VOCAB = 51864u;
override N_TEXT_CTX = 448u;
const NAN = 0x7fc00000u;  // log-probability where nothing at all is allowed

var<workgroup> best_text: array<vec4f, WORKGROUP>;
var<workgroup> best_time: array<vec4f, WORKGROUP>;
var<workgroup> n_sequences: u32;
var<workgroup> next: vec2<u32>;  // token, position

{{ columns() }}
{{ join() }}
// (token, log-probability's bits) of a sequence, its rules moved on by that token.
fn choose(sequence: u32, text: vec4f, time: vec4f) -> vec2<u32> {
  var rules = state.sequences[sequence];
  if (rules.has_ended != 0u) {
    return vec2<u32>(state.eot, 0u);
  }
  let time_only = time.z > 0.0 && (text.z == 0.0 || time.x + log(time.z) > text.x);
  var picked = vec2<u32>(0u, NAN);
  if (time_only) {
    picked = vec2<u32>(u32(time.y), bitcast<u32>(-log(time.z)));
  } else if (text.z > 0.0) {
    let total = text.z + time.z * exp(time.x - text.x);
    picked = vec2<u32>(u32(text.y), bitcast<u32>(-log(total)));
  }
  let is_time = picked.x >= state.timestamp_begin;
  let was_time = rules.is_first != 0u || rules.last_was_time != 0u;  // the penultimate one, for the next step
  let is_open = is_time && !was_time;  // a timestamp that still needs its pair
  if (is_time) {
    rules.last_time = picked.x;
  }
  rules.text_from = select(0u, state.eot, is_open);
  rules.time_from = select(state.timestamp_begin, rules.last_time + select(1u, 0u, is_open), rules.last_time != 0u);
  rules.time_below = select(N_VOCAB, state.timestamp_begin, is_time && was_time);
  rules.is_first = 0u;
  rules.last_was_time = u32(is_time);
  rules.has_ended = u32(picked.x == state.eot);
  state.sequences[sequence] = rules;
  return picked;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) invocation: u32) {
  if (invocation == 0u) {
    n_sequences = select(state.n_rows, 0u, state.stopped != 0u);
  }
  let count = workgroupUniformLoad(&n_sequences);
  for (var sequence = 0u; sequence < count; sequence++) {
    var text = vec4f(LOWEST, NO_TOKEN, 0.0, 0.0);
    var time = text;
    for (var group = invocation; group < N_GROUPS; group += WORKGROUP) {
      text = join(text, partials[(sequence * N_GROUPS + group) * 2u]);
      time = join(time, partials[(sequence * N_GROUPS + group) * 2u + 1u]);
    }
    best_text[invocation] = text;
    best_time[invocation] = time;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (invocation < half) {
        best_text[invocation] = join(best_text[invocation], best_text[invocation + half]);
        best_time[invocation] = join(best_time[invocation], best_time[invocation + half]);
      }
    }
    if (invocation == 0u) {
      let picked = choose(sequence, best_text[0], best_time[0]);
      chosen[state.n_chosen * count + sequence] = picked;
      state.rows[sequence].token = picked.x;
      state.rows[sequence].position += 1u;
      next = vec2<u32>(picked.x, state.rows[sequence].position);
    }
    let at = workgroupUniformLoad(&next);
    if (at.x < N_RANGE && at.y < N_TEXT_CTX) {
      for (var i = invocation; i < N_IN / 8u; i += WORKGROUP) {
        let embedding = from_f16(table[at.x * (N_IN / 8u) + i]);
        let to = sequence * (N_IN / 4u) + 2u * i;
        let place = at.y * (N_IN / 4u) + 2u * i;
        x[to] = embedding.low + positions[place];
        x[to + 1u] = embedding.high + positions[place + 1u];
      }
    }
  }
  if (invocation == 0u && count > 0u) {
    var n_ended = 0u;
    for (var sequence = 0u; sequence < count; sequence++) {
      n_ended += state.sequences[sequence].has_ended;
    }
    state.n_chosen += 1u;
    state.stopped = u32(n_ended == count);
  }
}
