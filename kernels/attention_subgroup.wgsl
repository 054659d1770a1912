// out = softmax(q · kᵀ · scale) · v for each head of 64 columns, bidirectional: the encoder's attention for software adapters.
//
// A workgroup is one subgroup of LANES lanes, for 4 · LANES queries of one head; a lane owns 4 queries, their sums in named variables
// (an indexed private array is slow memory in lavapipe). Key after key: the lanes together load the key's and the value's 64 columns,
// 8 columns a load, and subgroupBroadcast hands each to all. Scores are taken relative to the largest seen before this block of keys; the
// sums are rescaled between blocks only, since that costs as much as a key. A block ends after 64 keys, or before a key one of whose
// scores leaps so far above the reference that its weight might overflow (the first key's always does).
//   qkv  (windows, rows, 3, heads, 64) f32: queries, keys, values    in
//   out  (windows, rows, heads, 64) f32                                out
// params: rows; heads; scale, the scores' factor, times log2(e)
// dispatch (ceil(rows / (4 · LANES)), heads, windows)

struct Params {
  rows: u32,
  heads: u32,
  scale: f32,
}

const LANES = 16u;  // the adapter's subgroup size, 4, 8 or 16: set in the text, since a broadcast's lane must be a constant
const BLOCK = 64u;  // keys between rescalings
const LEAP = 100.0;  // the most a score may exceed the reference, in powers of 2: 64 weights of 2^100 do not overflow f32

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(2) var<uniform> params: Params;

var<private> window: u32;  // that this workgroup computes for

struct Columns {
  low: vec4f,
  high: vec4f,
}

// 8 columns of a row: `part` 0 is its query, 1 its key, 2 its value.
fn load(row: u32, part: u32, head: u32, eighth: u32) -> Columns {
  let place = (((window * params.rows + row) * 3u + part) * params.heads + head) * 16u + 2u * eighth;
  return Columns(qkv[place], qkv[place + 1u]);
}

// Of a key's 8 and its value's 8 loads, the one numbered `index`.
fn load_shared(key: u32, head: u32, index: u32) -> Columns {
  return load(key, 1u + index / 8u, head, index % 8u);
}

fn store(row: u32, head: u32, eighth: u32, low: vec4f, high: vec4f) {
  if (row < params.rows) {
    let place = (((window * params.rows + row) * params.heads + head) * 8u + eighth) * 2u;
    out[place] = low;
    out[place + 1u] = high;
  }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  window = group.z;
  let head = group.y;
  let row = (group.x * LANES + lane) * 4u;
  // <unroll.py attention_queries>
  let q0_0 = load(min(row + 0u, params.rows - 1u), 0u, head, 0u);
  let q0_0l = q0_0.low * params.scale; let q0_0h = q0_0.high * params.scale;
  var o0_0l = vec4f(); var o0_0h = vec4f();
  let q0_1 = load(min(row + 0u, params.rows - 1u), 0u, head, 1u);
  let q0_1l = q0_1.low * params.scale; let q0_1h = q0_1.high * params.scale;
  var o0_1l = vec4f(); var o0_1h = vec4f();
  let q0_2 = load(min(row + 0u, params.rows - 1u), 0u, head, 2u);
  let q0_2l = q0_2.low * params.scale; let q0_2h = q0_2.high * params.scale;
  var o0_2l = vec4f(); var o0_2h = vec4f();
  let q0_3 = load(min(row + 0u, params.rows - 1u), 0u, head, 3u);
  let q0_3l = q0_3.low * params.scale; let q0_3h = q0_3.high * params.scale;
  var o0_3l = vec4f(); var o0_3h = vec4f();
  let q0_4 = load(min(row + 0u, params.rows - 1u), 0u, head, 4u);
  let q0_4l = q0_4.low * params.scale; let q0_4h = q0_4.high * params.scale;
  var o0_4l = vec4f(); var o0_4h = vec4f();
  let q0_5 = load(min(row + 0u, params.rows - 1u), 0u, head, 5u);
  let q0_5l = q0_5.low * params.scale; let q0_5h = q0_5.high * params.scale;
  var o0_5l = vec4f(); var o0_5h = vec4f();
  let q0_6 = load(min(row + 0u, params.rows - 1u), 0u, head, 6u);
  let q0_6l = q0_6.low * params.scale; let q0_6h = q0_6.high * params.scale;
  var o0_6l = vec4f(); var o0_6h = vec4f();
  let q0_7 = load(min(row + 0u, params.rows - 1u), 0u, head, 7u);
  let q0_7l = q0_7.low * params.scale; let q0_7h = q0_7.high * params.scale;
  var o0_7l = vec4f(); var o0_7h = vec4f();
  let q1_0 = load(min(row + 1u, params.rows - 1u), 0u, head, 0u);
  let q1_0l = q1_0.low * params.scale; let q1_0h = q1_0.high * params.scale;
  var o1_0l = vec4f(); var o1_0h = vec4f();
  let q1_1 = load(min(row + 1u, params.rows - 1u), 0u, head, 1u);
  let q1_1l = q1_1.low * params.scale; let q1_1h = q1_1.high * params.scale;
  var o1_1l = vec4f(); var o1_1h = vec4f();
  let q1_2 = load(min(row + 1u, params.rows - 1u), 0u, head, 2u);
  let q1_2l = q1_2.low * params.scale; let q1_2h = q1_2.high * params.scale;
  var o1_2l = vec4f(); var o1_2h = vec4f();
  let q1_3 = load(min(row + 1u, params.rows - 1u), 0u, head, 3u);
  let q1_3l = q1_3.low * params.scale; let q1_3h = q1_3.high * params.scale;
  var o1_3l = vec4f(); var o1_3h = vec4f();
  let q1_4 = load(min(row + 1u, params.rows - 1u), 0u, head, 4u);
  let q1_4l = q1_4.low * params.scale; let q1_4h = q1_4.high * params.scale;
  var o1_4l = vec4f(); var o1_4h = vec4f();
  let q1_5 = load(min(row + 1u, params.rows - 1u), 0u, head, 5u);
  let q1_5l = q1_5.low * params.scale; let q1_5h = q1_5.high * params.scale;
  var o1_5l = vec4f(); var o1_5h = vec4f();
  let q1_6 = load(min(row + 1u, params.rows - 1u), 0u, head, 6u);
  let q1_6l = q1_6.low * params.scale; let q1_6h = q1_6.high * params.scale;
  var o1_6l = vec4f(); var o1_6h = vec4f();
  let q1_7 = load(min(row + 1u, params.rows - 1u), 0u, head, 7u);
  let q1_7l = q1_7.low * params.scale; let q1_7h = q1_7.high * params.scale;
  var o1_7l = vec4f(); var o1_7h = vec4f();
  let q2_0 = load(min(row + 2u, params.rows - 1u), 0u, head, 0u);
  let q2_0l = q2_0.low * params.scale; let q2_0h = q2_0.high * params.scale;
  var o2_0l = vec4f(); var o2_0h = vec4f();
  let q2_1 = load(min(row + 2u, params.rows - 1u), 0u, head, 1u);
  let q2_1l = q2_1.low * params.scale; let q2_1h = q2_1.high * params.scale;
  var o2_1l = vec4f(); var o2_1h = vec4f();
  let q2_2 = load(min(row + 2u, params.rows - 1u), 0u, head, 2u);
  let q2_2l = q2_2.low * params.scale; let q2_2h = q2_2.high * params.scale;
  var o2_2l = vec4f(); var o2_2h = vec4f();
  let q2_3 = load(min(row + 2u, params.rows - 1u), 0u, head, 3u);
  let q2_3l = q2_3.low * params.scale; let q2_3h = q2_3.high * params.scale;
  var o2_3l = vec4f(); var o2_3h = vec4f();
  let q2_4 = load(min(row + 2u, params.rows - 1u), 0u, head, 4u);
  let q2_4l = q2_4.low * params.scale; let q2_4h = q2_4.high * params.scale;
  var o2_4l = vec4f(); var o2_4h = vec4f();
  let q2_5 = load(min(row + 2u, params.rows - 1u), 0u, head, 5u);
  let q2_5l = q2_5.low * params.scale; let q2_5h = q2_5.high * params.scale;
  var o2_5l = vec4f(); var o2_5h = vec4f();
  let q2_6 = load(min(row + 2u, params.rows - 1u), 0u, head, 6u);
  let q2_6l = q2_6.low * params.scale; let q2_6h = q2_6.high * params.scale;
  var o2_6l = vec4f(); var o2_6h = vec4f();
  let q2_7 = load(min(row + 2u, params.rows - 1u), 0u, head, 7u);
  let q2_7l = q2_7.low * params.scale; let q2_7h = q2_7.high * params.scale;
  var o2_7l = vec4f(); var o2_7h = vec4f();
  let q3_0 = load(min(row + 3u, params.rows - 1u), 0u, head, 0u);
  let q3_0l = q3_0.low * params.scale; let q3_0h = q3_0.high * params.scale;
  var o3_0l = vec4f(); var o3_0h = vec4f();
  let q3_1 = load(min(row + 3u, params.rows - 1u), 0u, head, 1u);
  let q3_1l = q3_1.low * params.scale; let q3_1h = q3_1.high * params.scale;
  var o3_1l = vec4f(); var o3_1h = vec4f();
  let q3_2 = load(min(row + 3u, params.rows - 1u), 0u, head, 2u);
  let q3_2l = q3_2.low * params.scale; let q3_2h = q3_2.high * params.scale;
  var o3_2l = vec4f(); var o3_2h = vec4f();
  let q3_3 = load(min(row + 3u, params.rows - 1u), 0u, head, 3u);
  let q3_3l = q3_3.low * params.scale; let q3_3h = q3_3.high * params.scale;
  var o3_3l = vec4f(); var o3_3h = vec4f();
  let q3_4 = load(min(row + 3u, params.rows - 1u), 0u, head, 4u);
  let q3_4l = q3_4.low * params.scale; let q3_4h = q3_4.high * params.scale;
  var o3_4l = vec4f(); var o3_4h = vec4f();
  let q3_5 = load(min(row + 3u, params.rows - 1u), 0u, head, 5u);
  let q3_5l = q3_5.low * params.scale; let q3_5h = q3_5.high * params.scale;
  var o3_5l = vec4f(); var o3_5h = vec4f();
  let q3_6 = load(min(row + 3u, params.rows - 1u), 0u, head, 6u);
  let q3_6l = q3_6.low * params.scale; let q3_6h = q3_6.high * params.scale;
  var o3_6l = vec4f(); var o3_6h = vec4f();
  let q3_7 = load(min(row + 3u, params.rows - 1u), 0u, head, 7u);
  let q3_7l = q3_7.low * params.scale; let q3_7h = q3_7.high * params.scale;
  var o3_7l = vec4f(); var o3_7h = vec4f();
  // </unroll.py>
  var top = vec4f(-1e30);  // each query's reference: the largest score before this block
  var seen = top;  // the largest so far
  var total = vec4f();  // each query's sum of weights
  var key = 0u;
  while (key < params.rows) {
    let fade = exp2(top - seen);
    top = seen;
    total *= fade;
    // <unroll.py attention_fade>
    o0_0l *= fade.x; o1_0l *= fade.y; o2_0l *= fade.z; o3_0l *= fade.w;
    o0_0h *= fade.x; o1_0h *= fade.y; o2_0h *= fade.z; o3_0h *= fade.w;
    o0_1l *= fade.x; o1_1l *= fade.y; o2_1l *= fade.z; o3_1l *= fade.w;
    o0_1h *= fade.x; o1_1h *= fade.y; o2_1h *= fade.z; o3_1h *= fade.w;
    o0_2l *= fade.x; o1_2l *= fade.y; o2_2l *= fade.z; o3_2l *= fade.w;
    o0_2h *= fade.x; o1_2h *= fade.y; o2_2h *= fade.z; o3_2h *= fade.w;
    o0_3l *= fade.x; o1_3l *= fade.y; o2_3l *= fade.z; o3_3l *= fade.w;
    o0_3h *= fade.x; o1_3h *= fade.y; o2_3h *= fade.z; o3_3h *= fade.w;
    o0_4l *= fade.x; o1_4l *= fade.y; o2_4l *= fade.z; o3_4l *= fade.w;
    o0_4h *= fade.x; o1_4h *= fade.y; o2_4h *= fade.z; o3_4h *= fade.w;
    o0_5l *= fade.x; o1_5l *= fade.y; o2_5l *= fade.z; o3_5l *= fade.w;
    o0_5h *= fade.x; o1_5h *= fade.y; o2_5h *= fade.z; o3_5h *= fade.w;
    o0_6l *= fade.x; o1_6l *= fade.y; o2_6l *= fade.z; o3_6l *= fade.w;
    o0_6h *= fade.x; o1_6h *= fade.y; o2_6h *= fade.z; o3_6h *= fade.w;
    o0_7l *= fade.x; o1_7l *= fade.y; o2_7l *= fade.z; o3_7l *= fade.w;
    o0_7h *= fade.x; o1_7h *= fade.y; o2_7h *= fade.z; o3_7h *= fade.w;
    // </unroll.py>
    let end = min(key + BLOCK, params.rows);
    for (; key < end; key++) {
      // <unroll.py attention_scores>
      // Load i is held by lane i % LANES in held[i / LANES]: 0 to 7 are the key's columns, 8 to 15 its value's.
      let held = array<Columns, 4>(
        load_shared(key, head, lane + 0u % (16u / LANES) * LANES),
        load_shared(key, head, lane + 1u % (16u / LANES) * LANES),
        load_shared(key, head, lane + 2u % (16u / LANES) * LANES),
        load_shared(key, head, lane + 3u % (16u / LANES) * LANES),
      );
      var s0 = vec4f();
      var s1 = vec4f();
      var s2 = vec4f();
      var s3 = vec4f();
      let k0l = subgroupBroadcast(held[0u / LANES].low, 0u % LANES); s0 += q0_0l * k0l; s1 += q1_0l * k0l; s2 += q2_0l * k0l; s3 += q3_0l * k0l;
      let k0h = subgroupBroadcast(held[0u / LANES].high, 0u % LANES); s0 += q0_0h * k0h; s1 += q1_0h * k0h; s2 += q2_0h * k0h; s3 += q3_0h * k0h;
      let k1l = subgroupBroadcast(held[1u / LANES].low, 1u % LANES); s0 += q0_1l * k1l; s1 += q1_1l * k1l; s2 += q2_1l * k1l; s3 += q3_1l * k1l;
      let k1h = subgroupBroadcast(held[1u / LANES].high, 1u % LANES); s0 += q0_1h * k1h; s1 += q1_1h * k1h; s2 += q2_1h * k1h; s3 += q3_1h * k1h;
      let k2l = subgroupBroadcast(held[2u / LANES].low, 2u % LANES); s0 += q0_2l * k2l; s1 += q1_2l * k2l; s2 += q2_2l * k2l; s3 += q3_2l * k2l;
      let k2h = subgroupBroadcast(held[2u / LANES].high, 2u % LANES); s0 += q0_2h * k2h; s1 += q1_2h * k2h; s2 += q2_2h * k2h; s3 += q3_2h * k2h;
      let k3l = subgroupBroadcast(held[3u / LANES].low, 3u % LANES); s0 += q0_3l * k3l; s1 += q1_3l * k3l; s2 += q2_3l * k3l; s3 += q3_3l * k3l;
      let k3h = subgroupBroadcast(held[3u / LANES].high, 3u % LANES); s0 += q0_3h * k3h; s1 += q1_3h * k3h; s2 += q2_3h * k3h; s3 += q3_3h * k3h;
      let k4l = subgroupBroadcast(held[4u / LANES].low, 4u % LANES); s0 += q0_4l * k4l; s1 += q1_4l * k4l; s2 += q2_4l * k4l; s3 += q3_4l * k4l;
      let k4h = subgroupBroadcast(held[4u / LANES].high, 4u % LANES); s0 += q0_4h * k4h; s1 += q1_4h * k4h; s2 += q2_4h * k4h; s3 += q3_4h * k4h;
      let k5l = subgroupBroadcast(held[5u / LANES].low, 5u % LANES); s0 += q0_5l * k5l; s1 += q1_5l * k5l; s2 += q2_5l * k5l; s3 += q3_5l * k5l;
      let k5h = subgroupBroadcast(held[5u / LANES].high, 5u % LANES); s0 += q0_5h * k5h; s1 += q1_5h * k5h; s2 += q2_5h * k5h; s3 += q3_5h * k5h;
      let k6l = subgroupBroadcast(held[6u / LANES].low, 6u % LANES); s0 += q0_6l * k6l; s1 += q1_6l * k6l; s2 += q2_6l * k6l; s3 += q3_6l * k6l;
      let k6h = subgroupBroadcast(held[6u / LANES].high, 6u % LANES); s0 += q0_6h * k6h; s1 += q1_6h * k6h; s2 += q2_6h * k6h; s3 += q3_6h * k6h;
      let k7l = subgroupBroadcast(held[7u / LANES].low, 7u % LANES); s0 += q0_7l * k7l; s1 += q1_7l * k7l; s2 += q2_7l * k7l; s3 += q3_7l * k7l;
      let k7h = subgroupBroadcast(held[7u / LANES].high, 7u % LANES); s0 += q0_7h * k7h; s1 += q1_7h * k7h; s2 += q2_7h * k7h; s3 += q3_7h * k7h;
      let score = vec4f(dot(s0, vec4f(1.0)), dot(s1, vec4f(1.0)), dot(s2, vec4f(1.0)), dot(s3, vec4f(1.0)));
      // </unroll.py>
      seen = max(seen, score);
      if (subgroupAny(any(score > top + LEAP))) {
        break;
      }
      let p = exp2(score - top);
      total += p;
      // <unroll.py attention_sums>
      let v0l = subgroupBroadcast(held[8u / LANES].low, 8u % LANES); o0_0l += p.x * v0l; o1_0l += p.y * v0l; o2_0l += p.z * v0l; o3_0l += p.w * v0l;
      let v0h = subgroupBroadcast(held[8u / LANES].high, 8u % LANES); o0_0h += p.x * v0h; o1_0h += p.y * v0h; o2_0h += p.z * v0h; o3_0h += p.w * v0h;
      let v1l = subgroupBroadcast(held[9u / LANES].low, 9u % LANES); o0_1l += p.x * v1l; o1_1l += p.y * v1l; o2_1l += p.z * v1l; o3_1l += p.w * v1l;
      let v1h = subgroupBroadcast(held[9u / LANES].high, 9u % LANES); o0_1h += p.x * v1h; o1_1h += p.y * v1h; o2_1h += p.z * v1h; o3_1h += p.w * v1h;
      let v2l = subgroupBroadcast(held[10u / LANES].low, 10u % LANES); o0_2l += p.x * v2l; o1_2l += p.y * v2l; o2_2l += p.z * v2l; o3_2l += p.w * v2l;
      let v2h = subgroupBroadcast(held[10u / LANES].high, 10u % LANES); o0_2h += p.x * v2h; o1_2h += p.y * v2h; o2_2h += p.z * v2h; o3_2h += p.w * v2h;
      let v3l = subgroupBroadcast(held[11u / LANES].low, 11u % LANES); o0_3l += p.x * v3l; o1_3l += p.y * v3l; o2_3l += p.z * v3l; o3_3l += p.w * v3l;
      let v3h = subgroupBroadcast(held[11u / LANES].high, 11u % LANES); o0_3h += p.x * v3h; o1_3h += p.y * v3h; o2_3h += p.z * v3h; o3_3h += p.w * v3h;
      let v4l = subgroupBroadcast(held[12u / LANES].low, 12u % LANES); o0_4l += p.x * v4l; o1_4l += p.y * v4l; o2_4l += p.z * v4l; o3_4l += p.w * v4l;
      let v4h = subgroupBroadcast(held[12u / LANES].high, 12u % LANES); o0_4h += p.x * v4h; o1_4h += p.y * v4h; o2_4h += p.z * v4h; o3_4h += p.w * v4h;
      let v5l = subgroupBroadcast(held[13u / LANES].low, 13u % LANES); o0_5l += p.x * v5l; o1_5l += p.y * v5l; o2_5l += p.z * v5l; o3_5l += p.w * v5l;
      let v5h = subgroupBroadcast(held[13u / LANES].high, 13u % LANES); o0_5h += p.x * v5h; o1_5h += p.y * v5h; o2_5h += p.z * v5h; o3_5h += p.w * v5h;
      let v6l = subgroupBroadcast(held[14u / LANES].low, 14u % LANES); o0_6l += p.x * v6l; o1_6l += p.y * v6l; o2_6l += p.z * v6l; o3_6l += p.w * v6l;
      let v6h = subgroupBroadcast(held[14u / LANES].high, 14u % LANES); o0_6h += p.x * v6h; o1_6h += p.y * v6h; o2_6h += p.z * v6h; o3_6h += p.w * v6h;
      let v7l = subgroupBroadcast(held[15u / LANES].low, 15u % LANES); o0_7l += p.x * v7l; o1_7l += p.y * v7l; o2_7l += p.z * v7l; o3_7l += p.w * v7l;
      let v7h = subgroupBroadcast(held[15u / LANES].high, 15u % LANES); o0_7h += p.x * v7h; o1_7h += p.y * v7h; o2_7h += p.z * v7h; o3_7h += p.w * v7h;
      // </unroll.py>
    }
  }
  // <unroll.py attention_stores>
  store(row + 0u, head, 0u, o0_0l / total.x, o0_0h / total.x);
  store(row + 0u, head, 1u, o0_1l / total.x, o0_1h / total.x);
  store(row + 0u, head, 2u, o0_2l / total.x, o0_2h / total.x);
  store(row + 0u, head, 3u, o0_3l / total.x, o0_3h / total.x);
  store(row + 0u, head, 4u, o0_4l / total.x, o0_4h / total.x);
  store(row + 0u, head, 5u, o0_5l / total.x, o0_5h / total.x);
  store(row + 0u, head, 6u, o0_6l / total.x, o0_6h / total.x);
  store(row + 0u, head, 7u, o0_7l / total.x, o0_7h / total.x);
  store(row + 1u, head, 0u, o1_0l / total.y, o1_0h / total.y);
  store(row + 1u, head, 1u, o1_1l / total.y, o1_1h / total.y);
  store(row + 1u, head, 2u, o1_2l / total.y, o1_2h / total.y);
  store(row + 1u, head, 3u, o1_3l / total.y, o1_3h / total.y);
  store(row + 1u, head, 4u, o1_4l / total.y, o1_4h / total.y);
  store(row + 1u, head, 5u, o1_5l / total.y, o1_5h / total.y);
  store(row + 1u, head, 6u, o1_6l / total.y, o1_6h / total.y);
  store(row + 1u, head, 7u, o1_7l / total.y, o1_7h / total.y);
  store(row + 2u, head, 0u, o2_0l / total.z, o2_0h / total.z);
  store(row + 2u, head, 1u, o2_1l / total.z, o2_1h / total.z);
  store(row + 2u, head, 2u, o2_2l / total.z, o2_2h / total.z);
  store(row + 2u, head, 3u, o2_3l / total.z, o2_3h / total.z);
  store(row + 2u, head, 4u, o2_4l / total.z, o2_4h / total.z);
  store(row + 2u, head, 5u, o2_5l / total.z, o2_5h / total.z);
  store(row + 2u, head, 6u, o2_6l / total.z, o2_6h / total.z);
  store(row + 2u, head, 7u, o2_7l / total.z, o2_7h / total.z);
  store(row + 3u, head, 0u, o3_0l / total.w, o3_0h / total.w);
  store(row + 3u, head, 1u, o3_1l / total.w, o3_1h / total.w);
  store(row + 3u, head, 2u, o3_2l / total.w, o3_2h / total.w);
  store(row + 3u, head, 3u, o3_3l / total.w, o3_3h / total.w);
  store(row + 3u, head, 4u, o3_4l / total.w, o3_4h / total.w);
  store(row + 3u, head, 5u, o3_5l / total.w, o3_5h / total.w);
  store(row + 3u, head, 6u, o3_6l / total.w, o3_6h / total.w);
  store(row + 3u, head, 7u, o3_7l / total.w, o3_7h / total.w);
  // </unroll.py>
}
