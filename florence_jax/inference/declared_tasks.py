"""The tasks beside the 15 that a checkpoint declares, and queries checked before it is loaded.

A fine-tune declares its own tasks, such as "<DocVQA>", by a token of that name in its tokenizer or
by a list in its processor_config.json: `"tasks": ["<DocVQA>"]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.repository import read_json_object
from florence_jax.inference.requests import Query
from florence_jax.processing import check_request, load_tokenizer
from florence_jax.processing.request_check import check_task_of_data, may_be_declared

_FILE = "processor_config.json"


def own_tasks(directory: Path) -> frozenset[str]:
    """The list `tasks` of the directory's processor_config.json; empty where there is none.

    Raises:
        CheckpointError: it is no list of texts.
    """
    tasks = (read_json_object(directory, _FILE) or {}).get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise CheckpointError(
            f"{directory / _FILE}: tasks is {tasks!r:.200}, expected a list of texts such as "
            '["<DocVQA>"]'
        )
    return frozenset(tasks)


def check_queries(
    queries: Iterable[Query],
    *,
    model: str | Path,
    revision: str | None = None,
    free_prompt: bool = False,
) -> None:
    """Refuse queries that suit no image, before the weights of `model` are loaded.

    Args:
        model: looked into only where a prompt may be a task of its own: for a hub id, its
            tokenizer and configuration are downloaded.
        revision: of a hub id.
        free_prompt: as in a pipeline's call.

    Raises:
        ValueError: see `florence_jax.processing.check_request`.
    """
    queries = list(queries)
    declared: frozenset[str] = frozenset()
    if not free_prompt and any(may_be_declared(query.prompt) for query in queries):
        try:
            declared = _declared(model, revision)
        except (CheckpointError, OSError):
            # What is no task of any model is said before a model that is not there.
            for query in queries:
                check_task_of_data(query.prompt)
            raise
    for query in queries:
        check_request(
            query.prompt,
            text=query.text,
            region=query.region,
            declared=declared,
            free_prompt=free_prompt,
        )


def _declared(model: str | Path, revision: str | None) -> frozenset[str]:
    directory = resolve_model(model, revision, weights=False)
    try:
        tokens = load_tokenizer(directory).declared_tasks()
    except FileNotFoundError:
        tokens = frozenset()  # the base model's tokenizer, which declares none
    return own_tasks(directory) | tokens
