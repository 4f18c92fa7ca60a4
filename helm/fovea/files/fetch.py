"""Copy a checkpoint into the model cache: `fetch.py FROM TO`.

FROM is s3://BUCKET/FOLDER, gs://BUCKET/FOLDER (pyarrow's file systems, which find credentials in the environment or the
machine's role) or a folder.  A file is written beside its place and renamed when it is whole, and what is there is not
read again.  Exit code 1: nothing there, or no config.json among it.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

PIECE = 16 * 2**20


def copy(source: fs.FileSystem, info: fs.FileInfo, target: Path) -> bool:
    """Copy one file unless it is there in its size; return whether anything was read.

    Raises:
        OSError: it ended before its size.
    """
    if target.exists() and target.stat().st_size == info.size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with source.open_input_stream(info.path) as stream, part.open("wb") as file:
        while piece := stream.read(PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if part.stat().st_size != info.size:
        raise OSError(f"{info.path} has {info.size} bytes, {part.stat().st_size} came")
    part.replace(target)
    return True


def main() -> int:
    """Copy all files; say what was done."""
    target, parts = Path(sys.argv[2]), urlsplit(sys.argv[1])
    host = parts.netloc.rpartition("@")[2]  # without a key, if there is one
    given = f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path
    try:
        source, folder = fs.FileSystem.from_uri(sys.argv[1])
        found = source.get_file_info(fs.FileSelector(folder, recursive=True))
        files = sorted((one for one in found if one.type == fs.FileType.File), key=lambda one: one.path)
        base = folder.rstrip("/") + "/"
        names = [one.path.removeprefix(base) for one in files]
        if "config.json" not in names:
            print(f"{given}: {len(files)} files and no config.json among them: no checkpoint")
            return 1
        copied = [copy(source, one, target / name) for one, name in zip(files, names, strict=True)]
    except (OSError, ValueError) as error:
        print(f"{given}: {error}")
        return 1
    size = sum(one.size for one in files)
    print(f"{given} is in {target}: {len(files)} files, {size} bytes, {sum(copied)} files copied now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
