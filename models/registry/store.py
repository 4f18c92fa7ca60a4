"""Where the registry lies: a folder, a repository of the hub (hf://), or any path that fsspec knows (s3://, gs://).

Three operations carry it: write an object whole or not at all, create an object only if it is not there yet (this is
what makes concurrent writers safe), and read.  A local folder uses `link(2)` for the exclusive creation; the hub a
commit on the commit that was looked at (`models.registry.hub`); other stores use fsspec's exclusive mode, which S3 and
GCS do with a conditional PUT.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from models.support.errors import CheckFailed, FoveaError, UsageError


class Store(Protocol):
    """Objects by their path relative to the store, parts joined by `/`."""

    where: str

    def create(self, path: str, data: bytes) -> bool:
        """Write an object that must not be there; return False, changing nothing, if it is."""
        ...

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Copy files in, by path; each appears whole or not at all."""
        ...

    def read(self, path: str) -> bytes:
        """Return an object's bytes.  Raises FileNotFoundError."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """Open an object for reading.  Raises FileNotFoundError."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names directly under `path`, sorted; empty when there is none."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object."""
        ...


@contextlib.contextmanager
def reported(where: str, *kinds: type[Exception], writing: bool = False) -> Iterator[None]:
    """Turn a store's failure into one error that says what is kept.

    Args:
        kinds: what else than an OSError the store's own package fails with.
        writing: something that is not there is a failure too (a bucket), and no answer.

    Raises:
        CheckFailed: the store went away, refused, or is full.
    """
    failures: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except FoveaError:
        raise
    except failures as error:
        if isinstance(error, FileExistsError) or (isinstance(error, FileNotFoundError) and not writing):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
        fix = "nothing was registered or promoted; mend the store and run the same command again"
        raise CheckFailed(f"the store failed: {reason}", field="store", value=where, fix=fix) from error


class FolderStore:
    """A local (or mounted) folder."""

    def __init__(self, root: Path):
        self.root, self.where = root, str(root)

    def create(self, path: str, data: bytes) -> bool:
        with reported(self.where):
            beside = self._beside(path)
            try:
                with beside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(beside, self.root / path)  # fails where the name is taken, and never shows half a file
            except FileExistsError:
                return False
            finally:
                beside.unlink(missing_ok=True)
            return True

    def put_files(self, files: Mapping[str, Path]) -> None:
        for path, source in files.items():
            self.put_file(path, source)

    def put_file(self, path: str, source: Path) -> None:
        """Copy one file in."""
        with reported(self.where):
            beside = self._beside(path)
            try:
                with source.open("rb") as read, beside.open("wb") as file:
                    while chunk := read.read(1 << 22):
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                beside.chmod(0o444)
                beside.replace(self.root / path)
            finally:
                beside.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        with reported(self.where):
            return (self.root / path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        with reported(self.where):
            return (self.root / path).open("rb")

    def names(self, path: str) -> list[str]:
        with reported(self.where):
            folder = self.root / path
            return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    def delete(self, path: str) -> None:
        with reported(self.where):
            (self.root / path).unlink(missing_ok=True)

    def _beside(self, path: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".writing-", dir=target.parent)
        os.close(handle)
        return Path(name)


OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")


class FsspecStore:
    """Any file system of fsspec."""

    def __init__(self, url: str):
        import fsspec

        self.where = url
        # object stores have no folders, and their packages would make a bucket whose name was a slip
        self.has_folders = urlsplit(url).scheme not in OBJECT_STORES
        try:
            self.fs: Any
            # a listing that is kept would hide what another writer has added since
            options = {} if self.has_folders else {"use_listings_cache": False}
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"cannot open: {error}", field="store", value=url, fix="install its fsspec package"
            ) from error

    def _reported(self, *, writing: bool = False) -> contextlib.AbstractContextManager[None]:
        # each package has errors of its own for a network that fails: botocore's are no OSError
        return reported(self.where, Exception, writing=writing)

    def _make_folder(self, path: str) -> None:
        if self.has_folders:
            self.fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)

    def _at(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def create(self, path: str, data: bytes) -> bool:
        with self._reported(writing=True):
            if self.fs.exists(self._at(path)):  # stores without conditional writes: most of the protection, not all
                return False
            self._make_folder(path)
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_files(self, files: Mapping[str, Path]) -> None:
        with self._reported(writing=True):
            for path, source in files.items():
                self._make_folder(path)
                self.fs.put_file(str(source), self._at(path))

    def read(self, path: str) -> bytes:
        with self._reported():
            return bytes(self.fs.cat_file(self._at(path)))

    def open(self, path: str) -> IO[bytes]:
        with self._reported():
            return self.fs.open(self._at(path), "rb")

    def names(self, path: str) -> list[str]:
        with self._reported():
            self.fs.invalidate_cache()
            try:
                return sorted(
                    str(entry).rstrip("/").rpartition("/")[2] for entry in self.fs.ls(self._at(path), detail=False)
                )
            except FileNotFoundError:
                return []

    def delete(self, path: str) -> None:
        with self._reported():
            self.fs.rm_file(self._at(path))


def _hub(url: str) -> Store:
    from models.registry.hub import HubStore

    return HubStore(url)


SCHEMES: dict[str, Callable[[str], Store]] = {"hf": _hub}
"""Stores of their own; every other scheme is fsspec's."""


def open_store(where: str | Path) -> Store:
    """Return the store at a folder or an fsspec URL.

    Raises:
        UsageError: the scheme is unknown or its package is not installed, or the path is a file.
    """
    scheme = urlsplit(str(where)).scheme
    if scheme in SCHEMES:
        return SCHEMES[scheme](str(where))
    if len(scheme) > 1 and scheme != "file":
        return FsspecStore(str(where))
    folder = Path(str(where).removeprefix("file://")).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file", field="store", value=str(where), fix="name a folder or an fsspec URL")
    return FolderStore(folder)
