// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// An invocation scores each WORKGROUP-th key, then mixes 8 columns of each (WORKGROUP / HEAD8)-th value.
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (slots, n / 8, N_CTX, 8) f32, n = 8 HEAD8 N_HEAD
//   values (slots, N_CTX, n / 8, 8) f32
//   slots (sequences, N_CTX) u32: which slot's cache holds a sequence's position
//   state u32, see decoder_state.py
//   y (rows, n) f32  out
// params: first_row, end_row: the rows from one to the other, of one context
// dispatch (heads, rows, 1)

struct Params {
  first_row: u32,
  end_row: u32,
}

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> slots: array<u32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(6) var<uniform> params: Params;

override WORKGROUP = 64u;  // a power of two, HEAD8 or more
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 448u;
const LOWEST = -3.0e38;
const ROWS = 1u;
var<workgroup> scores: array<f32, ROWS * N_CTX>;
var<workgroup> shared_values: array<f32, WORKGROUP>;
var<workgroup> mixes: array<vec4f, 2u * WORKGROUP>;

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
  let from_slots = state[8u + 4u * row + 1u] * N_CTX;
  let first = 0u;
  let count = state[8u + 4u * row + 2u] + 1u;
  let a_row = N_CTX;  // scores

  var most_0 = LOWEST;
  for (var i = invocation; i < count; i += WORKGROUP) {
    let t = first + i;
    let k = (slots[from_slots + t] * n8 + head * HEAD8) * N_CTX + t;
    var s_0 = 0.0;
    for (var c = 0u; c < HEAD8; c++) {
      let u = 2u * (k + c * N_CTX);
      let l = keys[u];
      let h = keys[u + 1u];
      let at_0 = ((row + 0u) * n8 + head * HEAD8 + c) * 2u;
      s_0 += dot(l, query[at_0]) + dot(h, query[at_0 + 1u]);
    }
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
    scores[0u * a_row + i] = share;
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
    let u = 2u * ((slots[from_slots + t] * N_CTX + t) * n8 + head * HEAD8 + column);
    let l = values[u];
    let h = values[u + 1u];
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
    let to_0 = ((row + 0u) * n8 + head * HEAD8 + column) * 2u;
    y[to_0] = low_0 / sum_0;
    y[to_0 + 1u] = high_0 / sum_0;
  }
}
