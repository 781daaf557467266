"""Beside tensorboardX's protobuf classes, which are generated from TensorBoard's own files."""

import struct

import pytest

from florence_jax.training.metrics.tensorboard import TensorBoard, crc32c


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_what_is_written_is_what_tensorboard_reads(tmp_path):
    import tensorboardX.crc32c as reference
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    board = TensorBoard(tmp_path / "board", first=300)
    board.write(301, {"train/loss": 1.5, "train/lr": 1e-5})
    board.write(70_000, {"evaluation/<OD> mAP@0.5": 0.25})
    (path,) = (tmp_path / "board").glob("events.out.tfevents.*")
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        body = content[12 : 12 + length]
        for part, stored in ((content[:8], content[8:12]), (body, content[12 + length :][:4])):
            crc = reference._crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.pack("<I", masked) == stored
        events.append(Event.FromString(body))
        content = content[16 + length :]
    version, start, first, second = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, SessionLog.START)
    values = {value.tag: value.simple_value for value in first.summary.value}
    assert first.step == 301
    assert values == {"train/loss": 1.5, "train/lr": pytest.approx(1e-5)}
    assert (second.step, second.summary.value[0].tag) == (70_000, "evaluation/<OD> mAP@0.5")
    assert abs(second.wall_time - path.stat().st_mtime) < 60
