"""The server's log on stderr: lines for people or JSON objects for machines, each with its request's ID."""

import json
import logging
import time
from typing import Any

from service.http.request_log import request_id

CONSOLE = "%(asctime)s %(levelname)s %(request_id)s %(message)s"


def tag(record: logging.LogRecord) -> bool:
    """A handler's filter: adds the request's ID to the record, in any thread."""
    record.request_id = request_id.get()
    return True


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, request_id, message, exception, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def dress(handler: logging.Handler, log_format: str) -> None:
    """Make a handler write every record with its request's ID, as console or json."""
    handler.addFilter(tag)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(CONSOLE))
