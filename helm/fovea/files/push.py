"""Push the figures of an evaluation's report.json to a Pushgateway: `push.py REPORT PUSHGATEWAY STACK MODEL GOLDEN`.

Standard library only.  The series are the ones that the accuracy alerts and the quality dashboard look at.
"""

import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path


def exposition(report: dict, now: float) -> str:
    """Return the report's figures in Prometheus' text format."""
    accuracy, calibration = report["accuracy"], report.get("calibration") or {}
    figures = {
        "fovea_golden_accuracy": ("Share of right answers.", accuracy["value"]),
        "fovea_golden_accuracy_low": ("Lower end of its 95% interval.", accuracy["low"]),
        "fovea_golden_accuracy_high": ("Upper end of its 95% interval.", accuracy["high"]),
        "fovea_golden_items": ("Items asked.", accuracy["n"]),
        "fovea_golden_unanswered": ("Items without an answer.", sum((report.get("errors") or {}).values())),
        "fovea_golden_calibration_error": ("Expected calibration error.", (calibration.get("ece") or {}).get("value")),
        "fovea_golden_confidence": ("Mean confidence.", calibration.get("mean_confidence")),
        "fovea_golden_finished_seconds": ("When it finished, seconds since 1970.", now),
    }
    lines = []
    for name, (text, value) in figures.items():
        if isinstance(value, int | float):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value!r}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Read, push, say so."""
    report, gateway, *names = sys.argv[1:6]
    text = exposition(json.loads(Path(report).read_text()), time.time())
    labels = zip(("stack", "model", "golden"), names, strict=True)
    grouping = "".join(f"/{label}/{urllib.parse.quote(value, safe='')}" for label, value in labels)
    url = f"{gateway.rstrip('/')}/metrics/job/fovea-evaluation{grouping}"
    request = urllib.request.Request(url, text.encode(), {"content-type": "text/plain"}, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(f"{answer.status} from {url}\n{text}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
