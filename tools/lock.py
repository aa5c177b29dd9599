"""Renew `requirements/*.txt`: what setup.cfg allows, resolved to exact versions with hashes, for all Pythons.

Run by `make lock`. The locks name no index: whoever installs uses their own.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
OWN_EXTRA = re.compile(r"modelhost\[([a-z0-9,]+)\]")

UV_VERSION = "uv >=0.8"


def lock_all(uv: list[str]) -> None:
    """Write every lock; later ones are constrained by earlier ones, so shared packages have one version."""
    base, extras = read_setup()
    compile_lock(uv, "bootstrap", [UV_VERSION], [])
    compile_lock(uv, "host", base, [])
    compile_lock(uv, "bundled", expand("train", extras), ["host"])
    compile_lock(uv, "fleet", base + expand("fleet", extras), ["host"])
    compile_lock(uv, "dev", base + expand("dev", extras), ["host", "bundled", "fleet"])
    for name in (name for name in extras if name.startswith("bench")):
        # A peer's own bounds may be older than ours.
        compile_lock(uv, name, expand(name, extras), ["host", "bundled"] if name == "bench" else [])


def read_setup() -> tuple[list[str], dict[str, list[str]]]:
    """The requirements of setup.cfg: the package's own, and those of each extra."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: lines(value) for name, value in setup["options.extras_require"].items()}
    return lines(setup["options"]["install_requires"]), extras


def lines(value: str) -> list[str]:
    """A multi-line value as a list, without comments."""
    return [line.strip() for line in value.splitlines() if line.strip() and not line.strip().startswith("#")]


def expand(name: str, extras: dict[str, list[str]]) -> list[str]:
    """An extra's requirements, those of the extras that it names included."""
    requirements: list[str] = []
    for line in extras[name]:
        own = OWN_EXTRA.fullmatch(line)
        if own:
            for other in own[1].split(","):
                requirements += expand(other, extras)
        else:
            requirements.append(line)
    return requirements


def compile_lock(uv: list[str], name: str, requirements: list[str], constraints: list[str]) -> None:
    """Resolve requirements into `requirements/{name}.txt`."""
    target = LOCKS / f"{name}.txt"
    print(f"locking {target.relative_to(ROOT)} ...", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(requirements) + "\n")
        source.flush()
        command = [*uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", "--upgrade"]
        for constraint in constraints:
            command += ["--constraint", str(LOCKS / f"{constraint}.txt")]
        subprocess.run([*command, "--output-file", str(target), source.name], check=True)
    text = target.read_text()
    target.write_text(f"# Made by `make lock` from setup.cfg.\n{text}")
