"""Plans on disk: answers as JSON lines, the ranking as CSV and as an image."""

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from florence_jax.runtime.atomic_file import atomic_open, named_errors
from florence_jax.runtime.text_file import json_lines
from train.plan.bounds import bounds
from train.plan.compiled import Compiled
from train.plan.picture import draw
from train.plan.request import PlanRequest
from train.plan.sweep import Answer, ranked


class Records:
    """The plans of a directory.

    Attributes:
        directory: where they are.
    """

    names = ("plans.jsonl", "plans.csv", "plans.png")

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lines = directory / self.names[0]
        self._known: dict[str, Compiled] = {}
        if self._lines.exists():
            for _, tree in json_lines(self._lines):
                self._known[_key(tree)] = Compiled.from_tree(tree["compiled"])

    def find(self, request: PlanRequest) -> Compiled | None:
        """Find the recorded answer to the same request, recipe, rules and jax version."""
        return self._known.get(_key(_tree(request)))

    def add(self, request: PlanRequest, compiled: Compiled) -> None:
        tree = {**_tree(request), "compiled": compiled.to_tree()}
        if compiled.outcome == "fits":
            tree["bounds"] = bounds(request, compiled).to_tree()
        with named_errors(self._lines), self._lines.open("a") as file:
            file.write(json.dumps(tree) + "\n")
        self._known[_key(tree)] = compiled

    def write_tables(self, found: Iterable[Answer]) -> None:
        """Write the ranking of `found` as CSV and PNG."""
        rows = [_row(request, compiled) for request, compiled in ranked(found)]
        with atomic_open(self.directory / self.names[1]) as file:
            names = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with atomic_open(self.directory / self.names[2], "wb") as file:
            draw(ranked(found)).save(file, format="png")


def _tree(request: PlanRequest) -> dict[str, Any]:
    files = [Path(name) for name in (request.config, request.rules)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    asked = json.loads(json.dumps(request.to_tree()))
    return {"request": asked, "jax": version("jax"), "files": digests}


def _key(tree: dict[str, Any]) -> str:
    return json.dumps([tree["request"], tree["jax"], tree.get("files", [])], sort_keys=True)


def _row(request: PlanRequest, compiled: Compiled) -> dict[str, Any]:
    asked = {k: v for k, v in asdict(request).items() if k not in ("settings", "config")}
    sizes = ("peak", "limit", "parameters", "optimizer", "activations", "temporaries")
    row = {**asked, "outcome": compiled.outcome}
    row |= {f"{name}_bytes": round(getattr(compiled, name)) for name in sizes}
    row["compiling_seconds"] = round(compiled.compiling_seconds, 1)
    if compiled.outcome == "fits":
        row |= bounds(request, compiled).to_tree()
    return row
