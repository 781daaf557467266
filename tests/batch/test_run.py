"""Nothing lost, nothing twice: the runner with a job that costs nothing."""

import dataclasses
import datetime
import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from florence_jax.batch import progress
from florence_jax.batch import run as run_module
from florence_jax.batch.blocks import ProcessShare, RunOptions
from florence_jax.batch.job import Item, JobError, ListSource
from florence_jax.batch.leases import FOLDER, Leases
from florence_jax.batch.manifest import RunError
from florence_jax.batch.run import run_blocks
from florence_jax.batch.verify import verify_output
from florence_jax.inference.requests import Query
from tests.batch.fakes import SumOfPixels, items_of, write_pictures

COUNT, BROKEN = 23, (4, 17)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    paths = write_pictures(tmp_path_factory.mktemp("pictures"), COUNT, broken=BROKEN)
    return ListSource(items_of(paths))


def run(source, directory, job=None, *, progress=False, **options):
    run_options = RunOptions(**({"block_size": 5, "workers": 0} | options))
    return run_blocks(source, job or SumOfPixels(), directory, run_options, progress=progress)


def rows_in(directory):
    files = sorted(directory.glob("block-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


def test_every_input_has_one_row_in_its_order(source, tmp_path):
    summary = run(source, tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == list(source.ids())
    for number, row in enumerate(rows):
        if number in BROKEN:
            assert "is not an image" in row["error"]
            assert "sum" not in row
        else:
            assert row["width"] == 6
            assert row["sum"] > 0
    assert (summary.rows, summary.errors, summary.blocks, summary.missing) == (COUNT, 2, 5, 0)
    assert verify_output(tmp_path / "out").is_complete
    assert sorted(contents(tmp_path / "out")) == sorted(
        ["run.json"]
        + [f"block-{n:05}-of-00005.jsonl{end}" for n in range(5) for end in ("", ".sha256")]
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_no_byte(source, tmp_path, workers):
    run(source, tmp_path / "threads")
    run(source, tmp_path / "processes", workers=workers)
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


def test_what_is_there_is_not_done_again(source, tmp_path):
    run(source, tmp_path)
    whole = contents(tmp_path)
    (tmp_path / "block-00003-of-00005.jsonl").unlink()
    (tmp_path / "block-00001-of-00005.jsonl.sha256").unlink()
    job = SumOfPixels()
    summary = run(source, tmp_path, job, block_size=None)
    assert sorted(job.seen) == [f"{n:03}.png" for n in (15, 16, 18, 19)]
    assert (summary.rows, summary.missing) == (5, 0)
    assert contents(tmp_path) == whole


def test_a_block_that_was_removed_gets_the_digest_of_its_new_content(tmp_path):
    # As one does to have errors mended: the pictures come back, the block goes.
    (path,) = write_pictures(tmp_path / "pictures", 1, broken=(0,))
    source, output = ListSource(items_of([path])), tmp_path / "out"
    assert run(source, output).errors == 1
    write_pictures(tmp_path / "pictures", 1)
    (output / "block-00000-of-00001.jsonl").unlink()
    assert run(source, output).errors == 0
    assert verify_output(output).describe().startswith("1 rows, 0 of them errors\ncomplete")


def test_a_row_that_no_file_can_hold_is_an_error_of_its_own(tmp_path):
    first, *others = items_of(write_pictures(tmp_path / "pictures", 7))
    extras = [
        {"score": float("nan")},
        {"when": datetime.date(2024, 1, 2)},
        {"deep": functools.reduce(lambda inner, _: [inner], range(900), 0)},
    ]
    bad = [
        dataclasses.replace(item, extra=extra) for item, extra in zip(others, extras, strict=False)
    ]
    bad.append(
        dataclasses.replace(
            others[3], queries=(Query(prompt="<OD>", region=(float("inf"), 0, 1, 1)),)
        )
    )
    torn = dataclasses.replace(others[4], extra={"caption": "cut off \ud83d"})
    summary = run(ListSource([first, *bad, torn]), tmp_path / "out")
    assert (summary.rows, summary.errors, summary.missing) == (6, 4, 0)
    rows = rows_in(tmp_path / "out")
    assert "['score'] is nan" in rows[1]["error"]
    assert "['when'] is a date" in rows[2]["error"]
    assert rows[5]["caption"] == "cut off \ud83d"
    assert verify_output(tmp_path / "out").is_complete


def test_ids_that_are_no_utf8_are_ids_too(tmp_path):
    paths = write_pictures(tmp_path / "pictures", 2)
    names = ["cut \ud83d", os.fsdecode(b"caf\xe9.png")]
    source = ListSource(
        [Item(id=name, image=str(path)) for name, path in zip(names, paths, strict=True)]
    )
    run(source, tmp_path / "out")
    assert [row["id"] for row in rows_in(tmp_path / "out")] == names
    assert verify_output(tmp_path / "out").is_complete


def test_another_run_is_refused_by_the_names_of_what_differs(source, tmp_path):
    run(source, tmp_path)
    other = SumOfPixels()
    other.fingerprint = {"kind": "sum", "settings": {"power": 2}}
    with pytest.raises(RunError, match=r"job\.settings\.power: 1 there, 2 here"):
        run(source, tmp_path, other)
    with pytest.raises(RunError, match=r"blocks\.size: 5 there, 6 here"):
        run(source, tmp_path, block_size=6)
    with pytest.raises(RunError, match=r"(?s)inputs\.count: 23 there, 22 here.*inputs\.ids_sha256"):
        run(ListSource(source.items[1:]), tmp_path)


def test_blocks_without_a_manifest_are_nobodys(source, tmp_path):
    run(source, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds blocks and no run\.json"):
        run(source, tmp_path)


def test_equal_ids_are_refused(source, tmp_path):
    items = [*source.items, Item(id="003.png", image=b"other")]
    with pytest.raises(RunError, match=r"two inputs have the id '003\.png'"):
        run(ListSource(items), tmp_path / "out")
    with pytest.raises(RunError, match="name no image"):
        run(ListSource([]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_tell_errors_and_columns(source, tmp_path):
    items = [
        Item(id="a", image=source.items[0].image, extra={"truth": [1, 2]}),
        Item(id="b", error="line 2 is no JSON", extra={"truth": None}),
    ]
    run(ListSource(items), tmp_path)
    good, bad = rows_in(tmp_path)
    assert good == {"id": "a", "image": items[0].image, "truth": [1, 2], "width": 6,
                    "sum": good["sum"]}  # fmt: skip
    assert bad == {"id": "b", "truth": None, "error": "line 2 is no JSON"}


def test_neighbours_share_a_picture(source, tmp_path):
    seen = []

    class Job(SumOfPixels):
        def __call__(self, loaded):
            kept = list(loaded)
            seen.append(len({id(one.pixels) for one in kept}))
            return super().__call__(kept)

    image = source.items[0].image
    items = [Item(id=str(n), image=image) for n in range(4)]
    items.append(Item(id="4", image=source.items[1].image))
    run(ListSource(items), tmp_path, Job())
    assert seen == [2]


@pytest.mark.parametrize("rows", [-1, 1])
def test_a_job_that_loses_or_adds_rows_writes_none(source, tmp_path, rows):
    class Job(SumOfPixels):
        def __call__(self, loaded):
            made = super().__call__(loaded)
            return made[:rows] if rows < 0 else [*made, {}]

    with pytest.raises(JobError, match="rows of"):
        run(source, tmp_path, Job())
    assert not list(tmp_path.glob("block-*"))


def test_a_job_that_fails_ends_the_run_and_keeps_what_is_finished(source, tmp_path):
    def stumble(item):
        if item.id == "012.png":
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        run(source, tmp_path, SumOfPixels(on_item=stumble))
    names = [file.name for file in tmp_path.glob("block-*.jsonl")]
    assert "block-00002-of-00005.jsonl" not in names
    summary = run(source, tmp_path)
    assert summary.missing == 0
    assert verify_output(tmp_path).is_complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_blocks_in_hand(source, tmp_path, capsys, number):
    handed = []

    def interrupt(item):
        if not handed:
            handed.append(item)
            os.kill(os.getpid(), number)
        time.sleep(0.05)

    before = signal.getsignal(number)
    summary = run(source, tmp_path, SumOfPixels(on_item=interrupt))
    assert signal.getsignal(number) == before
    assert 0 < summary.missing < 5
    assert "the same command goes on" in capsys.readouterr().err
    report = verify_output(tmp_path)
    assert not report.problems
    assert len(report.missing) == summary.missing
    assert run(source, tmp_path).missing == 0
    assert verify_output(tmp_path).is_complete


def test_processes_share_the_blocks_and_take_over_what_is_left(source, tmp_path):
    alone = SumOfPixels()
    assert run(source, tmp_path / "one", alone, share=ProcessShare(2, 3)).missing == 0
    assert len(alone.seen) == COUNT - 2
    jobs, threads = [SumOfPixels() for _ in range(3)], []
    for index, job in enumerate(jobs):
        arguments = (source, tmp_path / "three", job)
        options = {"share": ProcessShare(index, 3)}
        threads.append(threading.Thread(target=run, args=arguments, kwargs=options))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert verify_output(tmp_path / "three").is_complete


def test_a_block_is_taken_over_when_its_process_gives_no_sign_of_life(source, tmp_path):
    run(source, tmp_path)
    (tmp_path / "block-00002-of-00005.jsonl").unlink()
    (tmp_path / FOLDER).mkdir()
    lease = tmp_path / FOLDER / "00002"
    lease.write_text("another-host 17")
    ended = time.monotonic() + 1.5

    def live():
        while time.monotonic() < ended:
            os.utime(lease)
            time.sleep(0.05)

    thread = threading.Thread(target=live)
    thread.start()
    job = SumOfPixels()
    assert run(source, tmp_path, job, lease_seconds=0.4).missing == 0
    thread.join()
    assert time.monotonic() > ended, "taken while its process lived"
    assert len(job.seen) == 5
    assert not (tmp_path / FOLDER).exists()


def test_a_log_has_what_others_finished_too(source, tmp_path, capsys, monkeypatch):
    run(source, tmp_path)
    block = tmp_path / "block-00002-of-00005.jsonl"
    content = block.read_bytes()
    block.unlink()
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "00002").write_text("another-host 17")
    finish = threading.Timer(0.5, block.write_bytes, [content])
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(run_module, "_LOOK_SECONDS", 0.0)
    finish.start()
    summary = run(source, tmp_path, progress=True)
    finish.join()
    assert (summary.rows, summary.missing) == (0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("18 of 23 images, 0.00 images/s, 0 tokens/s, 0 errors")
    assert lines[0].endswith("? left")
    assert any(line.startswith("23 of 23 images") and "00:00 left" in line for line in lines)


def test_a_new_directory_has_blocks_of_several_batches():
    assert RunOptions().default_block_size() == 32
    assert RunOptions(batch_size=100).default_block_size() == 400


def test_what_cannot_be_done_is_said_before_anything_is(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="needs pyarrow"):
        run(source, tmp_path / "out", row_format="parquet")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="-1 worker processes"):
        run(source, tmp_path / "out", workers=-1)


def test_a_lease_of_a_dead_process_of_this_host_is_void_at_once(tmp_path):
    import socket
    import subprocess

    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    leases = Leases(tmp_path, seconds=60)
    leases.acquire(7)
    assert not leases.is_held(7), "its own"
    lease = tmp_path / FOLDER / "00007"
    lease.write_text(f"{socket.gethostname()} {dead.stdout.strip()}")
    assert not leases.is_held(7)
    lease.write_text(f"{socket.gethostname()} {os.getppid()}")
    assert leases.is_held(7)
    leases.close()


def test_a_lease_is_made_though_another_process_ends_the_run_meanwhile(tmp_path, monkeypatch):
    ours, others = Leases(tmp_path), Leases(tmp_path)
    mkdir = Path.mkdir

    def too_late(path, **options):
        mkdir(path, **options)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        others.clear()

    monkeypatch.setattr(Path, "mkdir", too_late)
    ours.acquire(3)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["00003"]
    ours.close()
    others.close()


def test_a_full_disk_is_an_error_and_leaves_no_half_block(source, tmp_path, monkeypatch):
    import errno

    from florence_jax.runtime import atomic_file

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    adopted = run(source, tmp_path)
    assert adopted.missing == 0
    for file in tmp_path.glob("block-*"):
        file.unlink()
    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(source, tmp_path)
    assert sorted(contents(tmp_path)) == ["run.json"]


def test_file_systems_without_links_do_too(source, tmp_path, monkeypatch):
    import errno

    from florence_jax.runtime import atomic_file

    def no_links(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    run(source, tmp_path / "links")
    monkeypatch.setattr(atomic_file.os, "link", no_links)
    run(source, tmp_path / "renames")
    assert contents(tmp_path / "links") == contents(tmp_path / "renames")


@pytest.mark.parametrize("content", ["[]", "{}", "{", "[" * 100_000, None])
def test_a_damaged_addition_to_a_run_is_named(source, tmp_path, content):
    run(source, tmp_path)
    record = tmp_path / "_added-00001.json"
    # None: a pipe, which would be waited for.
    os.mkfifo(record) if content is None else record.write_text(content)
    with pytest.raises(RunError, match=r"_added-00001\.json is damaged"):
        run(source, tmp_path)


def test_blocks_of_a_manifest_that_are_no_object_are_named(source, tmp_path):
    run(source, tmp_path)
    manifest = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(manifest | {"blocks": []}))
    with pytest.raises(RunError, match=r"run\.json is damaged \(blocks is no object"):
        run(source, tmp_path)
