"""Run a server that ends with its owner: `python engine_supervisor.py ENVIRONMENT COMMAND …`.

Standard input is a pipe whose write end only the owner holds. When the owner ends, however it ends, the pipe
closes and every process of the server is ended. Standard output tells the owner the server's process id and, at
its end, its exit status; it closes when no process of the server is left. What the server prints goes to standard
error. This file is run as a script and imports nothing of tsd, so that it starts at once.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

TERM_SECONDS = 5.0  # for the server to end by itself; then it is killed
LOOK_SECONDS = 0.2  # between two looks at the server
DEATH_SIGNAL, SUBREAPER = 1, 36  # prctl(2): PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
NOT_STARTED = 127  # exit status of a command that cannot be run, as in a shell


def main(environment: str, command: list[str]) -> None:
    """Run the command until it ends or standard input closes.

    environment: variables that the server alone has, as JSON; null for those that it does not get.
    """
    changes = json.loads(environment)
    own = {name: text for name, text in {**os.environ, **changes}.items() if text is not None}
    if os.fork():  # Ray's workers kill their children when they exit, and this process must outlive its owner
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    _control(SUBREAPER, 1)  # what the server leaves behind becomes a child of this process, and is found below
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            env=own,
            start_new_session=True,
            preexec_fn=lambda: _control(DEATH_SIGNAL, signal.SIGKILL),  # should this process be killed
        )
    except OSError as error:
        with suppress(OSError):  # a full disk
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        _tell("ended", NOT_STARTED)
        return
    _tell("started", server.pid)
    try:
        _wait(server)
        if server.poll() is not None:
            _tell("ended", server.returncode)
    finally:
        end(server)
        _tell("ended", server.returncode)


def _wait(server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server ends or standard input closes."""
    watched = [0]
    if sys.platform == "linux":
        with suppress(OSError):  # an old kernel
            watched.append(os.pidfd_open(server.pid))  # readable once the server has ended
    while server.poll() is None and not select.select(watched, [], [], LOOK_SECONDS)[0]:
        pass


def end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and all that it has started: by request, and after `TERM_SECONDS` by force."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # nothing may interrupt the end
        signal.signal(number, signal.SIG_IGN)
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(TERM_SECONDS)
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    server.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave the loop of `main`, which ends the server. Further signals do not interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _tell(word: str, number: int) -> None:
    with suppress(OSError):  # the owner has ended
        os.write(1, f"{word} {number}\n".encode())


def _control(option: int, value: int) -> None:
    """Set an attribute of this process by prctl(2), which only Linux has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
