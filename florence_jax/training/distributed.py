"""A run of several processes, each with its own devices, that take every step together."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable

# Seconds without a sign of life after which a process counts as dead, and the others end.
_PATIENCE = 20


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Make this process one of several, before jax is used for anything else.

    What is None is found in the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or what TPU pods, SLURM and Open MPI say.

    Raises:
        ValueError: it is not found there.
        RuntimeError: the others do not come.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=processes or _number("JAX_NUM_PROCESSES"),
        process_id=process if process is not None else _number("JAX_PROCESS_ID"),
        heartbeat_timeout_seconds=_PATIENCE,
    )


def is_first() -> bool:
    """Is this the process that writes what there is once for all of them?"""
    import jax

    return jax.process_index() == 0


def broadcast_bool(value: bool) -> bool:
    """The first process's value, in all of them; each waits for the others."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(value))


def of_first_here(make: Callable[[], bytes]) -> bytes:
    """`make()` of the first process of each machine, in every process.

    Args:
        make: gives 32 bytes, the same on every machine.

    Raises:
        RuntimeError: on some machine they are others; it is raised in every process.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

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
    """Two numbers that the first process makes, in all of them; each waits for the others."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return make()
    own = make() if is_first() else (0, 0)
    first, second = multihost_utils.broadcast_one_to_all(np.asarray(own, np.int32))
    return int(first), int(second)


def wait_for_all(what: str) -> None:
    """Until every process is here."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_of_another(error: Exception) -> bool:
    """Does the error say that a step which several processes take together came to nothing?

    jax raises what gloo, the CPU's transport, says of a lost connection as a ValueError.
    """
    import jax

    if jax.process_count() == 1:
        return False
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


class AnyProcess:
    """Has any process raised a flag? Asked at every step, answered a step later, and never waited
    for: the answer is the same everywhere, so all of them stop at the same step."""

    def __init__(self) -> None:
        import jax
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        self._alone = jax.process_count() == 1
        self._before: jax.Array | None = None
        mesh = Mesh(np.asarray(jax.devices()), "all")
        self._divided = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda flags: flags.sum(), out_shardings=whole)

    def __call__(self, flag: bool) -> bool:
        import jax
        import numpy as np

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
