// size[0] = how many invocations of a workgroup run in lockstep on this device.
//
// Invocation 0 of the single workgroup writes it.
//   size  (1,) u32  out
// dispatch (1, 1, 1)
{{ "enable subgroups;" if enable_subgroups }}
@group(0) @binding(0) var<storage, read_write> size: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_size) subgroup_size: u32) {
  if (lane == 0u) {
    size[0] = subgroup_size;
  }
}
