"""The command line without the seconds of its imports: a process that has them done starts a child for every command line.

Reads JSON lists of arguments, one a line, and prints `pid` at the start and `pid code` at the end of each child.
"""

from __future__ import annotations

import json
import os
import sys
import threading


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import synthgen.cli
    import synthgen.jobs
    import synthgen.screen

    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            print(text, flush=True)

    say("ready")
    for line in sys.stdin:
        arguments, log = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.setsid()
            null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number, target in ((null, 0), (out, 1), (out, 2)):
                os.dup2(number, target)
            sys.argv = ["synthgen", *arguments]
            synthgen.cli.main()
            os._exit(1)
        say(f"{child}")
        status = os.waitpid(child, 0)[1]
        say(f"{child} {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
