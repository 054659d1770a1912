// logits[row] = layer_norm(x[row]) @ table.T for N_OUT tokens from FIRST on; and over those the rules allow, a
// workgroup's (max, its lowest token, sum of exp(logit - max)), separately for text and for timestamps.
// layer_norm(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1]
// A workgroup is one subgroup; a lane sums 4 neighbouring outputs of four rows at a time, TILES times.
// Written by decoder_sources.py.
//   x (rows, N_IN) f32
//   norm (2, N_IN) f32
//   table (N_OUT, N_IN) f16
//   state u32, see decoder_state.py: what a sequence may choose
//   mask (2, ceil(N_VOCAB / 32)) bits: suppressed, suppressed at first
//   logits (rows, N_VOCAB) f32  out
//   partials (rows, N_GROUPS, 2) × (max, token, sum, 0) f32  out
// dispatch (ceil(outputs / (4 * LANES * TILES)), ceil(rows / 4), 1)

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read_write> logits: array<f32>;
@group(0) @binding(6) var<storage, read_write> partials: array<vec4f>;

override LANES = 8u;
override TILES = 4u;
override N_IN = 384u;
override N_OUT = 384u;
override FIRST = 0u;  // this part's first token
override N_VOCAB = 51864u;
override FIRST_GROUP = 0u;  // this part's first entry in partials
override N_GROUPS = 811u;
const LOWEST = -3.0e38;
const NO_TOKEN = 16777216.0;  // above every token; tokens are exact as f32
const ROWS = 4u;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

// `best` = (max, its lowest token, sum of exp(logit - max)) with one more logit, of a higher token.
fn with_logit(best: vec3f, logit: f32, token: f32) -> vec3f {
  let share = exp(-abs(logit - best.x));
  if (logit > best.x) {
    return vec3f(logit, token, best.z * share + 1.0);
  }
  return vec3f(best.x, best.y, best.z + share);
}

// Whether the rules let the sequence choose the token next.
fn is_allowed(sequence: u32, token: u32, is_time: bool) -> bool {
  let at = 72u + 8u * sequence;
  let low = select(state[at], state[at + 1u], is_time);
  let high = select(N_VOCAB, state[at + 2u], is_time);
  let word = mask[state[at + 3u] * ((N_VOCAB + 31u) / 32u) + token / 32u];
  return token >= low && token < high && ((word >> (token % 32u)) & 1u) == 0u;
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
  let first_row = workgroup.y * ROWS;
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
  var text_0 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_0 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_1 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_1 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_2 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_2 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_3 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_3 = vec3f(LOWEST, NO_TOKEN, 0.0);
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
    for (var k = 0u; k < eights; k += 4u) {
      // Lane l holds part l % 4 of the next 4 × 8 columns of x.
      let at = k + lane % 4u;
      var a0 = vec4f();
      var b0 = vec4f();
      var a1 = vec4f();
      var b1 = vec4f();
      var a2 = vec4f();
      var b2 = vec4f();
      var a3 = vec4f();
      var b3 = vec4f();
      if (at < eights) {
        a0 = inputs[0u * (2u * eights) + 2u * at];
        b0 = inputs[0u * (2u * eights) + 2u * at + 1u];
        a1 = inputs[1u * (2u * eights) + 2u * at];
        b1 = inputs[1u * (2u * eights) + 2u * at + 1u];
        a2 = inputs[2u * (2u * eights) + 2u * at];
        b2 = inputs[2u * (2u * eights) + 2u * at + 1u];
        a3 = inputs[3u * (2u * eights) + 2u * at];
        b3 = inputs[3u * (2u * eights) + 2u * at + 1u];
      }
      let aw0 = table[w0 + min(k + 0u, eights - 1u)];
      let al0 = vec4f(unpack2x16float(aw0.x), unpack2x16float(aw0.y));
      let ah0 = vec4f(unpack2x16float(aw0.z), unpack2x16float(aw0.w));
      let aw1 = table[w1 + min(k + 0u, eights - 1u)];
      let al1 = vec4f(unpack2x16float(aw1.x), unpack2x16float(aw1.y));
      let ah1 = vec4f(unpack2x16float(aw1.z), unpack2x16float(aw1.w));
      let aw2 = table[w2 + min(k + 0u, eights - 1u)];
      let al2 = vec4f(unpack2x16float(aw2.x), unpack2x16float(aw2.y));
      let ah2 = vec4f(unpack2x16float(aw2.z), unpack2x16float(aw2.w));
      let aw3 = table[w3 + min(k + 0u, eights - 1u)];
      let al3 = vec4f(unpack2x16float(aw3.x), unpack2x16float(aw3.y));
      let ah3 = vec4f(unpack2x16float(aw3.z), unpack2x16float(aw3.w));
      let xa0_0 = subgroupBroadcast(a0, 0u);
      let xb0_0 = subgroupBroadcast(b0, 0u);
      s0_0 += dot(al0, xa0_0) + dot(ah0, xb0_0);
      s0_1 += dot(al1, xa0_0) + dot(ah1, xb0_0);
      s0_2 += dot(al2, xa0_0) + dot(ah2, xb0_0);
      s0_3 += dot(al3, xa0_0) + dot(ah3, xb0_0);
      let xa1_0 = subgroupBroadcast(a1, 0u);
      let xb1_0 = subgroupBroadcast(b1, 0u);
      s1_0 += dot(al0, xa1_0) + dot(ah0, xb1_0);
      s1_1 += dot(al1, xa1_0) + dot(ah1, xb1_0);
      s1_2 += dot(al2, xa1_0) + dot(ah2, xb1_0);
      s1_3 += dot(al3, xa1_0) + dot(ah3, xb1_0);
      let xa2_0 = subgroupBroadcast(a2, 0u);
      let xb2_0 = subgroupBroadcast(b2, 0u);
      s2_0 += dot(al0, xa2_0) + dot(ah0, xb2_0);
      s2_1 += dot(al1, xa2_0) + dot(ah1, xb2_0);
      s2_2 += dot(al2, xa2_0) + dot(ah2, xb2_0);
      s2_3 += dot(al3, xa2_0) + dot(ah3, xb2_0);
      let xa3_0 = subgroupBroadcast(a3, 0u);
      let xb3_0 = subgroupBroadcast(b3, 0u);
      s3_0 += dot(al0, xa3_0) + dot(ah0, xb3_0);
      s3_1 += dot(al1, xa3_0) + dot(ah1, xb3_0);
      s3_2 += dot(al2, xa3_0) + dot(ah2, xb3_0);
      s3_3 += dot(al3, xa3_0) + dot(ah3, xb3_0);
      let bw0 = table[w0 + min(k + 1u, eights - 1u)];
      let bl0 = vec4f(unpack2x16float(bw0.x), unpack2x16float(bw0.y));
      let bh0 = vec4f(unpack2x16float(bw0.z), unpack2x16float(bw0.w));
      let bw1 = table[w1 + min(k + 1u, eights - 1u)];
      let bl1 = vec4f(unpack2x16float(bw1.x), unpack2x16float(bw1.y));
      let bh1 = vec4f(unpack2x16float(bw1.z), unpack2x16float(bw1.w));
      let bw2 = table[w2 + min(k + 1u, eights - 1u)];
      let bl2 = vec4f(unpack2x16float(bw2.x), unpack2x16float(bw2.y));
      let bh2 = vec4f(unpack2x16float(bw2.z), unpack2x16float(bw2.w));
      let bw3 = table[w3 + min(k + 1u, eights - 1u)];
      let bl3 = vec4f(unpack2x16float(bw3.x), unpack2x16float(bw3.y));
      let bh3 = vec4f(unpack2x16float(bw3.z), unpack2x16float(bw3.w));
      let xa0_1 = subgroupBroadcast(a0, 1u);
      let xb0_1 = subgroupBroadcast(b0, 1u);
      s0_0 += dot(bl0, xa0_1) + dot(bh0, xb0_1);
      s0_1 += dot(bl1, xa0_1) + dot(bh1, xb0_1);
      s0_2 += dot(bl2, xa0_1) + dot(bh2, xb0_1);
      s0_3 += dot(bl3, xa0_1) + dot(bh3, xb0_1);
      let xa1_1 = subgroupBroadcast(a1, 1u);
      let xb1_1 = subgroupBroadcast(b1, 1u);
      s1_0 += dot(bl0, xa1_1) + dot(bh0, xb1_1);
      s1_1 += dot(bl1, xa1_1) + dot(bh1, xb1_1);
      s1_2 += dot(bl2, xa1_1) + dot(bh2, xb1_1);
      s1_3 += dot(bl3, xa1_1) + dot(bh3, xb1_1);
      let xa2_1 = subgroupBroadcast(a2, 1u);
      let xb2_1 = subgroupBroadcast(b2, 1u);
      s2_0 += dot(bl0, xa2_1) + dot(bh0, xb2_1);
      s2_1 += dot(bl1, xa2_1) + dot(bh1, xb2_1);
      s2_2 += dot(bl2, xa2_1) + dot(bh2, xb2_1);
      s2_3 += dot(bl3, xa2_1) + dot(bh3, xb2_1);
      let xa3_1 = subgroupBroadcast(a3, 1u);
      let xb3_1 = subgroupBroadcast(b3, 1u);
      s3_0 += dot(bl0, xa3_1) + dot(bh0, xb3_1);
      s3_1 += dot(bl1, xa3_1) + dot(bh1, xb3_1);
      s3_2 += dot(bl2, xa3_1) + dot(bh2, xb3_1);
      s3_3 += dot(bl3, xa3_1) + dot(bh3, xb3_1);
      let cw0 = table[w0 + min(k + 2u, eights - 1u)];
      let cl0 = vec4f(unpack2x16float(cw0.x), unpack2x16float(cw0.y));
      let ch0 = vec4f(unpack2x16float(cw0.z), unpack2x16float(cw0.w));
      let cw1 = table[w1 + min(k + 2u, eights - 1u)];
      let cl1 = vec4f(unpack2x16float(cw1.x), unpack2x16float(cw1.y));
      let ch1 = vec4f(unpack2x16float(cw1.z), unpack2x16float(cw1.w));
      let cw2 = table[w2 + min(k + 2u, eights - 1u)];
      let cl2 = vec4f(unpack2x16float(cw2.x), unpack2x16float(cw2.y));
      let ch2 = vec4f(unpack2x16float(cw2.z), unpack2x16float(cw2.w));
      let cw3 = table[w3 + min(k + 2u, eights - 1u)];
      let cl3 = vec4f(unpack2x16float(cw3.x), unpack2x16float(cw3.y));
      let ch3 = vec4f(unpack2x16float(cw3.z), unpack2x16float(cw3.w));
      let xa0_2 = subgroupBroadcast(a0, 2u);
      let xb0_2 = subgroupBroadcast(b0, 2u);
      s0_0 += dot(cl0, xa0_2) + dot(ch0, xb0_2);
      s0_1 += dot(cl1, xa0_2) + dot(ch1, xb0_2);
      s0_2 += dot(cl2, xa0_2) + dot(ch2, xb0_2);
      s0_3 += dot(cl3, xa0_2) + dot(ch3, xb0_2);
      let xa1_2 = subgroupBroadcast(a1, 2u);
      let xb1_2 = subgroupBroadcast(b1, 2u);
      s1_0 += dot(cl0, xa1_2) + dot(ch0, xb1_2);
      s1_1 += dot(cl1, xa1_2) + dot(ch1, xb1_2);
      s1_2 += dot(cl2, xa1_2) + dot(ch2, xb1_2);
      s1_3 += dot(cl3, xa1_2) + dot(ch3, xb1_2);
      let xa2_2 = subgroupBroadcast(a2, 2u);
      let xb2_2 = subgroupBroadcast(b2, 2u);
      s2_0 += dot(cl0, xa2_2) + dot(ch0, xb2_2);
      s2_1 += dot(cl1, xa2_2) + dot(ch1, xb2_2);
      s2_2 += dot(cl2, xa2_2) + dot(ch2, xb2_2);
      s2_3 += dot(cl3, xa2_2) + dot(ch3, xb2_2);
      let xa3_2 = subgroupBroadcast(a3, 2u);
      let xb3_2 = subgroupBroadcast(b3, 2u);
      s3_0 += dot(cl0, xa3_2) + dot(ch0, xb3_2);
      s3_1 += dot(cl1, xa3_2) + dot(ch1, xb3_2);
      s3_2 += dot(cl2, xa3_2) + dot(ch2, xb3_2);
      s3_3 += dot(cl3, xa3_2) + dot(ch3, xb3_2);
      let dw0 = table[w0 + min(k + 3u, eights - 1u)];
      let dl0 = vec4f(unpack2x16float(dw0.x), unpack2x16float(dw0.y));
      let dh0 = vec4f(unpack2x16float(dw0.z), unpack2x16float(dw0.w));
      let dw1 = table[w1 + min(k + 3u, eights - 1u)];
      let dl1 = vec4f(unpack2x16float(dw1.x), unpack2x16float(dw1.y));
      let dh1 = vec4f(unpack2x16float(dw1.z), unpack2x16float(dw1.w));
      let dw2 = table[w2 + min(k + 3u, eights - 1u)];
      let dl2 = vec4f(unpack2x16float(dw2.x), unpack2x16float(dw2.y));
      let dh2 = vec4f(unpack2x16float(dw2.z), unpack2x16float(dw2.w));
      let dw3 = table[w3 + min(k + 3u, eights - 1u)];
      let dl3 = vec4f(unpack2x16float(dw3.x), unpack2x16float(dw3.y));
      let dh3 = vec4f(unpack2x16float(dw3.z), unpack2x16float(dw3.w));
      let xa0_3 = subgroupBroadcast(a0, 3u);
      let xb0_3 = subgroupBroadcast(b0, 3u);
      s0_0 += dot(dl0, xa0_3) + dot(dh0, xb0_3);
      s0_1 += dot(dl1, xa0_3) + dot(dh1, xb0_3);
      s0_2 += dot(dl2, xa0_3) + dot(dh2, xb0_3);
      s0_3 += dot(dl3, xa0_3) + dot(dh3, xb0_3);
      let xa1_3 = subgroupBroadcast(a1, 3u);
      let xb1_3 = subgroupBroadcast(b1, 3u);
      s1_0 += dot(dl0, xa1_3) + dot(dh0, xb1_3);
      s1_1 += dot(dl1, xa1_3) + dot(dh1, xb1_3);
      s1_2 += dot(dl2, xa1_3) + dot(dh2, xb1_3);
      s1_3 += dot(dl3, xa1_3) + dot(dh3, xb1_3);
      let xa2_3 = subgroupBroadcast(a2, 3u);
      let xb2_3 = subgroupBroadcast(b2, 3u);
      s2_0 += dot(dl0, xa2_3) + dot(dh0, xb2_3);
      s2_1 += dot(dl1, xa2_3) + dot(dh1, xb2_3);
      s2_2 += dot(dl2, xa2_3) + dot(dh2, xb2_3);
      s2_3 += dot(dl3, xa2_3) + dot(dh3, xb2_3);
      let xa3_3 = subgroupBroadcast(a3, 3u);
      let xb3_3 = subgroupBroadcast(b3, 3u);
      s3_0 += dot(dl0, xa3_3) + dot(dh0, xb3_3);
      s3_1 += dot(dl1, xa3_3) + dot(dh1, xb3_3);
      s3_2 += dot(dl2, xa3_3) + dot(dh2, xb3_3);
      s3_3 += dot(dl3, xa3_3) + dot(dh3, xb3_3);
    }
    let y0 = vec4f(s0_0, s0_1, s0_2, s0_3);
    let y1 = vec4f(s1_0, s1_1, s1_2, s1_3);
    let y2 = vec4f(s2_0, s2_1, s2_2, s2_3);
    let y3 = vec4f(s3_0, s3_1, s3_2, s3_3);
    if (out < N_OUT) {
      for (var i = 0u; i < min(4u, N_OUT - out); i++) {
        let token = FIRST + out + i;
        let is_time = token >= state[4];
        if (first_row + 0u < state[0]) {
          let logit = y0[i];
          logits[(first_row + 0u) * N_VOCAB + token] = logit;
          if (is_allowed(first_row + 0u, token, is_time)) {
            if (is_time) {
              time_0 = with_logit(time_0, logit, f32(token));
            } else {
              text_0 = with_logit(text_0, logit, f32(token));
            }
          }
        }
        if (first_row + 1u < state[0]) {
          let logit = y1[i];
          logits[(first_row + 1u) * N_VOCAB + token] = logit;
          if (is_allowed(first_row + 1u, token, is_time)) {
            if (is_time) {
              time_1 = with_logit(time_1, logit, f32(token));
            } else {
              text_1 = with_logit(text_1, logit, f32(token));
            }
          }
        }
        if (first_row + 2u < state[0]) {
          let logit = y2[i];
          logits[(first_row + 2u) * N_VOCAB + token] = logit;
          if (is_allowed(first_row + 2u, token, is_time)) {
            if (is_time) {
              time_2 = with_logit(time_2, logit, f32(token));
            } else {
              text_2 = with_logit(text_2, logit, f32(token));
            }
          }
        }
        if (first_row + 3u < state[0]) {
          let logit = y3[i];
          logits[(first_row + 3u) * N_VOCAB + token] = logit;
          if (is_allowed(first_row + 3u, token, is_time)) {
            if (is_time) {
              time_3 = with_logit(time_3, logit, f32(token));
            } else {
              text_3 = with_logit(text_3, logit, f32(token));
            }
          }
        }
      }
    }
  }
  let most_text_0 = subgroupMax(text_0.x);
  let token_text_0 = subgroupMin(select(NO_TOKEN, text_0.y, text_0.x == most_text_0));
  let sum_text_0 = subgroupAdd(text_0.z * exp(text_0.x - most_text_0));
  if (invocation == 0u && first_row + 0u < state[0]) {
    partials[((first_row + 0u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = vec4f(most_text_0, token_text_0, sum_text_0, 0.0);
  }
  let most_time_0 = subgroupMax(time_0.x);
  let token_time_0 = subgroupMin(select(NO_TOKEN, time_0.y, time_0.x == most_time_0));
  let sum_time_0 = subgroupAdd(time_0.z * exp(time_0.x - most_time_0));
  if (invocation == 0u && first_row + 0u < state[0]) {
    partials[((first_row + 0u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = vec4f(most_time_0, token_time_0, sum_time_0, 0.0);
  }
  let most_text_1 = subgroupMax(text_1.x);
  let token_text_1 = subgroupMin(select(NO_TOKEN, text_1.y, text_1.x == most_text_1));
  let sum_text_1 = subgroupAdd(text_1.z * exp(text_1.x - most_text_1));
  if (invocation == 0u && first_row + 1u < state[0]) {
    partials[((first_row + 1u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = vec4f(most_text_1, token_text_1, sum_text_1, 0.0);
  }
  let most_time_1 = subgroupMax(time_1.x);
  let token_time_1 = subgroupMin(select(NO_TOKEN, time_1.y, time_1.x == most_time_1));
  let sum_time_1 = subgroupAdd(time_1.z * exp(time_1.x - most_time_1));
  if (invocation == 0u && first_row + 1u < state[0]) {
    partials[((first_row + 1u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = vec4f(most_time_1, token_time_1, sum_time_1, 0.0);
  }
  let most_text_2 = subgroupMax(text_2.x);
  let token_text_2 = subgroupMin(select(NO_TOKEN, text_2.y, text_2.x == most_text_2));
  let sum_text_2 = subgroupAdd(text_2.z * exp(text_2.x - most_text_2));
  if (invocation == 0u && first_row + 2u < state[0]) {
    partials[((first_row + 2u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = vec4f(most_text_2, token_text_2, sum_text_2, 0.0);
  }
  let most_time_2 = subgroupMax(time_2.x);
  let token_time_2 = subgroupMin(select(NO_TOKEN, time_2.y, time_2.x == most_time_2));
  let sum_time_2 = subgroupAdd(time_2.z * exp(time_2.x - most_time_2));
  if (invocation == 0u && first_row + 2u < state[0]) {
    partials[((first_row + 2u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = vec4f(most_time_2, token_time_2, sum_time_2, 0.0);
  }
  let most_text_3 = subgroupMax(text_3.x);
  let token_text_3 = subgroupMin(select(NO_TOKEN, text_3.y, text_3.x == most_text_3));
  let sum_text_3 = subgroupAdd(text_3.z * exp(text_3.x - most_text_3));
  if (invocation == 0u && first_row + 3u < state[0]) {
    partials[((first_row + 3u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = vec4f(most_text_3, token_text_3, sum_text_3, 0.0);
  }
  let most_time_3 = subgroupMax(time_3.x);
  let token_time_3 = subgroupMin(select(NO_TOKEN, time_3.y, time_3.x == most_time_3));
  let sum_time_3 = subgroupAdd(time_3.z * exp(time_3.x - most_time_3));
  if (invocation == 0u && first_row + 3u < state[0]) {
    partials[((first_row + 3u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = vec4f(most_time_3, token_time_3, sum_time_3, 0.0);
  }
}
