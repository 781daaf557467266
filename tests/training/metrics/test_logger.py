"""A log that goes to a file has a line per logging step; a terminal has a bar."""

import io

from florence_jax.training.metrics.logger import RunLog
from florence_jax.training.metrics.writers import JsonlWriter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(directory, stream, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    writers = [JsonlWriter(directory / "metrics.jsonl")]
    with RunLog(writers, first=0, steps=40, peak_flops=0) as log:
        log.say("compiling")
        for step in range(1, 41):
            log.count(tokens=10, images=1, flops=1.0)
            if step % 10 == 0:
                log.training(step, {"loss": 2.0 / step, "learning_rate": 0.1})
    return stream.getvalue()


def test_a_redirected_log_has_one_line_for_each_logging_step(tmp_path, monkeypatch):
    text = written(tmp_path, io.StringIO(), monkeypatch)
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "compiling"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"step {step} of 40" for step in (10, 20, 30, 40)
    ]
    assert "loss 0.2000, lr 1.00e-01, tok/s" in lines[1]


def test_a_terminal_has_a_bar(tmp_path, monkeypatch):
    text = written(tmp_path, Terminal(), monkeypatch)
    assert "\r" in text
    assert "40/40" in text
    assert "step 10 of 40" not in text
