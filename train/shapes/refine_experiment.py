"""Does the loop of annotate and refine mend label noise? The curve, measured on shapes.

    python -m train.shapes.refine_experiment OUT [-- OPTIONS OF ANNOTATE]

1. A model (`--model`, the demonstration's) is spoilt: fine-tuned on few scenes, of which the share
   `--noise` of the shapes is called by a wrong name.
2. `florence-jax annotate --refine` runs on a pool of pictures without labels: that model annotates
   them, is fine-tuned on what the filters leave, annotates again.
3. The model of each round answers clean scenes that none of them has seen, and its annotations of
   the pool are compared with the pool's truth.

OUT/curve.json holds the figures. Stopped anywhere, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence_jax.annotation.refine import setting_flags
from florence_jax.annotation.schema import read_annotations
from florence_jax.annotation.to_examples import to_examples
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import load_config
from florence_jax.training.metrics.judge import Answered
from train.shapes.config import SceneConfig
from train.shapes.evaluate import answers
from train.shapes.judge import judge
from train.shapes.render import draw
from train.shapes.source import ShapesConfig
from train.shapes.world import ShapesWorld

_ROOT = Path(__file__).resolve().parents[2]
_TASKS = ("<OD>", "<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
# What `--set`, `--refine-set` and `--threshold` are added to.
_SETTINGS = (
    "evaluation.every=0",
    "checkpoint.every=200",
    "optimizer.ema-decay=0.98",
    "optimizer.learning-rate=1e-3",
)
_REFINE_SETTINGS = ("optimizer.learning-rate=8e-4", "optimizer.warmup-steps=40")
_THRESHOLDS = (
    *("box_score=0.02", "agreement=1", "label_score=0.5", "joined=0.5"),
    "text_score=0.8,0.89,0.9",
)
_ASKED = ("brief", "detailed", "more_detailed", "regions")
# Scenes of their own for the pool and the held-out figures, whatever the training saw.
_POOL_SEED, _HELD_OUT_SEED = 101, 102


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_main, arguments), failed=1)


def _main(arguments: list[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    options.annotate = words[cut + 1 :]
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with directory_lock(out):
        return _curve(options, out)


def _curve(options: argparse.Namespace, out: Path) -> int:
    try:
        config = load_config(options.recipe)
        scene = _scene(config)
        pool = ShapesWorld(config=scene, seed=_POOL_SEED)
        pictures = _write_pool(pool, out / "pool", options.pool)
        first = _run(out, _first(options, scene, out), out / "first" / "export")
        _run(out, _loop(options, first, pictures, out), None)
    except subprocess.CalledProcessError as error:
        print(f"error: status {error.returncode} of {error.cmd[:6]}...", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    models = {"first": first}
    for number in range(options.rounds):
        models[f"round-{number}"] = out / "loop" / f"round-{number}" / "training" / "export"
    held_out = ShapesWorld(config=scene, seed=_HELD_OUT_SEED, split="valid")
    curve: dict[str, Any] = {
        "noise": options.noise,
        "labelled": options.labelled,
        "pool": options.pool,
        "models": [],
    }
    for number, (name, model) in enumerate(models.items()):
        annotations = out / "loop" / f"round-{number}" / "annotations"
        curve["models"].append(
            {
                "model": name,
                "held_out": _figures(_held_out(model, held_out, options)),
                "annotations_of_pool": _figures(_annotated(annotations, pool)),
            }
        )
        print(json.dumps(curve["models"][-1]), flush=True)
    atomic_write(out / "curve.json", json.dumps(curve, indent=1) + "\n")
    print(_table(curve))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="python -m train.shapes.refine_experiment",
        description=__doc__,
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--model",
        default=str(_ROOT / "florence_jax" / "assets" / "shapes"),
        help="what is spoilt (default: the demonstration's checkpoint)",
    )
    parser.add_argument("--recipe", type=Path, default=_ROOT / "train" / "recipes" / "shapes.py")
    for name, default, meaning in (
        ("labelled", 200, "scenes with noisy labels"),
        ("pool", 3_000, "pictures without labels"),
        ("held-out", 2_000, "clean scenes to measure on"),
        ("rounds", 2, "fine-tunes on annotations"),
        ("steps", 400, "updates on noisy labels"),
        ("refine-steps", 900, "updates of each fine-tune on annotations"),
        ("max-new-tokens", 128, "of answers"),
        ("batch-size", 64, "of answers"),
        ("questions", 24, "of a picture learnt together in a fine-tune, at most"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.add_argument("--noise", type=float, default=0.3, help="share of shapes (%(default)s)")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the filters, beside {' '.join(_THRESHOLDS)}: pictures of 192 pixels have five "
        "bins a pixel, and this world has one word for each thing",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="words",
        help=f"NAME=VALUE of every training, beside {' '.join(_SETTINGS)}",
    )
    parser.add_argument(
        "--refine-set",
        action="append",
        default=[],
        help=f"NAME=VALUE of the fine-tunes on annotations, beside {' '.join(_REFINE_SETTINGS)}",
    )
    return parser


def _scene(config: TrainConfig) -> SceneConfig:
    worlds = [source for source in config.data.train if isinstance(source, ShapesConfig)]
    if not worlds:
        raise ValueError("the recipe must train on shapes, whose scenes the pool is drawn from")
    return dataclasses.replace(worlds[0].scene, mislabelled=0.0)


def _write_pool(world: ShapesWorld, folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:06}.png"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            draw(world.scene(index)).save(unfinished, format="png")
            unfinished.replace(path)
    return folder


def _noisy(options: argparse.Namespace, scene: SceneConfig) -> str:
    source = ShapesConfig(
        scenes=options.labelled,
        scene=dataclasses.replace(scene, mislabelled=options.noise),
    )
    return json.dumps(dataclasses.asdict(source))


def _first(options: argparse.Namespace, scene: SceneConfig, out: Path) -> list[str]:
    settings = [*_SETTINGS, *options.words]
    return [
        *(sys.executable, "-m", "florence_jax", "train"),
        *("--config", str(options.recipe.absolute()), "--directory", str(out / "first")),
        # A checkpoint brings its sizes and its processor.
        *("--model.start", options.model, "--model.architecture", "None", "--model.processor", ""),
        *("--steps", str(options.steps), "--data.train", f"[{_noisy(options, scene)}]"),
        *(flag for setting in settings for flag in setting_flags(setting)),
    ]


def _loop(options: argparse.Namespace, first: Path, pool: Path, out: Path) -> list[str]:
    thresholds = [*_THRESHOLDS, *options.threshold]
    words = [*_SETTINGS, *_REFINE_SETTINGS, *options.words, *options.refine_set]
    return [
        *(sys.executable, "-m", "florence_jax", "annotate", str(pool)),
        *("--output", str(out / "loop"), "--model", str(first)),
        *("--refine", str(options.recipe.absolute()), "--rounds", str(options.rounds)),
        *("--questions", str(options.questions)),
        *("--set", 'model.processor=""', "--set", f"steps={options.refine_steps}"),
        # Grounding asks with a whole caption, and answers with its phrases and their boxes.
        *("--set", "data.max-prompt=128", "--set", "data.max-labels=192"),
        *(word for given in words for word in ("--set", given)),
        *("--beams", "1", "--max-new-tokens", str(options.max_new_tokens)),
        *("--batch-size", str(options.batch_size), "--analyser", "rules"),
        *(word for given in thresholds for word in ("--threshold", given)),
        *("--proposals", "--no-grounding"),
        *(word for kind in _ASKED for word in ("--only", kind)),
        *options.annotate,
    ]


def _run(out: Path, command: Sequence[str], result: Path | None) -> Path:
    """Run a program that goes on where it was stopped, unless its result is there."""
    if result is None or not result.exists():
        subprocess.run(command, cwd=_ROOT, check=True)
    return result or out


def _held_out(model: Path, world: ShapesWorld, options: argparse.Namespace) -> Iterator[Answered]:
    return answers(
        Florence2Pipeline.from_pretrained(model),
        world,
        options.held_out,
        _TASKS,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )


def _annotated(annotations: Path, pool: ShapesWorld) -> Iterator[Answered]:
    """The answers that the filters leave, beside the truth."""
    for annotation in read_annotations(annotations):
        truth = {one.task: one for one in pool.questions(int(Path(annotation.image).stem), _TASKS)}
        given = {one.task: one for one in to_examples(annotation, _TASKS)}
        for task, example in given.items():
            answer = example.labels
            if isinstance(answer, dict):
                ranked = sorted(
                    annotation.regions, key=lambda region: (region.box[1], region.box[0])
                )
                answer = {**answer, "scores": [region.score for region in ranked]}
            yield Answered(
                prefix=task,
                labels=truth[task].suffix,
                answer={task: answer},
                image_size=annotation.size,
            )


def _figures(answered: Iterator[Answered]) -> dict[str, float]:
    return {
        f"{task} {score.metric}": round(score.value, 4) for task, score in judge(answered).items()
    }


def _table(curve: dict[str, Any]) -> str:
    names = [f"{task} {'mAP@0.5' if task == '<OD>' else 'facts'}" for task in _TASKS]
    lines = ["held-out".ljust(12) + "".join(name.rjust(34) for name in names)]
    for one in curve["models"]:
        cells = [one["held_out"].get(name) for name in names]
        lines.append(
            one["model"].ljust(12)
            + "".join(("-" if cell is None else f"{cell:.4f}").rjust(34) for cell in cells)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
