// y[row] = f(layer_norm(x[row]) @ weight.T + bias) * SCALE, where f is GELU or nothing.
//
// A workgroup normalises ROWS rows, then computes 4 · WORKGROUP / LANES · TILES neighbouring outputs of each, an invocation 4 at a time.
//   x       (rows, N_IN) f32
//   norm    (2, N_IN) f32: gain, shift
//   weight  (N_OUT, N_IN) f16
//   bias    (N_OUT,) f32
//   state   State
//   y       (rows, N_OUT) f32  out
// dispatch (ceil(N_OUT / (4 · WORKGROUP / LANES · TILES)), ceil(rows / ROWS), 1)
{% from "shared.wgsl" import columns, extensions, gelu, norm_inputs, product_sizes, products, state, sum_all with context %}
{{ extensions() }}
{{ state() }}
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;

{{ product_sizes() }}
override SCALE = 1.0;
override GELU = false;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

{{ columns() }}
{{ gelu() }}
{{ sum_all() }}
{{ norm_inputs() }}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let first_row = workgroup.y * ROWS;
  norm_inputs(first_row, invocation);
{% call(r) products("weight", "inputs", "0u") %}
      let z{{ r }} = y{{ r }} + bias[out / 4u];
      if (GELU) {
        y[((first_row + {{ r }}u) * N_OUT + out) / 4u] = gelu(z{{ r }}) * SCALE;
      } else {
        y[((first_row + {{ r }}u) * N_OUT + out) / 4u] = z{{ r }} * SCALE;
      }
{% endcall %}
}
