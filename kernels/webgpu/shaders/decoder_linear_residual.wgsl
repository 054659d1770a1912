// y[row] += x[row] @ weight.T + bias.
//
// A workgroup computes ROWS rows of 4 · WORKGROUP / LANES · TILES neighbouring outputs, an invocation 4 of them at a time.
//   x       (rows, N_IN) f32
//   weight  (N_OUT, N_IN) f16
//   bias    (N_OUT,) f32
//   state   State
//   y       (rows, N_OUT) f32  in and out
// dispatch (ceil(N_OUT / (4 · WORKGROUP / LANES · TILES)), ceil(rows / ROWS), 1)
{% from "shared.wgsl" import columns, extensions, product_sizes, products, state, sum_all with context %}
{{ extensions() }}
{{ state() }}
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4f>;
@group(0) @binding(3) var<storage, read> state: State;
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;

{{ product_sizes() }}

{{ columns() }}
{{ sum_all() }}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let first_row = workgroup.y * ROWS;
{% call(r) products("weight", "x", "first_row") %}
      y[((first_row + {{ r }}u) * N_OUT + out) / 4u] += y{{ r }} + bias[out / 4u];
{% endcall %}
}
