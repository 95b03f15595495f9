"""Model sources: a hub name, a local folder, or a folder on an object store.

Libraries load from a hub or a local folder only. `local` downloads the rest once per machine, so that the workers
of a node share one copy.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowException, fs

from tsd.errors import InputError
from tsd.storage import folders, keys

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")  # suffixes of weight files


def is_uri(source: str) -> bool:
    """Whether a source is a URI, such as s3://bucket/model."""
    return "://" in source


def local(source: str, weights: bool = True) -> str:
    """A source that libraries can load: a hub name or a folder unchanged, for a URI the path of a local copy.

    The copy is kept in the temporary directory, one for each state of the source, and shared by all processes of
    this user.
    weights: whether to download weight files as well; config and tokenizer are much smaller.
    Raises InputError if the folder does not exist or cannot be read.
    """
    if not is_uri(source):
        return source
    with _readable(source):
        files, root = folders.filesystem(source)
        if isinstance(files, fs.LocalFileSystem):
            return root
        listed = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        found = {
            info.path.removeprefix(f"{root}/"): info
            for info in listed
            if info.type == fs.FileType.File and (weights or Path(info.path).suffix not in WEIGHTS)
        }
        if not found:
            raise InputError(f"there is no model folder {source}")
        state = sorted((name, info.size, info.mtime_ns) for name, info in found.items())
        place = _copies() / keys.digest([source, state])
        with _alone(place):
            if not place.is_dir():
                unfinished = place.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                for name, info in found.items():
                    (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(info.path, str(unfinished / name), source_filesystem=files)
                unfinished.rename(place)
    return str(place)


def _copies() -> Path:
    """The folder of this user's copies. Raises InputError if another user owns it."""
    folder = Path(tempfile.gettempdir(), f"tsd-models-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user could put a different model there
        raise InputError(f"{folder} belongs to another user: set TMPDIR to a folder that you own")
    return folder


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """An exclusive lock on one copy, for the processes of this machine. It is released when its process ends."""
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turn an error of pyarrow or the operating system into an InputError of one line that names the folder."""
    try:
        yield
    except (OSError, ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the model folder {source} cannot be read: {reason}") from None
