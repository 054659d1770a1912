// out = act(layer_norm(x) · weight + bias), where act is GELU if `gelu` is not 0.
// layer_norm(x) = (x - mean) / sqrt(variance + 1e-5) · gain + shift, over each row.
//
{% if reduction == "subgroup" %}
// A workgroup is one subgroup of {{ lanes }} lanes and owns 64 rows: it first writes them normalised to `normed`, a lane a row at a time.
// Then it goes over all columns, {{ 8 * lanes }} at a time and 16 rows at a time, so that these columns of `weight` come from the
// core's cache.
{% else %}
// A workgroup finds mean and variance of its 64 rows, 4 invocations a row, then computes 64 rows by 64 columns, normalising each piece of
// x on its way into workgroup memory; an invocation owns 4 rows by 4 columns.
{% endif %}
//   x       (rows, 4 · inner) f32, of which `width` columns count and the rest are 0
//   gain    (4 · inner,) f32
//   shift   (4 · inner,) f32
//   weight  (4 · inner, 8 · columns) f16
//   bias    (8 · columns,) f32
{% if reduction == "subgroup" %}
//   normed  (rows, 4 · inner) f32  scratch
{% endif %}
//   out     (rows, 8 · columns) f32  out
{% if reduction == "subgroup" %}
// dispatch (ceil(rows / 64), 1, 1)
{% else %}
// dispatch (ceil(columns / 8), ceil(rows / 64), 1)
{% endif %}
{% from "shared.wgsl" import columns, extensions, gelu, tile_product, tiles with context %}
{{ extensions() }}
struct Params {
  rows: u32,
  inner: u32,
  columns: u32,
  width: u32,
  gelu: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> gain: array<vec4f>;
@group(0) @binding(2) var<storage, read> shift: array<vec4f>;
@group(0) @binding(3) var<storage, read> weight: array<{{ "vec4" if reduction == "subgroup" else "vec2" }}<u32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
{% if reduction == "subgroup" %}
@group(0) @binding(5) var<storage, read_write> normed: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(7) var<uniform> params: Params;
{% else %}
@group(0) @binding(5) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(6) var<uniform> params: Params;

var<workgroup> sums: array<f32, 256>;  // [64 rows][4 invocations]
var<workgroup> means: array<f32, 64>;
var<workgroup> scales: array<f32, 64>;
{% endif %}
{{ tiles() }}
{{ columns() }}
{{ gelu() }}
fn store(row: u32, quad: u32, sum: vec4f) {
  if (row >= params.rows) {
    return;
  }
  var value = sum + bias[quad];
  if (params.gelu != 0u) {
    value = gelu(value);
  }
  out[2u * row * params.columns + quad] = value;
}

// 1 / sqrt(variance + 1e-5), from the sum of (x - mean)² over a row including its padding, whose zeros each added mean².
fn scale_of(squares: f32, mean: f32) -> f32 {
  let width = f32(params.width);
  let padding = (f32(4u * params.inner) - width) * mean * mean;
  return inverseSqrt(max(0.0, squares - padding) / width + 1e-5);
}

{% if reduction == "subgroup" %}
fn load_a(row: u32, quad: u32) -> vec4f {
  return normed[min(row, params.rows - 1u) * params.inner + quad];
}

fn normalise(row: u32) {
  let start = row * params.inner;
  var sum = vec4f();
  for (var k = 0u; k < params.inner; k++) {
    sum += x[start + k];
  }
  let mean = dot(sum, vec4f(1.0)) / f32(params.width);
  var squares = vec4f();
  for (var k = 0u; k < params.inner; k++) {
    let centred = x[start + k] - mean;
    squares += centred * centred;
  }
  let scale = scale_of(dot(squares, vec4f(1.0)), mean);
  for (var k = 0u; k < params.inner; k++) {
    normed[start + k] = (x[start + k] - mean) * scale * gain[k] + shift[k];
  }
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first_row = group.x * 64u;
  let end_row = min(first_row + 64u, params.rows);
  for (var row = first_row + lane; row < end_row; row += {{ lanes }}u) {
    normalise(row);
  }
  storageBarrier();
  for (var first = 0u; first < params.columns; first += {{ lanes }}u) {
    let column = first + lane;
    for (var row = first_row; row < end_row; row += 16u) {
{{ tile_product("row", "column") | indent(4, first=True) }}
    }
  }
}
{% else %}
fn load_a(row: u32, quad: u32) -> vec4f {
  let place = min(row, params.rows - 1u) * params.inner + quad;
  return (x[place] - means[row % 64u]) * scales[row % 64u] * gain[quad] + shift[quad];
}

// The sum over a row's 4 invocations.
fn row_total(invocation: u32, value: f32) -> f32 {
  sums[invocation] = value;
  workgroupBarrier();
  let first = invocation / 4u * 4u;
  let total = sums[first] + sums[first + 1u] + sums[first + 2u] + sums[first + 3u];
  workgroupBarrier();
  return total;
}

fn find_means(first_row: u32, invocation: u32) {
  let start = min(first_row + invocation / 4u, params.rows - 1u) * params.inner;
  var sum = vec4f();
  for (var quad = invocation % 4u; quad < params.inner; quad += 4u) {
    sum += x[start + quad];
  }
  let mean = row_total(invocation, dot(sum, vec4f(1.0))) / f32(params.width);
  var squares = vec4f();
  for (var quad = invocation % 4u; quad < params.inner; quad += 4u) {
    let centred = x[start + quad] - mean;
    squares += centred * centred;
  }
  let scale = scale_of(row_total(invocation, dot(squares, vec4f(1.0))), mean);
  if (invocation % 4u == 0u) {
    means[invocation / 4u] = mean;
    scales[invocation / 4u] = scale;
  }
  workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let row = group.y * 64u;
  let column = group.x * 8u;
  find_means(row, invocation);
{{ tile_product("row", "column") }}
}
{% endif %}
