"""Where the registry lies: a folder, or any path that fsspec knows (s3://, gs://, memory://, hf://).

Three operations carry it: write an object whole or not at all, create an object only if it is not there yet (this is
what makes concurrent writers safe), and read.  A local folder uses `link(2)` for the exclusive creation; other stores
use fsspec's exclusive mode, which S3 and GCS do with a conditional PUT.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from models.support.errors import CheckFailed, UsageError


class Store(Protocol):
    """Objects by their path relative to the store, parts joined by `/`."""

    where: str

    def create(self, path: str, data: bytes) -> bool:
        """Write an object that must not be there; return False, changing nothing, if it is."""
        ...

    def put_file(self, path: str, source: Path) -> None:
        """Copy a file in; it appears whole or not at all."""
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
def reported(where: str) -> Iterator[None]:
    """Turn a store's failure into one error that says what is kept.

    Raises:
        CheckFailed: the store went away, refused, or is full.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
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

    def put_file(self, path: str, source: Path) -> None:
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


class FsspecStore:
    """Any file system of fsspec."""

    def __init__(self, url: str):
        import fsspec

        self.where = url
        try:
            self.fs: Any
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"cannot open: {error}", field="store", value=url, fix="install its fsspec package"
            ) from error

    def _at(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def create(self, path: str, data: bytes) -> bool:
        with reported(self.where):
            if self.fs.exists(self._at(path)):  # stores without conditional writes: most of the protection, not all
                return False
            self.fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_file(self, path: str, source: Path) -> None:
        with reported(self.where):
            self.fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(source), self._at(path))

    def read(self, path: str) -> bytes:
        with reported(self.where):
            return bytes(self.fs.cat_file(self._at(path)))

    def open(self, path: str) -> IO[bytes]:
        with reported(self.where):
            return self.fs.open(self._at(path), "rb")

    def names(self, path: str) -> list[str]:
        with reported(self.where):
            self.fs.invalidate_cache()
            try:
                return sorted(
                    str(entry).rstrip("/").rpartition("/")[2] for entry in self.fs.ls(self._at(path), detail=False)
                )
            except FileNotFoundError:
                return []

    def delete(self, path: str) -> None:
        with reported(self.where):
            self.fs.rm_file(self._at(path))


def open_store(where: str | Path) -> Store:
    """Return the store at a folder or an fsspec URL.

    Raises:
        UsageError: the scheme is unknown or its package is not installed, or the path is a file.
    """
    scheme = urlsplit(str(where)).scheme
    if len(scheme) > 1 and scheme != "file":
        return FsspecStore(str(where))
    folder = Path(str(where).removeprefix("file://")).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file", field="store", value=str(where), fix="name a folder or an fsspec URL")
    return FolderStore(folder)
