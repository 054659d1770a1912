"""The page at /docs: an OpenAPI document as HTML, without scripts or external resources."""

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dce3, #343a45); --dim: light-dark(#59616e, #9aa4b2);
  --ground: light-dark(#f5f6f8, #1b1f26); --accent: light-dark(#0b57d0, #8ab4f8); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  background: light-dark(#fff, #13161b); color: light-dark(#14171c, #e7eaf0); }
a { color: var(--accent); }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.15rem; overflow-wrap: anywhere; }
h2 code { font-size: 1em; }
.method { text-transform: uppercase; color: var(--accent); margin-right: .5rem; }
.dim { color: var(--dim); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border-top: 1px solid var(--line); }
code, pre { font: .875em/1.5 ui-monospace, monospace; }
pre { background: var(--ground); padding: .75rem; border-radius: .5rem; overflow-x: auto; }
summary { cursor: pointer; padding: .3rem 0; }
@media (max-width: 40rem) {
  tr, td { display: block; }
  tr { padding: .4rem 0; border-top: 1px solid var(--line); }
  td { padding: .1rem 0; border: 0; overflow-wrap: anywhere; }
  tr:has(th) { display: none; }
}
"""

MOST_LISTED = 8  # values of a field shown at once

Json = dict[str, Any]


def page(document: Json) -> str:
    """The whole page, from a document made by service.http.openapi.document."""
    title, version = escape(document["info"]["title"]), escape(document["info"]["version"])
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>'
        for name, schema in document["components"]["schemas"].items()
    ]
    key = "<p>Send an API key: <code>Authorization: Bearer KEY</code>.</p>" if document.get("security") else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: the API</title>
<link rel="stylesheet" href="docs.css">
</head>
<body>
<h1>{title} <span class="dim">{version}</span></h1>
<p>{escape(document["info"]["description"])} As JSON: <a href="openapi.json">openapi.json</a>.</p>
{key}
{"".join(operations)}
<h2>Bodies</h2>
{"".join(schemas)}
</body>
</html>
"""


def _operation(path: str, method: str, operation: Json) -> str:
    form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema")
    fields = _fields(form) if form else ""
    answers = "".join(_response(status, response) for status, response in operation["responses"].items())
    return (
        f'<section><h2><span class="method">{escape(method)}</span><code>{escape(path)}</code></h2>'
        f"<p>{escape(operation['summary'])}</p>{fields}"
        f'<div class="scroll"><table><tr><th>Status</th><th>Response</th><th>Body</th></tr>{answers}</table></div>'
        "</section>"
    )


def _fields(form: Json) -> str:
    required = form.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}{', required' if name in required else ''}</td>"
        f"<td>{escape(schema.get('description', ''))}</td></tr>"
        for name, schema in form["properties"].items()
    )
    return f'<div class="scroll"><table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{rows}</table></div>'


def _type(schema: Json) -> str:
    """A field's type in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        listed = ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
        words = listed
        if len(schema["enum"]) > MOST_LISTED:
            words = f"<details><summary>one of {len(schema['enum'])}</summary>{listed}</details>"
    elif schema["type"] == "array":
        words = f"list of {_type(schema['items'])}"
    elif schema["type"] == "object":
        words = "object of " + ", ".join(f"<code>{escape(name)}</code>" for name in schema["properties"])
    else:
        words = escape(str(schema.get("format", schema["type"])))
        if "minimum" in schema:
            words += f", {schema['minimum']} to {schema['maximum']}"
    if "default" not in schema:
        return words
    default = schema["default"]
    text = str(default) if isinstance(default, str) else json.dumps(default)
    return f"{words}, <code>{escape(text)}</code> by default"


def _response(status: str, response: Json) -> str:
    bodies = []
    for media_type, content in response.get("content", {}).items():
        names = _names(content.get("schema", {})) + _names(content.get("x-event-schema", {}))
        links = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)
        bodies.append(f"<code>{escape(media_type)}</code> {links}")
    return f"<tr><td>{escape(status)}</td><td>{escape(response['description'])}</td><td>{'<br>'.join(bodies)}</td></tr>"


def _names(schema: Json) -> list[str]:
    """The components that a schema refers to directly."""
    choices = schema.get("oneOf", [schema])
    return [choice["$ref"].rpartition("/")[2] for choice in choices if "$ref" in choice]


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
