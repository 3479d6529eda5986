"""Become another program: drop root, die with the parent, exec.

Run as `python child.py PARENT UID GID PROGRAM ARGUMENT…`, a command line that `bound` makes. It is
a program of its own because what it does between fork and exec is not safe in a process with
threads; it imports nothing of ours, so that it starts in no time.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # prctl(2)


def bound(command: Sequence[str], uid: int | None = None, gid: int | None = None) -> list[str]:
    """The command line that starts `command`, as another user if one is given, bound to our life.

    The kernel sends it SIGINT when the *thread* that starts it ends: start it from the main one.
    """
    account = (os.getuid() if uid is None else uid, os.getgid() if gid is None else gid)
    identity = map(str, (os.getpid(), *account))
    return [sys.executable, "-I", "-S", __file__, *identity, *command]


def drop_to(uid: int, gid: int) -> None:
    """Give up root for good: groups, group and user, in the one order the kernel allows."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def die_with(parent: int) -> None:
    """Ask for SIGINT at the parent's death, and exit if that has been.

    It is PostgreSQL's fast shutdown, and our services drain at it. Raises OSError where the kernel
    refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGINT) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) is refused")
    # The parent may have died before the request stood; nobody would then send the signal.
    if os.getppid() != parent:
        sys.exit(1)


def become(parent: int, uid: int, gid: int, command: list[str]) -> None:
    """Replace this process by `command`; raises OSError when it cannot."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getuid() != uid:
        drop_to(uid, gid)
    # After the change of user, which clears the request.
    die_with(parent)
    os.umask(0o077)
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
