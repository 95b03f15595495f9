"""Check the requirements of a command before anything is computed or paid for.

Used by `tsd check` and at the start of every command.

`before_ray` checks what this machine can determine: keys, addresses, models, packages, local GPUs. `on_cluster`
checks the machines of a joined cluster; `nodes` checks the requirements of each node. A finding is one line with
what, where and the fix. Stages that an earlier start has finished are not checked.
"""

import importlib.util
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tsd.cluster.demands import Finding, Machines, demands, room, shortage, this_machine, unfinished
from tsd.errors import InputError, TsdError, UserError
from tsd.models import sources
from tsd.recipe import ApiTeacher, LocalTeacher, ModelTeacher, Recipe, Student, VllmTeacher, additions
from tsd.storage import folders, manifests
from tsd.study import identity
from tsd.tasks import modules

WHOLE = ("generate", "annotate", "curate", "train", "evaluate", "report")  # stages of `study`
TRACKED = {"train", "evaluate", "report", "teacher"}
ANSWER_SECONDS = 5.0  # timeout of a connection
SQLITE, HEADER = "sqlite:///", b"SQLite format 3\0"
PORTS = {"http": 80, "https": 443}


def before_ray(recipe: Recipe, stage: str, asks: bool = False) -> Iterator[Finding]:
    """Yield the findings that need no Ray. stage: a command's name, or `study`.

    asks: check the teacher even if all rows have replies.
    """
    asked = set(WHOLE) if stage == "study" else {stage}
    yield from _outside(recipe)
    yield _found("storage", lambda: _storage(recipe))
    for one in recipe.by_teacher.values() or [recipe]:
        if "annotate" in asked:
            yield from _teacher(one, asks)
        if "curate" in asked and one.curation.nli and not _is_finished(f"{one.folder}/examples"):
            yield _found("NLI model", lambda one=one: _nli(one))
    if "train" in asked:
        yield from _students(recipe)
    if "evaluate" in asked and recipe.evaluation.vllm:
        yield _found("packages", lambda: _vllm("evaluation.vllm=true"))
    if asked & TRACKED:
        yield _found("MLflow", lambda: _tracking(recipe))
    from tsd.cluster.session import own_ray

    if own_ray():
        yield from room(demands(recipe, asked), [this_machine(recipe, asked)])


def on_cluster(recipe: Recipe, stage: str) -> Iterator[Finding]:
    """Yield the findings about the machines of the joined cluster."""
    from tsd.cluster import nodes

    asked = set(WHOLE) if stage == "study" else {stage}
    there = [Machines(f"node {address}", resources, 1) for address, resources in nodes.machines()]
    to_come = nodes.node_types()
    if to_come is None:  # an autoscaler that does not expose its node types
        unknown = [demand for demand in demands(recipe, asked) if shortage(demand, there)]
        for demand in unknown:
            yield Finding("machines", f"{demand.what}: no running node has them, but the autoscaler may start one")
        return
    kinds = [Machines(f"node type {name}", resources, most) for name, (resources, most) in to_come.items()]
    yield from room(demands(recipe, asked), [*there, *kinds])


def of_cluster(recipe: Recipe, stage: str) -> Iterator[Finding]:
    """Join the cluster, if there is one. Yields the findings about its machines and each of its nodes."""
    from tsd.cluster import nodes
    from tsd.cluster.session import own_ray, session

    if own_ray():
        return
    with session():
        yield from on_cluster(recipe, stage)
        try:
            needed = model_folders(recipe), packages(recipe, stage)
            with nodes.watched(recipe.folder, *needed, print, recipe.outside):
                yield Finding("nodes", f"all {len(nodes.machines())} see {recipe.folder} and have what it takes")
        except UserError as error:
            for line in str(error).splitlines():
                yield Finding("nodes", line, ok=False)


def problems(findings: Iterable[Finding]) -> str:
    """Return the problems among findings, one line each; empty if there are none."""
    return "\n".join(f"{found.what}: {found.said}" for found in findings if not found.ok)


def require(findings: Iterable[Finding]) -> None:
    """Raise InputError, with one line per problem, if there is any."""
    if said := problems(findings):
        raise InputError(said)


def model_folders(recipe: Recipe) -> list[str]:
    """Return the model folders that the recipe names by an absolute path: all nodes must have them."""
    named = [student.source for student in recipe.students.models]
    named += [student.distil.teacher for student in recipe.students.models if student.distil]
    for teacher in recipe.teachers.values() or [recipe.teacher]:
        if isinstance(teacher, VllmTeacher) and teacher.train is None:
            named.append(teacher.model)
    if recipe.curation.nli:
        named.append(recipe.curation.nli.model)
    return sorted({name for name in named if name and os.path.isabs(name) and os.path.isdir(name)})


def packages(recipe: Recipe, stage: str) -> list[str]:
    """Return the modules that every node needs besides tsd's dependencies."""
    teachers = recipe.teachers.values() or [recipe.teacher]
    asked = set(WHOLE) if stage == "study" else {stage}
    engine = "annotate" in asked and any(
        isinstance(one, VllmTeacher) and one.engine_python is None for one in teachers
    )
    chosen = any(identity.engine_of(recipe, student) == "vllm" for student in recipe.students.models)
    return ["vllm"] if engine or ("evaluate" in asked and (recipe.evaluation.vllm or chosen)) else []


def _outside(recipe: Recipe) -> Iterator[Finding]:
    """Name the task outside tsd and the plugins, which were checked when the recipe was loaded."""
    if ":" in recipe.task:
        task = recipe.asks
        facets = f"{len(task.facets)} facet{'s' * (len(task.facets) != 1)}, version {task.version}"
        yield Finding("task", f"{recipe.task}: {task.name}, {facets}")
    for name in recipe.plugins:
        added = additions.of_module(modules.load(name).__name__)
        yield Finding("plugin", f"{name}: {', '.join(added) or 'loaded'}")


def _storage(recipe: Recipe) -> str:
    folders.require_writable(recipe.folder, recipe.bytes_needed)
    return f"{recipe.folder} is writable"


def _teacher(recipe: Recipe, asks: bool) -> Iterator[Finding]:
    """Check that the teacher is available, if there are rows left to annotate."""
    teacher = recipe.teacher
    if not isinstance(teacher, ModelTeacher) or (_is_finished(f"{recipe.folder}/annotations") and not asks):
        return
    if isinstance(teacher, ApiTeacher):
        yield _found("key", lambda: _key(teacher))
        reached = partial(reach, teacher.base_url, "teacher.base_url", direct=teacher.is_local)
        yield _found("teacher", lambda: f"{teacher.base_url} {reached()}")
    elif isinstance(teacher, VllmTeacher):
        yield _found("packages", lambda: _engine(teacher))
        if teacher.train is None:
            yield _found("teacher", lambda: _folder(teacher.model))
    elif isinstance(teacher, LocalTeacher) and teacher.train is None:
        yield _found("teacher", lambda: _whole_model(teacher.model))


def _key(teacher: ApiTeacher) -> str:
    from tsd.teachers.api.connection import require_key

    require_key(teacher)
    return f"${teacher.key_variable} is set" if teacher.key_variable else "not needed"


def _folder(model: str) -> str:
    """Check that a model folder contains a model. Names of a model hub are not checked."""
    if sources.is_uri(model) or model.startswith((".", "/", "~")):
        if folders.read_json(model, "config.json") is None:
            raise InputError(f"teacher.model: {model} is not the folder of a model: it holds no config.json")
        return f"{model} is a model's folder"
    return f"{model} is looked up when the engine starts"


def _whole_model(model: str) -> str:
    _folder(model)
    from tsd.models.tokenizer import load_tokenizer
    from tsd.models.weights import require_whole

    load_tokenizer(model)
    require_whole(model)
    return f"{model} is complete"


def _nli(recipe: Recipe) -> str:
    assert recipe.curation.nli
    from tsd.curation.nli import require_contradiction  # torch and transformers

    require_contradiction(recipe.curation.nli.model)
    return f"{recipe.curation.nli.model} detects contradictions"


def _students(recipe: Recipe) -> Iterator[Finding]:
    """Check that unfinished students can load their sources and learn from their teachers."""
    left = unfinished(recipe)
    for source in sorted({student.source for student in left if student.source}):
        yield _found("student", lambda source=source: _usable(source))
    for student in left:
        if student.distil and recipe.students.teacher_of(student) is None:
            yield _found("student", lambda student=student: _can_teach(student))


def _usable(source: str) -> str:
    from tsd.models.students import require_usable  # torch and transformers

    require_usable(source)
    return f"{source} can be trained and decoded"


def _can_teach(student: Student) -> str:
    """Check that an already trained model can teach a student, and that their vocabularies match."""
    from tsd.models.students import require_usable
    from tsd.models.tokenizer import load_tokenizer
    from tsd.training.distillation import require_same_tokens

    assert student.distil
    given = require_usable(student.distil.teacher)
    if student.source:
        require_same_tokens(student.name, load_tokenizer(student.source), student.distil.teacher, given)
    return f"{student.distil.teacher} can teach {student.name}"


def _engine(teacher: VllmTeacher) -> str:
    from tsd.teachers.vllm_engine import require_python

    require_python(teacher)
    return f"{teacher.engine_python} starts the engine" if teacher.engine_python else "vllm is installed"


def _vllm(field: str) -> str:
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"{field} needs vLLM, which is not installed here: run `pip install -c constraints-vllm.txt -e "
            "'.[vllm]'` in tsd's checkout, in a separate environment"
        )
    return "vllm is installed"


def _tracking(recipe: Recipe) -> str:
    uri = recipe.tracking.uri
    if urlsplit(uri).scheme in PORTS:
        return f"{uri} {reach(uri, 'tracking.uri')}"
    if uri.startswith(SQLITE):
        _require_database(Path(uri.removeprefix(SQLITE)), uri)
    return uri if "@" not in uri else urlsplit(uri).scheme


def _require_database(path: Path, uri: str) -> None:
    """Raise InputError unless the file is an SQLite database or can be created."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(HEADER)) != HEADER:
                raise InputError(f"tracking.uri {uri}: {path} is not an SQLite database: name another file")
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not os.access(there, os.W_OK) or (there != path and not there.is_dir()):
        raise InputError(f"tracking.uri {uri}: {there} cannot be written to: name another file")


def reach(url: str, field: str, direct: bool = False) -> str:
    """Open a connection to a server and close it without a request. Raises InputError with the cause.

    direct: without the environment's proxy, as the client of the server does.
    """
    parts = urlsplit(url)
    host, port, secure = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443), parts.scheme == "https"
    proxy = None if direct else urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port, secure = via.hostname or "", via.port or 80, False
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            if secure:
                ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
    except socket.gaierror:
        reason = f"the host {host} is not known"
    except ConnectionRefusedError:
        reason = f"nothing listens on port {port} of {host}"
    except TimeoutError:
        reason = f"{host}:{port} did not accept a connection within {ANSWER_SECONDS:g} s"
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate of {host} is not accepted: {error.verify_message}"
    except ssl.SSLError as error:
        reason = f"{host}:{port} does not speak TLS: {error.reason or error}"
    except (OSError, UnicodeError) as error:
        reason = f"{host}:{port} cannot be reached: {getattr(error, 'strerror', None) or error}"
    else:
        return "accepts connections"
    raise InputError(f"{field} {url}: {reason}; check the address, or start the server")


def _is_finished(folder: str) -> bool:
    """Whether a table is finished, according to its manifest."""
    try:
        return manifests.read_manifest(folder) is not None
    except (TsdError, OSError, ValueError):
        return False


def _found(what: str, check: Callable[..., str]) -> Finding:
    """Run one check. An error for the user becomes its finding."""
    try:
        return Finding(what, check())
    except UserError as error:
        return Finding(what, str(error), ok=False)
    except Exception as error:  # an error raised by a library about its input
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(what, f"{type(error).__name__}: {said}", ok=False)


def report(findings: Iterable[Finding], say: Callable[[str], Any]) -> bool:
    """Print each finding as it arrives. Returns whether there is no problem."""
    fine = True
    for found in findings:
        say(f"{'ok     ' if found.ok else 'problem'}  {found.what:<10} {found.said}")
        fine &= found.ok
    return fine
