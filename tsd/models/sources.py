"""Model sources: a hub name, a local folder, or a folder on an object store.

Libraries load from a hub or a local folder only. `local` downloads the rest once per machine, so that the workers
of a node share one copy.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import ArrowException, fs
from safetensors import SafetensorError

from tsd.errors import InputError
from tsd.storage import folders, keys
from tsd.storage.node_folders import alone, shared_folder

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
    with _listed(source):
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
        place = shared_folder("models") / keys.digest([source, state])
        with alone(place):
            if not _is_whole(place, found):
                shutil.rmtree(place, ignore_errors=True)
                unfinished = place.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                for name, info in found.items():
                    (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(info.path, str(unfinished / name), source_filesystem=files)
                unfinished.rename(place)
    return str(place)


def _is_whole(place: Path, found: Mapping[str, fs.FileInfo]) -> bool:
    """Whether a copy has all files in their size: a cleaner of temporary files may have deleted some."""
    with suppress(FileNotFoundError):
        return all((place / name).stat().st_size == info.size for name, info in found.items())
    return False


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn a library's loading error into an InputError of one line that names the source."""
    a_folder = ("/" in source or source.startswith(".")) and source.count("/") != 1 and not is_uri(source)
    if a_folder and not Path(source).is_dir():
        raise InputError(f"there is no model folder {source}")
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source} is not a model that transformers can load: {reason}") from None


@contextmanager
def _listed(source: str) -> Iterator[None]:
    """Turn an error of pyarrow or the operating system into an InputError of one line that names the folder."""
    try:
        yield
    except (OSError, ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the model folder {source} cannot be read: {reason}") from None
