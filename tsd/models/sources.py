"""Where a model comes from: the name of one on a hub, a folder, or a folder on an object store.

Libraries load from a hub or from a folder of this machine only. `local` fetches what lies elsewhere, once for each
machine, so that eight workers of a node do not each hold a copy.
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

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")  # of files that hold weights


def is_uri(source: str) -> bool:
    """Whether a source is a folder on an object store, such as s3://bucket/model, or another URI."""
    return "://" in source


def local(source: str, weights: bool = True) -> str:
    """What a library can load: a hub name or a folder as it is; of a URI, the path of a copy on this machine.

    The copy stays in the machine's temporary folder, one for each state of the source, and is found again by every
    process of this user. weights: whether it is to hold them; config and tokenizer are a few megabytes.
    Raises InputError where there is no such folder or it cannot be read.
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
    """The folder of this user's copies."""
    folder = Path(tempfile.gettempdir(), f"tsd-models-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # somebody else could put another model there
        raise InputError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
    return folder


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Be the only process of this machine that makes this copy. The lock ends with its process."""
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turn what pyarrow or the operating system says of a folder into one line that names it."""
    try:
        yield
    except (OSError, ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the model folder {source} cannot be read: {reason}") from None
