// x[row] = table[token] + positions[position], for the rows whose token is one of the table's: N_RANGE tokens from FIRST on.
// A workgroup takes one row, invocation i every WORKGROUP-th 8 columns.
//   table (N_RANGE, N_IN) f16
//   positions (N_TEXT_CTX, N_IN) f32
//   state u32, see decoder_state.py
//   x (rows, N_IN) f32  out
// dispatch (1, rows, 1)

@group(0) @binding(0) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> positions: array<vec4f>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4f>;

override WORKGROUP = 64u;
override N_IN = 384u;
override FIRST = 0u;
override N_RANGE = 51864u;

@compute @workgroup_size(WORKGROUP)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let row = workgroup.y;
  let token = state[8u + 4u * row];
  let position = state[8u + 4u * row + 2u];
  if (state[1] != 0u || token < FIRST || token >= FIRST + N_RANGE) {
    return;
  }
  for (var i = invocation; i < N_IN / 8u; i += WORKGROUP) {
    let u = table[(token - FIRST) * (N_IN / 8u) + i];
    let to = row * (N_IN / 4u) + 2u * i;
    let place = position * (N_IN / 4u) + 2u * i;
    x[to] = vec4f(unpack2x16float(u.x), unpack2x16float(u.y)) + positions[place];
    x[to + 1u] = vec4f(unpack2x16float(u.z), unpack2x16float(u.w)) + positions[place + 1u];
  }
}
