"""Uploads by the real huggingface_hub, to a stand-in of the hub that keeps what it gets."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml

import florence_jax as fj
from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.cli.main import main

RUN = {
    "steps": 200,
    "batch_size": 16,
    "seed": 3,
    "model": {"start": "microsoft/Florence-2-base-ft"},
    "data": {"directory": "/somewhere/private/cells", "train": []},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    "lora": {"rank": 0},
}


class Hub(BaseHTTPRequestHandler):
    """The five calls of an upload whose files are small enough for the commit itself."""

    token, files, created = "hf_good", {}, []

    def do_HEAD(self):
        self.answer(200 if self.path.rsplit("/", 1)[-1] in self.files else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer(200, {"url": "https://huggingface.co/me/cells"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            done = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": "https://huggingface.co/me/cells/commit/0",
            }
            self.answer(200, {**done, "hookOutput": ""})

    def answer(self, status, content=None):
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    kept = type("Kept", (Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory whose export is the shipped model."""
    directory = tmp_path_factory.mktemp("runs") / "cells"
    fj.Florence2Pipeline.from_pretrained("shapes").save_pretrained(directory / "export")
    (directory / "checkpoints").mkdir()
    (directory / "config.json").write_text(json.dumps(RUN))
    lines = [
        {"kind": "evaluation", "step": 100, "loss": 2.0, "<OD> mAP@0.5": 0.25},
        {"kind": "train", "step": 190, "loss": 1.5},
        {"kind": "evaluation", "step": 200, "loss": 1.25, "<OD> mAP@0.5": 0.75},
        {"kind": "done", "step": 200, "seconds": 9.0},
    ]
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return directory


def push(*words):
    return main(["push", *map(str, words), "--license", "mit"])


def test_what_is_uploaded_loads_and_its_card_has_the_figures(run, hub, tmp_path, capsys):
    assert push(run / "export", "me/cells", "--dataset", "me/blood", "--private") == 0
    assert "/me/cells" in capsys.readouterr().out
    created = hub.created[0]  # huggingface_hub has sent one and the other.
    assert created.get("visibility") == "private" or created.get("private") is True
    for name, content in hub.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    ours = dict(flatten(load_checkpoint(run / "export").params))
    theirs = dict(flatten(load_checkpoint(tmp_path).params))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)

    _, front, body = hub.files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "mit"
    assert data["base_model"] == "microsoft/Florence-2-base-ft"
    assert data["datasets"] == ["me/blood"]
    assert data["library_name"] == "transformers"
    assert "| <OD> mAP@0.5 | 0.7500 |" in body
    assert "after step 200" in body
    assert 'Florence2ForConditionalGeneration.from_pretrained("me/cells")' in body
    assert "/somewhere/private" not in body  # places of the machine that trained


def test_a_card_that_is_there_stays(run, hub, capsys):
    hub.files["README.md"] = b"mine"
    assert push(run / "export", "me/cells", "--naming", "jax") == 0
    assert "README.md stays as it was" in capsys.readouterr().out
    assert hub.files["README.md"] == b"mine"
    assert "manifest.json" in hub.files
    assert push(run / "export", "me/cells", "--replace-card", "--naming", "jax") == 0
    assert hub.files["README.md"].startswith(b"---\nbase_model: microsoft/Florence-2-base-ft\n")


def test_a_dry_run_uploads_nothing(run, hub, capsys):
    assert push(run, "me/cells", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "license: mit" in shown
    assert "model.safetensors" in shown
    assert (hub.files, hub.created) == ({}, [])


def test_an_expired_token_is_one_sentence(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert push(run / "export", "me/cells") == 2
    said = capsys.readouterr().err
    assert "the hub refuses me/cells (401): the token has expired or may not write there" in said
    assert hub.files == {}


def test_wrong_names_and_no_token_are_said_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert push("nowhere", "me/cells") == 2
    assert "run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert push("nowhere", "cells", "--dry-run") == 2
    assert "must be name/model" in capsys.readouterr().err
    assert push("nowhere", "me/ce lls", "--dry-run") == 2
    assert "me/ce lls" in capsys.readouterr().err
