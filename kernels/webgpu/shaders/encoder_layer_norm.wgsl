// out = (x - mean) / sqrt(variance + 1e-5) · gain + shift over each row: the encoder's last step.
//
// Workgroup r of 64 invocations normalises row `first` + r into row r; an invocation takes every 64th group of 4 columns.
//   x      (rows, 4 · inner) f32, of which `width` columns count and the rest are 0
//   gain   (4 · inner,) f32
//   shift  (4 · inner,) f32
//   out    (rows, 4 · inner) f32  out
// dispatch (rows, 1, 1)
{% set reduction = "workgroup" %}
{% from "shared.wgsl" import sum_all with context %}

struct Params {
  inner: u32,
  width: u32,
  first: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> gain: array<vec4f>;
@group(0) @binding(2) var<storage, read> shift: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(4) var<uniform> params: Params;

const WORKGROUP = 64u;

{{ sum_all() }}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let start = (params.first + group.x) * params.inner;
  let target_start = group.x * params.inner;
  let width = f32(params.width);
  var sum = 0.0;
  for (var k = invocation; k < params.inner; k += WORKGROUP) {
    sum += dot(x[start + k], vec4f(1.0));
  }
  let mean = sum_all(sum, invocation) / width;
  var squares = 0.0;
  for (var k = invocation; k < params.inner; k += WORKGROUP) {
    let centred = x[start + k] - mean;
    squares += dot(centred, centred);
  }
  // Each zero of the padding added mean².
  let padding = (f32(4u * params.inner) - width) * mean * mean;
  let scale = inverseSqrt(max(0.0, sum_all(squares, invocation) - padding) / width + 1e-5);
  for (var k = invocation; k < params.inner; k += WORKGROUP) {
    out[target_start + k] = (x[start + k] - mean) * scale * gain[k] + shift[k];
  }
}
