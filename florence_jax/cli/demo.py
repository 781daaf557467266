"""`florence-jax demo`: run every task offline with the bundled model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from florence_jax.cli.options import (
    DECODING,
    ModelOptions,
    add_shared,
    decoding_from,
    decoding_settings,
    options_from,
)
from florence_jax.cli.predict import answer_bar
from florence_jax.runtime.atomic_file import remove_leftovers
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.jsonl import LineWriter, json_text


def add_demo(commands: Any) -> None:
    """Add the command to the parser's."""
    demo = commands.add_parser(
        "demo",
        description="Run all 15 tasks offline with the model that the library carries: a small "
        "Florence-2, trained on a synthetic world of shapes and drawn words, on scenes that it "
        "never saw. Every answer is drawn beside the truth.",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("florence-jax-demo"),
        metavar="DIR",
        help="the directory for drawn answers and results.jsonl (default: %(default)s)",
    )
    add_shared(demo, *DECODING)
    demo.set_defaults(run=_demo, max_new_tokens=120)


def _demo(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with directory_lock(output):
        remove_leftovers(output)
        return _show_demo(arguments, output)


def _show_demo(arguments: argparse.Namespace, output: Path) -> int:
    from florence_jax.demo import (
        SCORES_NOTE,
        brief,
        held_out_scenes,
        shapes_pipeline,
        show,
    )
    from florence_jax.results.rows import result_to_json

    model = options_from(ModelOptions, arguments)
    pipeline = shapes_pipeline(
        model.dtype or "float32",
        matmul_precision=model.matmul_precision or "highest",
        quantize=model.quantize,
    )
    settings, count = decoding_settings(pipeline, decoding_from(arguments)), len(held_out_scenes())
    right, scene = 0, ""
    with LineWriter(output / "results.jsonl", overwrite=True) as rows:
        for shown in answer_bar(show(pipeline, settings), count, False):
            record = {name: value for name, value in vars(shown).items() if name != "picture"}
            record["right"] = shown.right
            rows.write(json_text(result_to_json(record)))
            _draw(shown, output)
            if shown.scene != scene:
                print(f"scene {shown.scene}")
            scene, right = shown.scene, right + shown.right
            print(f"  {shown.prompt}{'' if shown.right else '  (wrong)'}")
            print(f"    truth   {brief(shown.truth)}\n    answer  {brief(shown.answer)}")
    print(SCORES_NOTE)
    print(
        f"{right} of {count} answers are right: text to the letter, shapes by an IoU of 0.5. All "
        f"of them, drawn beside the truth, and results.jsonl are in {output}/"
    )
    return 0


def _draw(shown: Any, output: Path) -> None:
    """Save an answer drawn beside the truth."""
    from florence_jax.demo import SCORES_NOTE, enlarged_answer
    from florence_jax.results.compare_grid import enlarged, save_side_by_side

    image = enlarged(shown.picture)
    factor = image.width / shown.picture.width
    prompt = shown.prompt.replace(">", "> ").strip()  # lines may break between tokens
    verdict = f"{'right' if shown.right else 'wrong'} answer: {prompt}"
    titled = {
        title: {shown.task: enlarged_answer(answer, factor)}
        for title, answer in ((f"truth: {prompt}", shown.truth), (verdict, shown.answer))
    }
    save_side_by_side(
        output / shown.scene / f"{shown.task.strip('<>').lower()}.png",
        image,
        titled,
        right={verdict: shown.right},
        note="" if isinstance(shown.answer, str) else SCORES_NOTE,
    )
