{#
What several kernels share, as macros. A kernel imports those it uses at its top, so that its text stays readable from there on:
    {% from "shared.wgsl" import gelu, state with context %}
They read these template parameters of the kernel:
    reduction         "subgroup": a workgroup is one subgroup, whose lanes share loads by subgroupBroadcast. For software adapters.
                      "workgroup": invocations share loads and sums in workgroup memory. Needs no subgroups. For hardware.
    lanes             invocations of a subgroup: 4, 8 or 16. Only for the encoder's kernels with reduction "subgroup"
    rows              rows of activations that one workgroup of the decoder computes: 1 or 4
    enable_subgroups  whether the compiler wants `enable subgroups;`: Tint does, naga (wgpu 29) rejects it
Why unroll: lavapipe keeps an array that is indexed by a variable in slow memory, so a tile's sums are variables with names.
#}

{% macro extensions() %}
{% if enable_subgroups and reduction == "subgroup" %}
enable subgroups;
{% endif %}
{% endmacro %}

{% macro gelu() %}
// GELU(x) = x · Φ(x). erf by Abramowitz & Stegun 7.1.26, within 1.5e-7.
fn gelu(x: vec4f) -> vec4f {
  let z = abs(x) * 0.7071067811865476;
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  let tail = 0.5 * series * exp(-z * z);  // 1 - Φ(|x|)
  return x * select(tail, 1.0 - tail, x >= vec4f(0.0));
}
{% endmacro %}

{% macro columns() %}
struct Columns {  // 8 neighbouring columns of a row
  low: vec4f,
  high: vec4f,
}

fn from_f16(packed: vec4<u32>) -> Columns {
  return Columns(
    vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y)),
    vec4f(unpack2x16float(packed.z), unpack2x16float(packed.w)),
  );
}

fn dot8(a: Columns, b: Columns) -> f32 {
  return dot(a.low, b.low) + dot(a.high, b.high);
}
{% endmacro %}

{# 8 neighbouring values of an array<vec4f>: those from 8 · `index` on. #}
{% macro columns_of(array, index) -%}
Columns({{ array }}[2u * ({{ index }})], {{ array }}[2u * ({{ index }}) + 1u])
{%- endmacro %}

{# A lane's Columns in all lanes. WGSL wants `lane` to be a constant. #}
{% macro broadcast(value, lane) -%}
Columns(subgroupBroadcast({{ value }}.low, {{ lane }}u), subgroupBroadcast({{ value }}.high, {{ lane }}u))
{%- endmacro %}

{# The decoder's sequences on the device. kernels/webgpu/decoder/state.py writes it. #}
{% macro state() %}
struct Row {  // of a pass: one token of one sequence
  token: u32,
  slot: u32,  // of its sequence in the cache
  position: u32,
  unused: u32,
}

struct Sequence {  // what it may choose next, and what that follows from
  text_from: u32,
  time_from: u32,
  time_below: u32,
  is_first: u32,  // its first token to be chosen
  last_was_time: u32,
  last_time: u32,  // 0: none yet
  has_ended: u32,
}

struct State {
  n_rows: u32,
  stopped: u32,  // not 0: every sequence has ended, and the launches that follow return at once
  n_chosen: u32,  // steps so far
  eot: u32,
  timestamp_begin: u32,  // the vocabulary's size where there are no timestamp rules
  unused_0: u32,
  unused_1: u32,
  unused_2: u32,
  rows: array<Row, 16>,
  sequences: array<Sequence, 16>,
}
{% endmacro %}

{# sum_all(value, invocation): the sum over a workgroup of WORKGROUP invocations, in all of them. #}
{% macro sum_all() %}
{% if reduction == "subgroup" %}
fn sum_all(value: f32, invocation: u32) -> f32 {
  return subgroupAdd(value);
}
{% else %}
var<workgroup> sums: array<vec4f, WORKGROUP>;

// The sum over each `width` neighbouring invocations, a power of two, in all of them.
fn sum_over(width: u32, value: vec4f, invocation: u32) -> vec4f {
  let lane = invocation % width;
  sums[invocation] = value;
  for (var half = width / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      sums[invocation] += sums[invocation + half];
    }
  }
  workgroupBarrier();
  let sum = sums[invocation - lane];
  workgroupBarrier();
  return sum;
}

fn sum_all(value: f32, invocation: u32) -> f32 {
  return sum_over(WORKGROUP, vec4f(value), invocation).x;
}
{% endif %}
{% endmacro %}

{# Two (max, its lowest token, sum of exp(logit - max)) as one. #}
{% macro join() %}
const LOWEST = -3.0e38;
const NO_TOKEN = 16777216.0;  // above every token; tokens are exact as f32

// (max, its lowest token, sum of exp(logit - max), 0) of two sets of logits as of both together.
fn join(a: vec4f, b: vec4f) -> vec4f {
  let most = max(a.x, b.x);
  let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
  return vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
}
{% endmacro %}

{# inputs[r] = layer_norm(x[first_row + r]), for the workgroup's rows. #}
{% macro norm_inputs() %}
// inputs[r] = layer_norm(x[first_row + r]) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1].
fn norm_inputs(first_row: u32, invocation: u32) {
  for (var r = 0u; r < ROWS; r++) {
    let start = (first_row + r) * (N_IN / 4u);
    var total = vec4f();
    for (var i = invocation; i < N_IN / 4u; i += WORKGROUP) {
      total += x[start + i];
    }
    let mean = sum_all(dot(total, vec4f(1.0)), invocation) / f32(N_IN);
    var squares = vec4f();
    for (var i = invocation; i < N_IN / 4u; i += WORKGROUP) {
      let centred = x[start + i] - mean;
      squares += centred * centred;
    }
    let scale = inverseSqrt(sum_all(dot(squares, vec4f(1.0)), invocation) / f32(N_IN) + 1e-5);
    for (var i = invocation; i < N_IN / 4u; i += WORKGROUP) {
      inputs[r * (N_IN / 4u) + i] = (x[start + i] - mean) * scale * norm[i] + norm[N_IN / 4u + i];
    }
  }
  workgroupBarrier();
}
{% endmacro %}

{# The sizes of a decoder's product: products() and norm_inputs() read them. #}
{% macro product_sizes() %}
override WORKGROUP = 256u;  // invocations
override LANES = 64u;  // of them that share 4 outputs
override TILES = 4u;  // that a workgroup takes
override N_IN = 384u;
override N_OUT = 384u;
const ROWS = {{ rows }}u;
{% endmacro %}

{#
x @ weight.T for the decoder: a workgroup sums 4 · WORKGROUP / LANES neighbouring outputs at a time for its rows, TILES times. The caller's
lines follow for each row r: there y<r> is the row's 4 outputs from `out` on. The weights are loaded once for all rows.
With reduction "subgroup" LANES is 1: each lane owns 4 outputs. With "workgroup" LANES invocations share 4 outputs, each summing
over every LANES-th 8 columns.
    weight       the array of weights, (N_OUT, N_IN) f16
    x, first     the array of inputs and its row that r = 0 is
#}
{% macro products(weight, x, first) %}
  let eighths = N_IN / 8u;
  for (var tile = 0u; tile < TILES; tile++) {
    let first_out = (workgroup.x * TILES + tile) * (WORKGROUP / LANES) * 4u;
    if (first_out >= N_OUT) {
      break;
    }
    let out = first_out + invocation / LANES * 4u;
    let weights = min(out + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(N_OUT - 1u)) * eighths;  // where those of each output begin
  {% for r in range(rows) %}
    var y{{ r }} = vec4f();
  {% endfor %}
  {% if reduction == "subgroup" %}
    for (var k = 0u; k < eighths; k += 4u) {
      // Lane l holds part l % 4 of the next 4 × 8 columns of x.
      let part = k + invocation % 4u;
    {% for r in range(rows) %}
      var x{{ r }} = Columns();
    {% endfor %}
      if (part < eighths) {
    {% for r in range(rows) %}
        x{{ r }} = {{ columns_of(x, "(%s + %du) * eighths + part" | format(first, r)) }};
    {% endfor %}
      }
    {% for part in range(4) %}
      {
        let place = weights + min(k + {{ part }}u, eighths - 1u);
      {% for o in range(4) %}
        let w{{ o }} = from_f16({{ weight }}[place[{{ o }}]]);
      {% endfor %}
      {% for r in range(rows) %}
        let x{{ r }}_{{ part }} = {{ broadcast("x" ~ r, part) }};
        y{{ r }} += vec4f({% for o in range(4) %}dot8(w{{ o }}, x{{ r }}_{{ part }}){{ ", " if not loop.last }}{% endfor %});
      {% endfor %}
      }
    {% endfor %}
    }
  {% else %}
    for (var k = invocation % LANES; k < eighths; k += LANES) {
    {% for o in range(4) %}
      let w{{ o }} = from_f16({{ weight }}[weights[{{ o }}] + k]);
    {% endfor %}
    {% for r in range(rows) %}
      let x{{ r }} = {{ columns_of(x, "(%s + %du) * eighths + k" | format(first, r)) }};
      y{{ r }} += vec4f({% for o in range(4) %}dot8(w{{ o }}, x{{ r }}){{ ", " if not loop.last }}{% endfor %});
    {% endfor %}
    }
    {% for r in range(rows) %}
    y{{ r }} = sum_over(LANES, y{{ r }}, invocation);
    {% endfor %}
  {% endif %}
    if (invocation % LANES == 0u && out < N_OUT) {
  {% for r in range(rows) %}
{{ caller(r) -}}
  {% endfor %}
    }
  }
{% endmacro %}

{#
The encoder's product: every sum of a workgroup's rows and columns to store(row, quad, sum), where a quad is 4 columns. The kernel
has load_a(row, quad), which takes any row, and store, which drops rows past the end; params has rows, inner and columns.
With reduction "subgroup" a workgroup computes 16 rows by 8 · LANES columns, and a lane owns 8 of them. A load is dear on lavapipe, so
none is repeated: each lane loads other rows of a, and subgroupBroadcast hands them to all.
With "workgroup" 256 invocations compute 64 rows by 64 columns, going along the inner dimension 16 at a time through workgroup
memory; an invocation owns 4 rows by 4 columns.
    row       the first row
    column    with "subgroup" the lane's 8 columns, with "workgroup" the workgroup's first 8
#}
{% macro tiles() %}
{% if reduction == "workgroup" %}
var<workgroup> a_tile: array<vec4f, 256>;  // [64 rows][4 quads of the inner dimension]
var<workgroup> weight_tile: array<vec4f, 256>;  // [16 of the inner dimension][16 quads of columns]

{% endif %}
{% endmacro %}

{% macro tile_product(row, column) %}
{% if reduction == "subgroup" %}
  {% for r in range(16) %}
  var low{{ r }} = vec4f();
  var high{{ r }} = vec4f();
  {% endfor %}
  let loaded_column = min({{ column }}, params.columns - 1u);
  for (var k = 0u; k < params.inner; k++) {
  {% for i in range(16 // lanes) %}
    let held{{ i }} = load_a({{ row }} + {{ i * lanes }}u + lane, k);  // rows {{ i * lanes }} to {{ i * lanes + lanes - 1 }}, one a lane
  {% endfor %}
  {% for component in "xyzw" %}
    {
      let w = from_f16(weight[(4u * k + {{ loop.index0 }}u) * params.columns + loaded_column]);
    {% for r in range(16) %}
      let a{{ r }} = subgroupBroadcast(held{{ r // lanes }}.{{ component }}, {{ r % lanes }}u);
      low{{ r }} += a{{ r }} * w.low;
      high{{ r }} += a{{ r }} * w.high;
    {% endfor %}
    }
  {% endfor %}
  }
  if ({{ column }} < params.columns) {
  {% for r in range(16) %}
    store({{ row }} + {{ r }}u, 2u * {{ column }}, low{{ r }});
    store({{ row }} + {{ r }}u, 2u * {{ column }} + 1u, high{{ r }});
  {% endfor %}
  }
{% else %}
  let local_row = invocation / 16u * 4u;
  let local_quad = invocation % 16u;
  {% for r in range(4) %}
  var sum{{ r }} = vec4f();
  {% endfor %}
  for (var first = 0u; first < params.inner; first += 4u) {
    a_tile[invocation] = vec4f();
    if (first + invocation % 4u < params.inner) {
      a_tile[invocation] = load_a({{ row }} + invocation / 4u, first + invocation % 4u);
    }
    weight_tile[invocation] = vec4f();
    let k = 4u * first + invocation / 16u;
    let quad = 2u * {{ column }} + invocation % 16u;
    if (k < 4u * params.inner && quad < 2u * params.columns) {
      let packed = weight[k * 2u * params.columns + quad];
      weight_tile[invocation] = vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
      let w = mat4x4f(
        weight_tile[64u * i + local_quad],
        weight_tile[64u * i + 16u + local_quad],
        weight_tile[64u * i + 32u + local_quad],
        weight_tile[64u * i + 48u + local_quad],
      );
  {% for r in range(4) %}
      sum{{ r }} += w * a_tile[4u * (local_row + {{ r }}u) + i];
  {% endfor %}
    }
    workgroupBarrier();
  }
  if ({{ column }} + local_quad / 2u < params.columns) {
  {% for r in range(4) %}
    store({{ row }} + local_row + {{ r }}u, 2u * {{ column }} + local_quad, sum{{ r }});
  {% endfor %}
  }
{% endif %}
{% endmacro %}
