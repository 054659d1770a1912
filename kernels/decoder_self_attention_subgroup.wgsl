// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// A workgroup is one subgroup: a lane scores 4 neighbouring keys at a time, mixes 8 columns of 4 values.
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

override LANES = 8u;
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 448u;
const LOWEST = -3.0e38;
var<workgroup> scores: array<vec4f, (N_CTX + 3u) / 4u>;
var<workgroup> mixes: array<vec4f, 2u * LANES>;

fn halves(u: vec2<u32>) -> vec4f {
  return vec4f(unpack2x16float(u.x), unpack2x16float(u.y));
}

@compute @workgroup_size(LANES)
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
  let quads = (count + 3u) / 4u;
  var most = LOWEST;
  // Every lane goes round equally often, so that the query's broadcasts find all of them.
  for (var from_quad = 0u; from_quad < quads; from_quad += LANES) {
    let quad = from_quad + invocation;
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    let k0 = (slots[from_slots + t0] * n8 + head * HEAD8) * N_CTX + t0;
    let k1 = (slots[from_slots + t1] * n8 + head * HEAD8) * N_CTX + t1;
    let k2 = (slots[from_slots + t2] * n8 + head * HEAD8) * N_CTX + t2;
    let k3 = (slots[from_slots + t3] * n8 + head * HEAD8) * N_CTX + t3;
    var s0 = 0.0;
    var s1 = 0.0;
    var s2 = 0.0;
    var s3 = 0.0;
    for (var c = 0u; c < HEAD8; c += 4u) {
      let at = (row * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let a = query[at];
      let b = query[at + 1u];
      if (c + 0u < HEAD8) {
        let qa = subgroupBroadcast(a, 0u);
        let qb = subgroupBroadcast(b, 0u);
        let u0 = keys[k0 + (c + 0u) * N_CTX];
        s0 += dot(halves(u0.xy), qa) + dot(halves(u0.zw), qb);
        let u1 = keys[k1 + (c + 0u) * N_CTX];
        s1 += dot(halves(u1.xy), qa) + dot(halves(u1.zw), qb);
        let u2 = keys[k2 + (c + 0u) * N_CTX];
        s2 += dot(halves(u2.xy), qa) + dot(halves(u2.zw), qb);
        let u3 = keys[k3 + (c + 0u) * N_CTX];
        s3 += dot(halves(u3.xy), qa) + dot(halves(u3.zw), qb);
      }
      if (c + 1u < HEAD8) {
        let qa = subgroupBroadcast(a, 1u);
        let qb = subgroupBroadcast(b, 1u);
        let u0 = keys[k0 + (c + 1u) * N_CTX];
        s0 += dot(halves(u0.xy), qa) + dot(halves(u0.zw), qb);
        let u1 = keys[k1 + (c + 1u) * N_CTX];
        s1 += dot(halves(u1.xy), qa) + dot(halves(u1.zw), qb);
        let u2 = keys[k2 + (c + 1u) * N_CTX];
        s2 += dot(halves(u2.xy), qa) + dot(halves(u2.zw), qb);
        let u3 = keys[k3 + (c + 1u) * N_CTX];
        s3 += dot(halves(u3.xy), qa) + dot(halves(u3.zw), qb);
      }
      if (c + 2u < HEAD8) {
        let qa = subgroupBroadcast(a, 2u);
        let qb = subgroupBroadcast(b, 2u);
        let u0 = keys[k0 + (c + 2u) * N_CTX];
        s0 += dot(halves(u0.xy), qa) + dot(halves(u0.zw), qb);
        let u1 = keys[k1 + (c + 2u) * N_CTX];
        s1 += dot(halves(u1.xy), qa) + dot(halves(u1.zw), qb);
        let u2 = keys[k2 + (c + 2u) * N_CTX];
        s2 += dot(halves(u2.xy), qa) + dot(halves(u2.zw), qb);
        let u3 = keys[k3 + (c + 2u) * N_CTX];
        s3 += dot(halves(u3.xy), qa) + dot(halves(u3.zw), qb);
      }
      if (c + 3u < HEAD8) {
        let qa = subgroupBroadcast(a, 3u);
        let qb = subgroupBroadcast(b, 3u);
        let u0 = keys[k0 + (c + 3u) * N_CTX];
        s0 += dot(halves(u0.xy), qa) + dot(halves(u0.zw), qb);
        let u1 = keys[k1 + (c + 3u) * N_CTX];
        s1 += dot(halves(u1.xy), qa) + dot(halves(u1.zw), qb);
        let u2 = keys[k2 + (c + 3u) * N_CTX];
        s2 += dot(halves(u2.xy), qa) + dot(halves(u2.zw), qb);
        let u3 = keys[k3 + (c + 3u) * N_CTX];
        s3 += dot(halves(u3.xy), qa) + dot(halves(u3.zw), qb);
      }
    }
    if (quad < quads) {
      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad < vec4<u32>(count);
      let score = select(vec4f(LOWEST), vec4f(s0, s1, s2, s3), inside);
      scores[quad] = score;
      most = max(most, max(max(score.x, score.y), max(score.z, score.w)));
    }
  }
  let top = subgroupMax(most);
  var total = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[quad] - top);
    scores[quad] = share;
    total += share;
  }
  let sum = subgroupAdd(dot(total, vec4f(1.0)));
  workgroupBarrier();

  // WIDTH lanes share a value's columns; the others take other values.
  let width = min(HEAD8, LANES);
  let groups = LANES / width;
  let group = invocation / width;
  for (var from_column = 0u; from_column < HEAD8; from_column += width) {
    let column = min(from_column + invocation % width, HEAD8 - 1u);
    var low = vec4f();
    var high = vec4f();
    for (var quad = select(quads, group, group < groups); quad < quads; quad += groups) {
      let share = scores[quad];
      let t0 = min(first + 4u * quad + 0u, first + count - 1u);
      let t1 = min(first + 4u * quad + 1u, first + count - 1u);
      let t2 = min(first + 4u * quad + 2u, first + count - 1u);
      let t3 = min(first + 4u * quad + 3u, first + count - 1u);
      let u0 = values[(slots[from_slots + t0] * N_CTX + t0) * n8 + head * HEAD8 + column];
      let u1 = values[(slots[from_slots + t1] * N_CTX + t1) * n8 + head * HEAD8 + column];
      let u2 = values[(slots[from_slots + t2] * N_CTX + t2) * n8 + head * HEAD8 + column];
      let u3 = values[(slots[from_slots + t3] * N_CTX + t3) * n8 + head * HEAD8 + column];
      low += share[0] * halves(u0.xy) + share[1] * halves(u1.xy) + share[2] * halves(u2.xy) + share[3] * halves(u3.xy);
      high += share[0] * halves(u0.zw) + share[1] * halves(u1.zw) + share[2] * halves(u2.zw) + share[3] * halves(u3.zw);
    }
    mixes[2u * invocation] = low;
    mixes[2u * invocation + 1u] = high;
    workgroupBarrier();
    if (invocation < width && from_column + invocation < HEAD8) {
      for (var i = 1u; i < groups; i++) {
        low += mixes[2u * (invocation + i * width)];
        high += mixes[2u * (invocation + i * width) + 1u];
      }
      let to = (row * n8 + head * HEAD8 + column) * 2u;
      y[to] = low / sum;
      y[to + 1u] = high / sum;
    }
    workgroupBarrier();
  }
}
