"""Writes the parts of the WGSL kernels that repeat: unrolled tiles, and functions several kernels share.

A kernel marks such a part `// <unroll.py NAME>` … `// </unroll.py>`. `python -m kernels.unroll` rewrites them in place,
`python -m kernels.check` verifies that they are what this module writes. Why unroll: lavapipe keeps an indexed private
array in slow memory, so a tile's sums must be variables with names.
"""

import re
from collections.abc import Callable
from pathlib import Path

KERNELS = Path(__file__).parent
ROWS = 16  # of a subgroup's tile
QUERIES = 4  # a lane's, in attention
EIGHTHS = 8  # of a head's 64 columns, 8 columns each
_REGION = re.compile(r"^( *)// <unroll.py (\w+)>\n(?:.*\n)*?\1// </unroll.py>$", re.MULTILINE)

GELU = """\
// GELU(x) = x · Φ(x), exact up to erf's approximation (Abramowitz & Stegun 7.1.26: 1.5e-7).
fn gelu(x: vec4f) -> vec4f {
  let z = abs(x) * 0.7071067811865476;
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  let tail = 0.5 * series * exp(-z * z);
  return x * select(tail, 1.0 - tail, x >= vec4f(0.0));
}"""


PRODUCT = """\
let local_row = invocation / 16u * 4u;
let local_quad = invocation % 16u;
var sum0 = vec4f();
var sum1 = vec4f();
var sum2 = vec4f();
var sum3 = vec4f();
for (var first = 0u; first < params.inner; first += 4u) {
  a_tile[invocation] = load_a(first_row + invocation / 4u, first + invocation % 4u);
  let k = 4u * first + invocation / 16u;
  let quad = first_quad + invocation % 16u;
  if (k < 4u * params.inner && quad < 2u * params.columns) {
    weight_tile[invocation] = f16x4(weight[k * 2u * params.columns + quad]);
  } else {
    weight_tile[invocation] = vec4f();
  }
  workgroupBarrier();
  for (var i = 0u; i < 4u; i++) {
    let w = mat4x4f(
      weight_tile[64u * i + local_quad],
      weight_tile[64u * i + 16u + local_quad],
      weight_tile[64u * i + 32u + local_quad],
      weight_tile[64u * i + 48u + local_quad],
    );
    sum0 += w * a_tile[4u * local_row + i];
    sum1 += w * a_tile[4u * local_row + 4u + i];
    sum2 += w * a_tile[4u * local_row + 8u + i];
    sum3 += w * a_tile[4u * local_row + 12u + i];
  }
  workgroupBarrier();
}"""

PRODUCT_STORES = """\
store(first_row + local_row, first_quad + local_quad, sum0);
store(first_row + local_row + 1u, first_quad + local_quad, sum1);
store(first_row + local_row + 2u, first_quad + local_quad, sum2);
store(first_row + local_row + 3u, first_quad + local_quad, sum3);"""


def tile() -> str:
    """Sums of 16 rows by 8 columns a lane, `low` and `high` 4 columns each, over all of `inner`, 4 at a time."""
    lines = [f"var low{row} = vec4f(); var high{row} = vec4f();" for row in range(ROWS)]
    lines += [
        "for (var k = 0u; k < params.inner; k++) {",
        "  // Row r is held by lane r % LANES in held[r / LANES].",
        "  let held = array<vec4f, 4>(load_rows(0u, row + lane, k), load_rows(1u % (16u / LANES), row + lane, k),",
        "    load_rows(2u % (16u / LANES), row + lane, k), load_rows(3u % (16u / LANES), row + lane, k));",
    ]
    for step, component in enumerate("xyzw"):
        lines += [
            f"  let w{step} = weight[(4u * k + {step}u) * params.columns + loaded_column];",
            f"  let wl{step} = vec4f(unpack2x16float(w{step}.x), unpack2x16float(w{step}.y));",
            f"  let wh{step} = vec4f(unpack2x16float(w{step}.z), unpack2x16float(w{step}.w));",
        ]
        for row in range(ROWS):
            value = f"subgroupBroadcast(held[{row}u / LANES].{component}, {row}u % LANES)"
            name = f"a{row}_{step}"
            lines.append(f"  let {name} = {value}; low{row} += {name} * wl{step}; high{row} += {name} * wh{step};")
    return "\n".join([*lines, "}"])


def stores() -> str:
    """Hands each row's sums to the kernel's own `store`."""
    return "\n".join(f"store(row + {row}u, column, low{row}, high{row});" for row in range(ROWS))


def attention_queries() -> str:
    """A lane's 4 queries, scaled, and their zeroed sums, 4 columns a variable."""
    lines = []
    for query in range(QUERIES):
        for eighth in range(EIGHTHS):
            name = f"q{query}_{eighth}"
            lines += [
                f"let {name} = load(min(row + {query}u, params.rows - 1u), 0u, head, {eighth}u);",
                f"let {name}l = {name}.low * params.scale; let {name}h = {name}.high * params.scale;",
                f"var o{query}_{eighth}l = vec4f(); var o{query}_{eighth}h = vec4f();",
            ]
    return "\n".join(lines)


def _broadcast(index: int, half: str) -> str:
    return f"subgroupBroadcast(held[{index}u / LANES].{half}, {index}u % LANES)"


def attention_scores() -> str:
    """Loads one key and value over the lanes, and scores the key with the 4 queries: `score`."""
    lines = [
        "// Load i is held by lane i % LANES in held[i / LANES]: 0 to 7 are the key's columns, 8 to 15 its value's."
    ]
    loads = [f"load_shared(key, head, lane + {i}u % (16u / LANES) * LANES)" for i in range(4)]
    lines += ["let held = array<Columns, 4>(", *[f"  {load}," for load in loads], ");"]
    lines += [f"var s{query} = vec4f();" for query in range(QUERIES)]
    for eighth in range(EIGHTHS):
        for half, letter in (("low", "l"), ("high", "h")):
            name = f"k{eighth}{letter}"
            sums = " ".join(f"s{query} += q{query}_{eighth}{letter} * {name};" for query in range(QUERIES))
            lines.append(f"let {name} = {_broadcast(eighth, half)}; {sums}")
    scores = ", ".join(f"dot(s{query}, vec4f(1.0))" for query in range(QUERIES))
    return "\n".join([*lines, f"let score = vec4f({scores});"])


def attention_sums() -> str:
    """Adds the value, by the weights `p`, to the 4 queries' sums."""
    lines = []
    for eighth in range(EIGHTHS):
        for half, letter in (("low", "l"), ("high", "h")):
            name = f"v{eighth}{letter}"
            sums = " ".join(f"o{query}_{eighth}{letter} += p.{'xyzw'[query]} * {name};" for query in range(QUERIES))
            lines.append(f"let {name} = {_broadcast(eighth + EIGHTHS, half)}; {sums}")
    return "\n".join(lines)


def attention_fade() -> str:
    """Brings the sums to the new reference."""
    return "\n".join(
        " ".join(f"o{query}_{eighth}{letter} *= fade.{'xyzw'[query]};" for query in range(QUERIES))
        for eighth in range(EIGHTHS)
        for letter in "lh"
    )


def attention_stores() -> str:
    """Hands each query's sums, divided by its weights' total, to the kernel's own `store`."""
    return "\n".join(
        f"store(row + {query}u, head, {eighth}u, o{query}_{eighth}l / total.{'xyzw'[query]}, "
        f"o{query}_{eighth}h / total.{'xyzw'[query]});"
        for query in range(QUERIES)
        for eighth in range(EIGHTHS)
    )


SHARED: dict[str, Callable[[], str]] = {
    "gelu": lambda: GELU,
    "product": lambda: PRODUCT,
    "product_stores": lambda: PRODUCT_STORES,
    "tile": tile,
    "stores": stores,
    "attention_queries": attention_queries,
    "attention_scores": attention_scores,
    "attention_sums": attention_sums,
    "attention_fade": attention_fade,
    "attention_stores": attention_stores,
}


def rewrite(source: str) -> str:
    """A kernel's text with every shared part written anew. Raises KeyError for an unknown name."""

    def part(match: re.Match[str]) -> str:
        indent, name = match[1], match[2]
        body = "\n".join(indent + line if line else line for line in SHARED[name]().splitlines())
        return f"{indent}// <unroll.py {name}>\n{body}\n{indent}// </unroll.py>"

    return _REGION.sub(part, source)


def main() -> None:
    """Rewrite every kernel that has shared parts."""
    for path in sorted(KERNELS.glob("*.wgsl")):
        source = path.read_text()
        if (written := rewrite(source)) != source:
            path.write_text(written)


if __name__ == "__main__":
    main()
