"""Mirror versions, stages and reports into an MLflow model registry, over its REST API: nothing of MLflow is imported.

The mirror is one way.  The registry stays the source: MLflow shows names, versions (its own numbers, ours as tags),
the digest, lineage, accuracy, and the aliases `live` and `canary`; files are not copied.
"""

from __future__ import annotations

from typing import Any

import httpx

from models.registry.registry import Registry
from models.registry.schema import Version
from models.support.errors import CheckFailed, UsageError

API = "/api/2.0/mlflow"
TAG = "fovea."


class Mirror:
    """An MLflow server.

    Args:
        url: its address, `http://127.0.0.1:5000`.
        token: bearer token, when it asks for one.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0):
        if not url.startswith(("http://", "https://")):
            raise UsageError("is not an http(s) address", field="url", value=url)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url.rstrip("/") + API, headers=headers, timeout=timeout_s)
        self._url = url

    def sync(self, registry: Registry, name: str) -> list[str]:
        """Bring MLflow's registered model `name` to the state of ours; return what was done.

        Doing it again changes nothing, and completes what an interruption left.

        Raises:
            UsageError: we have no such name.
            CheckFailed: the server does not answer, or refuses.
        """
        versions, state = registry.versions(name), registry.state(name)
        done: list[str] = []
        if self._post("registered-models/create", {"name": name}, ignore="RESOURCE_ALREADY_EXISTS") is not None:
            done.append(f"registered model {name}")
        theirs = self._versions(name)
        for version in versions:
            tags = self._tags(version, state.stages[version.number], state.reports.get(version.number, []))
            number, present = theirs.get(str(version.number), (None, {}))
            if number is None:
                sent = [{"key": key, "value": value} for key, value in tags.items()]
                source = f"{registry.store.where}/versions/{name}/{version.number:06d}.json"
                body = {"name": name, "source": _source(source), "description": version.note or "", "tags": sent}
                made = self._post("model-versions/create", body)
                number = str(made["model_version"]["version"]) if made else ""
                theirs[str(version.number)] = (number, tags)
                done.append(f"{version.ref} as version {number}")
                continue
            for key, value in tags.items():
                if present.get(key) != value:
                    self._post("model-versions/set-tag", {"name": name, "version": number, "key": key, "value": value})
                    done.append(f"{version.ref}: {key} = {value}")
        done += self._aliases(name, state.stages, {ours: number for ours, (number, _) in theirs.items() if number})
        return done

    def _aliases(self, name: str, stages: dict[int, Any], numbers: dict[str, str]) -> list[str]:
        """Point `live` and `canary` (the newest, where there are several) at their versions, or remove them."""
        model = self._get("registered-models/get", {"name": name})["registered_model"]
        present = {entry["alias"]: str(entry["version"]) for entry in model.get("aliases", [])}
        done = []
        for alias in ("live", "canary"):
            ours = max((n for n, stage in stages.items() if stage == alias), default=None)
            wanted = None if ours is None else numbers[str(ours)]
            if wanted is not None and present.get(alias) != wanted:
                self._post("registered-models/alias", {"name": name, "alias": alias, "version": wanted})
                done.append(f"{name}@{alias} is version {wanted}")
            elif wanted is None and alias in present:
                self._send("DELETE", "registered-models/alias", json={"name": name, "alias": alias})
                done.append(f"{name}@{alias} removed")
        return done

    def _versions(self, name: str) -> dict[str, tuple[str | None, dict[str, str]]]:
        """Return MLflow's versions by our number: their number and tags."""
        found: dict[str, tuple[str | None, dict[str, str]]] = {}
        token = None
        while True:
            asked = {"filter": f"name='{name}'", "max_results": "200"} | ({"page_token": token} if token else {})
            page = self._get("model-versions/search", asked)
            for entry in page.get("model_versions", []):
                tags = {tag["key"]: tag["value"] for tag in entry.get("tags", [])}
                if f"{TAG}version" in tags:
                    found[tags[f"{TAG}version"]] = (str(entry["version"]), tags)
            token = page.get("next_page_token")
            if not token:
                return found

    @staticmethod
    def _tags(version: Version, stage: str, reports: list[dict[str, Any]]) -> dict[str, str]:
        tags = {"version": str(version.number), "digest": version.digest, "stage": stage, "by": version.by}
        tags |= {key: str(value) for key in ("parent", "family", "licence") if (value := getattr(version, key))}
        tags |= {f"data.{name}": digest for name, digest in version.data.items()}
        tags |= {f"accuracy.{r['golden']['name']}": f"{r['accuracy']['value']:.4f}" for r in reports}
        return {f"{TAG}{key}": value for key, value in tags.items()}

    def _get(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        return self._send("GET", path, params=parameters)

    def _post(self, path: str, body: dict[str, Any], ignore: str | None = None) -> dict[str, Any] | None:
        try:
            return self._send("POST", path, json=body)
        except CheckFailed as error:
            if ignore is not None and ignore in str(error):
                return None
            raise

    def _send(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            reply = self._client.request(method, f"/{path}", **more)
            found: dict[str, Any] = reply.json() if reply.content else {}
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise CheckFailed(f"MLflow does not answer: {reason}", field="mlflow", value=self._url) from error
        if reply.status_code != 200:
            told = f"{found.get('error_code', reply.status_code)}: {found.get('message', '')}"
            raise CheckFailed(f"MLflow refuses {path}: {told}", field="mlflow", value=self._url)
        return found


def _source(path: str) -> str:
    """Return where a version lies as MLflow takes it: it refuses local paths, which mean nothing to its users."""
    return path if "://" in path and not path.startswith("file://") else f"fovea-registry:/{path.lstrip('/')}"
