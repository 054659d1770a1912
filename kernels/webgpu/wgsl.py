"""The kernels' WGSL: templates in shaders/, expanded by Jinja2 when a pipeline is made, and their bindings.

Sizes that a compiler can fold are `override` constants in the WGSL. Parameters of the template change the text: the
kind of reduction, rows, lanes. shaders/shared.wgsl explains each.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound

SHADERS = Path(__file__).parent / "shaders"
SHARED = "shared"  # the macros, not a kernel
Reduction = Literal["subgroup", "workgroup"]
SUBGROUP: Reduction = "subgroup"  # a workgroup is one subgroup: for software adapters
WORKGROUP: Reduction = "workgroup"  # sums are added in workgroup memory: for hardware
Parameters = Mapping[str, str | int]
_BINDING = re.compile(r"@group\(0\)\s*@binding\((\d+)\)\s*var<\s*(uniform|storage)\s*(?:,\s*(\w+)\s*)?>\s*(\w+)")
_KINDS = {
    ("uniform", ""): "uniform",
    ("storage", ""): "read-only-storage",
    ("storage", "read"): "read-only-storage",
    ("storage", "read_write"): "storage",
}


class ShaderError(ValueError):
    """An unknown kernel, or parameters that its template does not take."""


def variant(name: str, parameters: Parameters) -> str:
    """A kernel's name with its parameters, such as decoder_ln_qkv_subgroup_4; a set flag appears by its name."""
    values = [key if value is True else str(value) for key, value in parameters.items() if value is not False]
    return "_".join([name, *values])


def expand(name: str, parameters: Parameters, *, enable_subgroups: bool = False) -> str:
    """The WGSL of `shaders/<name>.wgsl` with these parameters. Raises ShaderError if that fails.

    `enable_subgroups` writes the directive that Tint requires before subgroup built-ins and naga does not know.
    """
    try:
        template = _environment(SHADERS).get_template(f"{name}.wgsl")
        return template.render({**parameters, "enable_subgroups": enable_subgroups})
    except TemplateNotFound as error:
        raise ShaderError(f"there is no kernel named {error.name}") from error
    except TemplateError as error:
        raise ShaderError(f"kernel {variant(name, parameters)} does not expand: {error}") from error


@functools.cache
def _environment(shaders: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(shaders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def bindings(source: str) -> list[tuple[str, str]]:
    """(kind, name) of binding 0, 1, 2…, kinds as WebGPU's layouts name them. ValueError if a number is missing."""
    found = sorted(
        (int(number), _KINDS[space, access], name) for number, space, access, name in _BINDING.findall(source)
    )
    numbers = [number for number, _, _ in found]
    if numbers != list(range(len(found))):
        raise ValueError(f"bindings {numbers} are not 0, 1, 2…")
    return [(kind, name) for _, kind, name in found]
