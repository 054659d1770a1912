// Keys and values of the cross-attention in 16 bits: value = integer · scale, where a head's largest magnitude at a position is 32767.
//
// An invocation packs one head of one position of one part; parts are alternately a decoder layer's keys and its values.
//   product  (rows, parts, 8 · heads · head8) f32
//   packed   parts, `part_step` · 8 elements from one to the next: keys (heads · head8, rows, 8), values (rows, heads · head8, 8) i16  out
//   scales   (layers, 2, heads, rows) f32, `scales_step` elements from layer to layer  out
// dispatch (ceil(rows / 64), heads, parts)

struct Params {
  rows: u32,
  parts: u32,
  heads: u32,
  head8: u32,
  part_step: u32,
  scales_step: u32,
}

@group(0) @binding(0) var<storage, read> product: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> packed: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

// Two integers per word, the lower index in the low half.
fn integers(columns: vec4f, scale: f32) -> vec2<u32> {
  let rounded = bitcast<vec4<u32>>(vec4<i32>(round(columns / scale)));
  return (rounded.xz & vec2<u32>(0xffffu)) | (rounded.yw << vec2<u32>(16u));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let row = id.x;
  let head = id.y;
  let part = id.z;
  if (row >= params.rows) {
    return;
  }
  let eighths = params.heads * params.head8;
  let start = 2u * ((row * params.parts + part) * eighths + head * params.head8);
  var most = vec4f();
  for (var quad = start; quad < start + 2u * params.head8; quad++) {
    most = max(most, abs(product[quad]));
  }
  let largest = max(max(most.x, most.y), max(most.z, most.w));
  let scale = select(1.0, largest / 32767.0, largest > 0.0);
  scales[part / 2u * params.scales_step + (part % 2u * params.heads + head) * params.rows + row] = scale;
  for (var eighth = 0u; eighth < params.head8; eighth++) {
    let low = integers(product[start + 2u * eighth], scale);
    let high = integers(product[start + 2u * eighth + 1u], scale);
    let column = head * params.head8 + eighth;
    let place = select(column * params.rows + row, row * eighths + column, part % 2u == 1u);
    packed[part * params.part_step + place] = vec4<u32>(low, high);
  }
}
