"""Worker processes may die, hang and be fed rubbish; tasks and errors come back all the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from florence_jax.batch.image_reader import FileBelow, FileSlice, resized_pixels
from florence_jax.batch.reader_pool import NoWorkers, WorkerDied, WorkerPool
from florence_jax.processing import ImageError, load_image


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.close()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(path)
    return path


def read(pool, source, size=(8, 8)):
    return pool.submit(resized_pixels, source, size, 3).result()[:2]


def test_pixels_are_those_of_the_library(pool, picture):
    size, pixels = read(pool, str(picture))
    assert size == (5, 4)
    np.testing.assert_array_equal(
        pixels, np.asarray(load_image(picture).resize((8, 8), Image.Resampling.BICUBIC))
    )
    content = picture.read_bytes()
    np.testing.assert_array_equal(read(pool, content)[1], pixels)
    larger = picture.with_name("larger")
    larger.write_bytes(b"before" + content + b"behind")
    np.testing.assert_array_equal(read(pool, FileSlice(str(larger), 6, len(content)))[1], pixels)
    below = FileBelow(str(picture.parent), "a.png")
    np.testing.assert_array_equal(read(pool, below)[1], pixels)


def test_exif_orientation_is_applied(pool, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert read(pool, str(path))[0] == (20, 30)


def test_paths_out_of_the_root_are_refused(pool, picture, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(picture)
    for name in ("../a.png", str(picture), "link.png"):
        with pytest.raises(ImageError, match="leads out of"):
            read(pool, FileBelow(str(root), name))


def test_bad_pictures_are_errors_and_not_the_end_of_a_worker(pool, tmp_path):
    read(pool, _png(tmp_path))
    before = set(pool.process_ids())
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    short = tmp_path / "short.tar"
    short.write_bytes(b"abc")
    for source, message in (
        (str(bomb), "more than max_pixels"),
        (b"\xff\xd8\xff rubbish", "is not an image|truncated"),
        (str(tmp_path / "nowhere.png"), "does not exist"),
        (FileSlice(str(short), 2, 50), "ends before byte 52"),
        (FileSlice(str(short), 0, 1 << 40), "shrink it"),
    ):
        with pytest.raises(ImageError, match=message):
            read(pool, source)
    assert before <= set(pool.process_ids())


def test_a_killed_worker_is_replaced_and_its_task_done(pool, picture):
    task = pool.submit(time.sleep, 0.6)
    time.sleep(0.2)
    for number in pool.process_ids():
        os.kill(number, signal.SIGKILL)
    assert task.result() is None
    assert read(pool, str(picture))[0] == (5, 4)


def test_a_task_that_kills_every_worker_is_an_error(pool, picture):
    with pytest.raises(WorkerDied, match=r"3 worker processes in turn died \(status 7\)"):
        pool.submit(os._exit, 7).result()
    assert read(pool, str(picture))[0] == (5, 4)


def test_a_task_that_hangs_is_an_error():
    pool = WorkerPool(1, time_limit=0.3)
    with pytest.raises(WorkerDied, match=r"took longer than 0\.3 s"):
        pool.submit(time.sleep, 60).result()
    pool.close()
    assert pool.process_ids() == []


def test_workers_outlive_signals_and_end_with_their_process(picture):
    code = (
        "import os, sys, signal\n"
        "from florence_jax.batch.reader_pool import WorkerPool\n"
        "from florence_jax.batch.image_reader import resized_pixels\n"
        "pool = WorkerPool(1)\n"
        f"job = lambda: pool.submit(resized_pixels, {str(picture)!r}, (2, 2), 3).result()[0]\n"
        "job()\n"
        "(worker,) = pool.process_ids()\n"
        "os.kill(worker, signal.SIGINT); os.kill(worker, signal.SIGTERM)\n"
        "job()\n"
        "assert pool.process_ids() == [worker]\n"
        "print(worker, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    worker, limit = int(ended.stdout), time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # nobody here reaps other processes' children
            return
        time.sleep(0.05)
    raise AssertionError("the worker lives on without the process that feeds it")


def test_workers_that_do_not_start_end_the_run(monkeypatch):
    from florence_jax.batch import reader_pool

    monkeypatch.setattr(reader_pool, "_PROGRAM", "import sys; sys.exit(3)")
    pool = WorkerPool(1)
    with pytest.raises(NoWorkers, match=r"died \(status 3\) before it had anything to do"):
        pool.submit(os.getpid).result()
    pool.close()


def test_workers_load_no_jax(pool):
    code = "'jax' in __import__('sys').modules or 'flax' in __import__('sys').modules"
    assert pool.submit(eval, code).result() is False


def _png(folder):
    path = folder / "small.png"
    Image.new("RGB", (3, 3)).save(path, pnginfo=PngImagePlugin.PngInfo())
    return str(path)
