"""`florence-jax push`: upload a checkpoint to the Hugging Face Hub, with a model card."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Upload a checkpoint to the Hugging Face Hub, converted for those who load it there,
with a model card: what it was trained from and on, its figures, its licence.
"""
_EPILOG = """\
examples:
  look first; nothing is uploaded:
    florence-jax push runs/cells me/florence-2-cells --license mit --dry-run
  a fine-tune for transformers' own class:
    florence-jax push runs/cells me/florence-2-cells --license mit
  private, in the names of Microsoft's code:
    florence-jax push runs/cells me/cells --license mit --naming original \\
        --private

SRC is what `florence-jax convert` takes: a training run, its export, a checkpoint,
a PEFT adapter (merged into its base). Log in first: `hf auth login`, or HF_TOKEN.
A README.md that the repository has stays as it is, unless --replace-card is given.
"""
_CARD = "README.md"


def add_push(commands: Any) -> None:
    """Add the command to the parser's."""
    push = commands.add_parser("push", description=_DESCRIPTION, epilog=_EPILOG)
    push.add_argument("source", metavar="SRC", help="run, checkpoint, adapter or hub id")
    push.add_argument("repo", metavar="REPO", help="hub id to write, of the form name/model")
    push.add_argument(
        "--license",
        required=True,
        metavar="ID",
        help="the hub's identifier of your model's licence; mit is Florence-2's own",
    )
    push.add_argument(
        "--naming",
        choices=("native", "original", "jax"),
        default="native",
        help="names of the weights: transformers' (the default), Microsoft's, or this library's "
        "own format",
    )
    push.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")
    push.add_argument("--base", metavar="ID", help="hub id that it was made from, for the card")
    push.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="ID",
        help="hub id of training data, for the card; repeat it for several",
    )
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--message", default="Upload by florence-jax", help="of the commit")
    push.add_argument(
        "--replace-card", action="store_true", help="replace the repository's README.md"
    )
    push.add_argument(
        "--dry-run", action="store_true", help="print the card and the files; upload nothing"
    )
    push.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(arguments.repo)
    if arguments.repo.count("/") != 1:
        raise ValueError(f"REPO {arguments.repo!r} must be name/model, such as me/florence-2-cells")
    if not arguments.dry_run and get_token() is None:
        raise PermissionError(
            "no token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN to one that "
            "may write"
        )
    with tempfile.TemporaryDirectory(prefix="florence-push-") as temporary:
        folder = _written(arguments, Path(temporary) / "model")
        (folder / _CARD).write_text(_card(arguments), encoding="utf-8")
        if arguments.dry_run:
            print((folder / _CARD).read_text(encoding="utf-8"))
            print(f"{arguments.repo} would get:")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
            return 0
        _upload(HfApi(endpoint=os.environ.get("HF_ENDPOINT")), arguments, folder)
    return 0


def _written(arguments: argparse.Namespace, folder: Path) -> Path:
    from florence_jax.conversion import from_torch, to_torch

    if arguments.naming == "jax":
        from_torch(arguments.source, folder, dtype=arguments.dtype)
    else:
        to_torch(arguments.source, folder, naming=arguments.naming, dtype=arguments.dtype)
    return folder


def _card(arguments: argparse.Namespace) -> str:
    from florence_jax.training.model_card import model_card, read_run

    directory = Path(arguments.source).expanduser()
    return model_card(
        arguments.repo,
        arguments.naming,
        arguments.license,
        run=read_run(directory) if directory.is_dir() else None,
        base=arguments.base,
        datasets=tuple(arguments.dataset),
    )


def _upload(api: Any, arguments: argparse.Namespace, folder: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        url = api.create_repo(arguments.repo, private=arguments.private or None, exist_ok=True)
        kept = not arguments.replace_card and api.file_exists(arguments.repo, _CARD)
        api.upload_folder(
            repo_id=arguments.repo,
            folder_path=folder,
            commit_message=arguments.message,
            ignore_patterns=[_CARD] if kept else None,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"the hub refuses {arguments.repo} ({status}): the token has expired or may not "
                "write there; `hf auth whoami` says whose it is"
            ) from error
        raise OSError(f"the hub did not take {arguments.repo}: {error}") from error
    print(f"uploaded to {url}")
    if kept:
        print(f"its {_CARD} stays as it was; --replace-card writes a new one")
