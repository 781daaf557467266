"""Compile a function ahead of time for each batch shape, with signals still handled."""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from florence_jax.runtime.signals import Interruption
from florence_jax.sharding import use_mesh


class AotCompiled:
    """Calls `function(first, batch)` through programs that are compiled when first needed.

    Attributes:
        seconds_compiling: spent so far.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        interruption: Interruption,
        *,
        donate_first: bool = False,
        mesh: Mesh | None = None,
        out_shardings: Any = None,
        name: str = "the program",
        say: Callable[[str], None] | None = None,
    ):
        """
        Args:
            name: The program's name in messages.
            say: Called with a line before and after each compilation.
            donate_first: the first argument is used up.
            mesh: The mesh to compile for, where arguments lie on several devices.
            out_shardings: Shardings of the value, as in `jax.jit`; the compiler decides on None.
        """
        self._jitted = jax.jit(
            function, donate_argnums=(0,) if donate_first else (), out_shardings=out_shardings
        )
        self._interruption = interruption
        self._mesh, self._name, self._say = mesh, name, say
        self._compiled: dict[tuple, Callable[[Any, Any], Any]] = {}
        self.seconds_compiling = 0.0

    def __call__(self, first: Any, batch: Any) -> Any:
        """The function's value, on the device and perhaps not computed yet.

        Raises:
            Interrupted: while compiling.
        """
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            started = time.perf_counter()
            sizes = ", ".join(str(list(shape)) for shape, _ in shapes)
            again = "for another shape" if self._compiled else "once, which may take minutes"
            # Minutes without another word, for a large model.
            self._tell(f"compiling {self._name} ({again}): batches of {sizes} ...")
            self._compiled[shapes] = self._interruption.wait_for(
                lambda: self._compile(first, batch)
            )
            seconds = time.perf_counter() - started
            self._tell(f"compiled {self._name} in {seconds:.1f} s")
            self.seconds_compiling += seconds
        return self._compiled[shapes](first, batch)

    def _tell(self, text: str) -> None:
        if self._say is not None:
            self._say(text)

    def _compile(self, first: Any, batch: Any) -> Callable[[Any, Any], Any]:
        # Here and not around the call: the mesh in use is each thread's own.
        with use_mesh(self._mesh):
            return self._jitted.lower(first, batch).compile()
