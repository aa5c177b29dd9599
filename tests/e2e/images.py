"""The disk of a bare Debian 12 host, and what such a host would get from Debian's servers: both made once a machine.

image = base_image()
image.root       a directory: systemd, sshd, python3, iproute2 and no more
image.packages   a flat apt repository with what the roles install, and all that it needs
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache import digest_of, made_once

SUITE: Final = "bookworm"
BARE: Final = ("systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "procps", "ca-certificates")
"""What is on a host beside Debian's essential packages: what an installed Debian has that Ansible and systemd need."""

INSTALLABLE: Final = (
    "python3-venv",
    "python3-apt",  # which Ansible's `apt` installs for itself
    "haproxy",
    "libgomp1",
    "prometheus",
    "logrotate",
    "rsyslog",
    "curl",
    "openssl",
    "socat",
)
"""What the roles may install on a host: in the repository, with all that it needs."""

MAKE_LIMIT_S: Final = 600.0

INITWRAP: Final = """\
#!/bin/sh
# Process 1 of a host. cgroup v1 controllers arrive read-only, and systemd would ignore MemoryMax= without a word.
for controller in /sys/fs/cgroup/*/; do
    mount -o remount,rw,bind "$controller" 2>/dev/null
done
# Settings of the kernel that all hosts and the machine share: a host writes to files of its own instead.
mkdir -p /run/sysctl
for name in {shared}; do
    [ -e "/proc/sys/$name" ] || continue
    copy="/run/sysctl/$(echo "$name" | tr / .)"
    cat "/proc/sys/$name" >"$copy" && mount --bind "$copy" "/proc/sys/$name"
done
exec /lib/systemd/systemd "$@"
"""

SHARED_SETTINGS: Final = (
    "fs/file-max",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "fs/nr_open",
    "kernel/core_pattern",
    "kernel/pid_max",
    "kernel/threads-max",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/swappiness",
)
"""Kernel settings that a host can write without anything happening: without a namespace, they are the machine's."""

SETTLE: Final = """\
set -eu
# logind's sessions never end where systemd runs on cgroup v1, and hang the shutdown.
ln -s /dev/null "$1/etc/systemd/system/systemd-logind.service"
# What has no business on a host that is there for a minute.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer \\
    getty@.service console-getty.service systemd-timesyncd.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
# Every host has keys and an identity of its own.
rm -f "$1"/etc/ssh/ssh_host_*
: >"$1/etc/machine-id"
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What hosts start from. Read-only: a host writes into a layer above it."""

    directory: Path

    @property
    def root(self) -> Path:
        """The disk."""
        return self.directory / "root"

    @property
    def packages(self) -> Path:
        """The apt repository, for a line `deb [trusted=yes] http://... ./`."""
        return self.directory / "packages"


def base_image() -> Image:
    """Give the image; made if it is not there (a minute)."""
    return Image(made_once("image", digest_of(Path(__file__).read_bytes(), mirror()), _make))


def mirror() -> str:
    """Say where this machine gets Debian from, in the form of its own list; empty for Debian's own servers."""
    for name in ("sources.list.d/debian.sources", "sources.list"):
        path = Path("/etc/apt", name)
        if path.is_file() and f" {SUITE}" in (text := path.read_text()):
            return text
    return ""


def _make(directory: Path) -> None:
    image = Image(directory)
    image.packages.mkdir()
    initwrap = directory / "initwrap"
    initwrap.write_text(INITWRAP.format(shared=" ".join(SHARED_SETTINGS)))
    initwrap.chmod(0o755)
    settle = directory / "settle"
    settle.write_text(f"#!/bin/sh\n{SETTLE}")
    settle.chmod(0o755)
    sources = directory / "sources"
    sources.write_text(mirror())
    fetch = directory / "fetch"
    # apt of this machine, on the lists and the packages of the new disk: it names exactly what a host lacks.
    fetch.write_text(
        '#!/bin/sh\nset -eu\nrm -f "$1"/var/cache/apt/archives/*.deb\n'
        'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get install --yes --quiet --download-only --no-install-recommends '
        f"{' '.join(INSTALLABLE)}\n"
        f'cp "$1"/var/cache/apt/archives/*.deb {image.packages}\n'
    )
    fetch.chmod(0o755)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(BARE)}"]
    command += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*"]
    command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    command += ["--aptopt=APT::Install-Recommends false"]
    command += [f'--customize-hook={fetch} "$1"', f'--customize-hook={settle} "$1"']
    command += [f'--customize-hook=cp {initwrap} "$1/sbin/initwrap"']
    command += [SUITE, str(image.root)]
    if sources.stat().st_size:
        command.append(str(sources))
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MAKE_LIMIT_S,
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, f"mmdebstrap failed:\n{done.stdout[-4000:]}"
    for path in (initwrap, settle, sources, fetch):
        path.unlink()
    write_index(image.packages)


def write_index(repository: Path) -> None:
    """Write the file `Packages` of a directory of Debian packages."""
    stanzas = []
    for path in sorted(repository.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "-f", path], capture_output=True, text=True, timeout=60, check=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stanzas.append(
            f"{fields.stdout.strip()}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n"
        )
    (repository / "Packages").write_text("\n".join(stanzas))


def missing() -> str | None:
    """Say what this machine lacks for making an image, and what would help; None if nothing."""
    packages = {"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "apt-get": "apt"}
    lacking = [package for program, package in packages.items() if shutil.which(program) is None]
    if not lacking:
        return None
    return f"an image of Debian needs {', '.join(lacking)}; as root, once: apt-get install {' '.join(lacking)}"
