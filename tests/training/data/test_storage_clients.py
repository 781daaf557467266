"""The same data through the real clients, over HTTP, from storages that run on this machine."""

import json
import socket

import jax
import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import demo_tokenizer
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.sources import open_data

# Of the clients and the storages, not ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def s3(monkeypatch):
    s3fs = pytest.importorskip("s3fs", reason="needs `pip install s3fs moto[server]`")
    moto = pytest.importorskip("moto.server", reason="needs `pip install s3fs moto[server]`")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = s3fs.S3FileSystem(skip_instance_cache=True)
    client.mkdir("bucket")
    yield "s3://bucket", client
    server.stop()


@pytest.fixture
def gs(monkeypatch):
    needed = "needs `pip install gcsfs gcp-storage-emulator`"
    # Read on import. Else it asks over gRPC what kind of bucket it is; the emulator has no gRPC.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs", reason=needed)
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=needed)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    yield "gs://bucket", gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
    server.stop()


@pytest.mark.parametrize("storage", ["s3", "gs"])
def test_batches_of_a_bucket_are_those_of_its_files(storage, request, tmp_path):
    root, client = request.getfixturevalue(storage)
    folder = tmp_path / "train"
    folder.mkdir()
    lines = []
    for number in range(6):
        Image.new("RGB", (40, 30), (number * 40, 0, 0)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "prefix": "<CAPTION>", "suffix": "a" * number})
    lines.append({"image": "../../secret.png", "prefix": "<CAPTION>", "suffix": "a"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in folder.iterdir():
        client.pipe(f"{root}/data/train/{file.name}", file.read_bytes())
    preprocessor = Preprocessor(
        tokenizer=demo_tokenizer(), image_size=(16, 16), augmentation=AugmentConfig(colour=0.5)
    )

    def stream(directory):
        sources = open_data(directory=directory).train
        return DataLoader(sources=sources, preprocessor=preprocessor, batch_size=4, seed=3)

    files, bucket = stream(str(tmp_path)), stream(f"{root}/data")
    refused = set()
    for step in range(4):
        expected, actual = files.batch(step), bucket.batch(step)
        for mine, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        refused |= {reason for _, reason in actual.problems}
    (reason,) = refused
    assert "'../../secret.png' lies outside of" in reason
