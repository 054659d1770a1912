// logits[row] = layer_norm(x[row]) @ table.T for N_OUT tokens from FIRST on; and over those the rules allow, a
// workgroup's (max, its lowest token, sum of exp(logit - max)), separately for text and for timestamps.
// layer_norm(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1]
// LANES invocations sum 4 neighbouring outputs of four rows, each over every LANES-th 8 columns; TILES times.
// Written by decoder_sources.py.
//   x (rows, N_IN) f32
//   norm (2, N_IN) f32
//   table (N_OUT, N_IN) f16
//   state u32, see decoder_state.py: what a sequence may choose
//   mask (2, ceil(N_VOCAB / 32)) bits: suppressed, suppressed at first
//   logits (rows, N_VOCAB) f32  out
//   partials (rows, N_GROUPS, 2) × (max, token, sum, 0) f32  out
// dispatch (ceil(outputs / (4 * WORKGROUP / LANES * TILES)), ceil(rows / 4), 1)

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read_write> logits: array<f32>;
@group(0) @binding(6) var<storage, read_write> partials: array<vec4f>;

override WORKGROUP = 256u;
override LANES = 64u;
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
var<workgroup> sums: array<vec4f, WORKGROUP>;

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
  let first_row = workgroup.y * ROWS;
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
  var text_0 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_0 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_1 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_1 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_2 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_2 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var text_3 = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time_3 = vec3f(LOWEST, NO_TOKEN, 0.0);
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
      let aw0 = table[w0 + k];
      let al0 = vec4f(unpack2x16float(aw0.x), unpack2x16float(aw0.y));
      let ah0 = vec4f(unpack2x16float(aw0.z), unpack2x16float(aw0.w));
      let aw1 = table[w1 + k];
      let al1 = vec4f(unpack2x16float(aw1.x), unpack2x16float(aw1.y));
      let ah1 = vec4f(unpack2x16float(aw1.z), unpack2x16float(aw1.w));
      let aw2 = table[w2 + k];
      let al2 = vec4f(unpack2x16float(aw2.x), unpack2x16float(aw2.y));
      let ah2 = vec4f(unpack2x16float(aw2.z), unpack2x16float(aw2.w));
      let aw3 = table[w3 + k];
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
  sums[invocation] = vec4f(text_0, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 0u < state[0]) {
    partials[((first_row + 0u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(time_0, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 0u < state[0]) {
    partials[((first_row + 0u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(text_1, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 1u < state[0]) {
    partials[((first_row + 1u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(time_1, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 1u < state[0]) {
    partials[((first_row + 1u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(text_2, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 2u < state[0]) {
    partials[((first_row + 2u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(time_2, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 2u < state[0]) {
    partials[((first_row + 2u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(text_3, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 3u < state[0]) {
    partials[((first_row + 3u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 0u] = sums[0];
  }
  workgroupBarrier();
  sums[invocation] = vec4f(time_3, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      let a = sums[invocation];
      let b = sums[invocation + half];
      let most = max(a.x, b.x);
      let token = min(select(NO_TOKEN, a.y, a.x == most), select(NO_TOKEN, b.y, b.x == most));
      sums[invocation] = vec4f(most, token, a.z * exp(a.x - most) + b.z * exp(b.x - most), 0.0);
    }
  }
  workgroupBarrier();
  if (invocation == 0u && first_row + 3u < state[0]) {
    partials[((first_row + 3u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + 1u] = sums[0];
  }
  workgroupBarrier();
}
