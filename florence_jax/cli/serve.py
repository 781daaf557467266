"""`florence-jax serve`: a server of one model, for many callers."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import (
    DECODING,
    MODEL,
    ModelOptions,
    add_shared,
    decoding_from,
    decoding_settings,
    load_pipeline,
    options_from,
    say_on_stderr,
)
from florence_jax.runtime.program_parser import positive

if TYPE_CHECKING:
    from florence_jax.inference.base_pipeline import BasePipeline
    from florence_jax.serving.service import Service
    from florence_jax.serving.settings import ServerSettings

KEY_VARIABLE = "FLORENCE_JAX_API_KEY"
_MEBIBYTE = 1 << 20
# Prompt lengths that are compiled before the server is ready, in tokens: tasks, and texts.
_WARM_TEXT_WORDS = 12

_DESCRIPTION = f"""\
Serve one model over HTTP. `POST /predict` answers as the pipeline does; below /v2 is the Open
Inference Protocol, for the clients of KServe and Triton; /metrics is for Prometheus; /docs lists
everything. Requests that come at the same time are answered in batches. The server is ready
(/v2/health/ready) when its programs are compiled; SIGTERM lets it answer what is under way.

It listens to this machine alone unless --host says otherwise. Give it an API key then, by
--api-key-file or the variable {KEY_VARIABLE}, and TLS by a proxy before it.
"""
_EPILOG = """\
examples:
  florence-jax serve --model shapes
  florence-jax serve --host 0.0.0.0 --api-key-file key.txt --batch-size 32
  curl -F image=@photo.jpg --form-string 'prompt=<OD>' \\
      http://127.0.0.1:8000/predict
"""


def add_serve(commands: Any) -> None:
    """Add the command to the parser's."""
    serve = commands.add_parser("serve", description=_DESCRIPTION, epilog=_EPILOG)
    add_shared(serve, *MODEL, "--compat", "--adapter", "--weights", *DECODING, "--free-prompt")
    network = serve.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)"
    )
    network.add_argument(
        "--port", type=_port, default=8000, help="0 for any free one (default: %(default)s)"
    )
    network.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="callers have to send what it holds"
    )
    network.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="fetch images from there for image_url, if its address is public; repeat it for "
        "several (default: none)",
    )
    _add_batching(serve.add_argument_group("batching"))
    _add_limits(serve.add_argument_group("limits"))
    serve.set_defaults(run=_serve)


def _add_batching(group: Any) -> None:
    add_shared(group, "--batch-size")
    group.add_argument(
        "--max-delay-ms",
        type=_not_negative,
        default=5.0,
        metavar="MS",
        help="the longest time that a request waits for others to share its batch (default: "
        "%(default)g)",
    )
    group.add_argument(
        "--cache-mb",
        type=_not_negative,
        default=256.0,
        metavar="MIB",
        help="image features that are kept for further questions about the same images "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--no-warm-up",
        action="store_true",
        help="be ready at once, and compile when the first requests come",
    )


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--max-queue",
        type=positive,
        default=256,
        metavar="N",
        help="requests under way; others get status 503 (default: %(default)s)",
    )
    group.add_argument(
        "--max-count",
        type=positive,
        default=64,
        metavar="N",
        help="prompts or images in one call (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=_not_negative,
        default=60.0,
        metavar="S",
        help="seconds until a request without an answer gets status 504 (default: %(default)g)",
    )
    group.add_argument(
        "--max-body-mb",
        type=_not_negative,
        default=32.0,
        metavar="MIB",
        help="size of a request; larger ones get status 413 (default: %(default)g)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=50_000_000,
        metavar="N",
        help="of an image; larger ones get status 422 (default: %(default)s)",
    )
    group.add_argument(
        "--drain",
        type=_not_negative,
        default=60.0,
        metavar="S",
        help="seconds that requests may go on after SIGTERM (default: %(default)g)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    model = options_from(ModelOptions, arguments)
    decoding = decoding_from(arguments)
    check_extra()
    from florence_jax.serving.server import Server, listen, url_of
    from florence_jax.serving.service import Service

    # Before the model is loaded: an address that is taken is said at once.
    listener = listen(arguments.host, arguments.port)
    if settings.api_key is None and not arguments.host.startswith(("127.", "localhost", "::1")):
        say_on_stderr(f"anybody who reaches {arguments.host} may ask: pass --api-key-file")
    pipeline = load_pipeline(model, progress=True)
    service = Service(pipeline, settings, decoding_settings(pipeline, decoding))

    def warm_up() -> None:
        if not arguments.no_warm_up:
            warm_up_service(service)
        say_on_stderr(f"ready at {url_of(listener)}")

    server = Server(service, warm_up=warm_up, drain_seconds=arguments.drain)
    say_on_stderr(f"listening at {url_of(listener)}, and compiling")
    server.run_until_signal(listener)
    return 0


def check_extra() -> None:
    """Refuse to go on without the packages of the extra `serve`.

    Raises:
        ImportError: one is missing.
    """
    names = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'{", ".join(missing)} not installed: pip install "florence-jax[serve]"')


def warm_up_service(service: Service) -> None:
    """Compile what requests with the server's settings need."""
    from florence_jax.inference.pipeline import Florence2Pipeline
    from florence_jax.inference.warmup import usual_prompts

    pipeline: BasePipeline = service.pipeline
    if not isinstance(pipeline, Florence2Pipeline):
        return  # exported programs are compiled when they are loaded
    text = "<CAPTION_TO_PHRASE_GROUNDING>" + "word " * _WARM_TEXT_WORDS
    pipeline.warmup(
        prompts=[*usual_prompts(), text],
        batch_sizes=service.engine.batch_sizes,
        generation=service.generation,
        progress=sys.stderr.isatty(),
    )


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    from florence_jax.serving.settings import ServerSettings

    return ServerSettings(
        batch_size=arguments.batch_size,
        max_delay=arguments.max_delay_ms / 1000,
        max_queue=arguments.max_queue,
        max_count=arguments.max_count,
        timeout=arguments.timeout,
        max_body_bytes=int(arguments.max_body_mb * _MEBIBYTE),
        max_pixels=arguments.max_pixels,
        cache_bytes=int(arguments.cache_mb * _MEBIBYTE),
        allowed_hosts=tuple(arguments.allow_host),
        api_key=_api_key(arguments.api_key_file),
        free_prompt=arguments.free_prompt,
    )


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    return file.read_text(encoding="utf-8").strip()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return number
