// out = act(a · weight + bias) + add, into f32: the product that closes a residual branch, for hardware adapters.
// act is GELU if `gelu` is not 0.
//
// The tile is that of gemm_tile.wgsl: a workgroup of 256 for 64 rows by 64 columns, an invocation for 4 by 4.
// Of several windows each has its own `a`, a_step · 4 elements after the last one's, and its own `out`, out_step · 8 after; `add` serves all.
//   a       (rows, 4 · inner) f32, row_step · 4 from row to row    in
//   weight  (4 · inner, 8 · columns) f16                           in
//   bias    (8 · columns,) f32                                     in
//   add     (rows, 8 · columns) f32                                in
//   out     (rows, 8 · columns) f32                                out
// dispatch (ceil(columns / 8), ceil(rows / 64), windows)

struct Params {
  rows: u32,
  inner: u32,
  columns: u32,
  row_step: u32,
  gelu: u32,
  a_step: u32,
  out_step: u32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4f>;
@group(0) @binding(3) var<storage, read> add: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(5) var<uniform> params: Params;

var<private> window: u32;  // that this workgroup computes for

var<workgroup> a_tile: array<vec4f, 256>;  // [64 rows][4 quads of the inner dimension]
var<workgroup> weight_tile: array<vec4f, 256>;  // [16 of the inner dimension][16 quads of columns]

// <unroll.py gelu>
// GELU(x) = x · Φ(x), exact up to erf's approximation (Abramowitz & Stegun 7.1.26: 1.5e-7).
fn gelu(x: vec4f) -> vec4f {
  let z = abs(x) * 0.7071067811865476;
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  let tail = 0.5 * series * exp(-z * z);
  return x * select(tail, 1.0 - tail, x >= vec4f(0.0));
}
// </unroll.py>

fn f16x4(packed: vec2<u32>) -> vec4f {
  return vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

// 4 columns of `a` of a row; zeros outside.
fn load_a(row: u32, quad: u32) -> vec4f {
  if (row >= params.rows || quad >= params.inner) {
    return vec4f();
  }
  return a[window * params.a_step + row * params.row_step + quad];
}

// 4 columns of a row of the result.
fn store(row: u32, quad: u32, sum: vec4f) {
  if (row >= params.rows || quad >= 2u * params.columns) {
    return;
  }
  var value = sum + bias[quad];
  if (params.gelu != 0u) {
    value = gelu(value);
  }
  let addend = 2u * row * params.columns + quad;
  out[2u * window * params.out_step + addend] = value + add[addend];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  window = group.z;
  let first_row = group.y * 64u;
  let first_quad = group.x * 16u;
  // <unroll.py product>
  let local_row = invocation / 16u * 4u;
  let local_quad = invocation % 16u;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  for (var first = 0u; first < params.inner; first += 4u) {
    a_tile[invocation] = load_a(first_row + invocation / 4u, first + invocation % 4u);
    let k = 4u * first + invocation / 16u;
    let quad = first_quad + invocation % 16u;
    if (k < 4u * params.inner && quad < 2u * params.columns) {
      weight_tile[invocation] = f16x4(weight[k * 2u * params.columns + quad]);
    } else {
      weight_tile[invocation] = vec4f();
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
      let w = mat4x4f(
        weight_tile[64u * i + local_quad],
        weight_tile[64u * i + 16u + local_quad],
        weight_tile[64u * i + 32u + local_quad],
        weight_tile[64u * i + 48u + local_quad],
      );
      sum0 += w * a_tile[4u * local_row + i];
      sum1 += w * a_tile[4u * local_row + 4u + i];
      sum2 += w * a_tile[4u * local_row + 8u + i];
      sum3 += w * a_tile[4u * local_row + 12u + i];
    }
    workgroupBarrier();
  }
  // </unroll.py>
  // <unroll.py product_stores>
  store(first_row + local_row, first_quad + local_quad, sum0);
  store(first_row + local_row + 1u, first_quad + local_quad, sum1);
  store(first_row + local_row + 2u, first_quad + local_quad, sum2);
  store(first_row + local_row + 3u, first_quad + local_quad, sum3);
  // </unroll.py>
}
