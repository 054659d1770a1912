// The next token of every sequence, as openai/whisper's GreedyDecoder with ApplyTimestampRules: the best allowed text token, unless
// the timestamps together are likelier than it: then the best timestamp. Its log-probability is over what remained allowed.
// Then state moves on one position and x becomes the chosen token's embedding + position. A sequence that has chosen the end
// goes on choosing it with log-probability 0; when all have, state[1] is set and the dispatches that follow return at once.
// One workgroup; invocation i joins every WORKGROUP-th entry of partials and embeds every WORKGROUP-th 8 columns.
//   partials (sequences, N_GROUPS, 2) × (max, token, sum of exp(logit - max), 0) f32, text then timestamps, see decoder_ln_logits
//   table (N_RANGE, N_IN) f16, the first N_RANGE tokens; a later one is embedded by decoder_embed
//   positions (N_TEXT_CTX, N_IN) f32
//   state u32, see decoder_state.py  in and out
//   x (sequences, N_IN) f32  out
//   chosen (steps, sequences) × (token, log-probability's bits) u32  out
// dispatch (1, 1, 1)

@group(0) @binding(0) var<storage, read> partials: array<vec4f>;
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> positions: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> x: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> chosen: array<vec2<u32>>;

override WORKGROUP = 64u;  // a power of two
override N_IN = 384u;
override N_RANGE = 51864u;
override N_GROUPS = 811u;
override N_VOCAB = 51864u;
override N_TEXT_CTX = 448u;
const LOWEST = -3.0e38;
const NO_TOKEN = 16777216.0;
const NAN = 0x7fc00000u;  // log-probability where nothing at all is allowed

var<workgroup> best_text: array<vec4f, WORKGROUP>;
var<workgroup> best_time: array<vec4f, WORKGROUP>;
var<workgroup> n_sequences: u32;
var<workgroup> next: vec2<u32>;  // token, position

// Two (max, its lowest token, sum) as one.
fn join(a: vec4f, b: vec4f) -> vec4f {
  let most = max(a.x, b.x);
  let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
  return vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
}

// (token, log-probability's bits) of a sequence, its rules moved on by that token.
fn choose(sequence: u32, text: vec4f, time: vec4f) -> vec2<u32> {
  let at = 72u + 8u * sequence;
  let eot = state[3];
  let timestamp_begin = state[4];
  if (state[at + 6u] != 0u) {
    return vec2<u32>(eot, 0u);
  }
  let time_only = time.z > 0.0 && (text.z == 0.0 || time.x + log(time.z) > text.x);
  var picked = vec2<u32>(0u, NAN);
  if (time_only) {
    picked = vec2<u32>(u32(time.y), bitcast<u32>(-log(time.z)));
  } else if (text.z > 0.0) {
    let total = text.z + time.z * exp(time.x - text.x);
    picked = vec2<u32>(u32(text.y), bitcast<u32>(-log(total)));
  }
  let is_time = picked.x >= timestamp_begin;
  let was_time = state[at + 7u] == 0u || state[at + 4u] != 0u;  // the penultimate one, for the next step
  if (is_time) {
    state[at + 5u] = picked.x;
  }
  let last_time = state[at + 5u];
  let open = is_time && !was_time;  // a timestamp that still needs its pair
  state[at] = select(0u, eot, open);
  state[at + 1u] = select(timestamp_begin, last_time + select(1u, 0u, open), last_time != 0u);
  state[at + 2u] = select(N_VOCAB, timestamp_begin, is_time && was_time);
  state[at + 3u] = 0u;
  state[at + 4u] = u32(is_time);
  state[at + 6u] = u32(picked.x == eot);
  state[at + 7u] = 1u;
  return picked;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) invocation: u32) {
  if (invocation == 0u) {
    n_sequences = select(state[0], 0u, state[1] != 0u);
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
      chosen[state[2] * count + sequence] = picked;
      let position = state[8u + 4u * sequence + 2u] + 1u;
      state[8u + 4u * sequence] = picked.x;
      state[8u + 4u * sequence + 2u] = position;
      next = vec2<u32>(picked.x, position);
    }
    let at = workgroupUniformLoad(&next);
    if (at.x < N_RANGE && at.y < N_TEXT_CTX) {
      for (var i = invocation; i < N_IN / 8u; i += WORKGROUP) {
        let u = table[at.x * (N_IN / 8u) + i];
        let to = sequence * (N_IN / 4u) + 2u * i;
        let place = at.y * (N_IN / 4u) + 2u * i;
        x[to] = vec4f(unpack2x16float(u.x), unpack2x16float(u.y)) + positions[place];
        x[to + 1u] = vec4f(unpack2x16float(u.z), unpack2x16float(u.w)) + positions[place + 1u];
      }
    }
  }
  if (invocation == 0u && count > 0u) {
    var n_done = 0u;
    for (var sequence = 0u; sequence < count; sequence++) {
      n_done += state[72u + 8u * sequence + 6u];
    }
    state[2] += 1u;
    state[1] = u32(n_done == count);
  }
}
