// out = softmax(q · kᵀ · scale) · v for each head of 64 columns, bidirectional: the encoder's attention for hardware adapters.
//
// A workgroup serves 32 queries of one head; 8 invocations share a query, each taking every 8th group of 4 keys, with its own running
// maximum and sums. Keys and values go through shared memory, 32 at a time. At the end the 8 partial softmaxes are merged.
//   qkv  (windows, rows, 3, heads, 64) f32: queries, keys, values    in
//   out  (windows, rows, heads, 64) f32                                out
// params: rows; heads; scale, the scores' factor, times log2(e)
// dispatch (ceil(rows / 32), heads, windows)

struct Params {
  rows: u32,
  heads: u32,
  scale: f32,
}

const QUERIES = 32u;
const SPLITS = 8u;
const KEYS = 32u;  // in shared memory at a time: SPLITS groups of 4

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(2) var<uniform> params: Params;

var<private> window: u32;  // that this workgroup computes for

// Keys [32][16 quads of columns], then values alike: all of WebGPU's default 16 KiB. At the end another split's sums [16 quads][32 queries],
// then its (maximum, total) [32 queries].
var<workgroup> tile: array<vec4f, 1024>;

// 4 columns of a row: `part` 0 is its query, 1 its key, 2 its value.
fn load(row: u32, part: u32, head: u32, quad: u32) -> vec4f {
  return qkv[(((window * params.rows + min(row, params.rows - 1u)) * 3u + part) * params.heads + head) * 16u + quad];
}

@compute @workgroup_size(QUERIES, SPLITS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  window = group.z;
  let head = group.y;
  let query = local.x;
  let split = local.y;
  let row = group.x * QUERIES + query;
  var q: array<vec4f, 16>;
  var sums: array<vec4f, 16>;
  for (var quad = 0u; quad < 16u; quad++) {
    q[quad] = load(row, 0u, head, quad) * params.scale;
    sums[quad] = vec4f();
  }
  var top = -1e30;
  var total = 0.0;
  for (var first = 0u; first < params.rows; first += KEYS) {
    for (var i = invocation; i < 2u * KEYS * 16u; i += QUERIES * SPLITS) {
      tile[i] = load(first + i / 16u % KEYS, 1u + i / (KEYS * 16u), head, i % 16u);
    }
    workgroupBarrier();
    let key = first + split * 4u;
    let keys = split * 64u;
    var score = vec4f();
    for (var quad = 0u; quad < 16u; quad++) {
      score += vec4f(
        dot(q[quad], tile[keys + quad]),
        dot(q[quad], tile[keys + 16u + quad]),
        dot(q[quad], tile[keys + 32u + quad]),
        dot(q[quad], tile[keys + 48u + quad]),
      );
    }
    let inside = vec4<u32>(key, key + 1u, key + 2u, key + 3u) < vec4<u32>(params.rows);
    score = select(vec4f(-1e30), score, inside);
    let new_top = max(top, max(max(score.x, score.y), max(score.z, score.w)));
    let fade = exp2(top - new_top);
    let p = select(vec4f(), exp2(score - new_top), inside);
    top = new_top;
    total = total * fade + dot(p, vec4f(1.0));
    let values = KEYS * 16u + keys;
    for (var quad = 0u; quad < 16u; quad++) {
      sums[quad] = sums[quad] * fade + p.x * tile[values + quad] + p.y * tile[values + 16u + quad]
        + p.z * tile[values + 32u + quad] + p.w * tile[values + 48u + quad];
    }
    workgroupBarrier();
  }
  for (var other = 1u; other < SPLITS; other++) {
    if (split == other) {
      tile[16u * QUERIES + query] = vec4f(top, total, 0.0, 0.0);
      for (var quad = 0u; quad < 16u; quad++) {
        tile[quad * QUERIES + query] = sums[quad];
      }
    }
    workgroupBarrier();
    if (split == 0u) {
      let theirs = tile[16u * QUERIES + query];
      let new_top = max(top, theirs.x);
      let fade = exp2(top - new_top);
      let other_fade = exp2(theirs.x - new_top);
      top = new_top;
      total = total * fade + theirs.y * other_fade;
      for (var quad = 0u; quad < 16u; quad++) {
        sums[quad] = sums[quad] * fade + tile[quad * QUERIES + query] * other_fade;
      }
    }
    workgroupBarrier();
  }
  if (split == 0u && row < params.rows) {
    for (var quad = 0u; quad < 16u; quad++) {
      out[((window * params.rows + row) * params.heads + head) * 16u + quad] = sums[quad] / total;
    }
  }
}
