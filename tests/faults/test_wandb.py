"""W&B's server refuses, hangs, answers 401 and 500, or dies while it is told: the run ends as without it, and soon."""

from __future__ import annotations

import time

import pytest

from synthgen import jobs, tracking
from tests.contract.test_tracking_server import KEY, Server, server
from tests.faults import runs

pytest.importorskip("wandb")
TROUBLES = ("dead", "hangs", "hangs later", "401", "500", "dies")


class Dying(Server):
    """Answers when it is asked whether it is there, and hangs up in the middle of every other answer."""

    def _answer(self) -> None:
        if self.path == "/healthz":
            super()._answer()
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            self.connection.close()

    do_GET = do_POST = do_PUT = _answer


@pytest.mark.timeout(600)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_run_ends_as_it_does_without_wandb(trouble, calm, tmp_path, monkeypatch, caplog, tally):
    out = runs.before("report", calm, tmp_path / "run")
    expected = runs.contents(calm.up_to("report"), runs.MADE["report"])
    monkeypatch.setattr(tracking, "ANSWER_S", 1)
    monkeypatch.setattr(tracking, "SEND_S", 3)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tests.contract.test_tracking_server.Server", Dying if trouble == "dies" else Server)
    started = time.monotonic()
    with server("takes it" if trouble in ("dead", "dies") else trouble) as (url, _):
        url = "http://127.0.0.1:9" if trouble == "dead" else url
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setattr(tracking, "_base_url", lambda: url)  # wandb reads the environment once a process
        runs.STAGES["report"](runs.order("tracking=online"), out)
    seconds = time.monotonic() - started
    found = runs.contents(out, runs.MADE["report"])
    same = found.keys() == expected.keys() and found["verdict.json"] == expected["verdict.json"]
    same = same and jobs.verify(str(out))["problems"] == []
    warned = [record.getMessage() for record in caplog.records if "wandb sync" in record.getMessage()]
    recorded = list(out.glob("wandb/offline-run-*/*.wandb"))
    tally("wandb", 1, not (same and warned and recorded))
    assert same
    assert len(warned) == 1
    assert recorded, "what wasn't sent is here"
    assert seconds < 120
