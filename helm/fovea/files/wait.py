"""Wait until a RayService has taken its newest spec in and serves it: `wait.py API NAMESPACE NAME SECONDS`.

Ready means: KubeRay has seen the newest generation, its condition Ready is true, no upgrade is in progress, and every
application that the cluster in charge reports is RUNNING.  EVERY_S in the environment: seconds between two looks (2).
Standard library only; API is the Kubernetes API's address.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def state(service: dict) -> str:
    """Return what is still missing; empty: nothing."""
    meta, status = service["metadata"], service.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    if status.get("observedGeneration", 0) < meta["generation"]:
        return f"generation {meta['generation']} is not seen yet"
    if conditions.get("UpgradeInProgress", {}).get("status") == "True":
        return "the upgrade is in progress"
    if conditions.get("Ready", {}).get("status") != "True":
        return f"not ready: {conditions.get('Ready', {}).get('reason', 'no condition yet')}"
    applications = (status.get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    waiting = sorted(name for name, one in applications.items() if one.get("status") != "RUNNING")
    if waiting or not applications:
        return f"applications that do not run yet: {', '.join(waiting) or 'all'}"
    return ""


def main() -> int:
    """Ask until it is, or time is up."""
    api, namespace, name, seconds = sys.argv[1:5]
    headers, context = {}, None
    if (ACCOUNT / "token").exists():
        headers["authorization"] = "Bearer " + (ACCOUNT / "token").read_text()
        context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    request = urllib.request.Request(f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}", headers=headers)
    deadline, told = time.monotonic() + float(seconds), ""
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                missing = state(json.load(answer))
        except (OSError, ValueError) as error:
            missing = f"the Kubernetes API does not answer: {error}"
        if not missing:
            print("ready")
            return 0
        if missing != told:
            print(missing, flush=True)
            told = missing
        if time.monotonic() > deadline:
            print(f"not ready after {seconds} s")
            return 1
        time.sleep(float(os.environ.get("EVERY_S", "2")))


if __name__ == "__main__":
    sys.exit(main())
