"""Run a command as an ordinary user: `ordinary.py USER STAGE PATH ... -- COMMAND ...`.

The paths are shown where they are even below a directory that only root may enter, as root's home may be: in a mount
namespace of its own, in which such a directory is an empty one with nothing but them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.isolation import kernel


def closed_ancestor(path: Path) -> Path | None:
    """The topmost directory above a path that others may not enter."""
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)


def show(paths: list[Path], stage: Path) -> None:
    """Have everybody reach these paths."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    hidden = {path: closed for path in paths if (closed := closed_ancestor(path)) is not None}
    links = {path: path.readlink() for path in hidden if path.is_symlink()}
    staged = {path: stage / str(number) for number, path in enumerate(sorted(hidden)) if path not in links}
    for path, place in staged.items():
        place.mkdir(exist_ok=True) if path.is_dir() else place.touch()
        kernel.bind(str(path), str(place), read_only=True)
    for closed in dict.fromkeys(hidden.values()):
        kernel.mount("tmpfs", str(closed), "tmpfs", kernel.MS_NOSUID, "mode=0755")
    for path, place in staged.items():
        if not path.exists():
            path.parent.mkdir(0o755, parents=True, exist_ok=True)
            path.mkdir() if place.is_dir() else path.touch()
        kernel.bind(str(place), str(path), read_only=True)
    for path, target in links.items():
        if not path.is_symlink():
            path.parent.mkdir(0o755, parents=True, exist_ok=True)
            path.symlink_to(target)


def main() -> None:
    """Show, change the user, become the command."""
    user, stage, *rest = sys.argv[1:]
    end = rest.index("--")
    os.umask(0o022)
    kernel.unshare(kernel.CLONE_NEWNS, "mounts")
    show([Path(path) for path in rest[:end]], Path(stage))
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
    os.execv(rest[end + 1], rest[end + 1 :])  # noqa: S606 - the words of a command line


if __name__ == "__main__":
    main()
