"""What the commands share: which model, how it decodes, and how it is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence_jax.generation import GenerationConfig
    from florence_jax.inference.base_pipeline import BasePipeline
    from florence_jax.inference.pipeline import Florence2Pipeline

_DEFAULT_MODEL = "microsoft/Florence-2-base-ft"


def add_model_options(
    parser: argparse.ArgumentParser, *, compat: bool = True, mesh: bool = True
) -> None:
    """--model and what belongs to it; without `compat`, results are this library's alone, and
    without `mesh`, on one device."""
    parser.add_argument(
        "--model",
        default=_DEFAULT_MODEL,
        help="directory of a checkpoint, training run or PEFT adapter, or a hub id; 'shapes' is "
        "the small trained model of `florence-jax demo` (default: %(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the hub id")
    if mesh:
        _add_mesh_options(parser)
    else:
        parser.set_defaults(mesh=None, rules=None)
    parser.add_argument(
        "--processor", help="directory or hub id of the tokenizer, where the model has none"
    )
    parser.set_defaults(adapter=None)
    if not compat:
        parser.set_defaults(compat=None)
        return
    parser.add_argument(
        "--compat",
        choices=("original", "native"),
        help="reproduce the original code's or transformers' results exactly",
    )


def _add_mesh_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mesh",
        metavar="AXIS=SIZE,...",
        help="divide parameters and batches among devices: data, fsdp and tensor, -1 for the rest",
    )
    parser.add_argument(
        "--rules",
        metavar="NAME|FILE",
        help="with --mesh, how parameters are divided: dp, fsdp, tp, fsdp_tp (default) or a .toml "
        "file",
    )


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    """--adapter."""
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="directory or hub id of a PEFT adapter to merge into the model (an adapter that names "
        "its base model is a --model by itself)",
    )


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """--dtype, --quantize, --beams and --max-new-tokens."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights and activations (default: float32)",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="keep the decoder's and the token table's weights in int8: a third less memory of "
        "base in float32, and slightly other answers",
    )
    parser.add_argument("--beams", type=int, help="beam search width (default: the checkpoint's)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="longest answer (default: what the model can hold)"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """--sample, what it draws from, and --seed."""
    parser.add_argument(
        "--sample", action="store_true", help="draw each token at random instead of the best"
    )
    parser.add_argument(
        "--seed", type=int, help="with --sample: the same seed gives the same answers"
    )
    parser.add_argument("--temperature", type=float, help="with --sample (default: 1.0)")
    parser.add_argument("--top-k", type=int, help="with --sample: of the K best tokens")
    parser.add_argument("--top-p", type=float, help="with --sample: of the best that add up to P")


def add_free_prompt_option(parser: argparse.ArgumentParser) -> None:
    """--free-prompt."""
    parser.add_argument(
        "--free-prompt",
        action="store_true",
        help="allow prompts that look like a task and are none that the model declares, such as a "
        "fine-tune's <DocVQA>; without it they are refused as misspelt",
    )


def model_from_anywhere(model: str) -> str:
    """--model as a process in another working directory has to name it."""
    from florence_jax.checkpoint.model_directory import BUNDLED

    is_path = model not in BUNDLED and Path(model).expanduser().exists()
    return os.path.abspath(Path(model).expanduser()) if is_path else model


def load_pipeline(options: argparse.Namespace, *, progress: bool) -> Florence2Pipeline:
    """The pipeline that the model options name."""
    from florence_jax.inference.load_sharded import DEFAULT_RULES
    from florence_jax.inference.pipeline import Florence2Pipeline

    dtype = options.dtype or "float32"
    if options.rules is not None and options.mesh is None:
        raise ValueError("--rules belongs to --mesh: name the mesh too, for example --mesh data=-1")
    rules = options.rules or DEFAULT_RULES
    return Florence2Pipeline.from_pretrained(
        options.model,
        dtype=dtype,
        quantize=options.quantize,
        mesh=options.mesh,
        rules=rules,
        revision=options.revision,
        adapter=options.adapter,
        processor=options.processor,
        compat=options.compat,
        progress=progress,
    )


def say_on_stderr(sentence: str) -> None:
    """Tell the user something that is no error and no answer."""
    print(f"florence-jax: {sentence}", file=sys.stderr)


def load_answering(options: argparse.Namespace, *, progress: bool) -> BasePipeline:
    """`load_pipeline`, or exported programs where --model is a directory of them."""
    from florence_jax.export.manifest import is_artifact

    directory = Path(options.model)
    if not is_artifact(directory):
        if options.weights is not None:
            raise ValueError(
                f"--weights belongs to exported programs, and {options.model} is no directory of "
                "them: leave it out"
            )
        return load_pipeline(options, progress=progress)
    from florence_jax.inference.exported_pipeline import load_exported

    for name in ("dtype", "quantize", "revision", "adapter", "processor", "mesh", "rules"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is fixed by the export in {directory}: leave it out")
    pipeline = load_exported(directory, weights=options.weights)
    return pipeline if not options.compat else dataclasses.replace(pipeline, compat=options.compat)


def decoding_settings(pipeline: BasePipeline, options: argparse.Namespace) -> GenerationConfig:
    """The pipeline's settings with what the options change."""
    given: dict[str, Any] = {"num_beams": options.beams, "max_new_tokens": options.max_new_tokens}
    drawn = {name: getattr(options, name, None) for name in ("temperature", "top_k", "top_p")}
    given |= drawn | {"do_sample": getattr(options, "sample", False) or None}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(pipeline.generation, **chosen)
    idle = [name for name in ("seed", *drawn) if getattr(options, name, None) is not None]
    seed = getattr(options, "seed", None)
    seeded = seed is not None and 0 <= seed < 1 << 32
    if settings.do_sample and hasattr(options, "seed") and not seeded:
        # Here, and not as the error of every picture.
        raise ValueError(
            "sampling (--sample, or do_sample of the checkpoint) needs --seed N, from 0 to "
            "4294967295" + ("" if seed is None else f"; got {seed}")
        )
    if idle and not settings.do_sample:
        raise ValueError(
            f"--{idle[0].replace('_', '-')} belongs to --sample: the best answer is not drawn"
        )
    return settings
