// x[row] = table[token] + positions[position], for the rows whose token is in the table: N_RANGE tokens from FIRST on.
//
// A workgroup takes one row, invocation i every WORKGROUP-th 8 columns.
//   table      (N_RANGE, N_IN) f16
//   positions  (N_TEXT_CTX, N_IN) f32
//   state      State: a row's token and position
//   x          (rows, N_IN) f32  out
// dispatch (1, rows, 1)
{% from "shared.wgsl" import columns, state with context %}
{{ state() }}
@group(0) @binding(0) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> positions: array<vec4f>;
@group(0) @binding(2) var<storage, read> state: State;
@group(0) @binding(3) var<storage, read_write> x: array<vec4f>;

override WORKGROUP = 64u;
override N_IN = 384u;
override FIRST = 0u;
override N_RANGE = 51864u;

{{ columns() }}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let row = workgroup.y;
  let token = state.rows[row].token;
  if (state.stopped != 0u || token < FIRST || token >= FIRST + N_RANGE) {
    return;
  }
  for (var i = invocation; i < N_IN / 8u; i += WORKGROUP) {
    let embedding = from_f16(table[(token - FIRST) * (N_IN / 8u) + i]);
    let to = row * (N_IN / 4u) + 2u * i;
    let place = state.rows[row].position * (N_IN / 4u) + 2u * i;
    x[to] = embedding.low + positions[place];
    x[to + 1u] = embedding.high + positions[place + 1u];
  }
}
