"""Engines to test the harness with. Each lives in its own process, as the real ones do."""

import os
import signal

from tests.benchmarks.rivals.engines.ours import Ours


class Wrong(Ours):
    """Ours, but for a thousandth of the features and one token of each answer."""

    def call(self, name, inputs):
        right = super().call(name, inputs)

        def wrong():
            result = right()
            if name == "vision":
                return result * 1.001
            result = result.copy()
            result[:, 3] = 5
            return result

        return wrong


class Chatty(Ours):
    """Ours, printing where the answers go."""

    def call(self, name, inputs):
        print("hello from the engine", flush=True)
        return super().call(name, inputs)


class Mortal(Ours):
    """Raises an error at one call and dies at another."""

    def call(self, name, inputs):
        if name == "vision":
            raise RuntimeError("no such kernel\nand a long traceback")
        os.kill(os.getpid(), signal.SIGKILL)


class Endless:
    """A call never returns."""

    def __init__(self, settings):
        pass

    def call(self, name, inputs):
        return signal.pause


class Broken:
    """Cannot be loaded."""

    def __init__(self, settings):
        raise OSError(f"no library for {settings.dtype}")
