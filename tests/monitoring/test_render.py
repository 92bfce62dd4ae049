"""The pictures of dashboards: every panel at its place, out of what a Prometheus answers."""

from __future__ import annotations

import json
import math
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from monitoring.render import Picture, Source, main, text
from tests.fakes.shipped_monitoring import dashboards, panels

asked: list[dict[str, str]] = []


class FakePrometheus(BaseHTTPRequestHandler):
    """Two series for every query but those of GPUs."""

    def do_POST(self) -> None:
        query = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
        asked.append(query)
        found: list[dict[str, Any]] = []
        if "DCGM" not in query["query"]:
            labels = [{"service": "assistant", "arm": arm} for arm in ("control", "candidate")]
            if self.path.endswith("query_range"):
                start, step = float(query["start"]), float(query["step"])
                values = [[start + i * step, str(i)] for i in (0, 1, 2, 9)]
                found = [{"metric": one, "values": values} for one in labels]
            else:
                found = [{"metric": one, "value": [float(query["time"]), "0.25"]} for one in labels]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {"result": found}}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def prometheus() -> Iterator[str]:
    asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), FakePrometheus) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def written(picture: Picture) -> list[str]:
    return [one.get_text() for one in picture.sheet.texts]


@pytest.mark.parametrize("uid", ["understudy-engine", "understudy-rollout"])
def test_every_panel_is_drawn(uid: str, prometheus: str) -> None:
    dashboard = dashboards()[uid]
    picture = Picture(dashboard, Source(prometheus, 0.0, 600.0))
    picture.draw(dashboard)
    shown = written(picture)
    assert {panel["title"] for panel in dashboard["panels"]} <= set(shown)
    assert len(picture.sheet.patches) == len(list(panels(dashboard)))
    assert shown.count("no data") == sum("DCGM" in panel["targets"][0]["expr"] for panel in panels(dashboard))


def test_a_picture_is_written_and_variables_are_put_in(prometheus: str, tmp_path: Path) -> None:
    arguments = [
        "understudy-cost",
        "--prometheus",
        prometheus,
        "--out",
        str(tmp_path / "new"),
        "--variable",
        "service=assistant",
    ]
    assert main(arguments) == 0
    with Image.open(tmp_path / "new/understudy-cost.png") as picture:
        assert picture.width == 1500
    assert any('service=~"assistant"' in query["query"] for query in asked)
    assert not any("$" in query["query"] for query in asked)


def test_a_wrong_address_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prometheus", "http://127.0.0.1:9", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no Prometheus answers at http://127.0.0.1:9" in line


def test_an_unknown_dashboard_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["understudy-weather"])
    assert "understudy-weather" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0125, "percentunit", "1.25 %"),
        (97.0, "percent", "97 %"),
        (0.00042, "s", "420 µs"),
        (90.0, "s", "1.5 min"),
        (0.0, "s", "0 s"),
        (1536.0, "bytes", "1.5 KiB"),
        (12_345.0, "short", "12.3k"),
        (2.5, "reqps", "2.5 req/s"),
        (0.0, "dateTimeAsIso", "1970-01-01 00:00:00"),
        (math.inf, "short", "∞"),
        (math.nan, "short", "–"),
    ],
)
def test_units(value: float, unit: str, expected: str) -> None:
    assert text(value, unit) == expected
