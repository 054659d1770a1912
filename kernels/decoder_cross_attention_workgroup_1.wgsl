// parts[row, split, head] = exp(query · keys - max) @ values over a split of the audio; stats = (max, sum of exp).
// An invocation scores each WORKGROUP-th key, then mixes 8 columns of each (WORKGROUP / HEAD8)-th value.
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (n / 8, N_CTX, 8) i16, n = 8 HEAD8 N_HEAD
//   values (N_CTX, n / 8, 8) i16
//   scales (2, heads, N_CTX) f32: what a head's key, and its value, at a position is multiplied by
//   state u32, see decoder_state.py
//   parts (rows, SPLITS, n) f32  out
//   stats (rows, heads, SPLITS) × (max, sum) f32  out
// params: first_row, end_row: the rows from one to the other, of one context
// dispatch (heads, rows, SPLITS)

struct Params {
  first_row: u32,
  end_row: u32,
}

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(7) var<uniform> params: Params;

override WORKGROUP = 64u;  // a power of two, HEAD8 or more
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 1500u;
override SPLITS = 1u;
const LOWEST = -3.0e38;
const ROWS = 1u;
var<workgroup> scores: array<f32, ROWS * ((N_CTX + SPLITS - 1u) / SPLITS)>;
var<workgroup> shared_values: array<f32, WORKGROUP>;
var<workgroup> mixes: array<vec4f, 2u * WORKGROUP>;

// Two i16 a word, the lower index in the low half.
fn integers(u: vec2<u32>) -> vec4f {
  return vec4f(bitcast<vec4<i32>>(vec4<u32>(u.x << 16u, u.x, u.y << 16u, u.y)) >> vec4<u32>(16u));
}

@compute @workgroup_size(WORKGROUP)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  if (state[1] != 0u) {
    return;  // every sequence has ended
  }
  let n8 = N_HEAD * HEAD8;
  let head = workgroup.x;
  let row = params.first_row + workgroup.y * ROWS;
  let share_of_keys = (N_CTX + SPLITS - 1u) / SPLITS;
  let first = min(workgroup.z * share_of_keys, N_CTX);
  let count = min(share_of_keys, N_CTX - first);
  let a_row = ((N_CTX + SPLITS - 1u) / SPLITS);  // scores

  var most_0 = LOWEST;
  for (var i = invocation; i < count; i += WORKGROUP) {
    let t = first + i;
    let k = head * HEAD8 * N_CTX + t;
    var s_0 = 0.0;
    for (var c = 0u; c < HEAD8; c++) {
      let u = keys[k + c * N_CTX];
      let l = integers(u.xy);
      let h = integers(u.zw);
      let at_0 = ((row + 0u) * n8 + head * HEAD8 + c) * 2u;
      s_0 += dot(l, query[at_0]) + dot(h, query[at_0 + 1u]);
    }
    let scale = scales[head * N_CTX + t];
    s_0 *= scale;
    scores[0u * a_row + i] = s_0;
    most_0 = max(most_0, s_0);
  }
  shared_values[invocation] = most_0;
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      shared_values[invocation] = max(shared_values[invocation], shared_values[invocation + half]);
    }
  }
  workgroupBarrier();
  let top_0 = shared_values[0];
  workgroupBarrier();
  var total_0 = 0.0;
  for (var i = invocation; i < count; i += WORKGROUP) {
    let share = exp(scores[0u * a_row + i] - top_0);
    scores[0u * a_row + i] = share * scales[(N_HEAD + head) * N_CTX + first + i];
    total_0 += share;
  }
  shared_values[invocation] = total_0;
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      shared_values[invocation] = shared_values[invocation] + shared_values[invocation + half];
    }
  }
  workgroupBarrier();
  let sum_0 = shared_values[0];
  workgroupBarrier();

  let column = invocation % HEAD8;
  let groups = WORKGROUP / HEAD8;
  let group = invocation / HEAD8;
  var low_0 = vec4f();
  var high_0 = vec4f();
  for (var i = select(count, group, group < groups); i < count; i += groups) {
    let t = first + i;
    let u = values[t * n8 + head * HEAD8 + column];
    let l = integers(u.xy);
    let h = integers(u.zw);
    low_0 += scores[0u * a_row + i] * l;
    high_0 += scores[0u * a_row + i] * h;
  }
  mixes[2u * invocation] = low_0;
  mixes[2u * invocation + 1u] = high_0;
  workgroupBarrier();
  for (var i = select(groups * HEAD8, invocation + HEAD8, invocation < HEAD8); i < groups * HEAD8; i += HEAD8) {
    low_0 += mixes[2u * i];
    high_0 += mixes[2u * i + 1u];
  }
  workgroupBarrier();
  if (invocation < HEAD8) {
    if (row + 0u < params.end_row) {
      let to_0 = (((row + 0u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_0] = low_0;
      parts[to_0 + 1u] = high_0;
    }
  }
  if (invocation == 0u && row + 0u < params.end_row) {
    stats[((row + 0u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_0, sum_0);
  }
}
