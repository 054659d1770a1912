// q, k, v = layer_norm(x[row]) @ weight.T + bias; q * SCALE to query, k and v to the cache.
//
// A workgroup normalises ROWS rows, then computes 4 · WORKGROUP / LANES · TILES neighbouring outputs of each, an invocation 4 at a time.
//   x       (rows, N_IN) f32
//   norm    (2, N_IN) f32: gain, shift
//   weight  (3 N_IN, N_IN) f16: N_OUT = 3 N_IN
//   bias    (3 N_IN,) f32
//   state   State: a row's slot and position
//   query   (rows, N_IN) f32  out
//   keys    (slots, N_IN / 8, N_TEXT_CTX, 8) f32  out
//   values  (slots, N_TEXT_CTX, N_IN) f32  out
//   params  the rows of the one context whose cache this is
// dispatch (ceil(N_OUT / (4 · WORKGROUP / LANES · TILES)), ceil((end_row - first_row) / ROWS), 1)
{% from "shared.wgsl" import columns, extensions, norm_inputs, product_sizes, products, state, sum_all with context %}
{{ extensions() }}
{{ state() }}
struct Params {
  first_row: u32,
  end_row: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read_write> query: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> keys: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> values: array<vec4f>;
@group(0) @binding(8) var<uniform> params: Params;

{{ product_sizes() }}
override SCALE = 0.125;
override N_TEXT_CTX = 448u;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

{{ columns() }}
{{ sum_all() }}
{{ norm_inputs() }}
// Stores 4 neighbouring outputs of a row. A row past the end only fills the workgroup's ROWS.
fn store(row: u32, out: u32, y: vec4f) {
  if (row >= params.end_row) {
    return;
  }
  let slot = state.rows[row].slot;
  let position = state.rows[row].position;
  if (out < N_IN) {
    query[(row * N_IN + out) / 4u] = y * SCALE;
  } else if (out < 2u * N_IN) {
    let column = out - N_IN;
    keys[((slot * (N_IN / 8u) + column / 8u) * N_TEXT_CTX + position) * 2u + column / 4u % 2u] = y;
  } else {
    let column = out - 2u * N_IN;
    values[((slot * N_TEXT_CTX + position) * N_IN + column) / 4u] = y;
  }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let first_row = params.first_row + workgroup.y * ROWS;
  norm_inputs(first_row, invocation);
{% call(r) products("weight", "inputs", "0u") %}
      store(first_row + {{ r }}u, out, y{{ r }} + bias[out / 4u]);
{% endcall %}
}
