// q, k, v = layer_norm(x[row]) @ weight.T + bias; q * SCALE to query, k and v to the cache.
// layer_norm(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1]
// LANES invocations sum 4 neighbouring outputs of four rows, each over every LANES-th 8 columns; TILES times.
// Written by decoder_sources.py.
//   x (rows, N_IN) f32
//   norm (2, N_IN) f32
//   weight (3 N_IN, N_IN) f16
//   bias (3 N_IN,) f32
//   state u32, see decoder_state.py: a row's slot and position
//   query (rows, N_IN) f32  out
//   keys (slots, N_IN / 8, N_TEXT_CTX, 8) f32  out
//   values (slots, N_TEXT_CTX, N_IN / 8, 8) f32  out
// params: first_row, end_row: the rows from one to the other, of one context
// dispatch (ceil(outputs / (4 * WORKGROUP / LANES * TILES)), ceil(rows / 4), 1)

struct Params {
  first_row: u32,
  end_row: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> query: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> keys: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> values: array<vec4f>;
@group(0) @binding(8) var<uniform> params: Params;

override WORKGROUP = 256u;
override LANES = 64u;
override TILES = 4u;
override N_IN = 384u;
override N_OUT = 384u;
override SCALE = 0.125;
override N_TEXT_CTX = 448u;
const ROWS = 4u;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;
var<workgroup> sums: array<vec4f, WORKGROUP>;

// Four neighbouring outputs of a row to where they belong. A row past the end is the tile's padding.
fn write(row: u32, column: u32, y: vec4f) {
  if (row >= params.end_row) {
    return;
  }
  let slot = state[8u + 4u * row + 1u];
  let position = state[8u + 4u * row + 2u];
  if (column < N_IN) {
    query[(row * N_IN + column) / 4u] = y * SCALE;
  } else if (column < 2u * N_IN) {
    let c = column - N_IN;
    keys[((slot * (N_IN / 8u) + c / 8u) * N_TEXT_CTX + position) * 2u + (c / 4u) % 2u] = y;
  } else {
    let c = column - 2u * N_IN;
    values[((slot * N_TEXT_CTX + position) * N_IN + c) / 4u] = y;
  }
}

// The sum of `value` over the workgroup, in every invocation.
fn workgroup_sum(invocation: u32, value: f32) -> f32 {
  sums[invocation] = vec4f(value);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      sums[invocation] += sums[invocation + half];
    }
  }
  workgroupBarrier();
  let sum = sums[0].x;
  workgroupBarrier();
  return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  if (state[1] != 0u) {
    return;  // every sequence has ended
  }
  let lane = invocation % LANES;
  let group = invocation / LANES;
  let eights = N_IN / 8u;
  let first_row = params.first_row + workgroup.y * ROWS;
  for (var row = 0u; row < ROWS; row++) {
    let from_row = (first_row + row) * (2u * eights);
    var total = vec4f();
    for (var i = invocation; i < 2u * eights; i += WORKGROUP) {
      total += x[from_row + i];
    }
    let mean = workgroup_sum(invocation, dot(total, vec4f(1.0))) / f32(N_IN);
    var squares = vec4f();
    for (var i = invocation; i < 2u * eights; i += WORKGROUP) {
      let centred = x[from_row + i] - mean;
      squares += centred * centred;
    }
    let scale = inverseSqrt(workgroup_sum(invocation, dot(squares, vec4f(1.0))) / f32(N_IN) + 1e-5);
    for (var i = invocation; i < 2u * eights; i += WORKGROUP) {
      inputs[row * (2u * eights) + i] = (x[from_row + i] - mean) * scale * norm[i] + norm[2u * eights + i];
    }
  }
  workgroupBarrier();
  for (var tile = 0u; tile < TILES; tile++) {
    let out = ((workgroup.x * TILES + tile) * (WORKGROUP / LANES) + group) * 4u;
    let w0 = min(out + 0u, N_OUT - 1u) * eights;
    let w1 = min(out + 1u, N_OUT - 1u) * eights;
    let w2 = min(out + 2u, N_OUT - 1u) * eights;
    let w3 = min(out + 3u, N_OUT - 1u) * eights;
    var s0_0 = 0.0;
    var s0_1 = 0.0;
    var s0_2 = 0.0;
    var s0_3 = 0.0;
    var s1_0 = 0.0;
    var s1_1 = 0.0;
    var s1_2 = 0.0;
    var s1_3 = 0.0;
    var s2_0 = 0.0;
    var s2_1 = 0.0;
    var s2_2 = 0.0;
    var s2_3 = 0.0;
    var s3_0 = 0.0;
    var s3_1 = 0.0;
    var s3_2 = 0.0;
    var s3_3 = 0.0;
    for (var k = lane; k < eights; k += LANES) {
      let aw0 = weight[w0 + k];
      let al0 = vec4f(unpack2x16float(aw0.x), unpack2x16float(aw0.y));
      let ah0 = vec4f(unpack2x16float(aw0.z), unpack2x16float(aw0.w));
      let aw1 = weight[w1 + k];
      let al1 = vec4f(unpack2x16float(aw1.x), unpack2x16float(aw1.y));
      let ah1 = vec4f(unpack2x16float(aw1.z), unpack2x16float(aw1.w));
      let aw2 = weight[w2 + k];
      let al2 = vec4f(unpack2x16float(aw2.x), unpack2x16float(aw2.y));
      let ah2 = vec4f(unpack2x16float(aw2.z), unpack2x16float(aw2.w));
      let aw3 = weight[w3 + k];
      let al3 = vec4f(unpack2x16float(aw3.x), unpack2x16float(aw3.y));
      let ah3 = vec4f(unpack2x16float(aw3.z), unpack2x16float(aw3.w));
      let xa0 = inputs[0u * (2u * eights) + 2u * k];
      let xb0 = inputs[0u * (2u * eights) + 2u * k + 1u];
      s0_0 += dot(al0, xa0) + dot(ah0, xb0);
      s0_1 += dot(al1, xa0) + dot(ah1, xb0);
      s0_2 += dot(al2, xa0) + dot(ah2, xb0);
      s0_3 += dot(al3, xa0) + dot(ah3, xb0);
      let xa1 = inputs[1u * (2u * eights) + 2u * k];
      let xb1 = inputs[1u * (2u * eights) + 2u * k + 1u];
      s1_0 += dot(al0, xa1) + dot(ah0, xb1);
      s1_1 += dot(al1, xa1) + dot(ah1, xb1);
      s1_2 += dot(al2, xa1) + dot(ah2, xb1);
      s1_3 += dot(al3, xa1) + dot(ah3, xb1);
      let xa2 = inputs[2u * (2u * eights) + 2u * k];
      let xb2 = inputs[2u * (2u * eights) + 2u * k + 1u];
      s2_0 += dot(al0, xa2) + dot(ah0, xb2);
      s2_1 += dot(al1, xa2) + dot(ah1, xb2);
      s2_2 += dot(al2, xa2) + dot(ah2, xb2);
      s2_3 += dot(al3, xa2) + dot(ah3, xb2);
      let xa3 = inputs[3u * (2u * eights) + 2u * k];
      let xb3 = inputs[3u * (2u * eights) + 2u * k + 1u];
      s3_0 += dot(al0, xa3) + dot(ah0, xb3);
      s3_1 += dot(al1, xa3) + dot(ah1, xb3);
      s3_2 += dot(al2, xa3) + dot(ah2, xb3);
      s3_3 += dot(al3, xa3) + dot(ah3, xb3);
    }
    sums[invocation] = vec4f(s0_0, s0_1, s0_2, s0_3);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        sums[invocation] += sums[invocation + half];
      }
    }
    workgroupBarrier();
    let y0 = sums[invocation - lane];
    workgroupBarrier();
    sums[invocation] = vec4f(s1_0, s1_1, s1_2, s1_3);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        sums[invocation] += sums[invocation + half];
      }
    }
    workgroupBarrier();
    let y1 = sums[invocation - lane];
    workgroupBarrier();
    sums[invocation] = vec4f(s2_0, s2_1, s2_2, s2_3);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        sums[invocation] += sums[invocation + half];
      }
    }
    workgroupBarrier();
    let y2 = sums[invocation - lane];
    workgroupBarrier();
    sums[invocation] = vec4f(s3_0, s3_1, s3_2, s3_3);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        sums[invocation] += sums[invocation + half];
      }
    }
    workgroupBarrier();
    let y3 = sums[invocation - lane];
    workgroupBarrier();
    if (lane == 0u && out < N_OUT) {
      write(first_row + 0u, out, y0 + bias[out / 4u]);
      write(first_row + 1u, out, y1 + bias[out / 4u]);
      write(first_row + 2u, out, y2 + bias[out / 4u]);
      write(first_row + 3u, out, y3 + bias[out / 4u]);
    }
  }
}
