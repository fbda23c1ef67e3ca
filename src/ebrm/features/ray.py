"""Extraction on a Ray cluster, with the result of one process.

Ray Data hands shard numbers to actors, which hold the reward model and the token ids and write shards into the folder;
all machines see it under the same path. The process that started the run tokenizes, locks and finishes, so a run begun
on Ray can be continued without it. A shard at which three actors died is given up: the next one would die too.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebrm import errors
from ebrm.backbone import BackboneConfig, BackboneIdentity
from ebrm.data import TextConfig
from ebrm.errors import BackboneError, ConfigError, EBRMError, FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features.config import EngineConfig
from ebrm.features.extract import Engine, TokenizedTexts, text_reader
from ebrm.features.writer import write_shard
from ebrm.utils.extras import install_hint
from ebrm.utils.outputs import tidy

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

_HOST_PORT = re.compile(r"([^/]+):(\d+)")
_DEATHS = 3  # actors that may die at the same shard
_MEASURE = -1  # in place of a shard number: measure what `ItemReader.measure` does


def ray_engine(backbone: BackboneConfig, text: TextConfig | None = None, config: EngineConfig | None = None) -> Engine:
    """The `engine` of `extract_features` that reads texts on a Ray cluster: one that runs, or `config.ray_address`.

    Args:
        backbone: The reward model that each actor loads; the one given to `extract_features`.
        text: Its text config.
        config: The cluster, how many actors, and GPUs for each.

    Raises:
        ConfigError: Ray is not installed.
    """
    config = config or EngineConfig(engine="ray")
    if config.ray_gpus is None and backbone.device.startswith("cpu"):
        config = EngineConfig("ray", config.ray_address, config.ray_actors, 0)
    _import_ray()
    from ebrm.backbone import load_backbone

    return partial(read_on_ray, partial(load_backbone, backbone, text), config)


def read_on_ray(
    load: Callable[[], Backbone], config: EngineConfig, texts: TokenizedTexts, out: Path, manifest: dict[str, Any],
    numbers: Sequence[int], advance: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Write shards `numbers` of the locked folder `out`, and measure the batch drift if it is not complete.

    `load` loads the reward model in each actor, so it must be picklable.
    """
    items = [*numbers, *([] if manifest["complete"] else [_MEASURE])]
    if not items:
        return {}
    ray = _import_ray()
    size, measured = manifest["shard_rows"], {}
    with _quiet(), _connected(ray, config), _no_bars():
        actors, cpus, gpus = _actors(ray, config, len(items))
        logger.info("Reading %d shards with %d Ray actors of %g CPUs and %g GPUs.", len(numbers), actors, cpus, gpus)
        node, strategies = ray.get_runtime_context().get_node_id(), ray.util.scheduling_strategies
        here = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        begun = ray.remote(_Begun).options(num_cpus=0, scheduling_strategy=here).remote()
        # What the tables have need not travel.
        shipped = ray.put(TokenizedTexts(texts.ids, texts.ends, texts.truncated, [], [], texts.where, texts.tolerant))
        todo = ray.data.from_items([{"shard": number} for number in items], override_num_blocks=len(items))
        results = todo.map_batches(
            _Actor, batch_size=1, num_cpus=cpus, num_gpus=gpus,
            fn_constructor_args=(load, torch.get_num_threads(), out.resolve(), manifest, shipped, begun),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        )  # fmt: skip
        for row in results.iter_rows():
            if row["error"]:
                raise getattr(errors, row["kind"])(row["error"])
            if (number := row["shard"]) == _MEASURE:
                measured = {"batch_drift": row["drift"]}
            else:
                advance(int(texts.lengths[number * size : (number + 1) * size].sum()))
    tidy(out)  # partial files of actors that died
    return measured


class _Begun:
    """How often each shard was begun; a process of its own that outlives the actors."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count one more beginning, and return the number before it."""
        self._times[number] += 1
        return self._times[number] - 1


class _Actor:
    """A process of the cluster that holds the reward model and makes the shards it is given."""

    def __init__(
        self, load: Callable[[], Backbone], threads: int, out: Path, manifest: dict[str, Any], texts: Any, begun: Any
    ) -> None:
        self._load, self._threads, self._out, self._manifest = load, threads, out, manifest
        self._reference, self._begun = texts, begun
        self._texts: TokenizedTexts | None = None
        self._backbone: Backbone | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make one shard; an error that the user can correct is a result, so that it arrives as it was raised."""
        number, drift = int(batch["shard"][0]), float("nan")
        try:
            drift = self._work(number)
            kind = message = ""
        except EBRMError as error:
            kind, message = type(error).__name__, str(error)
        return {"shard": [number], "drift": [drift], "kind": [kind], "error": [message]}

    def _work(self, number: int) -> float:
        import ray

        if self._texts is None:
            self._texts = ray.get(self._reference)
        texts = self._texts
        if (before := ray.get(self._begun.begin.remote(number))) >= _DEATHS:
            raise FeaturesError(self._give_up(number, before, texts))
        if self._backbone is None:  # not in __init__: there an error would come back as Ray's, not as ours
            self._backbone = self._opened()
        reader = text_reader(self._backbone, texts)
        if number == _MEASURE:
            return float(reader.measure()["batch_drift"])
        write_shard(self._out, reader, self._manifest, number, lambda tokens: None)
        return float("nan")

    def _opened(self) -> Backbone:
        torch.set_num_threads(self._threads)  # Ray gives its workers one; other threads may add in another order
        if not (self._out / manifests.MANIFEST).is_file():
            raise FeaturesError(
                f"The machine {os.uname().nodename} of the Ray cluster does not see {self._out}. All machines must see "
                "the output folder under the same path: put it on a shared file system."
            )
        backbone = self._load()
        stored = self._manifest["text"].get("date")
        if stored is not None:  # a run may go past midnight, or be gone on with on another day
            backbone.text_rule = replace(backbone.text_rule, date=stored)
        here, rule = os.uname().nodename, backbone.text_rule.identity()
        wanted = BackboneIdentity.from_dict(self._manifest["backbone"])
        unlike = backbone.identity.mismatch(wanted, ours=f"on {here}", theirs="where the run was started", exact=True)
        unlike = unlike or backbone.probe_difference(wanted, then="where the run was started", now=f"on {here}")
        unlike = unlike or manifests.difference(rule, self._manifest["text"], here, "the machine that started the run")
        if unlike is not None:
            raise BackboneError(
                f"The machines of the Ray cluster load different reward models: {unlike}. Give all of them the same "
                "files and the same versions of the libraries."
            )
        return backbone

    def _give_up(self, number: int, before: int, texts: TokenizedTexts) -> str:
        if number == _MEASURE:
            what = "measuring the batch drift"
        else:
            first = number * self._manifest["shard_rows"]
            last = first + manifests.rows_of_shard(self._manifest, number) - 1
            what = f"shard {number} ({texts.where[first]} to {texts.where[last]})"
        return (
            f"{before} Ray actors died one after the other at {what}: the system or Ray stopped them because memory "
            "ran out, or a library crashed. Ray's logs have the reason (/tmp/ray/session_latest/logs on the machine it "
            "ran on). Run the same command again when that is fixed: finished shards are kept."
        )


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ConfigError(
            f"Engine ray needs Ray with its data part, which cannot be imported here ({error}): {install_hint('ray')}."
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, config: EngineConfig) -> Iterator[None]:
    """Be part of the cluster while the body runs; a cluster of this machine alone ends with it."""
    if ray.is_initialized():
        yield
        return
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        if address is not None and (found := _HOST_PORT.fullmatch(address)):
            socket.create_connection((found[1], int(found[2])), timeout=10).close()  # Ray would try for minutes
        with _silent_stderr():
            level = logging.INFO if _chatty() else logging.ERROR
            ray.init(config.ray_address, include_dashboard=False, log_to_driver=_chatty(), logging_level=level)
    except (OSError, RuntimeError, ValueError) as error:
        place = f"at {address}" if address else "here"
        raise ConfigError(
            f"No Ray cluster can be reached or started {place}: {' '.join(str(error).split())[:400]}. Start one with "
            "`ray start --head`, join machines with `ray start --address=HOST:6379`, and run this command on one of "
            "them."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what native code writes to the standard error of this process while it starts Ray."""
    if _chatty():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _actors(ray: Any, config: EngineConfig, most: int) -> tuple[int, float, float]:
    """Number of actors to start, and the CPUs and GPUs of each."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = config.ray_gpus
    if gpus is None:
        gpus = 1.0 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0.0
    cpus = 1.0 if gpus else float(torch.get_num_threads())
    most_now = sum(
        min(int(machine.get("CPU", 0) // cpus), int(machine.get("GPU", 0) / gpus) if gpus else 10**9)
        for machine in machines
    )
    if config.ray_actors is None and most_now == 0:
        seen = "; ".join(f"{machine.get('CPU', 0):g} CPUs, {machine.get('GPU', 0):g} GPUs" for machine in machines)
        raise ConfigError(
            f"No machine of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor; they have {seen}. Set "
            "`ray_gpus`, or, without GPUs, OMP_NUM_THREADS to the CPUs for each."
        )
    wanted = most_now if config.ray_actors is None else config.ray_actors
    if wanted > most_now:
        logger.warning(
            "%d Ray actors of %g CPUs and %g GPUs are wanted, and the cluster can hold %d of them in all; the "
            "others wait for machines to join.", wanted, cpus, gpus, most_now,
        )  # fmt: skip
    return min(wanted, most), cpus, gpus


def _chatty() -> bool:
    return logger.isEnabledFor(logging.DEBUG)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's own output from the terminal (its log files have it), and its usage reports from the net."""
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    if not _chatty():
        variables["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with nullcontext() if _chatty() else redirect_stdout(io.StringIO()):  # Ray prints there that a worker died
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without Ray Data's own progress and, unless asked for, its log lines on the terminal."""
    from ray.data import DataContext

    context = DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    consoles = [handler for handler in logging.getLogger("ray.data").handlers if not hasattr(handler, "_filename")]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.INFO if _chatty() else logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
