"""Runs one engine in its own process: one JSON request per line on stdin, one JSON response per line on stdout."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.engines import ENGINES, Files, Unsupported


def main() -> None:
    """argv: engine, model folder, converted weights, clip, and optionally "once".

    Writes {"ready": …, "is_slow": …}, then answers each request: {"operation": "encode" or "token"}, or "transcribe"
    with a "clip", or "together" with a "clip" and "n". With "once" it transcribes the clip, writes one line and exits:
    a cold start.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an engine's own prints go to stderr, so that stdout has only responses

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    name, model, converted, clip, *once = sys.argv[1:]
    try:
        engine = ENGINES[name].make(Files(Path(model), Path(converted)), Path(clip))
        if once:
            return answer(text=engine.transcribe(Path(clip)))
    except ImportError as error:
        return answer(ready=False, reason=str(error))
    answer(ready=True, is_slow=engine.is_slow)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            match request["operation"]:
                case "transcribe":
                    start = time.perf_counter()
                    text = engine.transcribe(Path(request["clip"]))
                    answer(seconds=time.perf_counter() - start, text=text)
                case "together":
                    answer(seconds=engine.together(Path(request["clip"]), request["n"]))
                case operation:
                    answer(seconds=getattr(engine, operation)())
        except Unsupported as error:
            answer(unsupported=str(error))
    return None


if __name__ == "__main__":
    main()
