"""Become one of PostgreSQL's programs: drop root, die with the parent, exec.

Run as `python embedded_child.py PARENT UID GID PROGRAM ARGUMENT…`, by `services.embedded_programs`
alone. It is a program of its own because what it does between fork and exec is not safe in a
process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def drop_to(uid: int, gid: int) -> None:
    """Give up root for good: groups, group and user, in the one order the kernel allows."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def die_with(parent: int) -> None:
    """Ask for SIGINT, PostgreSQL's fast shutdown, at the parent's death; exit if that has been.

    Raises OSError where the kernel refuses.
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
