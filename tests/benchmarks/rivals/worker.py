"""The process that one engine lives in. It reads requests, a JSON line each, and answers likewise.

First comes `{"engine": EngineInfo, "settings": Settings}`; then, once `{}` has said that the
weights are loaded, any number of

    {"do": "check", "call": "beam", "batch": 1, "output": "FILE.npy"}   first run, result to FILE
    {"do": "time", "call": "beam", "batch": 1}                          a `Sample`
    {"do": "judge", "call": "beam", "batch": 1, "tokens": "FILE.npy"}   our log-likelihood of them

An answer with "error" leaves the process ready for the next request.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import json
import os
import signal
import sys
import traceback
from typing import Any, TextIO

from tests.benchmarks.rivals.machine import Clock, keep_to

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the other end closes."""
    # The parent stops its workers between calls: orphaned, they would stay stopped for ever.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    requests, answers = sys.stdin, _private_stdout()
    hello = json.loads(requests.readline())
    # Before numpy or an engine is imported: they count the processors when they start.
    keep_to(hello["settings"]["threads"])
    server: Server | None = None
    for line in itertools.chain(["{}"], iter(requests.readline, "")):
        try:
            if server is None:
                server = Server(hello)
                answer: dict[str, Any] = {}
            else:
                answer = server.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(answer), file=answers, flush=True)


def _private_stdout() -> TextIO:
    """The pipe to the parent, which nothing that an engine prints can reach."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


class Server:
    def __init__(self, hello: dict[str, Any]):
        from tests.benchmarks.rivals.engines.engine import EngineInfo
        from tests.benchmarks.rivals.settings import Settings

        self.settings = Settings(**hello["settings"])
        self.engine: Any = EngineInfo(**hello["engine"]).load(self.settings)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        from tests.benchmarks.rivals.engines.engine import NotOffered

        name, batch = request["call"], request["batch"]
        try:
            match request["do"]:
                case "check":
                    return self._check(name, batch, request["output"])
                case "time":
                    call = self._call(name, batch)
                    start = Clock.now()
                    call()
                    return dataclasses.asdict(start.until_now())
                case "judge":
                    return self._judge(name, batch, request["tokens"])
        except NotOffered:
            return {"not_offered": True}
        raise ValueError(f"unknown request {request!r}")

    def _check(self, name: str, batch: int, output: str) -> dict[str, Any]:
        import numpy as np

        inputs = self._inputs(batch)
        start = Clock.now()
        result = self._call(name, batch)()
        sample = start.until_now()
        del inputs
        np.save(output, _to_numpy(result))
        return dataclasses.asdict(sample)

    def _judge(self, name: str, batch: int, tokens: str) -> dict[str, Any]:
        import numpy as np

        likelihood = self.engine.log_likelihood(name, self._inputs(batch), np.load(tokens))
        return {"log_likelihood": likelihood.tolist()}

    @functools.cache  # noqa: B019 - the server lives as long as its process
    def _call(self, name: str, batch: int) -> Any:
        return self.engine.call(name, self._inputs(batch))

    @functools.cache  # noqa: B019
    def _inputs(self, batch: int) -> Any:
        from tests.benchmarks.rivals.inputs import make_inputs

        # An engine of another kind of network draws its own.
        if hasattr(self.engine, "make_inputs"):
            return self.engine.make_inputs(batch)
        return make_inputs(self.settings.model_config(), self.settings, batch)


def _to_numpy(result: Any) -> Any:
    """Arrays of any engine, halves as float32, which holds them."""
    import numpy as np

    if hasattr(result, "numpy"):  # torch and ONNX Runtime
        if hasattr(result, "cpu"):
            result = result.cpu()
            result = result.float() if result.is_floating_point() else result
        result = result.numpy()
    array = np.asarray(result)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)


if __name__ == "__main__":
    main()
