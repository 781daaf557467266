"""Reading /proc/stat."""

import os

from tests.benchmarks.rivals.machine import Clock, busy_seconds, describe

# user nice system idle iowait irq softirq steal guest guest_nice
STAT = "cpu  100 20 30 5000 600 4 5 6 70 8\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


def test_idle_and_waiting_are_not_busy_and_guests_are_counted_once():
    assert busy_seconds(STAT) * os.sysconf("SC_CLK_TCK") == 100 + 20 + 30 + 4 + 5 + 6


def test_what_others_took_is_what_this_process_did_not():
    processors = os.cpu_count() or 1
    now = Clock.now()
    # As if a second ago, when the machine had spent none of its time.
    past = Clock(wall=now.wall - 1.0, own=now.own, busy=now.busy - 0.5 * processors)
    assert 0.4 < past.until_now().others < 0.6


def test_versions_are_told():
    assert {"processor", "python", "jax"} <= describe().keys()
