"""The parts of the decoder's generated kernels: what each computes, over what, and the code around the products."""

SUBGROUP, WORKGROUP = "subgroup", "workgroup"

LAYER_NORM = "layer_norm(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) * norm[0] + norm[1]"
# Kernel → its formula, its inputs and its outputs, in the order of the bindings.
DESCRIPTIONS: dict[str, tuple[str, list[str], list[str]]] = {
    "ln_qkv": (
        "q, k, v = layer_norm(x[row]) @ weight.T + bias; q * SCALE to query, k and v to the cache.",
        [
            "x (rows, N_IN) f32",
            "norm (2, N_IN) f32",
            "weight (3 N_IN, N_IN) f16",
            "bias (3 N_IN,) f32",
            "state u32, see decoder_state.py: a row's slot and position",
        ],
        [
            "query (rows, N_IN) f32",
            "keys (slots, N_IN / 8, N_TEXT_CTX, 8) f32",
            "values (slots, N_TEXT_CTX, N_IN / 8, 8) f32",
        ],
    ),
    "ln_linear": (
        "y[row] = f(layer_norm(x[row]) @ weight.T + bias) * SCALE, where f is GELU or nothing.",
        [
            "x (rows, N_IN) f32",
            "norm (2, N_IN) f32",
            "weight (N_OUT, N_IN) f16",
            "bias (N_OUT,) f32",
            "state u32, see decoder_state.py",
        ],
        ["y (rows, N_OUT) f32"],
    ),
    "linear_residual": (
        "y[row] += x[row] @ weight.T + bias.",
        ["x (rows, N_IN) f32", "weight (N_OUT, N_IN) f16", "bias (N_OUT,) f32", "state u32, see decoder_state.py"],
        ["y (rows, N_OUT) f32  in and"],
    ),
    "combine_residual": (
        "y[row] += x @ weight.T + bias, where x joins the SPLITS parts of the row's cross-attention.",
        [
            "parts (rows, SPLITS, N_IN) f32",
            "stats (rows, heads, SPLITS) × (max, sum) f32",
            "weight (N_OUT, N_IN) f16",
            "bias (N_OUT,) f32",
            "state u32, see decoder_state.py",
        ],
        ["y (rows, N_OUT) f32  in and"],
    ),
    "ln_logits": (
        "logits[row] = layer_norm(x[row]) @ table.T for N_OUT tokens from FIRST on; and over those the rules allow, a\n"
        "workgroup's (max, its lowest token, sum of exp(logit - max)), separately for text and for timestamps.",
        [
            "x (rows, N_IN) f32",
            "norm (2, N_IN) f32",
            "table (N_OUT, N_IN) f16",
            "state u32, see decoder_state.py: what a sequence may choose",
            "mask (2, ceil(N_VOCAB / 32)) bits: suppressed, suppressed at first",
        ],
        ["logits (rows, N_VOCAB) f32", "partials (rows, N_GROUPS, 2) × (max, token, sum, 0) f32"],
    ),
}
BINDING_TYPES = {
    **dict.fromkeys(("weight", "table"), "array<vec4<u32>>"),
    **dict.fromkeys(("state", "mask"), "array<u32>"),
    "stats": "array<vec2f>",
    "logits": "array<f32>",
}
# Which rows of a pass a launch is for: those of one context, whose cache it is bound to.
PARAMS = """\
struct Params {
  first_row: u32,
  end_row: u32,
}
"""
PARAMS_LINE = "// params: first_row, end_row: the rows from one to the other, of one context"
_LOWEST = "const LOWEST = -3.0e38;"
OVERRIDES: dict[str, list[str]] = {
    "ln_qkv": ["override SCALE = 0.125;", "override N_TEXT_CTX = 448u;"],
    "ln_linear": ["override SCALE = 1.0;", "override GELU = false;"],
    "combine_residual": ["override SPLITS = 1u;", "override HEAD8 = 8u;  // a head's columns / 8", _LOWEST],
    "ln_logits": [
        "override FIRST = 0u;  // this part's first token",
        "override N_VOCAB = 51864u;",
        "override FIRST_GROUP = 0u;  // this part's first entry in partials",
        "override N_GROUPS = 811u;",
        _LOWEST,
        "const NO_TOKEN = 16777216.0;  // above every token; tokens are exact as f32",
    ],
}
FUNCTIONS: dict[str, list[str]] = {
    "ln_qkv": [
        """\
// Four neighbouring outputs of a row to where they belong. A row past the end is the tile's padding.
fn write(row: u32, column: u32, y: vec4f) {
  if (row >= params.end_row) {
    return;
  }
  let slot = state[8u + 4u * row + 1u];
  let position = state[8u + 4u * row + 2u];
  if (column < N_IN) {
    query[(row * N_IN + column) / 4u] = y * SCALE;
  } else if (column < 2u * N_IN) {
    let c = column - N_IN;
    keys[((slot * (N_IN / 8u) + c / 8u) * N_TEXT_CTX + position) * 2u + (c / 4u) % 2u] = y;
  } else {
    let c = column - 2u * N_IN;
    values[((slot * N_TEXT_CTX + position) * N_IN + c) / 4u] = y;
  }
}
"""
    ],
    "ln_linear": [
        """\
// Exact GELU: erf by Abramowitz and Stegun 7.1.26, within 1.5e-7.
fn gelu(x: vec4f) -> vec4f {
  let z = abs(x) * 0.7071067811865476;
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  let tail = 0.5 * p * exp(-z * z);  // 1 - the normal distribution's function at |x|
  return x * select(tail, 1.0 - tail, x > vec4f(0.0));
}
"""
    ],
    "ln_logits": [
        """\
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
"""
    ],
}
WORKGROUP_SUM = """\
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
"""


def layer_norm(tiling: str) -> str:
    """The normed rows, in `inputs`."""
    step = "LANES" if tiling == SUBGROUP else "WORKGROUP"
    add = "subgroupAdd({})" if tiling == SUBGROUP else "workgroup_sum(invocation, {})"
    return f"""\
  for (var row = 0u; row < ROWS; row++) {{
    let from_row = (first_row + row) * (2u * eights);
    var total = vec4f();
    for (var i = invocation; i < 2u * eights; i += {step}) {{
      total += x[from_row + i];
    }}
    let mean = {add.format("dot(total, vec4f(1.0))")} / f32(N_IN);
    var squares = vec4f();
    for (var i = invocation; i < 2u * eights; i += {step}) {{
      let centred = x[from_row + i] - mean;
      squares += centred * centred;
    }}
    let scale = inverseSqrt({add.format("dot(squares, vec4f(1.0))")} / f32(N_IN) + 1e-5);
    for (var i = invocation; i < 2u * eights; i += {step}) {{
      inputs[row * (2u * eights) + i] = (x[from_row + i] - mean) * scale * norm[i] + norm[2u * eights + i];
    }}
  }}
  workgroupBarrier();"""


def combine(tiling: str) -> str:
    """The attention's parts, each relative to its own maximum, joined in `inputs`."""
    step = "LANES" if tiling == SUBGROUP else "WORKGROUP"
    return f"""\
  for (var item = invocation; item < ROWS * eights; item += {step}) {{
    let row = first_row + item / eights;
    let k = item % eights;
    let from_stats = (row * (eights / HEAD8) + k / HEAD8) * SPLITS;
    var most = LOWEST;
    for (var split = 0u; split < SPLITS; split++) {{
      most = max(most, stats[from_stats + split].x);
    }}
    var total = 0.0;
    var low = vec4f();
    var high = vec4f();
    for (var split = 0u; split < SPLITS; split++) {{
      let stat = stats[from_stats + split];
      let part = ((row * SPLITS + split) * eights + k) * 2u;
      let share = exp(stat.x - most);
      total += share * stat.y;
      low += share * parts[part];
      high += share * parts[part + 1u];
    }}
    inputs[2u * item] = low / total;
    inputs[2u * item + 1u] = high / total;
  }}
  workgroupBarrier();"""


def _qkv(rows: int) -> list[str]:
    return [f"      write(first_row + {r}u, out, y{r} + bias[out / 4u]);" for r in range(rows)]


def _linear(rows: int) -> list[str]:
    text = []
    for r in range(rows):
        text += [
            f"      var z{r} = y{r} + bias[out / 4u];",
            "      if (GELU) {",
            f"        z{r} = gelu(z{r});",
            "      }",
        ]
        text += [f"      y[((first_row + {r}u) * N_OUT + out) / 4u] = z{r} * SCALE;"]
    return text


def _residual(rows: int) -> list[str]:
    return [f"      y[((first_row + {r}u) * N_OUT + out) / 4u] += y{r} + bias[out / 4u];" for r in range(rows)]


def _logits(rows: int) -> list[str]:
    text = ["      for (var i = 0u; i < min(4u, N_OUT - out); i++) {", "        let token = FIRST + out + i;"]
    text += ["        let is_time = token >= state[4];"]
    for r in range(rows):
        text += [f"        if (first_row + {r}u < state[0]) {{", f"          let logit = y{r}[i];"]
        text += [f"          logits[(first_row + {r}u) * N_VOCAB + token] = logit;"]
        text += [f"          if (is_allowed(first_row + {r}u, token, is_time)) {{", "            if (is_time) {"]
        text += [f"              time_{r} = with_logit(time_{r}, logit, f32(token));", "            } else {"]
        text += [
            f"              text_{r} = with_logit(text_{r}, logit, f32(token));",
            "            }",
            "          }",
            "        }",
        ]
    return [*text, "      }"]


EPILOGUES = {
    "ln_qkv": _qkv,
    "ln_linear": _linear,
    "linear_residual": _residual,
    "combine_residual": _residual,
    "ln_logits": _logits,
}
_JOIN = """\
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
  workgroupBarrier();"""


def finish_logits(tiling: str, row: int) -> str:
    """A row's (max, token, sum) of all invocations as one, to `partials`."""
    text = []
    for number, name in enumerate((f"text_{row}", f"time_{row}")):
        if tiling == SUBGROUP:
            text += [f"  let most_{name} = subgroupMax({name}.x);"]
            text += [f"  let token_{name} = subgroupMin(select(NO_TOKEN, {name}.y, {name}.x == most_{name}));"]
            text += [f"  let sum_{name} = subgroupAdd({name}.z * exp({name}.x - most_{name}));"]
            value = f"vec4f(most_{name}, token_{name}, sum_{name}, 0.0)"
        else:
            text += [f"  sums[invocation] = vec4f({name}, 0.0);", _JOIN]
            value = "sums[0]"
        at = f"((first_row + {row}u) * N_GROUPS + FIRST_GROUP + workgroup.x) * 2u + {number}u"
        text += [
            f"  if (invocation == 0u && first_row + {row}u < state[0]) {{",
            f"    partials[{at}] = {value};",
            "  }",
        ]
        text += ["  workgroupBarrier();"] if tiling == WORKGROUP else []
    return "\n".join(text)
