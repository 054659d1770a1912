// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// A workgroup is one subgroup: a lane scores 4 neighbouring keys at a time, mixes 8 columns of 4 values.
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

override LANES = 8u;
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = 448u;
const LOWEST = -3.0e38;
const ROWS = 1u;
var<workgroup> scores: array<vec4f, ROWS * ((N_CTX + 3u) / 4u)>;
var<workgroup> mixes: array<vec4f, 2u * LANES>;

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
  let from_slots = state[8u + 4u * row + 1u] * N_CTX;
  let first = 0u;
  let count = state[8u + 4u * row + 2u] + 1u;
  let a_row = (N_CTX + 3u) / 4u;  // scores

  let quads = (count + 3u) / 4u;
  var most_0 = LOWEST;
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
    var s0_0 = 0.0;
    var s0_1 = 0.0;
    var s0_2 = 0.0;
    var s0_3 = 0.0;
    for (var c = 0u; c < HEAD8; c += 4u) {
      let at_0 = ((row + 0u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;
      let a_0 = query[at_0];
      let b_0 = query[at_0 + 1u];
      if (c + 0u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 0u);
        let qb_0 = subgroupBroadcast(b_0, 0u);
        let u0 = 2u * (k0 + (c + 0u) * N_CTX);
        let l0 = keys[u0];
        let h0 = keys[u0 + 1u];
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        let u1 = 2u * (k1 + (c + 0u) * N_CTX);
        let l1 = keys[u1];
        let h1 = keys[u1 + 1u];
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        let u2 = 2u * (k2 + (c + 0u) * N_CTX);
        let l2 = keys[u2];
        let h2 = keys[u2 + 1u];
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        let u3 = 2u * (k3 + (c + 0u) * N_CTX);
        let l3 = keys[u3];
        let h3 = keys[u3 + 1u];
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
      }
      if (c + 1u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 1u);
        let qb_0 = subgroupBroadcast(b_0, 1u);
        let u0 = 2u * (k0 + (c + 1u) * N_CTX);
        let l0 = keys[u0];
        let h0 = keys[u0 + 1u];
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        let u1 = 2u * (k1 + (c + 1u) * N_CTX);
        let l1 = keys[u1];
        let h1 = keys[u1 + 1u];
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        let u2 = 2u * (k2 + (c + 1u) * N_CTX);
        let l2 = keys[u2];
        let h2 = keys[u2 + 1u];
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        let u3 = 2u * (k3 + (c + 1u) * N_CTX);
        let l3 = keys[u3];
        let h3 = keys[u3 + 1u];
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
      }
      if (c + 2u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 2u);
        let qb_0 = subgroupBroadcast(b_0, 2u);
        let u0 = 2u * (k0 + (c + 2u) * N_CTX);
        let l0 = keys[u0];
        let h0 = keys[u0 + 1u];
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        let u1 = 2u * (k1 + (c + 2u) * N_CTX);
        let l1 = keys[u1];
        let h1 = keys[u1 + 1u];
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        let u2 = 2u * (k2 + (c + 2u) * N_CTX);
        let l2 = keys[u2];
        let h2 = keys[u2 + 1u];
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        let u3 = 2u * (k3 + (c + 2u) * N_CTX);
        let l3 = keys[u3];
        let h3 = keys[u3 + 1u];
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
      }
      if (c + 3u < HEAD8) {
        let qa_0 = subgroupBroadcast(a_0, 3u);
        let qb_0 = subgroupBroadcast(b_0, 3u);
        let u0 = 2u * (k0 + (c + 3u) * N_CTX);
        let l0 = keys[u0];
        let h0 = keys[u0 + 1u];
        s0_0 += dot(l0, qa_0) + dot(h0, qb_0);
        let u1 = 2u * (k1 + (c + 3u) * N_CTX);
        let l1 = keys[u1];
        let h1 = keys[u1 + 1u];
        s0_1 += dot(l1, qa_0) + dot(h1, qb_0);
        let u2 = 2u * (k2 + (c + 3u) * N_CTX);
        let l2 = keys[u2];
        let h2 = keys[u2 + 1u];
        s0_2 += dot(l2, qa_0) + dot(h2, qb_0);
        let u3 = 2u * (k3 + (c + 3u) * N_CTX);
        let l3 = keys[u3];
        let h3 = keys[u3 + 1u];
        s0_3 += dot(l3, qa_0) + dot(h3, qb_0);
      }
    }
    if (quad < quads) {
      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad < vec4<u32>(count);
      let score_0 = select(vec4f(LOWEST), vec4f(s0_0, s0_1, s0_2, s0_3), inside);
      scores[0u * a_row + quad] = score_0;
      most_0 = max(most_0, max(max(score_0.x, score_0.y), max(score_0.z, score_0.w)));
    }
  }
  let top_0 = subgroupMax(most_0);
  var total_0 = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {
    let share = exp(scores[0u * a_row + quad] - top_0);
    scores[0u * a_row + quad] = share;
    total_0 += share;
  }
  let sum_0 = subgroupAdd(dot(total_0, vec4f(1.0)));
  workgroupBarrier();

  // `width` lanes share a value's columns; the others take other values.
  let width = min(HEAD8, LANES);
  let groups = LANES / width;
  let group = invocation / width;
  for (var from_column = 0u; from_column < HEAD8; from_column += width) {
    let column = min(from_column + invocation % width, HEAD8 - 1u);
    var low_0 = vec4f();
    var high_0 = vec4f();
    for (var quad = select(quads, group, group < groups); quad < quads; quad += groups) {
      let t0 = min(first + 4u * quad + 0u, first + count - 1u);
      let t1 = min(first + 4u * quad + 1u, first + count - 1u);
      let t2 = min(first + 4u * quad + 2u, first + count - 1u);
      let t3 = min(first + 4u * quad + 3u, first + count - 1u);
      let share_0 = scores[0u * a_row + quad];
      let u0 = 2u * ((slots[from_slots + t0] * N_CTX + t0) * n8 + head * HEAD8 + column);
      let l0 = values[u0];
      let h0 = values[u0 + 1u];
      low_0 += share_0[0] * l0;
      high_0 += share_0[0] * h0;
      let u1 = 2u * ((slots[from_slots + t1] * N_CTX + t1) * n8 + head * HEAD8 + column);
      let l1 = values[u1];
      let h1 = values[u1 + 1u];
      low_0 += share_0[1] * l1;
      high_0 += share_0[1] * h1;
      let u2 = 2u * ((slots[from_slots + t2] * N_CTX + t2) * n8 + head * HEAD8 + column);
      let l2 = values[u2];
      let h2 = values[u2 + 1u];
      low_0 += share_0[2] * l2;
      high_0 += share_0[2] * h2;
      let u3 = 2u * ((slots[from_slots + t3] * N_CTX + t3) * n8 + head * HEAD8 + column);
      let l3 = values[u3];
      let h3 = values[u3 + 1u];
      low_0 += share_0[3] * l3;
      high_0 += share_0[3] * h3;
    }
    mixes[2u * invocation] = low_0;
    mixes[2u * invocation + 1u] = high_0;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_0 += mixes[2u * (invocation + i * width)];
      high_0 += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
    if (invocation < width && from_column + invocation < HEAD8) {
    let to_0 = ((row + 0u) * n8 + head * HEAD8 + column) * 2u;
    y[to_0] = low_0 / sum_0;
    y[to_0 + 1u] = high_0 / sum_0;
    }
  }
}
