"""A real Prometheus (tests/install-prometheus) with the product's own configuration and rules, made quick: it
scrapes every second, the rules' windows are seconds where they are minutes, and no alert waits."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.integration.conftest import free_port

ROOT = Path(__file__).parents[3]
OBSERVE = ROOT / "deploy/observe"
RULES = sorted((OBSERVE / "rules").glob("*.yml"))
START_LIMIT_S = 30.0

# What takes minutes in the product's rules, and seconds here; each must be there to be replaced.
QUICK = {
    "[5m]": "[20s]",
    "[15m]": "[60s]",
    "offset 15m": "offset 60s",
    "p95_5m > 5\n": "p95_5m > 1\n",  # seconds to the first token
    '{priority!="batch"}) > 30\n': '{priority!="batch"}) > 3\n',  # seconds of the oldest job
    "headrace_survey_timestamp_seconds) > 60\n": "headrace_survey_timestamp_seconds) > 8\n",
}


def programs() -> Path:
    """The folder with prometheus, promtool and prometheus-redis-exporter; fetched the first time."""
    found = subprocess.run([ROOT / "tests/install-prometheus"], stdout=subprocess.PIPE, text=True)
    assert found.returncode == 0, "tests/install-prometheus failed"
    return Path(found.stdout.strip().splitlines()[-1])


def alert_rules() -> dict[str, Mapping[str, Any]]:
    """The product's alerts by name."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def quick_rules() -> dict[str, str]:
    texts = {path.name: path.read_text() for path in RULES}
    for slow, quick in QUICK.items():
        assert any(slow in text for text in texts.values()), f"no rule holds {slow!r}"
        texts = {name: text.replace(slow, quick) for name, text in texts.items()}
    return {name: re.sub(r"\n +for: \w+\n", "\n", text) for name, text in texts.items()}


class Prometheus:
    """``targets``: addresses by scrape job."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        self._folder = folder
        (folder / "rules").mkdir(parents=True)
        for name, text in quick_rules().items():
            (folder / "rules" / name).write_text(text)
        config = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        del config["alerting"]
        config["scrape_configs"] = [
            {
                **scrape,
                "static_configs": [{"targets": list(targets[scrape["job_name"]])}],
                "file_sd_configs": [{"files": [str(folder / f"{scrape['job_name']}.more.yml")]}],
                "tls_config": {"insecure_skip_verify": True},
            }
            for scrape in config["scrape_configs"]
            if scrape["job_name"] in targets
        ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    programs() / "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "1"},
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + START_LIMIT_S
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                if self._http.get("/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"Prometheus is not ready:\n{self.log()}")

    @contextlib.contextmanager
    def watching_over_tls(self, job: str, address: str) -> Iterator[None]:
        """One more of the job."""
        more = self._folder / f"{job}.more.yml"
        more.write_text(yaml.safe_dump([{"targets": [address], "labels": {"__scheme__": "https"}}]))
        yield
        more.write_text("[]")

    def log(self) -> str:
        return (self._folder / "prometheus.log").read_text()[-3000:]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series, those that are not a number left out."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        found = [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def fired(self, window: str = "5m") -> set[str]:
        """Alerts that have fired within the window."""
        firing = self.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{window}])')
        return {labels["alertname"] for labels, _ in firing}

    def stop(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder / "data", ignore_errors=True)
