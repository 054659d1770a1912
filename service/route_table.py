"""Which route of the table a request is for, before it gets there: for its key, and for its label in metrics."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import Scope


def route_of(scope: Scope, routes: Sequence[BaseRoute]) -> BaseRoute | None:
    """The first route that a request fits, else the first that its path alone fits, else none: as in routing."""
    matches = [(route.matches(scope)[0], route) for route in routes]
    for wanted in (Match.FULL, Match.PARTIAL):
        for match, route in matches:
            if match == wanted:
                return route
    return None
