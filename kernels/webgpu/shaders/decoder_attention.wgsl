{# `over`: "self", the sequence's own tokens so far, or "cross", the audio. #}
{% if over == "self" %}
// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
{% else %}
// parts[row, split, head] = exp(query · keys - max) @ values over a split of the audio; stats = (max, sum of exp).
{% endif %}
//
// A workgroup computes one head of ROWS rows. First each invocation scores KEYS_EACH neighbouring keys at a time; then the scores
// become weights; then each invocation sums 8 columns of KEYS_EACH values at a time, and sums of the same columns are added.
//   query   (rows, N_HEAD, 8 HEAD8) f32, scaled
{% if over == "self" %}
//   keys    (slots, n / 8, N_CTX, 8) f32, n = 8 HEAD8 N_HEAD
//   values  (slots, N_CTX, n) f32
//   slots   (sequences, N_CTX) u32: which slot's cache holds a sequence's position
//   state   State: a row's slot and position
//   y       (rows, n) f32  out
//   params  the rows of the one context whose cache this is
// dispatch (N_HEAD, end_row - first_row, 1)
{% else %}
//   keys    (n / 8, N_CTX, 8) i16, n = 8 HEAD8 N_HEAD
//   values  (N_CTX, n) i16
//   scales  (2, N_HEAD, N_CTX) f32: the factors of a head's key and of its value at a position
//   state   State
//   parts   (rows, SPLITS, n) f32  out
//   stats   (rows, N_HEAD, SPLITS) × (max, sum) f32  out
//   params  the rows of the context that attends to this audio
// dispatch (N_HEAD, ceil((end_row - first_row) / ROWS), SPLITS)
{% endif %}
{% from "shared.wgsl" import broadcast, columns, columns_of, extensions, state, sum_all with context %}
{% set each = 4 if reduction == "subgroup" else 1 %}
{{ extensions() }}
{{ state() }}
struct Params {
  first_row: u32,
  end_row: u32,
}

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
{% if over == "self" %}
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> slots: array<u32>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(6) var<uniform> params: Params;
{% else %}
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(7) var<uniform> params: Params;
{% endif %}

override WORKGROUP = 64u;  // with reduction "workgroup" a power of two, HEAD8 or more
override HEAD8 = 8u;  // a head's columns / 8
override N_HEAD = 6u;
override N_CTX = {{ 448 if over == "self" else 1500 }}u;
override SPLITS = 1u;
const ROWS = {{ rows }}u;
const KEYS_EACH = {{ each }}u;  // neighbouring keys per step of an invocation
const LOWEST = -3.0e38;
// (ROWS, groups of KEYS_EACH keys), then their weights
var<workgroup> scores: array<{{ "vec4f" if each == 4 else "f32" }}, ROWS * (((N_CTX + SPLITS - 1u) / SPLITS + KEYS_EACH - 1u) / KEYS_EACH)>;
var<workgroup> mixes: array<vec4f, 2u * WORKGROUP>;

{{ columns() }}
{{ sum_all() }}
// The largest over the workgroup, in all invocations.
fn max_all(value: f32, invocation: u32) -> f32 {
{% if reduction == "subgroup" %}
  return subgroupMax(value);
{% else %}
  sums[invocation] = vec4f(value);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      sums[invocation] = max(sums[invocation], sums[invocation + half]);
    }
  }
  workgroupBarrier();
  let most = sums[0].x;
  workgroupBarrier();
  return most;
{% endif %}
}

{% if over == "self" %}
// The first 8 columns of key t among keys; the next are N_CTX further.
fn find_key(t: u32, head: u32, row: u32) -> u32 {
  let slot = slots[state.rows[row].slot * N_CTX + t];
  return (slot * N_HEAD + head) * HEAD8 * N_CTX + t;
}

// The first 8 columns of value t among values; the next follow.
fn find_value(t: u32, head: u32, row: u32) -> u32 {
  let slot = slots[state.rows[row].slot * N_CTX + t];
  return ((slot * N_CTX + t) * N_HEAD + head) * HEAD8;
}

fn load_key(place: u32) -> Columns {
  return {{ columns_of("keys", "place") }};
}

fn load_value(place: u32) -> Columns {
  return {{ columns_of("values", "place") }};
}
{% else %}
fn find_key(t: u32, head: u32, row: u32) -> u32 {
  return head * HEAD8 * N_CTX + t;
}

fn find_value(t: u32, head: u32, row: u32) -> u32 {
  return (t * N_HEAD + head) * HEAD8;
}

// Two i16 a word, the lower index in the low half.
fn from_i16(u: vec4<u32>) -> Columns {
  let low = bitcast<vec4<i32>>(vec4<u32>(u.x << 16u, u.x, u.y << 16u, u.y)) >> vec4<u32>(16u);
  let high = bitcast<vec4<i32>>(vec4<u32>(u.z << 16u, u.z, u.w << 16u, u.w)) >> vec4<u32>(16u);
  return Columns(vec4f(low), vec4f(high));
}

fn load_key(place: u32) -> Columns {
  return from_i16(keys[place]);
}

fn load_value(place: u32) -> Columns {
  return from_i16(values[place]);
}
{% endif %}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let head = workgroup.x;
  let row = params.first_row + workgroup.y * ROWS;
  let split = workgroup.z;
{% if over == "self" %}
  let first = 0u;
  let count = state.rows[row].position + 1u;
{% else %}
  let first = min(split * ((N_CTX + SPLITS - 1u) / SPLITS), N_CTX);
  let count = min((N_CTX + SPLITS - 1u) / SPLITS, N_CTX - first);
{% endif %}
  let groups = (count + KEYS_EACH - 1u) / KEYS_EACH;
  let of_row = ((N_CTX + SPLITS - 1u) / SPLITS + KEYS_EACH - 1u) / KEYS_EACH;  // scores

  // Scores of all keys.
{% for r in range(rows) %}
  var most{{ r }} = LOWEST;
{% endfor %}
{% if reduction == "subgroup" %}
  // Every lane runs the loop equally often, so that all of them take part in the query's broadcasts.
  for (var from_group = 0u; from_group < groups; from_group += WORKGROUP) {
    let group = from_group + invocation;
    let t = first + min(4u * group + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(count - 1u));  // past the last key, the last again
  {% for i in range(4) %}
    let key{{ i }} = find_key(t[{{ i }}], head, row);
  {% endfor %}
  {% for r in range(rows) %}
    var score{{ r }} = vec4f();
  {% endfor %}
    for (var c = 0u; c < HEAD8; c += 4u) {
      // Lane l holds part l % 4 of the next 4 × 8 columns of the query.
  {% for r in range(rows) %}
      let query{{ r }} = {{ columns_of("query", "((row + %du) * N_HEAD + head) * HEAD8 + c + invocation %% 4u" | format(r)) }};
  {% endfor %}
  {% for part in range(4) %}
      if (c + {{ part }}u < HEAD8) {
    {% for i in range(4) %}
        let k{{ i }} = load_key(key{{ i }} + (c + {{ part }}u) * N_CTX);
    {% endfor %}
    {% for r in range(rows) %}
        let q{{ r }} = {{ broadcast("query" ~ r, part) }};
        score{{ r }} += vec4f({% for i in range(4) %}dot8(k{{ i }}, q{{ r }}){{ ", " if not loop.last }}{% endfor %});
    {% endfor %}
      }
  {% endfor %}
    }
    if (group < groups) {
      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * group < vec4<u32>(count);
  {% if over == "cross" %}
      let scale = vec4f({% for i in range(4) %}scales[head * N_CTX + t[{{ i }}]]{{ ", " if not loop.last }}{% endfor %});
  {% endif %}
  {% for r in range(rows) %}
      score{{ r }} = select(vec4f(LOWEST), score{{ r }}{{ " * scale" if over == "cross" }}, inside);
      scores[{{ r }}u * of_row + group] = score{{ r }};
      most{{ r }} = max(most{{ r }}, max(max(score{{ r }}.x, score{{ r }}.y), max(score{{ r }}.z, score{{ r }}.w)));
  {% endfor %}
    }
  }
{% else %}
  for (var i = invocation; i < count; i += WORKGROUP) {
    let t = first + i;
    let key = find_key(t, head, row);
  {% for r in range(rows) %}
    var score{{ r }} = 0.0;
  {% endfor %}
    for (var c = 0u; c < HEAD8; c++) {
      let k = load_key(key + c * N_CTX);
  {% for r in range(rows) %}
      score{{ r }} += dot8(k, {{ columns_of("query", "((row + %du) * N_HEAD + head) * HEAD8 + c" | format(r)) }});
  {% endfor %}
    }
  {% for r in range(rows) %}
    {% if over == "cross" %}
    score{{ r }} *= scales[head * N_CTX + t];
    {% endif %}
    scores[{{ r }}u * of_row + i] = score{{ r }};
    most{{ r }} = max(most{{ r }}, score{{ r }});
  {% endfor %}
  }
{% endif %}

  // Their weights, each value's scale multiplied in.
{% for r in range(rows) %}
  let top{{ r }} = max_all(most{{ r }}, invocation);
  var total{{ r }} = {{ "vec4f()" if each == 4 else "0.0" }};
  for (var group = invocation; group < groups; group += WORKGROUP) {
    let share = exp(scores[{{ r }}u * of_row + group] - top{{ r }});
  {% if over == "self" %}
    scores[{{ r }}u * of_row + group] = share;
  {% elif each == 4 %}
    let t = (N_HEAD + head) * N_CTX + first + min(4u * group + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(count - 1u));
    scores[{{ r }}u * of_row + group] = share * vec4f({% for i in range(4) %}scales[t[{{ i }}]]{{ ", " if not loop.last }}{% endfor %});
  {% else %}
    scores[{{ r }}u * of_row + group] = share * scales[(N_HEAD + head) * N_CTX + first + group];
  {% endif %}
    total{{ r }} += share;
  }
  let sum{{ r }} = sum_all({{ "dot(total%d, vec4f(1.0))" % r if each == 4 else "total%d" % r }}, invocation);
{% endfor %}
  workgroupBarrier();

  // The values by their weights. `width` invocations share a value's columns; the others take other values.
  let width = min(HEAD8, WORKGROUP);
  let sharers = WORKGROUP / width;
  let sharer = invocation / width;
  for (var from_column = 0u; from_column < HEAD8; from_column += width) {
    let column = min(from_column + invocation % width, HEAD8 - 1u);
{% for r in range(rows) %}
    var mix{{ r }} = Columns();
{% endfor %}
    for (var group = select(groups, sharer, sharer < sharers); group < groups; group += sharers) {
{% for r in range(rows) %}
      let share{{ r }} = scores[{{ r }}u * of_row + group];
{% endfor %}
{% for i in range(each) %}
      let v{{ i }} = load_value(find_value(first + min(KEYS_EACH * group + {{ i }}u, count - 1u), head, row) + column);
  {% for r in range(rows) %}
      mix{{ r }}.low += share{{ r }}{{ "[%d]" % i if each == 4 }} * v{{ i }}.low;
      mix{{ r }}.high += share{{ r }}{{ "[%d]" % i if each == 4 }} * v{{ i }}.high;
  {% endfor %}
{% endfor %}
    }
{% for r in range(rows) %}
    mixes[2u * invocation] = mix{{ r }}.low;
    mixes[2u * invocation + 1u] = mix{{ r }}.high;
    workgroupBarrier();
    for (var i = select(sharers, 1u, invocation < width); i < sharers; i++) {
      mix{{ r }}.low += mixes[2u * (invocation + i * width)];
      mix{{ r }}.high += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();
{% endfor %}
    if (invocation < width && from_column + invocation < HEAD8) {
{% for r in range(rows) %}
  {% if over == "self" %}
      let place{{ r }} = (((row + {{ r }}u) * N_HEAD + head) * HEAD8 + column) * 2u;
      y[place{{ r }}] = mix{{ r }}.low / sum{{ r }};
      y[place{{ r }} + 1u] = mix{{ r }}.high / sum{{ r }};
  {% else %}
      if (row + {{ r }}u < params.end_row) {
        let place = ((((row + {{ r }}u) * SPLITS + split) * N_HEAD + head) * HEAD8 + column) * 2u;
        parts[place] = mix{{ r }}.low;
        parts[place + 1u] = mix{{ r }}.high;
      }
  {% endif %}
{% endfor %}
    }
  }
{% if over == "cross" %}
  {% for r in range(rows) %}
  if (invocation == 0u && row + {{ r }}u < params.end_row) {
    stats[((row + {{ r }}u) * N_HEAD + head) * SPLITS + split] = vec2f(top{{ r }}, sum{{ r }});
  }
  {% endfor %}
{% endif %}
}
