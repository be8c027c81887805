"""Processes that work through a list of jobs, and that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from umbel.simulations.comparison.results import ComparisonError

_LOOK_EVERY_S = 0.5
_STOPPED = 3


_Found = TypeVar("_Found")


def run_apart(work: Callable[..., _Found], jobs: Sequence[tuple[Any, ...]], workers: int) -> list[_Found]:
    """Runs work(*job) for every job in processes of their own, and returns the results in the jobs' order.

    When a job fails, or this process is interrupted, the others are stopped at once rather than waited for.
    When this process is gone, however it ended, its workers end within a second.

    Args:
        work: A function of a module, so that other processes find it.
        jobs: Its arguments, which can be pickled.
        workers: Processes.

    Raises:
        ComparisonError: A worker was stopped from outside.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_watch_in_thread, initargs=(os.getpid(), stop)
    )
    try:
        futures = [pool.submit(work, *job) for job in jobs]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        hint = (
            "Finished cells are kept: give the same command again, with fewer --workers if memory is short."
        )
        raise ComparisonError("a worker of the comparison was stopped from outside", hint=hint) from error
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _watch_in_thread(owner: int, stop: Any) -> None:
    threading.Thread(target=_watch, args=(owner, stop), daemon=True).start()


def _watch(owner: int, stop: Any) -> None:
    """Ends this process when it is told to, or when its owner is gone: another run may begin then."""
    while not stop.wait(_LOOK_EVERY_S):
        if os.getppid() != owner:
            break
    os._exit(_STOPPED)
