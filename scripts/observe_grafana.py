"""Grafana for `make observe`, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from serving.runtime import free_port

ROOT = Path(__file__).resolve().parent.parent


def grafana(start: Callable[..., Any], folder: Path, url: str) -> str | None:
    """Start Grafana with the dashboards, where it is installed, and return its URL.

    Args:
        start: starts a process: command, log file, options of Popen.
        folder: for its settings and data.
        url: Prometheus.
    """
    binary = shutil.which("grafana")
    home = next((p for p in (Path("/usr/share/grafana"), Path("/opt/grafana")) if p.exists()), None)
    if binary is None or home is None:
        return None
    port, own = free_port(), folder / "grafana"
    for kind, data in (
        ("datasources", {"datasources": [{"name": "prometheus", "type": "prometheus", "url": url, "isDefault": True}]}),
        (
            "dashboards",
            {"providers": [{"name": "fovea", "options": {"path": str(ROOT / "helm/fovea/files/dashboards")}}]},
        ),
    ):
        (own / kind).mkdir(parents=True, exist_ok=True)
        (own / kind / "fovea.yaml").write_text(yaml.safe_dump({"apiVersion": 1, **data}))
    settings = {
        "GF_PATHS_PROVISIONING": own, "GF_PATHS_DATA": own / "data", "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": port, "GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }  # fmt: skip
    environment = {**os.environ, **{key: str(value) for key, value in settings.items()}}
    start([binary, "server", "--homepath", str(home)], folder / "grafana.log", env=environment)
    return f"http://127.0.0.1:{port}"
