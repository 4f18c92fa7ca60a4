"""A repository of the Hugging Face hub as the store: hf://USER/REPO or hf://datasets/USER/REPO, and a folder in it.

The hub has no conditional write of one file, but a commit may name the commit that it must follow: what is decided on
one state of the repository is refused on any other (412), looked at again, and decided anew.  All files of a version go
in one commit.  The token is `HF_TOKEN` or that of `hf auth login`; the address is the hub's, or `HF_ENDPOINT`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from models.registry.store import reported
from models.support.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    import httpx

MAIN = "main"
KINDS = {"datasets": "dataset", "models": "model"}
ATTEMPTS = 20
MOVED = (409, 412)  # somebody committed since we looked
CHUNK = 1 << 20
ONLY_SHA: dict[str, Any] = {"expand": ["sha"]}  # of what the hub knows of a repository


class HubStore:
    """See the module's docstring.

    Raises:
        UsageError: the address names no repository.
    """

    def __init__(self, url: str):
        from huggingface_hub import HfApi

        parts = [part for part in url.removeprefix("hf://").split("/") if part]
        kind = KINDS[parts.pop(0)] if parts and parts[0] in KINDS else "model"
        if len(parts) < 2 or "@" in "".join(parts):
            fix = "hf://USER/REPO or hf://datasets/USER/REPO, and a folder in it; the branch is main"
            raise UsageError("names no repository", field="store", value=url, fix=fix)
        self.where, self.root = url, "/".join(parts[2:])
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self.place: dict[str, Any] = {"repo_id": "/".join(parts[:2]), "repo_type": kind, "revision": MAIN}

    def create(self, path: str, data: bytes) -> bool:
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        at = self._at(path)
        with self._reported():
            for _ in range(ATTEMPTS):
                head = str(self.api.repo_info(**self.place, **ONLY_SHA).sha)
                if self.api.file_exists(**{**self.place, "revision": head}, filename=at):
                    return False
                try:
                    self._commit([CommitOperationAdd(at, data)], path, parent_commit=head)
                except HfHubHTTPError as error:
                    if error.response.status_code not in MOVED:
                        raise
                    continue
                return True
            raise CheckFailed("others kept committing", field="store", value=self.where, fix="try again")

    def put_files(self, files: Mapping[str, Path]) -> None:
        from huggingface_hub import CommitOperationAdd

        if files:
            with self._reported():
                self._commit([CommitOperationAdd(self._at(path), source) for path, source in files.items()], "files")

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> IO[bytes]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        with self._reported():
            # not through the hub's cache, which answers with an old copy when the hub does not
            url = hf_hub_url(**self.place, filename=self._at(path), endpoint=self.api.endpoint)
            client = get_session()
            request = client.build_request("GET", url, headers=build_hf_headers())
            reply = client.send(request, stream=True, follow_redirects=True)
            try:
                hf_raise_for_status(reply)
            except EntryNotFoundError:
                raise FileNotFoundError(path) from None
            return io.BufferedReader(_Body(reply, self), CHUNK)

    def names(self, path: str) -> list[str]:
        from huggingface_hub.errors import EntryNotFoundError

        with self._reported():
            try:
                tree = list(self.api.list_repo_tree(**self.place, path_in_repo=self._at(path)))
            except EntryNotFoundError:
                return []
            return sorted(entry.path.rpartition("/")[2] for entry in tree)

    def delete(self, path: str) -> None:
        from huggingface_hub import CommitOperationDelete

        with self._reported():
            self._commit([CommitOperationDelete(self._at(path))], f"remove {path}")

    # -- inside

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if self.root else path

    def _commit(self, operations: list[Any], what: str, **more: Any) -> None:
        self.api.create_commit(**self.place, operations=operations, commit_message=f"fovea registry: {what}", **more)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        import httpx
        from huggingface_hub.errors import RepositoryNotFoundError

        with reported(self.where, httpx.HTTPError):
            try:
                yield
            except RepositoryNotFoundError as error:
                fix = "make it with `hf repo create`, and set HF_TOKEN to a token that may write to it"
                raise UsageError(
                    "no such repository, or no access", field="store", value=self.where, fix=fix
                ) from error


class _Body(io.RawIOBase):
    """The body of a reply as it comes: shards are larger than memory."""

    def __init__(self, reply: httpx.Response, store: HubStore):
        self._reply, self._store = reply, store
        self._pieces, self._rest = reply.iter_bytes(CHUNK), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._store._reported():
            piece = self._rest or next(self._pieces, b"")
        taken = piece[: len(buffer)]
        buffer[: len(taken)], self._rest = taken, piece[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._reply.close()
        super().close()
