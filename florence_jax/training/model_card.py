"""The model card of a checkpoint: what it was trained from and on, its figures, its licence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.runtime.jsonl import read_lines
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.training.checkpointing.resume import CONFIG

_METRICS = "metrics.jsonl"
_LOADING = {
    "native": """\
```python
from transformers import AutoProcessor, Florence2ForConditionalGeneration

model = Florence2ForConditionalGeneration.from_pretrained("{repo}")
processor = AutoProcessor.from_pretrained("{repo}")
```
""",
    "original": """\
The weights have the names of Microsoft's own code, which reads them beside its remote code.
florence-jax reads them without any.
""",
    "jax": "The weights are in the format of florence-jax.\n",
}
_FLORENCE = """\
```python
import florence_jax as fj

pipe = fj.Florence2Pipeline.from_pretrained("{repo}")
pipe("photo.jpg", "{task}")
```
"""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a run's directory says of its model.

    Attributes:
        settings: of config.json, as nested objects.
        figures: the last evaluation's, by name; empty without one.
        step: the step that they are of.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    step: int

    @property
    def base(self) -> str | None:
        """The hub id that the run started from; None for a local or a random start."""
        start = self.settings["model"]["start"]
        return start if start.count("/") == 1 and not Path(start).exists() else None

    @property
    def tasks(self) -> list[str]:
        """Tasks that figures are about."""
        return sorted({name.split(" ")[0] for name in self.figures if name.startswith("<")})


def read_run(directory: Path) -> TrainingRun | None:
    """The run whose directory this is, or whose export; None for any other checkpoint."""
    for place in (directory, directory.parent):
        if (place / _METRICS).is_file() and (place / CONFIG).is_file():
            break
    else:
        return None
    figures, step = {}, 0
    for line in read_lines(place / _METRICS):
        if line["kind"] == "evaluation":
            step = line["step"]
            figures = {
                name: value
                for name, value in line.items()
                if name not in ("kind", "step") and isinstance(value, int | float)
            }
    settings = read_json(place / CONFIG, max_bytes=MAX_SETTINGS_BYTES)
    return TrainingRun(settings=settings, figures=figures, step=step)


def model_card(
    repo: str,
    naming: str,
    licence: str,
    *,
    run: TrainingRun | None = None,
    base: str | None = None,
    datasets: tuple[str, ...] = (),
) -> str:
    """The text of README.md, with the hub's metadata before it.

    Args:
        repo: the hub id that the checkpoint gets.
        naming: "native", "original" or "jax".
        licence: the hub's identifier, such as "mit".
        run: the run that trained it.
        base: hub id of the model that it was made from, where the run does not say so.
        datasets: hub ids of the training data.
    """
    from huggingface_hub import ModelCardData

    base = base or (run.base if run else None)
    data = ModelCardData(
        license=licence,
        library_name="transformers" if naming != "jax" else "florence-jax",
        base_model=base,
        datasets=list(datasets) or None,
        tags=["florence-2", "florence-jax", "vision"],
        pipeline_tag="image-text-to-text",
    )
    body = "\n".join(_sections(repo, naming, licence, run, base, datasets))
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _sections(
    repo: str,
    naming: str,
    licence: str,
    run: TrainingRun | None,
    base: str | None,
    datasets: tuple[str, ...],
) -> Iterator[str]:
    made = f"fine-tuned from [{base}](https://huggingface.co/{base})" if base else "trained"
    task = run.tasks[0] if run and run.tasks else "<CAPTION>"
    yield f"# {repo.split('/')[-1]}\n"
    yield f"A Florence-2 model, {made} with florence-jax. Licence: {licence}.\n"
    yield "## Use\n"
    yield _LOADING[naming].format(repo=repo)
    yield _FLORENCE.format(repo=repo, task=task)
    if run is None:
        return
    settings = run.settings
    named = ", ".join(f"`{name}`" for name in datasets) or _data_names(settings["data"])
    yield "## Training\n"
    yield f"- Data: {named}"
    yield f"- Steps: {settings['steps']} of {settings['batch_size']} rows, seed {settings['seed']}"
    optimizer = settings["optimizer"]
    yield f"- Optimizer: {optimizer['name']}, learning rate {optimizer['learning_rate']:g}"
    if settings.get("lora", {}).get("rank"):
        yield f"- LoRA of rank {settings['lora']['rank']}, merged into the weights"
    yield ""
    if run.figures:
        yield f"## Figures\n\nOf the validation data, after step {run.step}:\n"
        yield "| figure | value |\n| --- | --- |"
        yield from (f"| {name} | {value:.4f} |" for name, value in run.figures.items())
        yield ""
    yield "<details><summary>All settings</summary>\n"
    yield f"```json\n{json.dumps(_public(settings), indent=1)}\n```\n\n</details>\n"


def _data_names(data: Mapping[str, Any]) -> str:
    """The last parts of the data sets' paths: the others are of one machine."""
    places = [data["directory"], *(_place(source) for source in data.get("train") or ())]
    return ", ".join(f"`{Path(place).name}`" for place in places if place) or "not named"


def _place(source: Mapping[str, Any]) -> str:
    return next((str(source[key]) for key in ("path", "directory", "name") if source.get(key)), "")


def _public(value: Any) -> Any:
    """Settings without the directories of the machine that trained."""
    if isinstance(value, Mapping):
        return {name: _public(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
