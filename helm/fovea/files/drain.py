"""Empty this pod before it ends, as its preStop hook: `drain.py WAIT_S DRAIN_S`.

Ray is told that this node goes in WAIT_S + DRAIN_S.  Ray Serve then lets the pod's HAProxy fail its health checks, and
starts a replica elsewhere for each one here.  It stops these when theirs runs, after WAIT_S in any case: a replica that
stops is offered nothing new and finishes what runs, at most DRAIN_S.  The program ends when neither replicas nor proxy
are left here, or when the time is up; without the head (the whole cluster ends) after WAIT_S.  Its exit code is 0
whatever happens: nothing can stop a pod from ending.

FQ_RAY_IP and RAY_PORT name the head, as KubeRay sets them.  EVERY_S: seconds between two looks (1).  DASHBOARD_PORT: of
the head (8265).  LOG: the pod's.  Standard library, and the command `ray`.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

LOG = Path(os.environ.get("LOG", "/proc/1/fd/1"))
EVERY_S = float(os.environ.get("EVERY_S", "1"))
HEAD = os.environ.get("FQ_RAY_IP", "127.0.0.1")
GCS_PORT = int(os.environ.get("RAY_PORT", "6379"))
DASHBOARD = f"http://{HEAD}:{os.environ.get('DASHBOARD_PORT', '8265')}/api/serve/applications/"


def say(text: str) -> None:
    """Write into the pod's log: what a hook prints, nobody sees."""
    line = f"drain: {text}\n"
    with contextlib.suppress(OSError), LOG.open("a") as log:  # who may not write there still has stdout
        log.write(line)
    print(line, end="", flush=True)


def own_address() -> str:
    """Return the address that the head sees, by which Ray knows this node."""
    with socket.create_connection((HEAD, GCS_PORT), timeout=5) as connection:
        return str(connection.getsockname()[0])


def here(status: dict, address: str) -> tuple[set[str], int, bool]:
    """Return the ids of this address' nodes, how many replicas they have, and whether a proxy is among them."""
    nodes, replicas, proxy = set(), 0, False
    for application in status.get("applications", {}).values():
        for deployment in (application.get("deployments") or {}).values():
            for replica in deployment.get("replicas") or []:
                if replica.get("node_ip") == address:
                    nodes.add(replica["node_id"])
                    replicas += 1
    for node, one in (status.get("proxies") or {}).items():
        if one.get("node_ip") == address:
            nodes.add(node)
            proxy = True
    return nodes, replicas, proxy


def look(address: str) -> tuple[set[str], int, bool]:
    """Ask the head what is here."""
    with urllib.request.urlopen(DASHBOARD, timeout=5) as answer:
        return here(json.load(answer), address)


def announce(node: str, seconds: float) -> bool:
    """Tell Ray that a node goes; return whether it took note."""
    command = ["ray", "drain-node", f"--address={HEAD}:{GCS_PORT}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the pod is ending"]
    command += [f"--deadline-remaining-seconds={max(0, round(seconds))}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"node {node}: {error}")
        return False
    if done.returncode:
        say(f"node {node}: {(done.stderr.strip().splitlines() or ['ray drain-node failed'])[-1]}")
    return done.returncode == 0


def main() -> int:
    """Announce it, wait, say how it went."""
    wait_s, drain_s = (float(word) for word in sys.argv[1:3])
    began = time.monotonic()
    heard, address, announced, told = began, "", set[str](), ""
    while time.monotonic() - began < wait_s + drain_s:
        try:
            address = address or own_address()
            nodes, replicas, proxy = look(address)
            heard = time.monotonic()
            for node in sorted(nodes - announced):
                if announce(node, wait_s + drain_s - (time.monotonic() - began)):
                    announced.add(node)
            state = f"{replicas} replicas, {'a' if proxy else 'no'} proxy"
            if not nodes:
                say(f"empty after {time.monotonic() - began:.0f} s")
                return 0
        except (OSError, ValueError) as error:
            state = f"{HEAD} does not answer: {error}"
            if time.monotonic() - heard >= wait_s:
                say(f"{state}; ending without it")
                return 0
        if state != told:
            say(state)
            told = state
        time.sleep(EVERY_S)
    say(f"ending with {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
