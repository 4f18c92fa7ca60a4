"""Print what is installed, Python and Debian packages, as a CycloneDX 1.6 bill of materials.  Standard library only."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path


def python_packages() -> list[dict[str, object]]:
    """Return the environment's distributions."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"].lower().replace("_", "-")
        found[name] = {
            "type": "library",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            "bom-ref": f"pypi:{name}",
        }
    return [found[name] for name in sorted(found)]


def debian_packages() -> list[dict[str, object]]:
    """Return the system's packages; none where there is no dpkg."""
    try:
        command = ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\n"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return []
    rows = [line.split("\t") for line in printed.splitlines()]
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{version}?arch={arch}",
            "bom-ref": f"deb:{name}:{arch}",
        }
        for name, version, arch in sorted(rows)
    ]


def main() -> int:
    """Print it."""
    fovea = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    component = {"type": "application", "name": "fovea", "version": fovea, "bom-ref": "fovea"}
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component},
        "components": [*python_packages(), *debian_packages()],
    }
    json.dump(bom, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
