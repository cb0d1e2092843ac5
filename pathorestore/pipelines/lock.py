"""Locks between processes."""

import fcntl
import os
import socket
from pathlib import Path

from pathorestore.pipelines.batch import JobLocked


def lock_file(lock_path: Path, path: Path, *, doing: str = "restored") -> int:
    """A lock that the system lets go of when this process ends, however it ends; the handle of its file, which lets go when closed.

    doing: the word for what is done to `path`. Raises JobLocked if another process has it, OSError if it cannot be made.
    """
    handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock_path.exists() or not os.path.samestat(os.fstat(handle), lock_path.stat()):
            raise BlockingIOError  # who had it has just removed it, and another may have made a new one
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError:
        who = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise JobLocked(11, f"is being {doing} by {who}; wait for it, or stop it", str(path)) from None
    except OSError as error:
        os.close(handle)
        raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(lock_path)) from error
    return handle
