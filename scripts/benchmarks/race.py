"""Rounds of the loader's benchmark: each contestant in a process of its own, its speed, CPU time and memory."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
from clip_files import SPEC, Loader, Work
from common import in_turn
from peers import Make


class Tree:
    """A process and all below it, as they are now."""

    def __init__(self, pid: int | None = None) -> None:
        self.top = psutil.Process(pid)
        self.below = self.top.children(recursive=True)

    def cpu_seconds(self) -> float:
        """User and system time, that of ended children included."""
        total = 0.0
        for process in [self.top, *self.below]:
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total

    def memory_mb(self, num_workers: int) -> dict[str, float]:
        """``worker_mb``: what is private to the processes below, by workers (one and its decoder); ``all_mb``: the
        whole tree, its part of shared pages included (PSS).
        """
        private = total = 0.0
        for process in [self.top, *self.below]:
            with suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                total += getattr(info, "pss", info.uss) / 2**20
                private += info.uss / 2**20 if process is not self.top else 0.0
        return {"worker_mb": private / max(num_workers, 1), "all_mb": total}


def one_round(loader: Loader, work: Work) -> dict[str, float]:
    """Of the timed batches: ``views`` in them, their ``seconds`` and CPU seconds; ``start_up`` seconds to the first.

    From the arrival of the last batch that is skipped to that of the last that is timed; workers are busy at both.
    """
    begin = time.perf_counter()
    views = bare = start_up = 0.0
    batches = iter(loader)
    for number in range(1, work.skipped + work.timed + 1):
        batch = next(batches)
        arrival = time.perf_counter()
        start_up = start_up or arrival - begin
        if number == work.skipped:
            tree = Tree()
            start, spent = arrival, tree.cpu_seconds()
        elif number > work.skipped and "cpu" in batch:
            views, bare = views + len(batch["cpu"]), bare + float(batch["cpu"].sum())
        elif number > work.skipped:
            views += batch["clip"].numel() / (3 * SPEC.num_frames * SPEC.size[0] * SPEC.size[1])
    cpu = bare or tree.cpu_seconds() - spent
    return {"views": views, "seconds": arrival - start, "cpu": cpu, "start_up": start_up}


def serve(connection: Connection, make: Make, work: Work) -> None:
    """A contestant's own process: a round for each epoch that it is sent. A failure is its answer, one line."""
    try:
        torch.set_num_threads(1)
        loader = make(work)
        while (epoch := connection.recv()) is not None:
            work.epoch = epoch
            connection.send(one_round(loader, work))
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        connection.send(f"{type(error).__name__}: {str(error).strip()}".split("\n")[0])


def ask(process: Any, connection: Connection, epoch: int, work: Work, peak: dict[str, float]) -> dict[str, float] | str:
    """The round of one contestant, or what failed. In the first its memory is looked at, into ``peak``."""
    with suppress(BrokenPipeError):  # it has failed already, and said why
        connection.send(epoch)
    while not connection.poll(0.5 if epoch == 0 else None):
        for key, value in Tree(process.pid).memory_mb(work.num_workers).items():
            peak[key] = max(peak.get(key, 0.0), value)
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return f"its process ended with exit code {process.exitcode}"


def race(contestants: dict[str, Make], work: Work, rounds: int, views_per_unit: int) -> dict[str, dict[str, Any]]:
    """By contestant: per round ``rates`` (units a second), ``costs`` (CPU seconds a unit), ``start_up`` seconds, and
    peak ``worker_mb``, ``all_mb``. Who fails is said and left out.

    Each lives in a forked process of its own until the race is over; one runs at a time, in alternating order.
    """
    context = multiprocessing.get_context("fork")
    running: dict[str, tuple[Any, Connection]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in contestants.items():
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, make, work))
        process.start()
        there.close()
        running[name] = process, here
        results[name] = {"rates": [], "costs": [], "start_up": [], "memory": {}}
    for epoch in range(rounds):
        for name in in_turn(running, epoch):
            answer = ask(*running[name], epoch, work, results[name]["memory"])
            if isinstance(answer, str):
                print(f"{name} is left out: {answer}", flush=True)
                del running[name], results[name]
                continue
            units = answer["views"] / views_per_unit
            results[name]["rates"].append(units / answer["seconds"])
            results[name]["costs"].append(answer["cpu"] / units)
            results[name]["start_up"].append(answer["start_up"])
    for process, connection in running.values():
        connection.send(None)
        process.join()
    return results
