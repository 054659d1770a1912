// out = act(a · weight + bias), weights in f16: the matrix product for software adapters. act is GELU if `gelu` is not 0.
//
// A workgroup is one subgroup of LANES lanes and computes 16 rows by 8 · LANES columns. A lane owns 8 neighbouring columns, whose sums
// are named variables (an indexed private array is slow memory in lavapipe). A load is dear there, so none is repeated: each lane loads
// other rows of `a`, and subgroupBroadcast hands them to all. Convolutions too: `row_step` lets rows of `a` overlap.
// Of several windows each has its own `a`, a_step · 4 elements after the last one's, and its own `out`, out_step · 8 after.
//   a       (rows, 4 · inner) f32, row_step · 4 from row to row    in
//   weight  (4 · inner, 8 · columns) f16                           in
//   bias    (8 · columns,) f32                                     in
//   out     (rows, 8 · columns) f32 after `skip` · 8 elements       out
// dispatch (ceil(rows / 16), ceil(columns / LANES), windows): rows first, so that a core keeps its columns of `weight` in its cache

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

const LANES = 16u;  // the adapter's subgroup size, 4, 8 or 16: set in the text, since a broadcast's lane must be a constant

@group(0) @binding(0) var<storage, read> a: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(4) var<uniform> params: Params;

var<private> window: u32;  // that this workgroup computes for

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

fn load_rows(index: u32, row: u32, k: u32) -> vec4f {
  return a[window * params.a_step + min(row + index * LANES, params.rows - 1u) * params.row_step + k];
}

fn store(row: u32, column: u32, low_sum: vec4f, high_sum: vec4f) {
  if (row >= params.rows) {
    return;
  }
  var low = low_sum + bias[2u * column];
  var high = high_sum + bias[2u * column + 1u];
  if (params.gelu != 0u) {
    low = gelu(low);
    high = gelu(high);
  }
  let place = 2u * (window * params.out_step + params.skip + row * params.columns + column);
  out[place] = low;
  out[place + 1u] = high;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  window = group.z;
  let row = group.x * 16u;
  let column = group.y * LANES + lane;
  let loaded_column = min(column, params.columns - 1u);
  // <unroll.py tile>
  var low0 = vec4f(); var high0 = vec4f();
  var low1 = vec4f(); var high1 = vec4f();
  var low2 = vec4f(); var high2 = vec4f();
  var low3 = vec4f(); var high3 = vec4f();
  var low4 = vec4f(); var high4 = vec4f();
  var low5 = vec4f(); var high5 = vec4f();
  var low6 = vec4f(); var high6 = vec4f();
  var low7 = vec4f(); var high7 = vec4f();
  var low8 = vec4f(); var high8 = vec4f();
  var low9 = vec4f(); var high9 = vec4f();
  var low10 = vec4f(); var high10 = vec4f();
  var low11 = vec4f(); var high11 = vec4f();
  var low12 = vec4f(); var high12 = vec4f();
  var low13 = vec4f(); var high13 = vec4f();
  var low14 = vec4f(); var high14 = vec4f();
  var low15 = vec4f(); var high15 = vec4f();
  for (var k = 0u; k < params.inner; k++) {
    // Row r is held by lane r % LANES in held[r / LANES].
    let held = array<vec4f, 4>(load_rows(0u, row + lane, k), load_rows(1u % (16u / LANES), row + lane, k),
      load_rows(2u % (16u / LANES), row + lane, k), load_rows(3u % (16u / LANES), row + lane, k));
    let w0 = weight[(4u * k + 0u) * params.columns + loaded_column];
    let wl0 = vec4f(unpack2x16float(w0.x), unpack2x16float(w0.y));
    let wh0 = vec4f(unpack2x16float(w0.z), unpack2x16float(w0.w));
    let a0_0 = subgroupBroadcast(held[0u / LANES].x, 0u % LANES); low0 += a0_0 * wl0; high0 += a0_0 * wh0;
    let a1_0 = subgroupBroadcast(held[1u / LANES].x, 1u % LANES); low1 += a1_0 * wl0; high1 += a1_0 * wh0;
    let a2_0 = subgroupBroadcast(held[2u / LANES].x, 2u % LANES); low2 += a2_0 * wl0; high2 += a2_0 * wh0;
    let a3_0 = subgroupBroadcast(held[3u / LANES].x, 3u % LANES); low3 += a3_0 * wl0; high3 += a3_0 * wh0;
    let a4_0 = subgroupBroadcast(held[4u / LANES].x, 4u % LANES); low4 += a4_0 * wl0; high4 += a4_0 * wh0;
    let a5_0 = subgroupBroadcast(held[5u / LANES].x, 5u % LANES); low5 += a5_0 * wl0; high5 += a5_0 * wh0;
    let a6_0 = subgroupBroadcast(held[6u / LANES].x, 6u % LANES); low6 += a6_0 * wl0; high6 += a6_0 * wh0;
    let a7_0 = subgroupBroadcast(held[7u / LANES].x, 7u % LANES); low7 += a7_0 * wl0; high7 += a7_0 * wh0;
    let a8_0 = subgroupBroadcast(held[8u / LANES].x, 8u % LANES); low8 += a8_0 * wl0; high8 += a8_0 * wh0;
    let a9_0 = subgroupBroadcast(held[9u / LANES].x, 9u % LANES); low9 += a9_0 * wl0; high9 += a9_0 * wh0;
    let a10_0 = subgroupBroadcast(held[10u / LANES].x, 10u % LANES); low10 += a10_0 * wl0; high10 += a10_0 * wh0;
    let a11_0 = subgroupBroadcast(held[11u / LANES].x, 11u % LANES); low11 += a11_0 * wl0; high11 += a11_0 * wh0;
    let a12_0 = subgroupBroadcast(held[12u / LANES].x, 12u % LANES); low12 += a12_0 * wl0; high12 += a12_0 * wh0;
    let a13_0 = subgroupBroadcast(held[13u / LANES].x, 13u % LANES); low13 += a13_0 * wl0; high13 += a13_0 * wh0;
    let a14_0 = subgroupBroadcast(held[14u / LANES].x, 14u % LANES); low14 += a14_0 * wl0; high14 += a14_0 * wh0;
    let a15_0 = subgroupBroadcast(held[15u / LANES].x, 15u % LANES); low15 += a15_0 * wl0; high15 += a15_0 * wh0;
    let w1 = weight[(4u * k + 1u) * params.columns + loaded_column];
    let wl1 = vec4f(unpack2x16float(w1.x), unpack2x16float(w1.y));
    let wh1 = vec4f(unpack2x16float(w1.z), unpack2x16float(w1.w));
    let a0_1 = subgroupBroadcast(held[0u / LANES].y, 0u % LANES); low0 += a0_1 * wl1; high0 += a0_1 * wh1;
    let a1_1 = subgroupBroadcast(held[1u / LANES].y, 1u % LANES); low1 += a1_1 * wl1; high1 += a1_1 * wh1;
    let a2_1 = subgroupBroadcast(held[2u / LANES].y, 2u % LANES); low2 += a2_1 * wl1; high2 += a2_1 * wh1;
    let a3_1 = subgroupBroadcast(held[3u / LANES].y, 3u % LANES); low3 += a3_1 * wl1; high3 += a3_1 * wh1;
    let a4_1 = subgroupBroadcast(held[4u / LANES].y, 4u % LANES); low4 += a4_1 * wl1; high4 += a4_1 * wh1;
    let a5_1 = subgroupBroadcast(held[5u / LANES].y, 5u % LANES); low5 += a5_1 * wl1; high5 += a5_1 * wh1;
    let a6_1 = subgroupBroadcast(held[6u / LANES].y, 6u % LANES); low6 += a6_1 * wl1; high6 += a6_1 * wh1;
    let a7_1 = subgroupBroadcast(held[7u / LANES].y, 7u % LANES); low7 += a7_1 * wl1; high7 += a7_1 * wh1;
    let a8_1 = subgroupBroadcast(held[8u / LANES].y, 8u % LANES); low8 += a8_1 * wl1; high8 += a8_1 * wh1;
    let a9_1 = subgroupBroadcast(held[9u / LANES].y, 9u % LANES); low9 += a9_1 * wl1; high9 += a9_1 * wh1;
    let a10_1 = subgroupBroadcast(held[10u / LANES].y, 10u % LANES); low10 += a10_1 * wl1; high10 += a10_1 * wh1;
    let a11_1 = subgroupBroadcast(held[11u / LANES].y, 11u % LANES); low11 += a11_1 * wl1; high11 += a11_1 * wh1;
    let a12_1 = subgroupBroadcast(held[12u / LANES].y, 12u % LANES); low12 += a12_1 * wl1; high12 += a12_1 * wh1;
    let a13_1 = subgroupBroadcast(held[13u / LANES].y, 13u % LANES); low13 += a13_1 * wl1; high13 += a13_1 * wh1;
    let a14_1 = subgroupBroadcast(held[14u / LANES].y, 14u % LANES); low14 += a14_1 * wl1; high14 += a14_1 * wh1;
    let a15_1 = subgroupBroadcast(held[15u / LANES].y, 15u % LANES); low15 += a15_1 * wl1; high15 += a15_1 * wh1;
    let w2 = weight[(4u * k + 2u) * params.columns + loaded_column];
    let wl2 = vec4f(unpack2x16float(w2.x), unpack2x16float(w2.y));
    let wh2 = vec4f(unpack2x16float(w2.z), unpack2x16float(w2.w));
    let a0_2 = subgroupBroadcast(held[0u / LANES].z, 0u % LANES); low0 += a0_2 * wl2; high0 += a0_2 * wh2;
    let a1_2 = subgroupBroadcast(held[1u / LANES].z, 1u % LANES); low1 += a1_2 * wl2; high1 += a1_2 * wh2;
    let a2_2 = subgroupBroadcast(held[2u / LANES].z, 2u % LANES); low2 += a2_2 * wl2; high2 += a2_2 * wh2;
    let a3_2 = subgroupBroadcast(held[3u / LANES].z, 3u % LANES); low3 += a3_2 * wl2; high3 += a3_2 * wh2;
    let a4_2 = subgroupBroadcast(held[4u / LANES].z, 4u % LANES); low4 += a4_2 * wl2; high4 += a4_2 * wh2;
    let a5_2 = subgroupBroadcast(held[5u / LANES].z, 5u % LANES); low5 += a5_2 * wl2; high5 += a5_2 * wh2;
    let a6_2 = subgroupBroadcast(held[6u / LANES].z, 6u % LANES); low6 += a6_2 * wl2; high6 += a6_2 * wh2;
    let a7_2 = subgroupBroadcast(held[7u / LANES].z, 7u % LANES); low7 += a7_2 * wl2; high7 += a7_2 * wh2;
    let a8_2 = subgroupBroadcast(held[8u / LANES].z, 8u % LANES); low8 += a8_2 * wl2; high8 += a8_2 * wh2;
    let a9_2 = subgroupBroadcast(held[9u / LANES].z, 9u % LANES); low9 += a9_2 * wl2; high9 += a9_2 * wh2;
    let a10_2 = subgroupBroadcast(held[10u / LANES].z, 10u % LANES); low10 += a10_2 * wl2; high10 += a10_2 * wh2;
    let a11_2 = subgroupBroadcast(held[11u / LANES].z, 11u % LANES); low11 += a11_2 * wl2; high11 += a11_2 * wh2;
    let a12_2 = subgroupBroadcast(held[12u / LANES].z, 12u % LANES); low12 += a12_2 * wl2; high12 += a12_2 * wh2;
    let a13_2 = subgroupBroadcast(held[13u / LANES].z, 13u % LANES); low13 += a13_2 * wl2; high13 += a13_2 * wh2;
    let a14_2 = subgroupBroadcast(held[14u / LANES].z, 14u % LANES); low14 += a14_2 * wl2; high14 += a14_2 * wh2;
    let a15_2 = subgroupBroadcast(held[15u / LANES].z, 15u % LANES); low15 += a15_2 * wl2; high15 += a15_2 * wh2;
    let w3 = weight[(4u * k + 3u) * params.columns + loaded_column];
    let wl3 = vec4f(unpack2x16float(w3.x), unpack2x16float(w3.y));
    let wh3 = vec4f(unpack2x16float(w3.z), unpack2x16float(w3.w));
    let a0_3 = subgroupBroadcast(held[0u / LANES].w, 0u % LANES); low0 += a0_3 * wl3; high0 += a0_3 * wh3;
    let a1_3 = subgroupBroadcast(held[1u / LANES].w, 1u % LANES); low1 += a1_3 * wl3; high1 += a1_3 * wh3;
    let a2_3 = subgroupBroadcast(held[2u / LANES].w, 2u % LANES); low2 += a2_3 * wl3; high2 += a2_3 * wh3;
    let a3_3 = subgroupBroadcast(held[3u / LANES].w, 3u % LANES); low3 += a3_3 * wl3; high3 += a3_3 * wh3;
    let a4_3 = subgroupBroadcast(held[4u / LANES].w, 4u % LANES); low4 += a4_3 * wl3; high4 += a4_3 * wh3;
    let a5_3 = subgroupBroadcast(held[5u / LANES].w, 5u % LANES); low5 += a5_3 * wl3; high5 += a5_3 * wh3;
    let a6_3 = subgroupBroadcast(held[6u / LANES].w, 6u % LANES); low6 += a6_3 * wl3; high6 += a6_3 * wh3;
    let a7_3 = subgroupBroadcast(held[7u / LANES].w, 7u % LANES); low7 += a7_3 * wl3; high7 += a7_3 * wh3;
    let a8_3 = subgroupBroadcast(held[8u / LANES].w, 8u % LANES); low8 += a8_3 * wl3; high8 += a8_3 * wh3;
    let a9_3 = subgroupBroadcast(held[9u / LANES].w, 9u % LANES); low9 += a9_3 * wl3; high9 += a9_3 * wh3;
    let a10_3 = subgroupBroadcast(held[10u / LANES].w, 10u % LANES); low10 += a10_3 * wl3; high10 += a10_3 * wh3;
    let a11_3 = subgroupBroadcast(held[11u / LANES].w, 11u % LANES); low11 += a11_3 * wl3; high11 += a11_3 * wh3;
    let a12_3 = subgroupBroadcast(held[12u / LANES].w, 12u % LANES); low12 += a12_3 * wl3; high12 += a12_3 * wh3;
    let a13_3 = subgroupBroadcast(held[13u / LANES].w, 13u % LANES); low13 += a13_3 * wl3; high13 += a13_3 * wh3;
    let a14_3 = subgroupBroadcast(held[14u / LANES].w, 14u % LANES); low14 += a14_3 * wl3; high14 += a14_3 * wh3;
    let a15_3 = subgroupBroadcast(held[15u / LANES].w, 15u % LANES); low15 += a15_3 * wl3; high15 += a15_3 * wh3;
  }
  // </unroll.py>
  if (column < params.columns) {
    // <unroll.py stores>
    store(row + 0u, column, low0, high0);
    store(row + 1u, column, low1, high1);
    store(row + 2u, column, low2, high2);
    store(row + 3u, column, low3, high3);
    store(row + 4u, column, low4, high4);
    store(row + 5u, column, low5, high5);
    store(row + 6u, column, low6, high6);
    store(row + 7u, column, low7, high7);
    store(row + 8u, column, low8, high8);
    store(row + 9u, column, low9, high9);
    store(row + 10u, column, low10, high10);
    store(row + 11u, column, low11, high11);
    store(row + 12u, column, low12, high12);
    store(row + 13u, column, low13, high13);
    store(row + 14u, column, low14, high14);
    store(row + 15u, column, low15, high15);
    // </unroll.py>
  }
}
