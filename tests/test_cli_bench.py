"""`florence-jax bench`: its rows say what was timed; nothing is asserted on the times."""

import json

from florence_jax.cli.main import main
from tests.random_pipeline import random_checkpoint


def test_a_row_for_each_task_and_the_encoder_at_each_batch_size(tmp_path, capsys):
    output = tmp_path / "bench.jsonl"
    options = ["--batch-size", "1", "--batch-size", "2", "--beams", "1", "--max-new-tokens", "6"]
    command = ["bench", "--model", random_checkpoint(), "--task", "<OD>", *options]
    assert main(list(map(str, [*command, "--rounds", "2", "--json", output]))) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["case"], row["batch_size"]) for row in rows] == [
        ("<OD>", 1), ("encode", 1), ("<OD>", 2), ("encode", 2),
    ]  # fmt: skip
    for row in rows:
        assert row["new_tokens"] == 6
        assert len(row["seconds"]) == 2
        assert row["images_per_second"] > 0
        assert row["first_call_seconds"] > 0
        assert ("tokens_per_second" in row) == (row["case"] != "encode")
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(rows)


def test_a_number_of_rounds_that_times_nothing_is_refused(capsys):
    assert main(["bench", "--rounds", "0"]) == 2
    assert "--rounds is 0, expected at least 1" in capsys.readouterr().err
