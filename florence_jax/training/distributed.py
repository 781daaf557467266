"""Several processes, each with its own devices, that take every step of a run together."""

import hashlib
import os
import socket
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Seconds without a sign of life after which a process counts as dead, and the others end.
_PATIENCE = 20


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run, before jax is used for anything else.

    An argument that is None is read from the environment: from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from the variables of TPU pods, SLURM and Open MPI.

    Raises:
        ValueError: the environment does not name it.
        RuntimeError: the other processes do not answer.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=processes or _number("JAX_NUM_PROCESSES"),
        process_id=process if process is not None else _number("JAX_PROCESS_ID"),
        heartbeat_timeout_seconds=_PATIENCE,
    )


def is_first() -> bool:
    """Whether this is the first process, which writes the files that all of them share."""
    return jax.process_index() == 0


def broadcast_bool(value: bool) -> bool:
    """The first process's value, in every process; each waits for the others."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(value))


def first_on_machine(make: Callable[[], bytes]) -> bytes:
    """The bytes that the first process of each machine makes, in every process.

    Args:
        make: returns 32 bytes, the same on every machine.

    Raises:
        RuntimeError: the bytes differ between machines; raised in every process.
    """
    if jax.process_count() == 1:
        return make()
    machine = hashlib.sha256(socket.gethostname().encode()).digest()
    machines = multihost_utils.process_allgather(np.frombuffer(machine, np.uint8))
    firsts = [not (machines[:n] == row).all(-1).any() for n, row in enumerate(machines)]
    own = make() if firsts[jax.process_index()] else bytes(32)
    made = multihost_utils.process_allgather(np.frombuffer(own, np.uint8))
    others = [n for n, first in enumerate(firsts) if first and (made[n] != made[0]).any()]
    if others:
        raise RuntimeError(
            f"the files of training rows are not the same on all machines: process {others[0]} has "
            "others than process 0; copy them again"
        )
    return made[0].tobytes()


def longest_of_first(make: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Two numbers that the first process computes, in every process; each waits for the others."""
    if jax.process_count() == 1:
        return make()
    own = make() if is_first() else (0, 0)
    first, second = multihost_utils.broadcast_one_to_all(np.asarray(own, np.int32))
    return int(first), int(second)


def wait_for_all(what: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_of_another(error: Exception) -> bool:
    """Whether the error means that another process failed in a step that all take together.

    jax raises an error of gloo, the CPU's transport, for a lost connection as a ValueError.
    """
    if jax.process_count() == 1:
        return False
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


class AnyProcess:
    """Whether any process has raised a flag, as all of them see it at the same step.

    It is asked at every step and answered one step later, so that no process waits for it.
    """

    def __init__(self) -> None:

        self._alone = jax.process_count() == 1
        self._before: jax.Array | None = None
        mesh = Mesh(np.asarray(jax.devices()), "all")
        self._divided = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda flags: flags.sum(), out_shardings=whole)

    def __call__(self, flag: bool) -> bool:

        if self._alone:
            return flag
        own = np.full(jax.local_device_count(), flag, np.int32)
        before, self._before = (
            self._before,
            self._sum(jax.make_array_from_process_local_data(self._divided, own)),
        )
        return before is not None and int(before) > 0


def _number(name: str) -> int | None:
    return int(os.environ[name]) if name in os.environ else None
