// q, k, v = layer_norm(x[row]) @ weight.T + bias; q * SCALE to query, k and v to the cache.
// layer_norm(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1]
// A workgroup is one subgroup; a lane sums 4 neighbouring outputs of one row at a time, TILES times.
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
// dispatch (ceil(outputs / (4 * LANES * TILES)), rows, 1)

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

override LANES = 8u;
override TILES = 4u;
override N_IN = 384u;
override N_OUT = 384u;
override SCALE = 0.125;
override N_TEXT_CTX = 448u;
const ROWS = 1u;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

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

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  if (state[1] != 0u) {
    return;  // every sequence has ended
  }
  let lane = invocation;
  let eights = N_IN / 8u;
  let first_row = params.first_row + workgroup.y * ROWS;
  for (var row = 0u; row < ROWS; row++) {
    let from_row = (first_row + row) * (2u * eights);
    var total = vec4f();
    for (var i = invocation; i < 2u * eights; i += LANES) {
      total += x[from_row + i];
    }
    let mean = subgroupAdd(dot(total, vec4f(1.0))) / f32(N_IN);
    var squares = vec4f();
    for (var i = invocation; i < 2u * eights; i += LANES) {
      let centred = x[from_row + i] - mean;
      squares += centred * centred;
    }
    let scale = inverseSqrt(subgroupAdd(dot(squares, vec4f(1.0))) / f32(N_IN) + 1e-5);
    for (var i = invocation; i < 2u * eights; i += LANES) {
      inputs[row * (2u * eights) + i] = (x[from_row + i] - mean) * scale * norm[i] + norm[2u * eights + i];
    }
  }
  workgroupBarrier();
  for (var tile = 0u; tile < TILES; tile++) {
    let first_out = (workgroup.x * TILES + tile) * LANES * 4u;
    if (first_out >= N_OUT) {
      break;
    }
    let out = first_out + 4u * lane;
    let w0 = min(out + 0u, N_OUT - 1u) * eights;
    let w1 = min(out + 1u, N_OUT - 1u) * eights;
    let w2 = min(out + 2u, N_OUT - 1u) * eights;
    let w3 = min(out + 3u, N_OUT - 1u) * eights;
    var s0_0 = 0.0;
    var s0_1 = 0.0;
    var s0_2 = 0.0;
    var s0_3 = 0.0;
    for (var k = 0u; k < eights; k += 4u) {
      // Lane l holds part l % 4 of the next 4 × 8 columns of x.
      let at = k + lane % 4u;
      var a0 = vec4f();
      var b0 = vec4f();
      if (at < eights) {
        a0 = inputs[0u * (2u * eights) + 2u * at];
        b0 = inputs[0u * (2u * eights) + 2u * at + 1u];
      }
      let aw0 = weight[w0 + min(k + 0u, eights - 1u)];
      let al0 = vec4f(unpack2x16float(aw0.x), unpack2x16float(aw0.y));
      let ah0 = vec4f(unpack2x16float(aw0.z), unpack2x16float(aw0.w));
      let aw1 = weight[w1 + min(k + 0u, eights - 1u)];
      let al1 = vec4f(unpack2x16float(aw1.x), unpack2x16float(aw1.y));
      let ah1 = vec4f(unpack2x16float(aw1.z), unpack2x16float(aw1.w));
      let aw2 = weight[w2 + min(k + 0u, eights - 1u)];
      let al2 = vec4f(unpack2x16float(aw2.x), unpack2x16float(aw2.y));
      let ah2 = vec4f(unpack2x16float(aw2.z), unpack2x16float(aw2.w));
      let aw3 = weight[w3 + min(k + 0u, eights - 1u)];
      let al3 = vec4f(unpack2x16float(aw3.x), unpack2x16float(aw3.y));
      let ah3 = vec4f(unpack2x16float(aw3.z), unpack2x16float(aw3.w));
      let xa0_0 = subgroupBroadcast(a0, 0u);
      let xb0_0 = subgroupBroadcast(b0, 0u);
      s0_0 += dot(al0, xa0_0) + dot(ah0, xb0_0);
      s0_1 += dot(al1, xa0_0) + dot(ah1, xb0_0);
      s0_2 += dot(al2, xa0_0) + dot(ah2, xb0_0);
      s0_3 += dot(al3, xa0_0) + dot(ah3, xb0_0);
      let bw0 = weight[w0 + min(k + 1u, eights - 1u)];
      let bl0 = vec4f(unpack2x16float(bw0.x), unpack2x16float(bw0.y));
      let bh0 = vec4f(unpack2x16float(bw0.z), unpack2x16float(bw0.w));
      let bw1 = weight[w1 + min(k + 1u, eights - 1u)];
      let bl1 = vec4f(unpack2x16float(bw1.x), unpack2x16float(bw1.y));
      let bh1 = vec4f(unpack2x16float(bw1.z), unpack2x16float(bw1.w));
      let bw2 = weight[w2 + min(k + 1u, eights - 1u)];
      let bl2 = vec4f(unpack2x16float(bw2.x), unpack2x16float(bw2.y));
      let bh2 = vec4f(unpack2x16float(bw2.z), unpack2x16float(bw2.w));
      let bw3 = weight[w3 + min(k + 1u, eights - 1u)];
      let bl3 = vec4f(unpack2x16float(bw3.x), unpack2x16float(bw3.y));
      let bh3 = vec4f(unpack2x16float(bw3.z), unpack2x16float(bw3.w));
      let xa0_1 = subgroupBroadcast(a0, 1u);
      let xb0_1 = subgroupBroadcast(b0, 1u);
      s0_0 += dot(bl0, xa0_1) + dot(bh0, xb0_1);
      s0_1 += dot(bl1, xa0_1) + dot(bh1, xb0_1);
      s0_2 += dot(bl2, xa0_1) + dot(bh2, xb0_1);
      s0_3 += dot(bl3, xa0_1) + dot(bh3, xb0_1);
      let cw0 = weight[w0 + min(k + 2u, eights - 1u)];
      let cl0 = vec4f(unpack2x16float(cw0.x), unpack2x16float(cw0.y));
      let ch0 = vec4f(unpack2x16float(cw0.z), unpack2x16float(cw0.w));
      let cw1 = weight[w1 + min(k + 2u, eights - 1u)];
      let cl1 = vec4f(unpack2x16float(cw1.x), unpack2x16float(cw1.y));
      let ch1 = vec4f(unpack2x16float(cw1.z), unpack2x16float(cw1.w));
      let cw2 = weight[w2 + min(k + 2u, eights - 1u)];
      let cl2 = vec4f(unpack2x16float(cw2.x), unpack2x16float(cw2.y));
      let ch2 = vec4f(unpack2x16float(cw2.z), unpack2x16float(cw2.w));
      let cw3 = weight[w3 + min(k + 2u, eights - 1u)];
      let cl3 = vec4f(unpack2x16float(cw3.x), unpack2x16float(cw3.y));
      let ch3 = vec4f(unpack2x16float(cw3.z), unpack2x16float(cw3.w));
      let xa0_2 = subgroupBroadcast(a0, 2u);
      let xb0_2 = subgroupBroadcast(b0, 2u);
      s0_0 += dot(cl0, xa0_2) + dot(ch0, xb0_2);
      s0_1 += dot(cl1, xa0_2) + dot(ch1, xb0_2);
      s0_2 += dot(cl2, xa0_2) + dot(ch2, xb0_2);
      s0_3 += dot(cl3, xa0_2) + dot(ch3, xb0_2);
      let dw0 = weight[w0 + min(k + 3u, eights - 1u)];
      let dl0 = vec4f(unpack2x16float(dw0.x), unpack2x16float(dw0.y));
      let dh0 = vec4f(unpack2x16float(dw0.z), unpack2x16float(dw0.w));
      let dw1 = weight[w1 + min(k + 3u, eights - 1u)];
      let dl1 = vec4f(unpack2x16float(dw1.x), unpack2x16float(dw1.y));
      let dh1 = vec4f(unpack2x16float(dw1.z), unpack2x16float(dw1.w));
      let dw2 = weight[w2 + min(k + 3u, eights - 1u)];
      let dl2 = vec4f(unpack2x16float(dw2.x), unpack2x16float(dw2.y));
      let dh2 = vec4f(unpack2x16float(dw2.z), unpack2x16float(dw2.w));
      let dw3 = weight[w3 + min(k + 3u, eights - 1u)];
      let dl3 = vec4f(unpack2x16float(dw3.x), unpack2x16float(dw3.y));
      let dh3 = vec4f(unpack2x16float(dw3.z), unpack2x16float(dw3.w));
      let xa0_3 = subgroupBroadcast(a0, 3u);
      let xb0_3 = subgroupBroadcast(b0, 3u);
      s0_0 += dot(dl0, xa0_3) + dot(dh0, xb0_3);
      s0_1 += dot(dl1, xa0_3) + dot(dh1, xb0_3);
      s0_2 += dot(dl2, xa0_3) + dot(dh2, xb0_3);
      s0_3 += dot(dl3, xa0_3) + dot(dh3, xb0_3);
    }
    let y0 = vec4f(s0_0, s0_1, s0_2, s0_3);
    if (out < N_OUT) {
      write(first_row + 0u, out, y0 + bias[out / 4u]);
    }
  }
}
