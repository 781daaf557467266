"""`florence-jax mcp`: the model's tools for language models, over standard input and output."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from florence_jax.cli.options import DECODING, MODEL, ModelOptions, add_shared, options_from

_DESCRIPTION = """\
Give a language model eyes: a server of the Model Context Protocol with the tools ocr, caption,
detect and ask, over standard input and output. An assistant or editor starts it; put the command
into its list of servers. Images are files (PDF too, with the extra pdf) below --root.
"""
_EPILOG = """\
examples:
  florence-jax mcp --root ~/Pictures
  florence-jax mcp --model shapes --allow-host example.com
"""
_MAX_BYTES = 32 << 20
_SECONDS = 30.0


def add_mcp(commands: Any) -> None:
    """Add the command to the parser's."""
    mcp = commands.add_parser("mcp", description=_DESCRIPTION, epilog=_EPILOG)
    add_shared(mcp, *MODEL, "--adapter", *DECODING)
    mcp.add_argument(
        "--root",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder below which files may be read (default: the current one)",
    )
    mcp.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="fetch images from there, if its address is public; repeat it for several (default: "
        "none); needs the extra serve",
    )
    mcp.set_defaults(run=_mcp)


def _mcp(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("mcp") is None:
        raise ImportError('mcp is not installed: pip install "florence-jax[mcp]"')
    if not arguments.root.is_dir():
        raise NotADirectoryError(f"--root {arguments.root} is no folder: name another")
    from florence_jax.cli.options import decoding_from, decoding_settings, load_checkpoint_pipeline
    from florence_jax.integrations.mcp_server import create_mcp_server

    fetch = None
    if arguments.allow_host:
        from florence_jax.cli.serve import check_extra

        check_extra()
        from florence_jax.serving.fetch import ImageFetcher

        fetch = ImageFetcher(arguments.allow_host, max_bytes=_MAX_BYTES, seconds=_SECONDS)
    pipeline = load_checkpoint_pipeline(options_from(ModelOptions, arguments), progress=False)
    settings = decoding_settings(pipeline, decoding_from(arguments))
    pipeline = dataclasses.replace(pipeline, generation=settings)
    create_mcp_server(pipeline, arguments.root, fetch).run("stdio")
    return 0
