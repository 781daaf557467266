"""The lock of a directory that a program writes to."""

import os
import subprocess
import sys

import pytest

from florence_jax.runtime.directory_lock import DirectoryInUseError, directory_lock


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with (
        directory_lock(tmp_path),
        pytest.raises(DirectoryInUseError, match=f"writing to .*process {os.getpid()} on "),
        directory_lock(tmp_path),
    ):
        pass
    with directory_lock(tmp_path):  # the first one's end frees it
        pass


def test_a_killed_process_frees_it(tmp_path):
    program = (
        "import os, sys\n"
        "from florence_jax.runtime.directory_lock import directory_lock\n"
        "with directory_lock(sys.argv[1]):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == -9
    with directory_lock(tmp_path):
        pass
