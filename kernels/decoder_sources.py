"""Writes the decoder's unrolled kernels, `decoder_*_{subgroup,workgroup}*.wgsl`.

On lavapipe an indexed private array is slow memory, so a tile's sums must be named variables. The files are committed:
`python -m kernels.decoder_sources` rewrites them, and a check compares them with sources().

Two tilings of every matrix-vector kernel. `subgroup`: a workgroup is one subgroup; a lane owns 4 neighbouring outputs,
so no sum crosses lanes, and each lane loads another part of x and broadcasts it; for software adapters. `workgroup`:
LANES invocations share 4 rows of weights and their sums meet in workgroup memory; it needs no subgroups. Each comes
for 1 and for 4 rows of activations, the weights loaded once for all of them.
"""

from pathlib import Path

from kernels.decoder_attention_sources import attention_sources
from kernels.decoder_source_parts import (
    BINDING_TYPES,
    DESCRIPTIONS,
    EPILOGUES,
    FUNCTIONS,
    LAYER_NORM,
    OVERRIDES,
    PARAMS,
    PARAMS_LINE,
    SUBGROUP,
    WORKGROUP,
    WORKGROUP_SUM,
    combine,
    finish_logits,
    layer_norm,
)

TILINGS = (SUBGROUP, WORKGROUP)
ROWS = (1, 4)  # rows of activations a workgroup multiplies by the weights it loads
TILE = 4  # neighbouring outputs an invocation sums at a time
EIGHTS = 4  # 8-column parts of a row of x the lanes load and share at a time: no subgroup has fewer lanes

_TREE = """\
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        sums[invocation] += sums[invocation + half];
      }
    }
    workgroupBarrier();"""


def sources() -> dict[str, str]:
    """File name → text, for every generated kernel of the decoder."""
    made = {
        f"decoder_{kind}_{tiling}_{rows}.wgsl": _kernel(kind, tiling, rows)
        for kind in DESCRIPTIONS
        for tiling in TILINGS
        for rows in ROWS
    }
    return made | attention_sources()


def _kernel(kind: str, tiling: str, rows: int) -> str:
    formula, inputs, outputs = DESCRIPTIONS[kind]
    normed, staged = kind.startswith("ln_"), kind != "linear_residual"
    what = "one row" if rows == 1 else "four rows"
    if tiling == SUBGROUP:
        who = f"A workgroup is one subgroup; a lane sums 4 neighbouring outputs of {what} at a time, TILES times."
        per = "4 * LANES * TILES"
    else:
        who = (
            f"LANES invocations sum 4 neighbouring outputs of {what}, each over every LANES-th 8 columns; TILES times."
        )
        per = "4 * WORKGROUP / LANES * TILES"
    bindings = [*inputs, *outputs]
    text = [f"// {line}" for line in formula.splitlines()] + ([f"// {LAYER_NORM}"] if normed else [])
    text += [f"// {who}", "// Written by decoder_sources.py."]
    text += [f"//   {line}" + ("" if i < len(inputs) else "  out") for i, line in enumerate(bindings)]
    of_context = kind == "ln_qkv"
    text += [PARAMS_LINE] if of_context else []
    text += [f"// dispatch (ceil(outputs / ({per})), {'rows' if rows == 1 else 'ceil(rows / 4)'}, 1)", ""]
    text += [PARAMS] if of_context else []
    for i, name in enumerate(line.split(" ")[0] for line in bindings):
        access, kind_of = "read" if i < len(inputs) else "read_write", BINDING_TYPES.get(name, "array<vec4f>")
        text += [f"@group(0) @binding({i}) var<storage, {access}> {name}: {kind_of};"]
    text += [f"@group(0) @binding({len(bindings)}) var<uniform> params: Params;"] if of_context else []
    lanes = "override LANES = 8u;" if tiling == SUBGROUP else "override WORKGROUP = 256u;\noverride LANES = 64u;"
    text += ["", lanes, "override TILES = 4u;", "override N_IN = 384u;", "override N_OUT = 384u;"]
    text += [*OVERRIDES.get(kind, ()), f"const ROWS = {rows}u;"]
    text += ["var<workgroup> inputs: array<vec4f, ROWS * (N_IN / 4u)>;"] if staged else []
    text += ["var<workgroup> sums: array<vec4f, WORKGROUP>;"] if tiling == WORKGROUP else []
    text += ["", *FUNCTIONS.get(kind, ()), *([WORKGROUP_SUM] if tiling == WORKGROUP and normed else [])]
    text += [f"@compute @workgroup_size({'LANES' if tiling == SUBGROUP else 'WORKGROUP'})", "fn main("]
    text += ["  @builtin(workgroup_id) workgroup: vec3<u32>,", "  @builtin(local_invocation_index) invocation: u32,"]
    text += [") {", "  if (state[1] != 0u) {", "    return;  // every sequence has ended", "  }"]
    text += ["  let lane = invocation;"] if tiling == SUBGROUP else []
    text += ["  let lane = invocation % LANES;", "  let group = invocation / LANES;"] if tiling == WORKGROUP else []
    text += [
        "  let eights = N_IN / 8u;",
        f"  let first_row = {'params.first_row + ' if of_context else ''}workgroup.y * ROWS;",
    ]
    text += [layer_norm(tiling)] if normed else [combine(tiling)] if staged else []
    if kind == "ln_logits":
        best = "vec3f(LOWEST, NO_TOKEN, 0.0)"
        text += [f"  var {name}_{r} = {best};" for r in range(rows) for name in ("text", "time")]
    text += ["  for (var tile = 0u; tile < TILES; tile++) {"]
    text += _subgroup_sums(rows, staged, kind) if tiling == SUBGROUP else _workgroup_sums(rows, staged, kind)
    owner = "out < N_OUT" if tiling == SUBGROUP else "lane == 0u && out < N_OUT"
    text += [f"    if ({owner}) {{", *EPILOGUES[kind](rows), "    }", "  }"]
    text += [finish_logits(tiling, row) for row in range(rows)] if kind == "ln_logits" else []
    return "\n".join([*text, "}", ""])


def _load(staged: bool, row: str, at: str) -> str:
    return f"inputs[{row} * (2u * eights) + {at}]" if staged else f"x[(first_row + {row}) * (2u * eights) + {at}]"


def _weights(kind: str, prefix: str, at: str) -> list[str]:
    """The 8 columns at `at` of each of the 4 rows of weights, as f32: `<prefix>l0`, `<prefix>h0` and so on."""
    text = []
    for o in range(TILE):
        packed = f"{prefix}w{o}"
        text += [f"      let {packed} = {'table' if kind == 'ln_logits' else 'weight'}[w{o} + {at}];"]
        text += [f"      let {prefix}l{o} = vec4f(unpack2x16float({packed}.x), unpack2x16float({packed}.y));"]
        text += [f"      let {prefix}h{o} = vec4f(unpack2x16float({packed}.z), unpack2x16float({packed}.w));"]
    return text


def _start(rows: int) -> list[str]:
    text = [f"    let w{o} = min(out + {o}u, N_OUT - 1u) * eights;" for o in range(TILE)]
    return text + [f"    var s{r}_{o} = 0.0;" for r in range(rows) for o in range(TILE)]


def _outputs(row: int) -> str:
    return "vec4f(" + ", ".join(f"s{row}_{o}" for o in range(TILE)) + ")"


def _subgroup_sums(rows: int, staged: bool, kind: str) -> list[str]:
    """y0… = the lane's 4 outputs of each row."""
    text = [
        "    let first_out = (workgroup.x * TILES + tile) * LANES * 4u;",
        "    if (first_out >= N_OUT) {",
        "      break;",
    ]
    text += [
        "    }",
        "    let out = first_out + 4u * lane;",
        *_start(rows),
        f"    for (var k = 0u; k < eights; k += {EIGHTS}u) {{",
    ]
    text += [f"      // Lane l holds part l % {EIGHTS} of the next {EIGHTS} × 8 columns of x."]
    text += [f"      let at = k + lane % {EIGHTS}u;"]
    for r in range(rows):
        text += [f"      var a{r} = vec4f();", f"      var b{r} = vec4f();"]
    text += ["      if (at < eights) {"]
    for r in range(rows):
        text += [f"        a{r} = {_load(staged, f'{r}u', '2u * at')};"]
        text += [f"        b{r} = {_load(staged, f'{r}u', '2u * at + 1u')};"]
    text += ["      }"]
    for u in range(EIGHTS):
        text += _weights(kind, "abcd"[u], f"min(k + {u}u, eights - 1u)")
        for r in range(rows):
            text += [f"      let x{half}{r}_{u} = subgroupBroadcast({half}{r}, {u}u);" for half in "ab"]
            for o in range(TILE):
                text += [f"      s{r}_{o} += dot({'abcd'[u]}l{o}, xa{r}_{u}) + dot({'abcd'[u]}h{o}, xb{r}_{u});"]
    return [*text, "    }", *(f"    let y{r} = {_outputs(r)};" for r in range(rows))]


def _workgroup_sums(rows: int, staged: bool, kind: str) -> list[str]:
    """y0… = the group's 4 outputs of each row, in every invocation."""
    text = ["    let out = ((workgroup.x * TILES + tile) * (WORKGROUP / LANES) + group) * 4u;", *_start(rows)]
    text += ["    for (var k = lane; k < eights; k += LANES) {", *_weights(kind, "a", "k")]
    for r in range(rows):
        text += [
            f"      let xa{r} = {_load(staged, f'{r}u', '2u * k')};",
            f"      let xb{r} = {_load(staged, f'{r}u', '2u * k + 1u')};",
        ]
        text += [f"      s{r}_{o} += dot(al{o}, xa{r}) + dot(ah{o}, xb{r});" for o in range(TILE)]
    text += ["    }"]
    for r in range(rows):
        text += [f"    sums[invocation] = {_outputs(r)};", _TREE]
        text += [f"    let y{r} = sums[invocation - lane];", "    workgroupBarrier();"]
    return text


def main() -> None:
    """Rewrite the files beside this one."""
    for name, text in sources().items():
        (Path(__file__).parent / name).write_text(text)


if __name__ == "__main__":
    main()
