"""The progress of a long run, without a terminal and with one."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from yolonas import progress
from yolonas.progress import Progress


def test_without_a_terminal_a_line_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    times = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "yolonas"):
        bar = Progress("val", 1000, 100)
        for _ in range(4):
            bar.advance(55)
        bar.close()
    assert caplog.messages == [
        "val: 210/1000 images, 10.0 images/s, 1:19 left",
        "val: 320/1000 images, 10.0 images/s, 1:08 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Progress("val", 10, 4)
    bar.advance(3)
    bar.close()
    assert "4/10" in screen.getvalue()


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("val", 10, verbose=False)
    bar.advance(10)
    bar.close()
    assert capsys.readouterr() == ("", "")
