"""The command line without the seconds of its imports: a process that has them done starts a child for every command line.

Reads one JSON object a line, `arguments`, `log` (a file for what the child says), and optionally `signal`, `after` (seconds) and
`once` (a file: the seconds begin when it is there), and prints the child's exit code, negative where a signal ended it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import synthgen.cli
    import synthgen.jobs
    import synthgen.screen

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            null, out = os.open(os.devnull, os.O_RDONLY), os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number, target in ((null, 0), (out, 1), (out, 2)):
                os.dup2(number, target)
            sys.argv = ["synthgen", *asked["arguments"]]
            synthgen.cli.main()
            os._exit(1)
        print(ended(child, asked), flush=True)


def ended(child: int, asked: dict[str, Any]) -> int:
    """Waits for a child, and sends it its signal; here, where its number can't be another's yet."""
    begun = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if begun is None and ("once" not in asked or os.path.exists(asked["once"])):
            begun = time.monotonic()
        if "signal" in asked and begun is not None and time.monotonic() - begun >= asked["after"]:
            os.kill(child, asked.pop("signal"))
            last = time.monotonic() + 60
        if "after" in asked and "signal" not in asked and time.monotonic() > last:
            os.kill(child, signal.SIGKILL)  # it didn't heed the signal: the test sees the code
        time.sleep(0.002)


if __name__ == "__main__":
    main()
