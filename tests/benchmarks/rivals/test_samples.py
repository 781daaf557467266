"""Medians, spread and ratios, by hand."""

from tests.benchmarks.rivals.results import CaseResult, Row
from tests.benchmarks.rivals.samples import Sample, summarise
from tests.benchmarks.rivals.table import format_table


def samples(*walls):
    return [Sample(wall=wall, cpu=2 * wall, others=0.1) for wall in walls]


def result(**walls):
    rows = {
        name: Row(label=name, note=wall)
        if isinstance(wall, str)
        else Row(label=name, summary=summarise(samples(*wall)))
        for name, wall in walls.items()
    }
    return CaseResult(
        case="images", title="a case", context={}, rows=rows, floor=1.0, gflop=7.5, images=4
    )


def test_the_median_is_told_with_its_extremes():
    summary = summarise(samples(3.0, 1.0, 9.0, 2.0, 4.0))
    assert (summary.median, summary.fastest, summary.slowest) == (3.0, 1.0, 9.0)
    assert (summary.cpu, summary.others, summary.rounds) == (6.0, 0.1, 5)


def test_a_token_is_the_difference_over_their_number():
    whole = Sample(wall=7.0, cpu=13.0, others=0.2)
    start = Sample(wall=1.0, cpu=1.0, others=0.9)
    assert whole.per_token(start, 60) == Sample(wall=0.1, cpu=0.2, others=0.2)
    assert whole.beyond(start) == Sample(wall=6.0, cpu=12.0, others=0.2)


def test_a_difference_lost_in_the_noise_is_no_time():
    assert Row.of("rival", samples(-0.25, 0.5, -0.5)) == Row(
        label="rival", note="lost in the noise: -250 ms"
    )
    assert Row.of("rival", samples(0.5)).summary == summarise(samples(0.5))


def test_the_fastest_rival_is_the_denominator():
    found = result(jax=[2.0], slow=[9.0], fast=[3.0, 2.9, 8.0], absent="not installed")
    assert found.fastest_rival() == "fast"
    assert found.ratio() == 1.5
    assert found.ratio("slow") == 4.5
    assert found.share("jax") == 0.5
    assert found.ratio("absent") is None


def test_without_a_rival_or_without_us_there_is_no_ratio():
    assert result(jax=[2.0], rival="MISMATCH").ratio() is None
    assert result(rival=[2.0]).ratio() is None


def test_a_note_never_comes_with_a_time():
    line = result(jax=[2.0], rival="MISMATCH, not timed: why").to_json()
    assert line["engines"]["rival"] == {"note": "MISMATCH, not timed: why"}
    assert line["engines"]["jax"]["images_per_second"] == 2.0
    assert line["engines"]["jax"]["share_of_roofline"] == 0.5


def test_the_table_is_ours_first_then_by_time_then_notes():
    text = format_table(result(late="failed: why", slow=[9.0], fast=[3.0], jax=[4.0]))
    lines = text.splitlines()
    assert lines[1] == "7.5 GFLOP, at least 1 s here"
    assert [line.split()[0] for line in lines[3:7]] == ["jax", "fast", "slow", "late"]
    assert lines[4].split()[-1] == "0.75"
    assert lines[7] == "fastest rival: fast, 0.75 times our time"
    assert lines[8] == "images per second: jax 1, fast 1.33, slow 0.444"
