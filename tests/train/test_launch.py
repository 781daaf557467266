"""The launch files: linted, and run with stand-ins for gcloud, xpk, srun and scontrol."""

import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from florence_jax.cli.train import TrainOptions
from florence_jax.sharding import parse_mesh
from florence_jax.training.config_loader import parse_program_flags

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "train" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.fixture
def stand_ins(tmp_path):
    """Programs that write down how they were called, one word a line, and end as told."""

    def make(**statuses):
        for name, status in statuses.items():
            program = tmp_path / name
            lines = [
                "#!/bin/sh",
                f'printf "%s\\n" {name} "$@" >> {tmp_path}/calls',
                f"exit {status}",
            ]
            program.write_text("\n".join(lines) + "\n")
            program.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


def called(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def start(name, words, variables):
    return subprocess.run(
        ["bash", str(LAUNCH / name), *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_every_file_is_in_the_table():
    table = (LAUNCH / "README.md").read_text()
    files = {path.name for path in LAUNCH.iterdir()} - {"README.md"}
    assert all(f"`{name}`" in table for name in files)
    assert {"tpu_vm.sh", "xpk.sh", "slurm.sbatch", "gke_jobset.yaml", "Dockerfile"} == files


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_is_clean(name):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    lint = str(shellcheck) if shellcheck.is_file() else shutil.which("shellcheck")
    assert lint, 'needs shellcheck: pip install -e ".[test]"'
    done = subprocess.run([lint, str(LAUNCH / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_job_set_is_one_run_on_its_slice():
    (content,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    (job,) = content["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(size) for size in topology.split("x"))
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    python, option, module, *words = container["command"]
    assert (python, option, module) == ("python", "-m", "train.main")
    options = parse_program_flags(TrainOptions, words, prog="", description="")
    assert options.distributed
    assert math.prod(parse_mesh(options.run.mesh).sizes().values()) == chips
    assert options.config == Path("train/recipes/full.py")
    assert (options.run.directory, options.run.data.directory) == ("/runs/full", "/data")
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/data", "/runs"}
    assert {volume["name"] for volume in pod["volumes"]} == {"data", "runs"}


CLOUD = {"PROJECT": "p", "ZONE": "z", "NAME": "n", "BUCKET": "gs://b/d", "RUNS": "10.0.0.2:/runs"}


def test_a_tpu_vm_run_reaches_every_worker_with_its_words_as_they_are(tmp_path, stand_ins):
    words = ["run", "--config", "my recipe.py", "--data.train", '[{"path": "a b"}]']
    done = start("tpu_vm.sh", words, {**CLOUD, **stand_ins(gcloud=0)})
    assert done.returncode == 0, done.stderr
    calls = called(tmp_path)
    assert calls[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "n"]
    assert "--worker=all" in calls
    command = " ".join(calls[calls.index("--worker=all") + 1 :]).removeprefix("--command=")
    inner = shlex.split(command)
    begin = inner.index("train.main") + 1
    assert inner[begin : begin + 5] == [*words[1:], "--distributed"]


def test_a_tpu_vm_gets_the_checkout_and_the_data(tmp_path, stand_ins):
    done = start("tpu_vm.sh", ["install"], {**CLOUD, **stand_ins(gcloud=0)})
    assert done.returncode == 0, done.stderr
    text = "\n".join(called(tmp_path))
    assert "n:florence-jax.tar.gz" in text
    assert "mount 10.0.0.2:/runs /runs" in text
    assert "gcloud storage rsync --recursive gs://b/d /data" in text
    assert start("tpu_vm.sh", [], {**CLOUD, **stand_ins(gcloud=0)}).returncode == 2


def test_xpk_gets_the_command(tmp_path, stand_ins):
    variables = {**CLOUD, "CLUSTER": "c", "IMAGE": "i", "SLICES": "2", **stand_ins(xpk=0)}
    done = start("xpk.sh", ["mine", "--config", "a b.py"], variables)
    assert done.returncode == 0, done.stderr
    calls = called(tmp_path)
    assert {"--workload=mine", "--num-slices=2", "--docker-image=i"} <= set(calls)
    command = next(word for word in calls if word.startswith("--command="))
    assert shlex.split(command.partition("=")[2]) == [
        "exec", "python", "-m", "train.main", "--config", "a b.py", "--distributed",
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, True)])
def test_slurm_queues_an_interrupted_run_again(tmp_path, stand_ins, status, requeued):
    variables = {"SLURM_JOB_ID": "7", **stand_ins(srun=status, scontrol=0)}
    done = start("slurm.sbatch", ["--config", "a b.py"], variables)
    assert done.returncode == status
    calls = called(tmp_path)
    assert calls[calls.index("train.main") + 1 :][:3] == ["--config", "a b.py", "--distributed"]
    assert (calls[-3:] == ["scontrol", "requeue", "7"]) is requeued
