"""Independent tasks over processes of one thread each: same bytes for any number of workers.

Each worker runs torch with one thread, since the number of threads can change the last bit of a result, and exits
with its parent, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from typing import Any, TypeVar

import torch

from synthgen import preemption
from synthgen.errors import SynthgenError
from synthgen.types import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
_events: Any = None
SAVE_S = 60.0
"""For which workers that were told to stop may save; SLURM and Kubernetes give 30 s before they kill."""


class Remote:
    """A `Progress` in a worker that sends what it is told to the parent."""

    def __init__(self, events: Any) -> None:
        self.events = events

    def start(self, task: str, total: int) -> None:
        self.events.put(("start", task, total))

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        self.events.put(("advance", task, steps, note))

    def finish(self, task: str, line: str) -> None:
        self.events.put(("finish", task, line))


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Pool:
    """Runs tasks in `workers` processes; with one worker, in this process.

    Use as a context manager; the processes start at the first `map` and serve all that follow.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers or _cores()
        self._executor: ProcessPoolExecutor | None = None
        self._events: Any = None
        self._running: list[Any] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            return
        workers = self._processes()
        try:
            if error is not None and issubclass(error, preemption.Preempted):
                self._let_save(workers)
        finally:  # also where the user presses Ctrl-C again
            self._executor.shutdown(wait=False, cancel_futures=True)
            if error is not None:  # what still runs would write into a folder whose lock is about to be given up
                for worker in workers:
                    worker.kill()
                    worker.join()

    def map(self, function: Callable[[Task, Progress], Result], tasks: Sequence[Task], progress: Progress) -> list[Result]:
        """function(task, progress) for each task, results in the tasks' order; put the longest first.

        `function` is importable (not a lambda), tasks and results are small and can be pickled. The first error is
        raised as it is.
        """
        if self.workers == 1 or len(tasks) <= 1:
            with single_thread():
                return [_checked(function, task, progress) for task in tasks]
        executor = self._start()
        pending = futures = self._running = [executor.submit(_run, function, task) for task in tasks]
        try:
            while pending:
                done, rest = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                pending = list(rest)
                self._forward(progress)
                for future in done:
                    future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def _processes(self) -> list[Any]:
        assert self._executor is not None
        return list((self._executor._processes or {}).values())  # Python 3.14 has kill_workers()

    def _let_save(self, workers: list[Any]) -> None:
        """Tells the workers, and gives them the time that what they are doing needs to be saved."""
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        wait(self._running, timeout=SAVE_S)

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            manager = SyncManager(ctx=context)
            with preemption.deferred():  # a scheduler may send them to every process of a job
                manager.start(_watch_parent)
            self._events = manager.Queue()
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_initialise, initargs=(self._events,))
        return self._executor

    def _forward(self, progress: Progress) -> None:
        while not self._events.empty():
            name, *arguments = self._events.get()
            getattr(progress, name)(*arguments)


def _cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def explain_broken_pool(error: BrokenProcessPool) -> SynthgenError:
    """A worker that was killed, as an error with a remedy."""
    return SynthgenError(f"a worker process was killed ({error}); out of memory? Run the same command again with workers=1")


def _initialise(events: Any) -> None:
    global _events
    _events = events
    torch.set_num_threads(1)
    preemption.listen(held_back=True)
    _watch_parent()


def _watch_parent() -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(function: Callable[[Any, Progress], Any], task: Any) -> Any:
    with preemption.released():
        return function(task, Remote(_events))


def _checked(function: Callable[[Any, Progress], Any], task: Any, progress: Progress) -> Any:
    preemption.check()
    return function(task, progress)
