"""Sending a run: to a server that takes it, and to ones that are dead, slow or refuse it, which hold nothing up for long."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from synthgen import tracking

wandb = pytest.importorskip("wandb")
KEY = "0123456789abcdef0123456789abcdef01234567"
EXTRA_S = 8.0
"""Of a `wandb sync` process that finds no server: to start, beside the limits of the test."""


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs, or one that hangs or refuses; it notes what it was told."""

    behaviour = "takes it"
    told: list[tuple[str, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        self.told.append((self.path, body))
        if self.behaviour == "hangs" or (self.behaviour == "hangs later" and self.path != "/healthz"):
            time.sleep(20)
        code = {"401": 401, "500": 500}.get(self.behaviour, 200)
        data = json.dumps({"data": self._said(json.loads(body))} if self.path == "/graphql" and code == 200 else {}).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer

    def _said(self, asked: dict) -> dict:
        given, url = asked.get("variables") or {}, f"http://127.0.0.1:{self.server.server_port}"
        project = {"id": "P", "name": "proj", "entity": {"id": "E", "name": "me"}}
        bucket = {"id": "R", "name": given.get("name"), "displayName": "d", "config": "{}", "project": project}
        viewer = {"id": "V", "username": "me", "entity": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        version = {"id": "A", "state": "COMMITTED"}
        artifact = {**version, "artifactSequence": {"id": "S", "latestArtifact": {**version, "versionIndex": 0}}}
        files = [{"name": name, "uploadUrl": f"{url}/upload/{name}"} for name in given.get("files") or []]
        return {
            "UpsertBucket": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
            "UpsertSweep": {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}},
            "CreateRunFiles": {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}},
        }.get(asked.get("operationName") or asked["query"].split("(")[0].split()[-1], {"viewer": viewer})

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextmanager
def server(behaviour: str) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Its address, and what it is told."""
    told: list[tuple[str, bytes]] = []
    handler = type("Handler", (Server,), {"behaviour": behaviour, "told": told})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads, listening.block_on_close = True, False
    listening.handle_error = lambda *_: None  # who doesn't wait for an answer hangs up
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", told
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A run folder with an offline file, not sent."""
    out = tmp_path_factory.mktemp("run")
    with tracking.open_run("offline", "proj", "photos", "digits", out, {"seed": 3}, 1) as run:
        run.curve("train/vae/loss", "train/vae/step", [[1, 0.5], [2, 0.25]])
        run.summary({"verdict": "reject"})
        run.alert("digits: reject", "because")
        assert run.on
    return out


def send(out: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, float]:
    """What became of it, and the seconds that it took."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tracking, "_base_url", lambda: url)  # wandb reads the environment once a process
    (folder,) = out.glob("wandb/offline-run-*")
    started = time.monotonic()
    return tracking._send(folder, "online"), time.monotonic() - started


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dead", "doesn't answer"),
        ("hangs", "doesn't answer"),
        ("hangs later", "not done in 3 s"),
        ("401", "is the API key right"),
        ("500", "answers 500"),
    ],
)
def test_no_server_holds_a_run_up_for_long(behaviour, reason, recorded, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tracking, "ANSWER_S", 1)
    monkeypatch.setattr(tracking, "SEND_S", 3)
    if behaviour == "dead":
        found, seconds = send(recorded, "http://127.0.0.1:9", monkeypatch, tmp_path)
    else:
        with server(behaviour) as (url, _):
            found, seconds = send(recorded, url, monkeypatch, tmp_path)
    assert found == ""
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "wandb sync" in record.getMessage()
    assert seconds < {"hangs": 1, "hangs later": 1 + 3}.get(behaviour, 1) + EXTRA_S
    assert not list(recorded.rglob("*.synced"))


def test_a_run_arrives_whole_and_is_sent_once(recorded, monkeypatch, tmp_path, caplog):
    with server("takes it") as (url, told):
        assert send(recorded, url, monkeypatch, tmp_path)[0] == "sent"
        asked = [json.loads(body) for path, body in told if path == "/graphql"]
        (created, *_) = [a["variables"] for a in asked if a["operationName"] == "UpsertBucket"]
        assert (created["project"], created["groupName"], created["displayName"]) == ("proj", "photos", "digits")
        (alert,) = [a["variables"] for a in asked if a["operationName"] == "NotifyScriptableRunAlert"]
        assert alert["title"] == "digits: reject"
        streamed = b"".join(body for path, body in told if path.endswith("/file_stream"))
        assert b'train/vae/loss\\":0.25' in streamed
        assert not [body for _, body in told if KEY.encode() in body]
        told.clear()
        assert send(recorded, url, monkeypatch, tmp_path)[0] == "sent before"
        assert told == []
    assert not caplog.records


def test_wandb_mode_of_the_environment_keeps_a_run_here(recorded, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (folder,) = recorded.glob("wandb/offline-run-*")
    assert tracking._send(folder, "online") == f"`wandb sync {folder}` sends it"
