// y[row] += x @ weight.T + bias, where x combines the SPLITS parts of the row's cross-attention.
//
// A workgroup combines ROWS rows, then computes 4 · WORKGROUP / LANES · TILES neighbouring outputs of each, an invocation 4 at a time.
//   parts   (rows, SPLITS, N_IN) f32, see decoder_attention.wgsl
//   stats   (rows, heads, SPLITS) × (max, sum) f32
//   weight  (N_OUT, N_IN) f16
//   bias    (N_OUT,) f32
//   state   State
//   y       (rows, N_OUT) f32  in and out
// dispatch (ceil(N_OUT / (4 · WORKGROUP / LANES · TILES)), ceil(rows / ROWS), 1)
{% from "shared.wgsl" import columns, extensions, product_sizes, products, state, sum_all with context %}
{{ extensions() }}
{{ state() }}
@group(0) @binding(0) var<storage, read> parts: array<vec4f>;
@group(0) @binding(1) var<storage, read> stats: array<vec2f>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;

{{ product_sizes() }}
override SPLITS = 1u;
override HEAD8 = 8u;  // a head's columns / 8
const LOWEST = -3.0e38;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

{{ columns() }}
{{ sum_all() }}
// inputs[r] = the parts of row first_row + r, each relative to its own maximum, combined.
fn join_inputs(first_row: u32, invocation: u32) {
  let eighths = N_IN / 8u;
  for (var item = invocation; item < ROWS * eighths; item += WORKGROUP) {
    let row = first_row + item / eighths;
    let k = item % eighths;
    let from_stats = (row * (eighths / HEAD8) + k / HEAD8) * SPLITS;
    var most = LOWEST;
    for (var split = 0u; split < SPLITS; split++) {
      most = max(most, stats[from_stats + split].x);
    }
    var total = 0.0;
    var low = vec4f();
    var high = vec4f();
    for (var split = 0u; split < SPLITS; split++) {
      let stat = stats[from_stats + split];
      let part = ((row * SPLITS + split) * eighths + k) * 2u;
      let share = exp(stat.x - most);
      total += share * stat.y;
      low += share * parts[part];
      high += share * parts[part + 1u];
    }
    inputs[2u * item] = low / total;
    inputs[2u * item + 1u] = high / total;
  }
  workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let first_row = workgroup.y * ROWS;
  join_inputs(first_row, invocation);
{% call(r) products("weight", "inputs", "0u") %}
      y[((first_row + {{ r }}u) * N_OUT + out) / 4u] += y{{ r }} + bias[out / 4u];
{% endcall %}
}
