"""The decoder's generated attention kernels, over its own cache (self) and over the audio (cross), in both tilings.

`subgroup`: a workgroup is one subgroup, a lane scores 4 neighbouring keys at a time, the query broadcast between lanes.
`workgroup`: an invocation scores one key at a time, so that neighbouring invocations load neighbouring memory.
"""

from kernels.decoder_source_parts import SUBGROUP, WORKGROUP

_SELF = """\
// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// {who}
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (slots, n / 8, N_CTX, 8) f16, n = 8 HEAD8 N_HEAD
//   values (slots, N_CTX, n / 8, 8) f16
//   slots (sequences, N_CTX) u32: which slot's cache holds a sequence's position
//   state u32, see decoder_state.py
//   y (rows, n) f32  out
// dispatch (heads, rows, 1)

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> slots: array<u32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;

{overrides}
override N_CTX = 448u;
"""
_CROSS = """\
// parts[row, split, head] = exp(query · keys - max) @ values over a split of the audio; stats = (max, sum of exp).
// {who}
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (n / 8, N_CTX, 8) f16, n = 8 HEAD8 N_HEAD
//   values (N_CTX, n / 8, 8) f16
//   state u32, see decoder_state.py
//   parts (rows, SPLITS, n) f32  out
//   stats (rows, heads, SPLITS) × (max, sum) f32  out
// dispatch (heads, rows, SPLITS)

@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2f>;

{overrides}
override N_CTX = 1500u;
override SPLITS = 1u;
"""
_WHO = {
    SUBGROUP: "A workgroup is one subgroup: a lane scores 4 neighbouring keys at a time, mixes 8 columns of 4 values.",
    WORKGROUP: "An invocation scores each WORKGROUP-th key, then mixes 8 columns of each (WORKGROUP / HEAD8)-th value.",
}
_COMMON_OVERRIDES = "override HEAD8 = 8u;  // a head's columns / 8\noverride N_HEAD = 6u;"
_HALVES = """
fn halves(u: vec2<u32>) -> vec4f {
  return vec4f(unpack2x16float(u.x), unpack2x16float(u.y));
}
"""
_SELF_START = """\
  let n8 = N_HEAD * HEAD8;
  let head = workgroup.x;
  let row = workgroup.y;
  let from_slots = state[8u + 4u * row + 1u] * N_CTX;
  let first = 0u;
  let count = state[8u + 4u * row + 2u] + 1u;"""
_CROSS_START = """\
  let n8 = N_HEAD * HEAD8;
  let head = workgroup.x;
  let row = workgroup.y;
  let share_of_keys = (N_CTX + SPLITS - 1u) / SPLITS;
  let first = min(workgroup.z * share_of_keys, N_CTX);
  let count = min(share_of_keys, N_CTX - first);"""
_SELF_END = """\
    let to = (row * n8 + head * HEAD8 + column) * 2u;
    y[to] = low / sum;
    y[to + 1u] = high / sum;"""
_CROSS_END = """\
    let to = ((row * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
    parts[to] = low;
    parts[to + 1u] = high;"""
_CROSS_STATS = """\
  if (invocation == 0u) {
    stats[(row * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top, sum);
  }"""


def _key(kind: str, t: str) -> str:
    """Index of the first 8 columns of key t; the next are N_CTX further."""
    return (
        f"(slots[from_slots + {t}] * n8 + head * HEAD8) * N_CTX + {t}"
        if kind == "self"
        else f"head * HEAD8 * N_CTX + {t}"
    )


def _value(kind: str, t: str) -> str:
    """Index of this invocation's 8 columns of value t."""
    row = f"(slots[from_slots + {t}] * N_CTX + {t})" if kind == "self" else t
    return f"{row} * n8 + head * HEAD8 + column"


def _quad(kind: str) -> list[str]:
    """The 4 keys of a quad; past the last, the last again."""
    return [f"    let t{i} = min(first + 4u * quad + {i}u, first + count - 1u);" for i in range(4)]


def _subgroup_body(kind: str) -> list[str]:
    text = ["  let quads = (count + 3u) / 4u;", "  var most = LOWEST;"]
    text += ["  // Every lane goes round equally often, so that the query's broadcasts find all of them."]
    text += [
        "  for (var from_quad = 0u; from_quad < quads; from_quad += LANES) {",
        "    let quad = from_quad + invocation;",
    ]
    text += [*_quad(kind), *(f"    let k{i} = {_key(kind, f't{i}')};" for i in range(4))]
    text += [f"    var s{i} = 0.0;" for i in range(4)]
    text += [
        "    for (var c = 0u; c < HEAD8; c += 4u) {",
        "      let at = (row * n8 + head * HEAD8 + c + invocation % 4u) * 2u;",
    ]
    text += ["      let a = query[at];", "      let b = query[at + 1u];"]
    for u in range(4):
        text += [f"      if (c + {u}u < HEAD8) {{", f"        let qa = subgroupBroadcast(a, {u}u);"]
        text += [f"        let qb = subgroupBroadcast(b, {u}u);"]
        for i in range(4):
            text += [f"        let u{i} = keys[k{i} + (c + {u}u) * N_CTX];"]
            text += [f"        s{i} += dot(halves(u{i}.xy), qa) + dot(halves(u{i}.zw), qb);"]
        text += ["      }"]
    text += [
        "    }",
        "    if (quad < quads) {",
        "      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad < vec4<u32>(count);",
    ]
    text += ["      let score = select(vec4f(LOWEST), vec4f(s0, s1, s2, s3), inside);", "      scores[quad] = score;"]
    text += ["      most = max(most, max(max(score.x, score.y), max(score.z, score.w)));", "    }", "  }"]
    text += ["  let top = subgroupMax(most);", "  var total = vec4f();"]
    text += ["  for (var quad = invocation; quad < quads; quad += LANES) {", "    let share = exp(scores[quad] - top);"]
    text += [
        "    scores[quad] = share;",
        "    total += share;",
        "  }",
        "  let sum = subgroupAdd(dot(total, vec4f(1.0)));",
    ]
    text += ["  workgroupBarrier();", "", "  // WIDTH lanes share a value's columns; the others take other values."]
    text += ["  let width = min(HEAD8, LANES);", "  let groups = LANES / width;", "  let group = invocation / width;"]
    text += ["  for (var from_column = 0u; from_column < HEAD8; from_column += width) {"]
    text += [
        "    let column = min(from_column + invocation % width, HEAD8 - 1u);",
        "    var low = vec4f();",
        "    var high = vec4f();",
    ]
    text += ["    for (var quad = select(quads, group, group < groups); quad < quads; quad += groups) {"]
    text += ["      let share = scores[quad];", *(f"  {line}" for line in _quad(kind))]
    text += [f"      let u{i} = values[{_value(kind, f't{i}')}];" for i in range(4)]
    for part, half in (("low", "xy"), ("high", "zw")):
        text += [f"      {part} += " + " + ".join(f"share[{i}] * halves(u{i}.{half})" for i in range(4)) + ";"]
    text += [
        "    }",
        "    mixes[2u * invocation] = low;",
        "    mixes[2u * invocation + 1u] = high;",
        "    workgroupBarrier();",
    ]
    text += ["    if (invocation < width && from_column + invocation < HEAD8) {"]
    text += ["      for (var i = 1u; i < groups; i++) {", "        low += mixes[2u * (invocation + i * width)];"]
    text += ["        high += mixes[2u * (invocation + i * width) + 1u];", "      }"]
    text += ["  " + line for line in (_SELF_END if kind == "self" else _CROSS_END).splitlines()]
    return [*text, "    }", "    workgroupBarrier();", "  }"]


_TREE = """\
  shared_values[invocation] = {0};
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {{
    workgroupBarrier();
    if (invocation < half) {{
      shared_values[invocation] = {1};
    }}
  }}
  workgroupBarrier();
  let {2} = shared_values[0];
  workgroupBarrier();"""


def _workgroup_body(kind: str) -> list[str]:
    highest = "max(shared_values[invocation], shared_values[invocation + half])"
    text = ["  var most = LOWEST;", "  for (var i = invocation; i < count; i += WORKGROUP) {", "    let t = first + i;"]
    text += [f"    let k = {_key(kind, 't')};", "    var s = 0.0;", "    for (var c = 0u; c < HEAD8; c++) {"]
    text += ["      let at = (row * n8 + head * HEAD8 + c) * 2u;", "      let u = keys[k + c * N_CTX];"]
    text += [
        "      s += dot(halves(u.xy), query[at]) + dot(halves(u.zw), query[at + 1u]);",
        "    }",
        "    scores[i] = s;",
    ]
    text += ["    most = max(most, s);", "  }", _TREE.format("most", highest, "top"), "  var total = 0.0;"]
    text += ["  for (var i = invocation; i < count; i += WORKGROUP) {", "    let share = exp(scores[i] - top);"]
    text += ["    scores[i] = share;", "    total += share;", "  }"]
    text += [_TREE.format("total", "shared_values[invocation] + shared_values[invocation + half]", "sum"), ""]
    text += ["  let column = invocation % HEAD8;", "  var low = vec4f();", "  var high = vec4f();"]
    text += ["  let groups = WORKGROUP / HEAD8;", "  let group = invocation / HEAD8;"]
    text += [
        "  for (var i = select(count, group, group < groups); i < count; i += groups) {",
        "    let share = scores[i];",
    ]
    text += ["    let t = first + i;", f"    let u = values[{_value(kind, 't')}];", "    low += share * halves(u.xy);"]
    text += ["    high += share * halves(u.zw);", "  }", "  mixes[2u * invocation] = low;"]
    text += ["  mixes[2u * invocation + 1u] = high;", "  workgroupBarrier();", "  if (invocation < HEAD8) {"]
    text += ["    for (var i = invocation + HEAD8; i < groups * HEAD8; i += HEAD8) {", "      low += mixes[2u * i];"]
    return [*text, "      high += mixes[2u * i + 1u];", "    }", _SELF_END if kind == "self" else _CROSS_END, "  }"]


def attention_sources() -> dict[str, str]:
    """File name → text."""
    made = {}
    for kind in ("self", "cross"):
        for tiling in (SUBGROUP, WORKGROUP):
            size = (
                "override LANES = 8u;"
                if tiling == SUBGROUP
                else "override WORKGROUP = 64u;  // a power of two, HEAD8 or more"
            )
            head = (_SELF if kind == "self" else _CROSS).format(
                who=_WHO[tiling], overrides=f"{size}\n{_COMMON_OVERRIDES}"
            )
            keys = "N_CTX" if kind == "self" else "(N_CTX + SPLITS - 1u) / SPLITS"
            text = [head + "const LOWEST = -3.0e38;"]
            if tiling == SUBGROUP:
                text += [f"var<workgroup> scores: array<vec4f, ({keys} + 3u) / 4u>;"]
                text += ["var<workgroup> mixes: array<vec4f, 2u * LANES>;"]
            else:
                text += [
                    f"var<workgroup> scores: array<f32, {keys}>;",
                    "var<workgroup> shared_values: array<f32, WORKGROUP>;",
                ]
                text += ["var<workgroup> mixes: array<vec4f, 2u * WORKGROUP>;"]
            text += [_HALVES, f"@compute @workgroup_size({'LANES' if tiling == SUBGROUP else 'WORKGROUP'})", "fn main("]
            text += [
                "  @builtin(workgroup_id) workgroup: vec3<u32>,",
                "  @builtin(local_invocation_index) invocation: u32,",
                ") {",
            ]
            text += ["  if (state[1] != 0u) {", "    return;  // every sequence has ended", "  }"]
            text += [_SELF_START if kind == "self" else _CROSS_START]
            text += _subgroup_body(kind) if tiling == SUBGROUP else _workgroup_body(kind)
            text += [_CROSS_STATS] if kind == "cross" else []
            made[f"decoder_{kind}_attention_{tiling}.wgsl"] = "\n".join([*text, "}", ""])
    return made
