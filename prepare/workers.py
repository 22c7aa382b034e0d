"""Processes that work on numbered texts, watched: one that dies or hangs is reported with its text.

They are spawned, not forked, and each has one thread: libraries for tagging and embedding hang in
forked processes, and their threads would fight for the same cores.
"""

import os
import time
from collections import deque
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from configurator import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
ONE_THREAD = {**dict.fromkeys(THREADS, "1"), "TOKENIZERS_PARALLELISM": "false"}
LOADING, LOAD = -1, 3600.0  # the number of no text, and seconds for a worker to prepare itself

Batch = list[tuple[int, str]]  # (number, text)
Work = Callable[[str], Any]


class Failure(NamedTuple):
    """What a worker sends instead of results."""

    message: str


def serve(
    setup: Callable[..., Work], args: tuple, pipe: Connection, clock: Any, timeout: float
) -> None:
    """The loop of a worker; `clock` shares the number of its text and its deadline."""
    number = LOADING
    try:
        work = setup(*args)
        while True:
            clock[:] = [LOADING, float("inf")]  # it waits
            batch = pipe.recv()
            results = []
            for number, text in batch:
                clock[:] = [number, time.monotonic() + timeout]
                results.append(work(text))
            pipe.send(results)
    except (EOFError, KeyboardInterrupt):  # the parent is done, or is being interrupted itself
        return
    except UserError as e:
        pipe.send(Failure(str(e) if number == LOADING else f"document {number}: {e}"))
    except Exception as e:
        where = "while it loaded" if number == LOADING else f"at document {number}"
        pipe.send(Failure(f"a worker failed {where}: {type(e).__name__}: {e}"))


class Worker:
    """One process, and its current batch."""

    def __init__(self, setup: Callable[..., Work], args: tuple, timeout: float):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.clock = context.Array("d", [LOADING, time.monotonic() + LOAD], lock=False)
        self.process = context.Process(
            target=serve, args=(setup, args, theirs, self.clock, timeout), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.place: int | None = None  # of its batch among all of them
        self.batch: Batch = []

    def give(self, place: int, batch: Batch) -> None:
        self.place, self.batch = place, batch
        with suppress(OSError):  # it is dead, which its answer will tell
            self.pipe.send(batch)

    def where(self) -> str:
        """Description of the document at which the worker is."""
        number = int(self.clock[0])
        text = next((t for n, t in self.batch if n == number), None)
        if text is None:
            return "while it loaded"
        return f"at document {number}, {text[:60]!r}; --skip={number} leaves it out"


class Workers:
    """Context manager: `count` processes, each prepared by `setup(*args)`, which returns the
    function that is applied to every text. A text may take `timeout` seconds."""

    def __init__(self, count: int, timeout: float, setup: Callable[..., Work], *args: Any):
        self.count, self.timeout, self.setup, self.args = count, timeout, setup, args

    def __enter__(self) -> "Workers":
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # libraries read it when they are imported
        self.all = [Worker(self.setup, self.args, self.timeout) for _ in range(self.count)]
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.all:
            worker.pipe.close()
        for worker in self.all:
            worker.process.join(0.2)
            worker.process.kill()
            worker.process.join()

    def map(self, batches: Iterable[Batch]) -> Iterator[list]:
        """Results of the batches, in their order. Few batches wait, however many there are. Raises
        UserError if a worker fails, dies or takes too long, which names the document."""
        todo, waiting = enumerate(batches), deque(w for w in self.all)
        ready: dict[int, list] = {}
        done, more = 0, True
        while True:
            while more and waiting and len(ready) <= 4 * self.count:
                if (job := next(todo, None)) is None:
                    more = False
                else:
                    waiting.popleft().give(*job)
            busy = [w for w in self.all if w.place is not None]
            while done in ready:
                yield ready.pop(done)
                done += 1
            if not busy:
                if not more:
                    return
                continue
            for worker in self._answered(busy):
                assert worker.place is not None
                ready[worker.place] = self._result(worker)
                worker.place = None
                waiting.append(worker)

    def _answered(self, busy: list[Worker]) -> list[Worker]:
        """Wait until a worker has answered or ended, but at most until the next deadline."""
        pipes = {w.pipe: w for w in busy}
        ready = wait(pipes, timeout=min(1.0, self.timeout / 4))
        for worker in busy:
            late = time.monotonic() > worker.clock[1]
            if late and worker.pipe not in ready:
                raise UserError(
                    f"a worker has not come back in time ({self.timeout:g} s) {worker.where()}, "
                    "--timeout=SECONDS gives it longer"
                )
        return [pipes[pipe] for pipe in ready]

    def _result(self, worker: Worker) -> list:
        try:
            result = worker.pipe.recv()
        except (EOFError, ConnectionError):
            worker.process.join(5)
            code = worker.process.exitcode or 0
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise UserError(f"a worker died ({how}) {worker.where()}") from None
        if isinstance(result, Failure):
            raise UserError(result.message)
        return result
