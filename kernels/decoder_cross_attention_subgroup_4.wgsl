// parts[row, split, head] = exp(query · keys - max) @ values over a split of the audio; stats = (max, sum of exp).
// A workgroup is one subgroup: a lane scores 4 neighbouring keys at a time, mixes 8 columns of 4 values.
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (n / 8, N_CTX, 8) i16, n = 8 HEAD8 N_HEAD
//   values (N_CTX, n / 8, 8) i16
//   scales (2, heads, N_CTX) f32: what a head's key, and its value, at a position is multiplied by
//   state u32, see decoder_state.py
//   parts (rows, SPLITS, n) f32  out
//   stats (rows, heads, SPLITS) × (max, sum) f32  out
// params: first_row, end_row: the rows from one to the other, of one context
// dispatch (heads, ceil(rows / 4), SPLITS)

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

override LANES = 8u;
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 1500u;
override SPLITS = 1u;
const LOWEST = -3.0e38;
const ROWS = 4u;
var<workgroup> scores: array<vec4f, ROWS * ((((N_CTX + SPLITS - 1u) / SPLITS) + 3u) / 4u)>;
var<workgroup> mixes: array<vec4f, 2u * LANES>;

// Two i16 a word, the lower index in the low half.
fn integers(u: vec2<u32>) -> vec4f {
  return vec4f(bitcast<vec4<i32>>(vec4<u32>(u.x << 16u, u.x, u.y << 16u, u.y)) >> vec4<u32>(16u));
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
  let row = params.first_row + workgroup.y * ROWS;
  let share_of_keys = (N_CTX + SPLITS - 1u) / SPLITS;
  let first = min(workgroup.z * share_of_keys, N_CTX);
  let count = min(share_of_keys, N_CTX - first);
  let a_row = (((N_CTX + SPLITS - 1u) / SPLITS) + 3u) / 4u;  // scores

  let quads = (count + 3u) / 4u;
  var most_0 = LOWEST;
  var most_1 = LOWEST;
  var most_2 = LOWEST;
  var most_3 = LOWEST;
  // Every lane goes round equally often, so that the query's broadcasts find all of them.
  for (var from_quad = 0u; from_quad < quads; from_quad += LANES) {
    let quad = from_quad + invocation;
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    let k0 = head * HEAD8 * N_CTX + t0;
    let k1 = head * HEAD8 * N_CTX + t1;
    let k2 = head * HEAD8 * N_CTX + t2;
    let k3 = head * HEAD8 * N_CTX + t3;
    var s0_0 = 0.0;
    var s1_0 = 0.0;
    var s2_0 = 0.0;
    var s3_0 = 0.0;
    var s0_1 = 0.0;
    var s1_1 = 0.0;
    var s2_1 = 0.0;
    var s3_1 = 0.0;
    var s0_2 = 0.0;
    var s1_2 = 0.0;
    var s2_2 = 0.0;
    var s3_2 = 0.0;
    var s0_3 = 0.0;
    var s1_3 = 0.0;
    var s2_3 = 0.0;
    var s3_3 = 0.0;
    for (var c = 0u; c < HEAD8; c += 4u) {
      let at_0 = ((row + 0u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let at_1 = ((row + 1u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let at_2 = ((row + 2u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let at_3 = ((row + 3u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let a_0 = query[at_0];
      let a_1 = query[at_1];
      let a_2 = query[at_2];
      let a_3 = query[at_3];
      let b_0 = query[at_0 + 1u];
      let b_1 = query[at_1 + 1u];
      let b_2 = query[at_2 + 1u];
      let b_3 = query[at_3 + 1u];
      if (c + 0u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 0u);
        let qa_1 = subgroupBroadcast(a_1, 0u);
        let qa_2 = subgroupBroadcast(a_2, 0u);
        let qa_3 = subgroupBroadcast(a_3, 0u);
        let qb_0 = subgroupBroadcast(b_0, 0u);
        let qb_1 = subgroupBroadcast(b_1, 0u);
        let qb_2 = subgroupBroadcast(b_2, 0u);
        let qb_3 = subgroupBroadcast(b_3, 0u);
        let u0 = keys[k0 + (c + 0u) * N_CTX];
        let l0 = integers(u0.xy);
        let h0 = integers(u0.zw);
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        s1_0 += dot(l0, qa_1) + dot(h0, qb_1);
        s2_0 += dot(l0, qa_2) + dot(h0, qb_2);
        s3_0 += dot(l0, qa_3) + dot(h0, qb_3);
        let u1 = keys[k1 + (c + 0u) * N_CTX];
        let l1 = integers(u1.xy);
        let h1 = integers(u1.zw);
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        s1_1 += dot(l1, qa_1) + dot(h1, qb_1);
        s2_1 += dot(l1, qa_2) + dot(h1, qb_2);
        s3_1 += dot(l1, qa_3) + dot(h1, qb_3);
        let u2 = keys[k2 + (c + 0u) * N_CTX];
        let l2 = integers(u2.xy);
        let h2 = integers(u2.zw);
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        s1_2 += dot(l2, qa_1) + dot(h2, qb_1);
        s2_2 += dot(l2, qa_2) + dot(h2, qb_2);
        s3_2 += dot(l2, qa_3) + dot(h2, qb_3);
        let u3 = keys[k3 + (c + 0u) * N_CTX];
        let l3 = integers(u3.xy);
        let h3 = integers(u3.zw);
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
        s1_3 += dot(l3, qa_1) + dot(h3, qb_1);
        s2_3 += dot(l3, qa_2) + dot(h3, qb_2);
        s3_3 += dot(l3, qa_3) + dot(h3, qb_3);
      }
      if (c + 1u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 1u);
        let qa_1 = subgroupBroadcast(a_1, 1u);
        let qa_2 = subgroupBroadcast(a_2, 1u);
        let qa_3 = subgroupBroadcast(a_3, 1u);
        let qb_0 = subgroupBroadcast(b_0, 1u);
        let qb_1 = subgroupBroadcast(b_1, 1u);
        let qb_2 = subgroupBroadcast(b_2, 1u);
        let qb_3 = subgroupBroadcast(b_3, 1u);
        let u0 = keys[k0 + (c + 1u) * N_CTX];
        let l0 = integers(u0.xy);
        let h0 = integers(u0.zw);
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        s1_0 += dot(l0, qa_1) + dot(h0, qb_1);
        s2_0 += dot(l0, qa_2) + dot(h0, qb_2);
        s3_0 += dot(l0, qa_3) + dot(h0, qb_3);
        let u1 = keys[k1 + (c + 1u) * N_CTX];
        let l1 = integers(u1.xy);
        let h1 = integers(u1.zw);
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        s1_1 += dot(l1, qa_1) + dot(h1, qb_1);
        s2_1 += dot(l1, qa_2) + dot(h1, qb_2);
        s3_1 += dot(l1, qa_3) + dot(h1, qb_3);
        let u2 = keys[k2 + (c + 1u) * N_CTX];
        let l2 = integers(u2.xy);
        let h2 = integers(u2.zw);
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        s1_2 += dot(l2, qa_1) + dot(h2, qb_1);
        s2_2 += dot(l2, qa_2) + dot(h2, qb_2);
        s3_2 += dot(l2, qa_3) + dot(h2, qb_3);
        let u3 = keys[k3 + (c + 1u) * N_CTX];
        let l3 = integers(u3.xy);
        let h3 = integers(u3.zw);
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
        s1_3 += dot(l3, qa_1) + dot(h3, qb_1);
        s2_3 += dot(l3, qa_2) + dot(h3, qb_2);
        s3_3 += dot(l3, qa_3) + dot(h3, qb_3);
      }
      if (c + 2u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 2u);
        let qa_1 = subgroupBroadcast(a_1, 2u);
        let qa_2 = subgroupBroadcast(a_2, 2u);
        let qa_3 = subgroupBroadcast(a_3, 2u);
        let qb_0 = subgroupBroadcast(b_0, 2u);
        let qb_1 = subgroupBroadcast(b_1, 2u);
        let qb_2 = subgroupBroadcast(b_2, 2u);
        let qb_3 = subgroupBroadcast(b_3, 2u);
        let u0 = keys[k0 + (c + 2u) * N_CTX];
        let l0 = integers(u0.xy);
        let h0 = integers(u0.zw);
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        s1_0 += dot(l0, qa_1) + dot(h0, qb_1);
        s2_0 += dot(l0, qa_2) + dot(h0, qb_2);
        s3_0 += dot(l0, qa_3) + dot(h0, qb_3);
        let u1 = keys[k1 + (c + 2u) * N_CTX];
        let l1 = integers(u1.xy);
        let h1 = integers(u1.zw);
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        s1_1 += dot(l1, qa_1) + dot(h1, qb_1);
        s2_1 += dot(l1, qa_2) + dot(h1, qb_2);
        s3_1 += dot(l1, qa_3) + dot(h1, qb_3);
        let u2 = keys[k2 + (c + 2u) * N_CTX];
        let l2 = integers(u2.xy);
        let h2 = integers(u2.zw);
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        s1_2 += dot(l2, qa_1) + dot(h2, qb_1);
        s2_2 += dot(l2, qa_2) + dot(h2, qb_2);
        s3_2 += dot(l2, qa_3) + dot(h2, qb_3);
        let u3 = keys[k3 + (c + 2u) * N_CTX];
        let l3 = integers(u3.xy);
        let h3 = integers(u3.zw);
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
        s1_3 += dot(l3, qa_1) + dot(h3, qb_1);
        s2_3 += dot(l3, qa_2) + dot(h3, qb_2);
        s3_3 += dot(l3, qa_3) + dot(h3, qb_3);
      }
      if (c + 3u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 3u);
        let qa_1 = subgroupBroadcast(a_1, 3u);
        let qa_2 = subgroupBroadcast(a_2, 3u);
        let qa_3 = subgroupBroadcast(a_3, 3u);
        let qb_0 = subgroupBroadcast(b_0, 3u);
        let qb_1 = subgroupBroadcast(b_1, 3u);
        let qb_2 = subgroupBroadcast(b_2, 3u);
        let qb_3 = subgroupBroadcast(b_3, 3u);
        let u0 = keys[k0 + (c + 3u) * N_CTX];
        let l0 = integers(u0.xy);
        let h0 = integers(u0.zw);
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        s1_0 += dot(l0, qa_1) + dot(h0, qb_1);
        s2_0 += dot(l0, qa_2) + dot(h0, qb_2);
        s3_0 += dot(l0, qa_3) + dot(h0, qb_3);
        let u1 = keys[k1 + (c + 3u) * N_CTX];
        let l1 = integers(u1.xy);
        let h1 = integers(u1.zw);
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        s1_1 += dot(l1, qa_1) + dot(h1, qb_1);
        s2_1 += dot(l1, qa_2) + dot(h1, qb_2);
        s3_1 += dot(l1, qa_3) + dot(h1, qb_3);
        let u2 = keys[k2 + (c + 3u) * N_CTX];
        let l2 = integers(u2.xy);
        let h2 = integers(u2.zw);
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        s1_2 += dot(l2, qa_1) + dot(h2, qb_1);
        s2_2 += dot(l2, qa_2) + dot(h2, qb_2);
        s3_2 += dot(l2, qa_3) + dot(h2, qb_3);
        let u3 = keys[k3 + (c + 3u) * N_CTX];
        let l3 = integers(u3.xy);
        let h3 = integers(u3.zw);
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
        s1_3 += dot(l3, qa_1) + dot(h3, qb_1);
        s2_3 += dot(l3, qa_2) + dot(h3, qb_2);
        s3_3 += dot(l3, qa_3) + dot(h3, qb_3);
      }
    }
    if (quad < quads) {
      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad < vec4<u32>(count);
      let scale = vec4f(scales[(head) * N_CTX + t0], scales[(head) * N_CTX + t1], scales[(head) * N_CTX + t2], scales[(head) * N_CTX + t3]);
      let score_0 = select(vec4f(LOWEST), vec4f(s0_0, s0_1, s0_2, s0_3) * scale, inside);
      scores[0u * a_row + quad] = score_0;
      most_0 = max(most_0, max(max(score_0.x, score_0.y), max(score_0.z, score_0.w)));
      let score_1 = select(vec4f(LOWEST), vec4f(s1_0, s1_1, s1_2, s1_3) * scale, inside);
      scores[1u * a_row + quad] = score_1;
      most_1 = max(most_1, max(max(score_1.x, score_1.y), max(score_1.z, score_1.w)));
      let score_2 = select(vec4f(LOWEST), vec4f(s2_0, s2_1, s2_2, s2_3) * scale, inside);
      scores[2u * a_row + quad] = score_2;
      most_2 = max(most_2, max(max(score_2.x, score_2.y), max(score_2.z, score_2.w)));
      let score_3 = select(vec4f(LOWEST), vec4f(s3_0, s3_1, s3_2, s3_3) * scale, inside);
      scores[3u * a_row + quad] = score_3;
      most_3 = max(most_3, max(max(score_3.x, score_3.y), max(score_3.z, score_3.w)));
    }
  }
  let top_0 = subgroupMax(most_0);
  var total_0 = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[0u * a_row + quad] - top_0);
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    scores[0u * a_row + quad] = share * vec4f(scales[(N_HEAD + head) * N_CTX + t0], scales[(N_HEAD + head) * N_CTX + t1], scales[(N_HEAD + head) * N_CTX + t2], scales[(N_HEAD + head) * N_CTX + t3]);
    total_0 += share;
  }
  let sum_0 = subgroupAdd(dot(total_0, vec4f(1.0)));
  let top_1 = subgroupMax(most_1);
  var total_1 = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[1u * a_row + quad] - top_1);
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    scores[1u * a_row + quad] = share * vec4f(scales[(N_HEAD + head) * N_CTX + t0], scales[(N_HEAD + head) * N_CTX + t1], scales[(N_HEAD + head) * N_CTX + t2], scales[(N_HEAD + head) * N_CTX + t3]);
    total_1 += share;
  }
  let sum_1 = subgroupAdd(dot(total_1, vec4f(1.0)));
  let top_2 = subgroupMax(most_2);
  var total_2 = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[2u * a_row + quad] - top_2);
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    scores[2u * a_row + quad] = share * vec4f(scales[(N_HEAD + head) * N_CTX + t0], scales[(N_HEAD + head) * N_CTX + t1], scales[(N_HEAD + head) * N_CTX + t2], scales[(N_HEAD + head) * N_CTX + t3]);
    total_2 += share;
  }
  let sum_2 = subgroupAdd(dot(total_2, vec4f(1.0)));
  let top_3 = subgroupMax(most_3);
  var total_3 = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[3u * a_row + quad] - top_3);
    let t0 = min(first + 4u * quad + 0u, first + count - 1u);
    let t1 = min(first + 4u * quad + 1u, first + count - 1u);
    let t2 = min(first + 4u * quad + 2u, first + count - 1u);
    let t3 = min(first + 4u * quad + 3u, first + count - 1u);
    scores[3u * a_row + quad] = share * vec4f(scales[(N_HEAD + head) * N_CTX + t0], scales[(N_HEAD + head) * N_CTX + t1], scales[(N_HEAD + head) * N_CTX + t2], scales[(N_HEAD + head) * N_CTX + t3]);
    total_3 += share;
  }
  let sum_3 = subgroupAdd(dot(total_3, vec4f(1.0)));
  workgroupBarrier();

  // `width` lanes share a value's columns; the others take other values.
  let width = min(HEAD8, LANES);
  let groups = LANES / width;
  let group = invocation / width;
  for (var from_column = 0u; from_column < HEAD8; from_column += width) {
    let column = min(from_column + invocation % width, HEAD8 - 1u);
    var low_0 = vec4f();
    var low_1 = vec4f();
    var low_2 = vec4f();
    var low_3 = vec4f();
    var high_0 = vec4f();
    var high_1 = vec4f();
    var high_2 = vec4f();
    var high_3 = vec4f();
    for (var quad = select(quads, group, group < groups); quad < quads; quad += groups) {
      let t0 = min(first + 4u * quad + 0u, first + count - 1u);
      let t1 = min(first + 4u * quad + 1u, first + count - 1u);
      let t2 = min(first + 4u * quad + 2u, first + count - 1u);
      let t3 = min(first + 4u * quad + 3u, first + count - 1u);
      let share_0 = scores[0u * a_row + quad];
      let share_1 = scores[1u * a_row + quad];
      let share_2 = scores[2u * a_row + quad];
      let share_3 = scores[3u * a_row + quad];
      let u0 = values[t0 * n8 + head * HEAD8 + column];
      let l0 = integers(u0.xy);
      let h0 = integers(u0.zw);
      low_0 += share_0[0] * l0;
      low_1 += share_1[0] * l0;
      low_2 += share_2[0] * l0;
      low_3 += share_3[0] * l0;
      high_0 += share_0[0] * h0;
      high_1 += share_1[0] * h0;
      high_2 += share_2[0] * h0;
      high_3 += share_3[0] * h0;
      let u1 = values[t1 * n8 + head * HEAD8 + column];
      let l1 = integers(u1.xy);
      let h1 = integers(u1.zw);
      low_0 += share_0[1] * l1;
      low_1 += share_1[1] * l1;
      low_2 += share_2[1] * l1;
      low_3 += share_3[1] * l1;
      high_0 += share_0[1] * h1;
      high_1 += share_1[1] * h1;
      high_2 += share_2[1] * h1;
      high_3 += share_3[1] * h1;
      let u2 = values[t2 * n8 + head * HEAD8 + column];
      let l2 = integers(u2.xy);
      let h2 = integers(u2.zw);
      low_0 += share_0[2] * l2;
      low_1 += share_1[2] * l2;
      low_2 += share_2[2] * l2;
      low_3 += share_3[2] * l2;
      high_0 += share_0[2] * h2;
      high_1 += share_1[2] * h2;
      high_2 += share_2[2] * h2;
      high_3 += share_3[2] * h2;
      let u3 = values[t3 * n8 + head * HEAD8 + column];
      let l3 = integers(u3.xy);
      let h3 = integers(u3.zw);
      low_0 += share_0[3] * l3;
      low_1 += share_1[3] * l3;
      low_2 += share_2[3] * l3;
      low_3 += share_3[3] * l3;
      high_0 += share_0[3] * h3;
      high_1 += share_1[3] * h3;
      high_2 += share_2[3] * h3;
      high_3 += share_3[3] * h3;
    }
    mixes[2u * invocation] = low_0;
    mixes[2u * invocation + 1u] = high_0;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_0 += mixes[2u * (invocation + i * width)];
      high_0 += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
    mixes[2u * invocation] = low_1;
    mixes[2u * invocation + 1u] = high_1;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_1 += mixes[2u * (invocation + i * width)];
      high_1 += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
    mixes[2u * invocation] = low_2;
    mixes[2u * invocation + 1u] = high_2;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_2 += mixes[2u * (invocation + i * width)];
      high_2 += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
    mixes[2u * invocation] = low_3;
    mixes[2u * invocation + 1u] = high_3;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_3 += mixes[2u * (invocation + i * width)];
      high_3 += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
    if (invocation < width && from_column + invocation < HEAD8) {
    if (row + 0u < params.end_row) {
      let to_0 = (((row + 0u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_0] = low_0;
      parts[to_0 + 1u] = high_0;
    }
    if (row + 1u < params.end_row) {
      let to_1 = (((row + 1u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_1] = low_1;
      parts[to_1 + 1u] = high_1;
    }
    if (row + 2u < params.end_row) {
      let to_2 = (((row + 2u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_2] = low_2;
      parts[to_2 + 1u] = high_2;
    }
    if (row + 3u < params.end_row) {
      let to_3 = (((row + 3u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_3] = low_3;
      parts[to_3 + 1u] = high_3;
    }
    }
  }
  if (invocation == 0u && row + 0u < params.end_row) {
    stats[((row + 0u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_0, sum_0);
  }
  if (invocation == 0u && row + 1u < params.end_row) {
    stats[((row + 1u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_1, sum_1);
  }
  if (invocation == 0u && row + 2u < params.end_row) {
    stats[((row + 2u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_2, sum_2);
  }
  if (invocation == 0u && row + 3u < params.end_row) {
    stats[((row + 3u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_3, sum_3);
  }
}
