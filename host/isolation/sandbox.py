"""A process' own view of the file system, and the namespaces around it.

The view is a small tmpfs with the system's read-only directories, what the plan names, a /proc that shows no other
user's processes, the harmless devices, and a /tmp of its own. What is not in it cannot be read, written or connected
to, whatever user the process has.
"""

from __future__ import annotations

import os
from typing import Final

from host.isolation import kernel
from host.isolation.plan import ViewPlan

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/sys/devices/system")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_RESOLVER: Final = "/run/systemd/resolve"
"""Where /etc/resolv.conf may point to."""

_ROOT: Final = "root"
_TMPFS_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_PROC_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_RDONLY
_TREE_BYTES: Final = 1 << 20
"""Directories and links only."""


def leave_namespaces(*, view: bool, network: bool) -> None:
    """Get namespaces of its own: mounts and shared memory for a view, an empty network unless `network`.

    As an ordinary user through a user namespace, in which it keeps its own number and gets no other.
    """
    flags = (kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC if view else 0) | (0 if network else kernel.CLONE_NEWNET)
    names = " and ".join([*(["mounts"] if view else []), *([] if network else ["network"])])
    if not flags:
        return
    user, group = os.geteuid(), os.getegid()
    if user != 0:
        kernel.unshare(flags | kernel.CLONE_NEWUSER, f"{names} as an ordinary user")
        kernel.write("/proc/self/setgroups", "deny")
        kernel.write("/proc/self/uid_map", f"{user} {user} 1")
        kernel.write("/proc/self/gid_map", f"{group} {group} 1")
    else:
        kernel.unshare(flags, names)


def enter_view(view: ViewPlan, *, network: bool) -> None:
    """Build the view and make it the root."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    top = view.mount_point
    kernel.mount("tmpfs", top, "tmpfs", _TMPFS_FLAGS, f"mode=0755,size={_TREE_BYTES}")
    root = f"{top}/{_ROOT}"
    os.mkdir(root, 0o755)
    for path in (*_SYSTEM, *([_RESOLVER] if network else [])):
        _show(root, path, read_only=True)
    _tmpfs(root + "/tmp", view.tmp_bytes)
    _devices(root + "/dev", view.tmp_bytes)
    _processes(root + "/proc")
    # Shorter paths first: what is below another one must come on top of it.
    for path, read_only in sorted([*((p, True) for p in view.read_only), *((p, False) for p in view.writable)]):
        _show(root, path, read_only=read_only, needed=True)
    kernel.mount("", top, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _TMPFS_FLAGS)
    kernel.pivot_root(top)
    # Below the top of the mount: who has another root than that can make no user namespace (user_namespaces(7)).
    os.chroot(f"/{_ROOT}")
    os.chdir("/")


def _show(root: str, path: str, *, read_only: bool, needed: bool = False) -> None:
    """Put a path of the host at the same place in the view; a link of the system's stays one."""
    target = root + path
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, 0o755, exist_ok=True)
    elif needed or os.path.exists(path):
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
    else:
        return
    kernel.bind(path, target, read_only=read_only)


def _tmpfs(path: str, size_bytes: int) -> None:
    os.makedirs(path, 0o755, exist_ok=True)
    kernel.mount("tmpfs", path, "tmpfs", _TMPFS_FLAGS, f"mode=1777,size={size_bytes}")


def _devices(path: str, size_bytes: int) -> None:
    os.makedirs(path, 0o755)
    for name in _DEVICES:
        os.close(os.open(f"{path}/{name}", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
        kernel.bind(f"/dev/{name}", f"{path}/{name}", read_only=False)
    _tmpfs(path + "/shm", size_bytes)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{path}/{name}")


def _processes(path: str) -> None:
    """A /proc without other users' processes; where that is not allowed, the host's.

    Read-only: through it a process could make itself dearer to the kernel when memory runs out (`oom_score_adj`).
    """
    os.makedirs(path, 0o555)
    try:
        kernel.mount("proc", path, "proc", _PROC_FLAGS, "hidepid=2")
    except OSError:
        kernel.bind("/proc", path, read_only=True)
