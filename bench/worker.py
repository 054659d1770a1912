"""One engine in a process of its own: a JSON request a line on stdin, a JSON answer a line on stdout."""

import json
import os
import sys
from pathlib import Path

from bench.engines import ENGINES


def main() -> None:
    """argv: engine, model folder, clip. Answers {"ready": …}, then {"seconds": …} for each operation named."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an engine's own prints go to stderr, so that stdout holds answers alone

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    name, model, clip = sys.argv[1:]
    try:
        engine = ENGINES[name](Path(model), Path(clip))
    except ImportError as error:
        return answer(ready=False, reason=str(error))
    answer(ready=True)
    for line in sys.stdin:
        operation = json.loads(line)
        if operation == "text":
            answer(text=engine.text())
        else:
            answer(seconds=getattr(engine, operation)())
    return None


if __name__ == "__main__":
    main()
