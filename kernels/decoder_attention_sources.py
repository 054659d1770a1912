"""The decoder's generated attention kernels, over its own cache (self) and over the audio (cross), in both tilings.

`subgroup`: a workgroup is one subgroup, a lane scores 4 neighbouring keys at a time, the query broadcast between lanes.
`workgroup`: an invocation scores one key at a time, so that neighbouring invocations load neighbouring memory.
Cross-attention comes for 1 and for 4 rows, keys and values loaded once for all of them; self-attention's rows have each
their own. In the texts below `#` stands for a row of the four, and a line with one is written once for each.
"""

from kernels.decoder_source_parts import PARAMS, PARAMS_LINE, SUBGROUP, WORKGROUP

_SELF = """\
// y[row, head] = softmax(query · keys) @ values over positions up to the row's own, each in the slot that wrote it.
// {who}
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (slots, n / 8, N_CTX, 8) f32, n = 8 HEAD8 N_HEAD
//   values (slots, N_CTX, n / 8, 8) f32
//   slots (sequences, N_CTX) u32: which slot's cache holds a sequence's position
//   state u32, see decoder_state.py
//   y (rows, n) f32  out
{params_line}
// dispatch (heads, rows, 1)

{params}
@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> slots: array<u32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(6) var<uniform> params: Params;

{overrides}
override N_CTX = 448u;
"""
_CROSS = """\
// parts[row, split, head] = exp(query · keys - max) @ values over a split of the audio; stats = (max, sum of exp).
// {who}
// Written by decoder_attention_sources.py.
//   query (rows, heads, 8 HEAD8) f32, scaled
//   keys (n / 8, N_CTX, 8) i16, n = 8 HEAD8 N_HEAD
//   values (N_CTX, n / 8, 8) i16
//   scales (2, heads, N_CTX) f32: what a head's key, and its value, at a position is multiplied by
//   state u32, see decoder_state.py
//   parts (rows, SPLITS, n) f32  out
//   stats (rows, heads, SPLITS) × (max, sum) f32  out
{params_line}
// dispatch (heads, {dispatch_rows}, SPLITS)

{params}
@group(0) @binding(0) var<storage, read> query: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(7) var<uniform> params: Params;

{overrides}
override N_CTX = 1500u;
override SPLITS = 1u;
"""
_WHO = {
    SUBGROUP: "A workgroup is one subgroup: a lane scores 4 neighbouring keys at a time, mixes 8 columns of 4 values.",
    WORKGROUP: "An invocation scores each WORKGROUP-th key, then mixes 8 columns of each (WORKGROUP / HEAD8)-th value.",
}
_SIZES = {
    SUBGROUP: "override LANES = 8u;",
    WORKGROUP: "override WORKGROUP = 64u;  // a power of two, HEAD8 or more",
}
_COMMON_OVERRIDES = "override HEAD8 = 8u;  // a head's columns / 8\noverride N_HEAD = 6u;"
_MAIN = """\

@compute @workgroup_size({size})
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {{
  if (state[1] != 0u) {{
    return;  // every sequence has ended
  }}
  let n8 = N_HEAD * HEAD8;
  let head = workgroup.x;
  let row = params.first_row + workgroup.y * ROWS;"""
_INTEGERS = """
// Two i16 a word, the lower index in the low half.
fn integers(u: vec2<u32>) -> vec4f {
  return vec4f(bitcast<vec4<i32>>(vec4<u32>(u.x << 16u, u.x, u.y << 16u, u.y)) >> vec4<u32>(16u));
}"""
_START = {
    "self": """\
  let from_slots = state[8u + 4u * row + 1u] * N_CTX;
  let first = 0u;
  let count = state[8u + 4u * row + 2u] + 1u;""",
    "cross": """\
  let share_of_keys = (N_CTX + SPLITS - 1u) / SPLITS;
  let first = min(workgroup.z * share_of_keys, N_CTX);
  let count = min(share_of_keys, N_CTX - first);""",
}
_END = {
    "self": """\
    let to_# = ((row + #u) * n8 + head * HEAD8 + column) * 2u;
    y[to_#] = low_# / sum_#;
    y[to_# + 1u] = high_# / sum_#;""",
    "cross": """\
    if (row + #u < params.end_row) {
      let to_# = (((row + #u) * SPLITS + workgroup.z) * n8 + head * HEAD8 + column) * 2u;
      parts[to_#] = low_#;
      parts[to_# + 1u] = high_#;
    }""",
}
_CROSS_STATS = """\
  if (invocation == 0u && row + #u < params.end_row) {
    stats[((row + #u) * N_HEAD + head) * SPLITS + workgroup.z] = vec2f(top_#, sum_#);
  }"""
# Index of the first 8 columns of key `t`, the next N_CTX further; and of an invocation's 8 columns of value `t`.
_KEY = {
    "self": "(slots[from_slots + {t}] * n8 + head * HEAD8) * N_CTX + {t}",
    "cross": "head * HEAD8 * N_CTX + {t}",
}
_SCALES = "vec4f(" + ", ".join(f"scales[({{of}}) * N_CTX + t{i}]" for i in range(4)) + ")"
_VALUE = {
    "self": "(slots[from_slots + {t}] * N_CTX + {t}) * n8 + head * HEAD8 + column",
    "cross": "{t} * n8 + head * HEAD8 + column",
}


def _each(rows: int, text: str) -> list[str]:
    """The text once for every row, its number for `#`."""
    return [text.replace("#", str(row)) for row in range(rows)]


def _quad(indent: str) -> list[str]:
    """The 4 keys of a quad; past the last, the last again."""
    return [f"{indent}let t{i} = min(first + 4u * quad + {i}u, first + count - 1u);" for i in range(4)]


def _columns(kind: str, indent: str, array: str, place: str, number: str = "") -> list[str]:
    """8 neighbouring columns of a key or value as f32, still without their scale: `l` and `h`."""
    u, low, high = f"u{number}", f"l{number}", f"h{number}"
    if kind == "self":
        return [
            f"{indent}let {u} = 2u * ({place});",
            f"{indent}let {low} = {array}[{u}];",
            f"{indent}let {high} = {array}[{u} + 1u];",
        ]
    return [
        f"{indent}let {u} = {array}[{place}];",
        f"{indent}let {low} = integers({u}.xy);",
        f"{indent}let {high} = integers({u}.zw);",
    ]


def _subgroup_body(kind: str, rows: int) -> list[str]:
    text = ["  let quads = (count + 3u) / 4u;", *_each(rows, "  var most_# = LOWEST;")]
    text += ["  // Every lane goes round equally often, so that the query's broadcasts find all of them."]
    text += ["  for (var from_quad = 0u; from_quad < quads; from_quad += LANES) {"]
    text += ["    let quad = from_quad + invocation;", *_quad("    ")]
    text += [f"    let k{i} = {_KEY[kind].format(t=f't{i}')};" for i in range(4)]
    text += [line for i in range(4) for line in _each(rows, f"    var s#_{i} = 0.0;")]
    text += ["    for (var c = 0u; c < HEAD8; c += 4u) {"]
    text += _each(rows, "      let at_# = ((row + #u) * n8 + head * HEAD8 + c + invocation % 4u) * 2u;")
    text += [*_each(rows, "      let a_# = query[at_#];"), *_each(rows, "      let b_# = query[at_# + 1u];")]
    for u in range(4):
        text += [f"      if (c + {u}u < HEAD8) {{"]
        text += _each(rows, f"        let qa_# = subgroupBroadcast(a_#, {u}u);")
        text += _each(rows, f"        let qb_# = subgroupBroadcast(b_#, {u}u);")
        for i in range(4):
            text += _columns(kind, "        ", "keys", f"k{i} + (c + {u}u) * N_CTX", str(i))
            text += _each(rows, f"        s#_{i} += dot(l{i}, qa_#) + dot(h{i}, qb_#);")
        text += ["      }"]
    text += ["    }", "    if (quad < quads) {"]
    text += ["      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad < vec4<u32>(count);"]
    if kind == "cross":
        text += [f"      let scale = {_SCALES.format(of='head')};"]
    scaled = " * scale" if kind == "cross" else ""
    text += _each(
        rows,
        f"""\
      let score_# = select(vec4f(LOWEST), vec4f(s#_0, s#_1, s#_2, s#_3){scaled}, inside);
      scores[#u * a_row + quad] = score_#;
      most_# = max(most_#, max(max(score_#.x, score_#.y), max(score_#.z, score_#.w)));""",
    )
    text += ["    }", "  }"]
    weighted = "    scores[#u * a_row + quad] = share;"
    if kind == "cross":
        weighted = "\n".join(_quad("    ")) + "\n    scores[#u * a_row + quad] = share * "
        weighted += _SCALES.format(of="N_HEAD + head") + ";"
    text += _each(
        rows,
        f"""\
  let top_# = subgroupMax(most_#);
  var total_# = vec4f();
  for (var quad = invocation; quad < quads; quad += LANES) {{
    let share = exp(scores[#u * a_row + quad] - top_#);
{weighted}
    total_# += share;
  }}
  let sum_# = subgroupAdd(dot(total_#, vec4f(1.0)));""",
    )
    text += ["  workgroupBarrier();", "", "  // `width` lanes share a value's columns; the others take other values."]
    text += ["  let width = min(HEAD8, LANES);", "  let groups = LANES / width;", "  let group = invocation / width;"]
    text += ["  for (var from_column = 0u; from_column < HEAD8; from_column += width) {"]
    text += ["    let column = min(from_column + invocation % width, HEAD8 - 1u);"]
    text += [*_each(rows, "    var low_# = vec4f();"), *_each(rows, "    var high_# = vec4f();")]
    text += ["    for (var quad = select(quads, group, group < groups); quad < quads; quad += groups) {"]
    text += [*_quad("      "), *_each(rows, "      let share_# = scores[#u * a_row + quad];")]
    for i in range(4):
        text += _columns(kind, "      ", "values", _VALUE[kind].format(t=f"t{i}"), str(i))
        text += _each(rows, f"      low_# += share_#[{i}] * l{i};") + _each(
            rows, f"      high_# += share_#[{i}] * h{i};"
        )
    text += ["    }"]
    text += _each(
        rows,
        """\
    mixes[2u * invocation] = low_#;
    mixes[2u * invocation + 1u] = high_#;
    workgroupBarrier();
    for (var i = select(groups, 1u, invocation < width); i < groups; i++) {
      low_# += mixes[2u * (invocation + i * width)];
      high_# += mixes[2u * (invocation + i * width) + 1u];
    }
    workgroupBarrier();""",
    )
    text += ["    if (invocation < width && from_column + invocation < HEAD8) {", *_each(rows, _END[kind])]
    return [*text, "    }", "  }"]


_TREE = """\
  shared_values[invocation] = {value};
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {{
    workgroupBarrier();
    if (invocation < half) {{
      shared_values[invocation] = {joined};
    }}
  }}
  workgroupBarrier();
  let {name} = shared_values[0];
  workgroupBarrier();"""
_MAX = _TREE.format(
    value="most_#", joined="max(shared_values[invocation], shared_values[invocation + half])", name="top_#"
)
_SUM = _TREE.format(
    value="total_#", joined="shared_values[invocation] + shared_values[invocation + half]", name="sum_#"
)


def _workgroup_body(kind: str, rows: int) -> list[str]:
    text = [*_each(rows, "  var most_# = LOWEST;"), "  for (var i = invocation; i < count; i += WORKGROUP) {"]
    text += ["    let t = first + i;", f"    let k = {_KEY[kind].format(t='t')};", *_each(rows, "    var s_# = 0.0;")]
    text += ["    for (var c = 0u; c < HEAD8; c++) {", *_columns(kind, "      ", "keys", "k + c * N_CTX")]
    text += _each(rows, "      let at_# = ((row + #u) * n8 + head * HEAD8 + c) * 2u;")
    text += [*_each(rows, "      s_# += dot(l, query[at_#]) + dot(h, query[at_# + 1u]);"), "    }"]
    if kind == "cross":
        text += ["    let scale = scales[head * N_CTX + t];", *_each(rows, "    s_# *= scale;")]
    text += [*_each(rows, "    scores[#u * a_row + i] = s_#;"), *_each(rows, "    most_# = max(most_#, s_#);"), "  }"]
    scaled = " * scales[(N_HEAD + head) * N_CTX + first + i]" if kind == "cross" else ""
    text += _each(
        rows,
        f"""\
{_MAX}
  var total_# = 0.0;
  for (var i = invocation; i < count; i += WORKGROUP) {{
    let share = exp(scores[#u * a_row + i] - top_#);
    scores[#u * a_row + i] = share{scaled};
    total_# += share;
  }}
{_SUM}""",
    )
    text += ["", "  let column = invocation % HEAD8;", "  let groups = WORKGROUP / HEAD8;"]
    text += ["  let group = invocation / HEAD8;"]
    text += [*_each(rows, "  var low_# = vec4f();"), *_each(rows, "  var high_# = vec4f();")]
    text += ["  for (var i = select(count, group, group < groups); i < count; i += groups) {", "    let t = first + i;"]
    text += _columns(kind, "    ", "values", _VALUE[kind].format(t="t"))
    text += _each(rows, "    low_# += scores[#u * a_row + i] * l;") + _each(
        rows, "    high_# += scores[#u * a_row + i] * h;"
    )
    text += ["  }"]
    text += _each(
        rows,
        """\
  mixes[2u * invocation] = low_#;
  mixes[2u * invocation + 1u] = high_#;
  workgroupBarrier();
  for (var i = select(groups * HEAD8, invocation + HEAD8, invocation < HEAD8); i < groups * HEAD8; i += HEAD8) {
    low_# += mixes[2u * i];
    high_# += mixes[2u * i + 1u];
  }
  workgroupBarrier();""",
    )
    return [*text, "  if (invocation < HEAD8) {", *_each(rows, _END[kind]), "  }"]


def _source(kind: str, tiling: str, rows: int) -> str:
    keys = "N_CTX" if kind == "self" else "((N_CTX + SPLITS - 1u) / SPLITS)"
    size = "LANES" if tiling == SUBGROUP else "WORKGROUP"
    text = [
        (_SELF if kind == "self" else _CROSS).format(
            who=_WHO[tiling],
            params_line=PARAMS_LINE,
            params=PARAMS,
            overrides=f"{_SIZES[tiling]}\n{_COMMON_OVERRIDES}",
            dispatch_rows="rows" if rows == 1 else "ceil(rows / 4)",
        )
        + "const LOWEST = -3.0e38;",
        f"const ROWS = {rows}u;",
    ]
    quads, many = f"({keys} + 3u) / 4u", f"ROWS * {keys}"
    scores = f"vec4f, ROWS * ({quads})" if tiling == SUBGROUP else f"f32, {many}"
    text += [f"var<workgroup> scores: array<{scores}>;"]
    text += ["var<workgroup> shared_values: array<f32, WORKGROUP>;"] if tiling == WORKGROUP else []
    text += [f"var<workgroup> mixes: array<vec4f, 2u * {size}>;", *([_INTEGERS] if kind == "cross" else [])]
    text += [_MAIN.format(size=size), _START[kind]]
    text += [f"  let a_row = {quads if tiling == SUBGROUP else keys};  // scores"]
    text += ["", *(_subgroup_body(kind, rows) if tiling == SUBGROUP else _workgroup_body(kind, rows))]
    text += _each(rows, _CROSS_STATS) if kind == "cross" else []
    return "\n".join([*text, "}", ""])


def attention_sources() -> dict[str, str]:
    """File name → text."""
    made = {}
    for tiling in (SUBGROUP, WORKGROUP):
        made[f"decoder_self_attention_{tiling}.wgsl"] = _source("self", tiling, 1)
        for rows in (1, 4):
            made[f"decoder_cross_attention_{tiling}_{rows}.wgsl"] = _source("cross", tiling, rows)
    return made
