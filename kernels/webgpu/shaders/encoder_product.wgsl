// out = act(a · weight + bias){{ " + add" if residual }}, where act is GELU if `gelu` is not 0.
//
{% if reduction == "subgroup" %}
// A workgroup is one subgroup of {{ lanes }} lanes and computes 16 rows by {{ 8 * lanes }} columns, a lane 8 of them.
{% else %}
// A workgroup computes 64 rows by 64 columns, an invocation 4 rows by 4 columns.
{% endif %}
// Also computes convolutions: `row_step` lets rows of `a` overlap.
// Each of several windows has its own `a`, a_step · 4 elements after the last one's, and its own `out`, out_step · 8 after it.
//   a       (rows, 4 · inner) f32, row_step · 4 from row to row
//   weight  (4 · inner, 8 · columns) f16
//   bias    (8 · columns,) f32
{% if residual %}
//   add     (rows, 8 · columns) f32, for all windows
{% endif %}
//   out     (rows, 8 · columns) f32 after `skip` · 8 elements  out
{% if reduction == "subgroup" %}
// dispatch (ceil(rows / 16), ceil(columns / {{ lanes }}), windows): rows first, so that a core keeps its columns of `weight` in its cache
{% else %}
// dispatch (ceil(columns / 8), ceil(rows / 64), windows)
{% endif %}
{% from "shared.wgsl" import columns, extensions, gelu, tile_product, tiles with context %}
{{ extensions() }}
struct Params {
  rows: u32,
  inner: u32,
  columns: u32,
  row_step: u32,
  skip: u32,
  gelu: u32,
  a_step: u32,
  out_step: u32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<{{ "vec4" if reduction == "subgroup" else "vec2" }}<u32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4f>;
{% if residual %}
@group(0) @binding(3) var<storage, read> add: array<vec4f>;
{% endif %}
@group(0) @binding({{ 3 + residual }}) var<storage, read_write> out: array<vec4f>;
@group(0) @binding({{ 4 + residual }}) var<uniform> params: Params;

var<private> window: u32;  // computed by this workgroup
{{ tiles() }}
{{ columns() }}
{{ gelu() }}
fn load_a(row: u32, quad: u32) -> vec4f {
  return a[window * params.a_step + min(row, params.rows - 1u) * params.row_step + quad];
}

fn store(row: u32, quad: u32, sum: vec4f) {
  if (row >= params.rows) {
    return;
  }
  var value = sum + bias[quad];
  if (params.gelu != 0u) {
    value = gelu(value);
  }
  let place = 2u * row * params.columns + quad;
  out[2u * (window * params.out_step + params.skip) + place] = value{{ " + add[place]" if residual }};
}

{% if reduction == "subgroup" %}
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  window = group.z;
  let row = group.x * 16u;
  let column = group.y * {{ lanes }}u + lane;
{% else %}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  window = group.z;
  let row = group.y * 64u;
  let column = group.x * 8u;
{% endif %}
{{ tile_product("row", "column") }}
}
