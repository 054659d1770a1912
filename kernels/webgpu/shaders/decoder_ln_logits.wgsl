// logits[row] = layer_norm(x[row]) @ table.T for N_OUT tokens from FIRST on; and over those the rules allow, a workgroup's
// (max, its lowest token, sum of exp(logit - max)), separately for text and for timestamps.
//
// A workgroup normalises ROWS rows, then computes 4 · WORKGROUP / LANES · TILES neighbouring tokens of each, an invocation 4 at a time.
//   x         (rows, N_IN) f32
//   norm      (2, N_IN) f32: gain, shift
//   table     (N_OUT, N_IN) f16
//   state     State: what a sequence may choose
//   mask      (2, ceil(N_VOCAB / 32)) bits: suppressed, suppressed at first
//   logits    (rows, N_VOCAB) f32  out
//   partials  (rows, N_GROUPS, 2) × (max, token, sum, 0) f32: text, timestamps  out
// dispatch (ceil(N_OUT / (4 · WORKGROUP / LANES · TILES)), ceil(rows / ROWS), 1)
{% from "shared.wgsl" import columns, extensions, join, norm_inputs, product_sizes, products, state, sum_all with context %}
{{ extensions() }}
{{ state() }}
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> norm: array<vec4f>;
@group(0) @binding(2) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: State;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read_write> logits: array<f32>;
@group(0) @binding(6) var<storage, read_write> partials: array<vec4f>;

{{ product_sizes() }}
override FIRST = 0u;  // this part's first token
override N_VOCAB = 51864u;
override FIRST_GROUP = 0u;  // this part's first entry in partials
override N_GROUPS = 811u;
var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;

{{ columns() }}
{{ sum_all() }}
{{ norm_inputs() }}
{{ join() }}
// Adds one logit, of a higher token, to `best` = (max, its lowest token, sum of exp(logit - max)).
fn with_logit(best: vec3f, logit: f32, token: f32) -> vec3f {
  let share = exp(-abs(logit - best.x));
  if (logit > best.x) {
    return vec3f(logit, token, best.z * share + 1.0);
  }
  return vec3f(best.x, best.y, best.z + share);
}

// Combines all invocations' `best` in the first.
fn join_all(best: vec3f, invocation: u32) -> vec4f {
{% if reduction == "subgroup" %}
  let most = subgroupMax(best.x);
  let token = subgroupMin(select(NO_TOKEN, best.y, best.x == most));
  let sum = subgroupAdd(best.z * exp(best.x - most));
  return vec4f(most, token, sum, 0.0);
{% else %}
  sums[invocation] = vec4f(best, 0.0);
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (invocation < half) {
      sums[invocation] = join(sums[invocation], sums[invocation + half]);
    }
  }
  let joined = sums[invocation];
  workgroupBarrier();
  return joined;
{% endif %}
}

// Whether the rules allow this token next.
fn is_allowed(sequence: u32, token: u32, is_time: bool) -> bool {
  let low = select(state.sequences[sequence].text_from, state.sequences[sequence].time_from, is_time);
  let high = select(N_VOCAB, state.sequences[sequence].time_below, is_time);
  let word = mask[state.sequences[sequence].is_first * ((N_VOCAB + 31u) / 32u) + token / 32u];
  return token >= low && token < high && ((word >> (token % 32u)) & 1u) == 0u;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  if (state.stopped != 0u) {
    return;
  }
  let first_row = workgroup.y * ROWS;
  norm_inputs(first_row, invocation);
{% for r in range(rows) %}
  var text{{ r }} = vec3f(LOWEST, NO_TOKEN, 0.0);
  var time{{ r }} = vec3f(LOWEST, NO_TOKEN, 0.0);
{% endfor %}
{% call(r) products("table", "inputs", "0u") %}
      for (var i = 0u; i < min(4u, N_OUT - out) && first_row + {{ r }}u < state.n_rows; i++) {
        let row = first_row + {{ r }}u;
        let token = FIRST + out + i;
        let logit = y{{ r }}[i];
        logits[row * N_VOCAB + token] = logit;
        let is_time = token >= state.timestamp_begin;
        if (is_allowed(row, token, is_time)) {
          if (is_time) {
            time{{ r }} = with_logit(time{{ r }}, logit, f32(token));
          } else {
            text{{ r }} = with_logit(text{{ r }}, logit, f32(token));
          }
        }
      }
{% endcall %}
{% for r in range(rows) %}
  let best_text{{ r }} = join_all(text{{ r }}, invocation);
  let best_time{{ r }} = join_all(time{{ r }}, invocation);
  if (invocation == 0u && first_row + {{ r }}u < state.n_rows) {
    let place = ((first_row + {{ r }}u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u;
    partials[place] = best_text{{ r }};
    partials[place + 1u] = best_time{{ r }};
  }
{% endfor %}
}
