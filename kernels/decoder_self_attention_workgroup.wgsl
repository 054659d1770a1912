// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// An invocation scores each WORKGROUP-th key, then mixes 8 columns of each (WORKGROUP / HEAD8)-th value.
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (slots, n / 8, N_CTX, 8) f16, n = 8 HEAD8 N_HEAD
//   values (slots, N_CTX, n / 8, 8) f16
//   slots (sequences, N_CTX) u32: which slot's cache holds a sequence's position
//   state u32, see decoder_state.py
//   y (rows, n) f32  out
// dispatch (heads, rows, 1)

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> slots: array<u32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;

override WORKGROUP = 64u;  // a power of two, HEAD8 or more
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 448u;
const LOWEST = -3.0e38;
var<workgroup> scores: array<f32, N_CTX>;
var<workgroup> shared_values: array<f32, WORKGROUP>;
var<workgroup> mixes: array<vec4f, 2u * WORKGROUP>;

fn halves(u: vec2<u32>) -> vec4f {
  return vec4f(unpack2x16float(u.x), unpack2x16float(u.y));
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
  let row = workgroup.y;
  let from_slots = state[8u + 4u * row + 1u] * N_CTX;
  let first = 0u;
  let count = state[8u + 4u * row + 2u] + 1u;
  var most = LOWEST;
  for (var i = invocation; i < count; i += WORKGROUP) {
    let t = first + i;
    let k = (slots[from_slots + t] * n8 + head * HEAD8) * N_CTX + t;
    var s = 0.0;
    for (var c = 0u; c < HEAD8; c++) {
      let at = (row * n8 + head * HEAD8 + c) * 2u;
      let u = keys[k + c * N_CTX];
      s += dot(halves(u.xy), query[at]) + dot(halves(u.zw), query[at + 1u]);
    }
    scores[i] = s;
    most = max(most, s);
  }
  shared_values[invocation] = most;
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      shared_values[invocation] = max(shared_values[invocation], shared_values[invocation + half]);
    }
  }
  workgroupBarrier();
  let top = shared_values[0];
  workgroupBarrier();
  var total = 0.0;
  for (var i = invocation; i < count; i += WORKGROUP) {
    let share = exp(scores[i] - top);
    scores[i] = share;
    total += share;
  }
  shared_values[invocation] = total;
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      shared_values[invocation] = shared_values[invocation] + shared_values[invocation + half];
    }
  }
  workgroupBarrier();
  let sum = shared_values[0];
  workgroupBarrier();

  let column = invocation % HEAD8;
  var low = vec4f();
  var high = vec4f();
  let groups = WORKGROUP / HEAD8;
  let group = invocation / HEAD8;
  for (var i = select(count, group, group < groups); i < count; i += groups) {
    let share = scores[i];
    let t = first + i;
    let u = values[(slots[from_slots + t] * N_CTX + t) * n8 + head * HEAD8 + column];
    low += share * halves(u.xy);
    high += share * halves(u.zw);
  }
  mixes[2u * invocation] = low;
  mixes[2u * invocation + 1u] = high;
  workgroupBarrier();
  if (invocation < HEAD8) {
    for (var i = invocation + HEAD8; i < groups * HEAD8; i += HEAD8) {
      low += mixes[2u * i];
      high += mixes[2u * i + 1u];
    }
    let to = (row * n8 + head * HEAD8 + column) * 2u;
    y[to] = low / sum;
    y[to + 1u] = high / sum;
  }
}
