"""A small JSON object as a request's body."""

from typing import Any

from starlette.requests import ClientDisconnect, Request

from service.errors import ClientGone, MalformedForm
from service.http.form.json_body import strict_json


async def json_object(request: Request, max_bytes: int, example: str) -> dict[str, Any]:
    """The body. Raises MalformedForm, whose message shows the example, and ClientGone."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise MalformedForm(f"The body has more than {max_bytes} bytes.")
    except ClientDisconnect:
        raise ClientGone from None
    try:
        fields = strict_json(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise MalformedForm(f"The body is a JSON object: {example}.")
    return fields
