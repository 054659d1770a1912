#!/usr/bin/python3.11 -I
"""Exit code 0 if the server of this container is ready to transcribe, else 1: the image's health check."""

import http.client
import os
import sys

TIMEOUT_S = 12  # more than WISP_PROBE_LIMIT_S: an idle server transcribes before it responds


def status(port: int) -> int:
    """The HTTP status of GET /readyz; 0 without a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if status(int(os.environ.get("WISP_PORT") or 8080)) == 200 else 1)
