// out = softmax(q · kᵀ · scale) · v for each head of 64 columns, bidirectional: the encoder's attention.
//
{% if reduction == "subgroup" %}
// A workgroup is one subgroup, for {{ 4 * lanes }} queries of one head; a lane owns 4 queries. For each key, the lanes together load the 64
// columns of the key and of the value, 8 columns a load, and subgroupBroadcast gives each load to all. Scores are relative to the largest
// one before this block of keys; sums are rescaled between blocks only, because that costs as much as a key. A block ends after 64 keys, or
// before a key with a score so far above the reference that its weight might overflow (always true of the first key).
{% else %}
// A workgroup serves 32 queries of one head; 8 invocations share a query, each taking every 8th group of 4 keys, with its own running
// maximum and sums. Keys and values go through workgroup memory, 32 at a time. At the end the 8 partial softmaxes are merged.
{% endif %}
//   qkv  (windows, rows, 3, heads, 64) f32: queries, keys, values
//   out  (windows, rows, heads, 64) f32  out
//   params  rows; heads; scale, the scores' factor, times log2(e)
// dispatch (ceil(rows / {{ 4 * lanes if reduction == "subgroup" else 32 }}), heads, windows)
{% from "shared.wgsl" import broadcast, columns, columns_of, extensions with context %}
{{ extensions() }}
{% if enable_subgroups and reduction == "subgroup" %}
// A workgroup is one subgroup, so all its invocations leave a loop together when subgroupAny says so.
diagnostic(off, subgroup_uniformity);
{% endif %}
struct Params {
  rows: u32,
  heads: u32,
  scale: f32,
}

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(2) var<uniform> params: Params;

var<private> window: u32;  // computed by this workgroup

{% if reduction == "subgroup" %}
const BLOCK = 64u;  // keys between rescalings
const LEAP = 100.0;  // the most a score may exceed the reference, in powers of 2: 64 weights of 2^100 do not overflow f32

{{ columns() }}
// 8 columns of a row: `part` 0 is its query, 1 its key, 2 its value.
fn load(row: u32, part: u32, head: u32, eighth: u32) -> Columns {
  let place = (((window * params.rows + row) * 3u + part) * params.heads + head) * 8u + eighth;
  return {{ columns_of("qkv", "place") }};
}

fn load_query(row: u32, head: u32, eighth: u32) -> Columns {
  let query = load(min(row, params.rows - 1u), 0u, head, eighth);
  return Columns(query.low * params.scale, query.high * params.scale);
}

fn store(row: u32, head: u32, eighth: u32, mix: Columns, total: f32) {
  if (row < params.rows) {
    let place = (((window * params.rows + row) * params.heads + head) * 8u + eighth) * 2u;
    out[place] = mix.low / total;
    out[place + 1u] = mix.high / total;
  }
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  window = group.z;
  let head = group.y;
  let row = (group.x * {{ lanes }}u + lane) * 4u;
{% for query in range(4) %}
  {% for eighth in range(8) %}
  let q{{ query }}_{{ eighth }} = load_query(row + {{ query }}u, head, {{ eighth }}u);
  var mix{{ query }}_{{ eighth }} = Columns();
  {% endfor %}
{% endfor %}
  var top = vec4f(-1e30);  // each query's reference: the largest score before this block
  var seen = top;  // the largest so far
  var total = vec4f();  // each query's sum of weights
  var key = 0u;
  while (key < params.rows) {
    let fade = exp2(top - seen);
    top = seen;
    total *= fade;
{% for query in range(4) %}
  {% for eighth in range(8) %}
    mix{{ query }}_{{ eighth }}.low *= fade[{{ query }}];
    mix{{ query }}_{{ eighth }}.high *= fade[{{ query }}];
  {% endfor %}
{% endfor %}
    let end = min(key + BLOCK, params.rows);
    for (; key < end; key++) {
      // Loads 0 to 7 are the key's columns, 8 to 15 its value's.
{% for i in range(16 // lanes) %}
      let held{{ i }} = load(key, 1u + ({{ i * lanes }}u + lane) / 8u, head, ({{ i * lanes }}u + lane) % 8u);
{% endfor %}
{% for query in range(4) %}
      var score{{ query }} = vec4f();
{% endfor %}
{% for eighth in range(8) %}
      let k{{ eighth }} = {{ broadcast("held%d" % (eighth // lanes), eighth % lanes) }};
  {% for query in range(4) %}
      score{{ query }} += q{{ query }}_{{ eighth }}.low * k{{ eighth }}.low;
      score{{ query }} += q{{ query }}_{{ eighth }}.high * k{{ eighth }}.high;
  {% endfor %}
{% endfor %}
      let score = vec4f({% for query in range(4) %}dot(score{{ query }}, vec4f(1.0)){{ ", " if not loop.last }}{% endfor %});
      seen = max(seen, score);
      if (subgroupAny(any(score > top + LEAP))) {
        break;
      }
      let p = exp2(score - top);
      total += p;
{% for eighth in range(8) %}
      let v{{ eighth }} = {{ broadcast("held%d" % ((8 + eighth) // lanes), (8 + eighth) % lanes) }};
  {% for query in range(4) %}
      mix{{ query }}_{{ eighth }}.low += p[{{ query }}] * v{{ eighth }}.low;
      mix{{ query }}_{{ eighth }}.high += p[{{ query }}] * v{{ eighth }}.high;
  {% endfor %}
{% endfor %}
    }
  }
{% for query in range(4) %}
  {% for eighth in range(8) %}
  store(row + {{ query }}u, head, {{ eighth }}u, mix{{ query }}_{{ eighth }}, total[{{ query }}]);
  {% endfor %}
{% endfor %}
}
{% else %}
const QUERIES = 32u;
const SPLITS = 8u;
const KEYS = 32u;  // in workgroup memory at a time: SPLITS groups of 4

// Keys [32][16 quads of columns], then values alike: all of WebGPU's default 16 KiB. At the end another split's sums
// [16 quads][32 queries], then its (maximum, total) [32 queries].
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
{% endif %}
