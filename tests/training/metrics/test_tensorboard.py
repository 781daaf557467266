"""Event files, read back by the protobuf classes that are generated from TensorBoard's own."""

import struct

import pytest
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from florence_jax.training.metrics.tensorboard import TensorBoardWriter


def events(path):
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_reads_each_value_as_soon_as_it_is_written(tmp_path):
    board = TensorBoardWriter(tmp_path / "board", first=300)
    board.write("train", 301, {"loss": 1.5, "lr": 1e-5, "note": "no number"})
    board.write("evaluation", 70_000, {"<OD> mAP@0.5": 0.25})
    (path,) = (tmp_path / "board").glob("events.out.tfevents.*")
    written = path.read_bytes()
    board.close()
    assert path.read_bytes() == written
    version, start, first, second = events(path)
    assert version.file_version == "brain.Event:2"
    # Steps that a killed run took beyond its checkpoint are taken again, and shown once.
    assert (start.step, start.session_log.status) == (300, SessionLog.START)
    values = {value.tag: value.simple_value for value in first.summary.value}
    assert first.step == 301
    assert values == {"train/loss": 1.5, "train/lr": pytest.approx(1e-5)}
    assert (second.step, second.summary.value[0].tag) == (70_000, "evaluation/<OD> mAP@0.5")
    assert abs(second.wall_time - path.stat().st_mtime) < 60


def test_pictures_are_the_files_themselves(tmp_path):
    path = tmp_path / "0007.png"
    Image.new("RGB", (9, 4), "blue").save(path)
    board = TensorBoardWriter(tmp_path / "board", first=0)
    board.write_pictures(12, [path])
    board.close()
    (written,) = (tmp_path / "board").glob("events*")
    value = events(written)[-1].summary.value[0]
    assert (value.tag, value.image.width, value.image.height) == ("samples/0007", 9, 4)
    assert value.image.encoded_image_string == path.read_bytes()


def test_a_full_disk_is_an_error_of_the_call_and_the_next_may_succeed(tmp_path, monkeypatch):
    board, flush = TensorBoardWriter(tmp_path, first=0), EventsWriter.flush

    def full(self):
        raise OSError("no space left on device")

    monkeypatch.setattr(EventsWriter, "flush", full)
    with pytest.raises(OSError, match="no space"):
        board.write("train", 1, {"loss": 2.0})
    monkeypatch.setattr(EventsWriter, "flush", flush)
    board.write("train", 2, {"loss": 1.0})
    board.close()
    (path,) = tmp_path.glob("events*")
    assert [event.step for event in events(path)] == [0, 1, 2]
