"""Train the bundled models into a model repository.

Run by path; it imports neither modelhost nor anything beside it, except to load features (`feature_io`):

    python -P models/bundled/train.py --repository model_repository

A directory here that holds a `train.py` is a bundled model. Its `train(out)` writes the artifacts and
`golden.json` into the directory `out`, returns its metrics on rows that it did not train on, and raises
RuntimeError when they are below its floor. Where a `features.toml` lies beside it, its `write_features(out)` writes
`<view>.csv` for each view; they are loaded, and features.toml and its store lie beside the models. The libraries are
imported only when there is something to train: finding everything present takes milliseconds.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
VERSION = "1"
FEATURES = "features.toml"
STORE = "features.sqlite"  # as features.toml names it
WORKSPACE = ".training"  # in the repository, so that a finished package is published by one rename
PACKAGE_FILES = ("model.toml", "README.md", "model.py", "requirements.txt")
# One thread: with more, sums are added in another order and two trainings differ in their last digits.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

FAILED, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes: training failed, the operator has to act, Ctrl-C

Train = Callable[[Path], dict[str, float]]


class RefusedError(Exception):
    """Training cannot start here; the message says what to change."""


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, report each model on one line, and return the exit code."""
    options = parse(arguments)
    try:
        with workspace(options.repository) as building:
            for name in options.names:
                package = options.repository / name / VERSION
                if package.exists() and not options.force:
                    print(f"{name}: present in {package}")
                else:
                    report(name, building / name, package)
                if (HERE / name / FEATURES).exists():
                    provide_features(name, building / f"{name}.features", options.repository)
    except RefusedError as error:
        return fail(str(error), REFUSED)
    except ModuleNotFoundError as error:
        return fail(f"the Python module {error.name!r} is missing: pip install 'modelhost[train]'", REFUSED)
    except OSError as error:  # without strerror: a shared library that a module needs, such as libgomp.so.1
        return fail(f"{error.filename}: {error.strerror}" if error.strerror else str(error), REFUSED)
    except RuntimeError as error:
        return fail(str(error), FAILED)
    except KeyboardInterrupt:
        return fail("interrupted; the model in training is left out, finished ones stay", INTERRUPTED)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line: `repository`, `force`, and `names` (all bundled models unless named)."""
    known = sorted(path.parent.name for path in HERE.glob("*/train.py"))
    parser = argparse.ArgumentParser(
        prog="train.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the bundled models into a model repository: DIR/<name>/1/ holds model.toml,\n"
        "README.md, the artifacts and golden.json. A model that is there already is left as it is. Features that a\n"
        "model is given by the host are loaded into DIR/features.sqlite, which DIR/features.toml describes.",
        epilog="bundled models: " + ", ".join(known) + "\n\n"
        "examples:\n"
        "  train.py --repository model_repository                  train every missing model\n"
        "  train.py --repository model_repository --force digits   train digits again and replace it\n\n"
        "A package appears complete or not at all; what a killed run left is removed by the next one.\n"
        "exit codes: 0 all models are there; 1 a model came out worse than its floor; 2 something here\n"
        "has to be changed first (a missing library, a directory that cannot be written)",
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="made if it is missing")
    parser.add_argument("--force", action="store_true", help="train again what is present, and replace it")
    parser.add_argument("names", nargs="*", metavar="NAME", help="train only these (default: all)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no bundled model {unknown[0]!r}; there are: {', '.join(known)}")
    options.names = list(dict.fromkeys(options.names)) or known
    return options


@contextmanager
def workspace(repository: Path) -> Iterator[Path]:
    """Lock the repository and give an absent directory in it for packages being built; remove it at the end.

    The lock ends with this process, however that dies, so a workspace found under it belongs to a dead run.
    """
    repository.mkdir(parents=True, exist_ok=True)
    lock = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    building = repository / WORKSPACE
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"{repository}: another training run is at work here") from None
        remove(building)
        try:
            yield building
        finally:
            remove(building)
    finally:
        os.close(lock)


def remove(directory: Path) -> None:
    """Delete a directory if it is there; a failure is raised, not hidden."""
    if directory.exists():
        shutil.rmtree(directory)


def report(name: str, building: Path, package: Path) -> None:
    """Build one model and complete its line of progress, also when that fails."""
    print(f"{name}: training ...", end=" ", flush=True)
    outcome = "stopped"
    try:
        outcome = build(name, building, package)
    finally:
        print(outcome, flush=True)


def build(name: str, building: Path, package: Path) -> str:
    """Train one model in `building`, publish it as `package`, and describe the result."""
    start = time.monotonic()
    building.mkdir(parents=True)
    for file in PACKAGE_FILES:
        if (HERE / name / file).exists():
            shutil.copyfile(HERE / name / file, building / file)
    metrics = load_train(name)(building)
    publish(building, package)
    measured = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
    return f"{measured} on held-out rows, {time.monotonic() - start:.1f} s"


def provide_features(name: str, building: Path, repository: Path) -> None:
    """Load a model's features into a store beside the models. A features.toml that is there is somebody's already."""
    wanted, present = HERE / name / FEATURES, repository / FEATURES
    if present.exists():
        if present.read_bytes() == wanted.read_bytes():
            print(f"features: present in {present}")
        else:
            print(f"features: {present} left as it is; {name} needs the views of {wanted}")
        return
    print("features: loading ...", end=" ", flush=True)
    outcome = "stopped"
    try:
        start = time.monotonic()
        building.mkdir(parents=True)
        shutil.copyfile(wanted, building / FEATURES)
        load_module(name).write_features(building)
        sys.path.append(str(HERE.parents[1]))  # modelhost's own code, wherever it is: this environment has none of it
        from feature_io.loading.whole import load_files
        from host.protocol.errors import ModelhostError

        try:
            rows = load_files(building / FEATURES, {path.stem: path for path in building.glob("*.csv")})
        except ModelhostError as error:
            raise RuntimeError(f"features: {error}") from error
        # What names the store is there last: until then nobody reads it, and the next run makes it again.
        (building / STORE).replace(repository / STORE)
        (building / FEATURES).replace(present)
        outcome = f"{rows} rows in {repository / STORE}, {time.monotonic() - start:.1f} s"
    finally:
        print(outcome, flush=True)


def load_train(name: str) -> Train:
    """Import a model's training."""
    train: Train = load_module(name).train
    return train


def load_module(name: str) -> ModuleType:
    """Import `<name>/train.py` by its path, in a process that computes with one thread."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"), ORT_DISABLE_TELEMETRY="1")
    spec = importlib.util.spec_from_file_location(f"train_{name}", HERE / name / "train.py")
    assert spec is not None and spec.loader is not None  # noqa: S101  (the name ends in .py)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def publish(built: Path, package: Path) -> None:
    """Put a finished package in its place by renaming; one that is there goes away with the workspace.

    Killed between the two renames, the model is absent, and the next run trains it.
    """
    package.parent.mkdir(exist_ok=True)
    if package.exists():
        package.rename(built.with_name(built.name + ".old"))
    built.rename(package)


def fail(message: str, code: int) -> int:
    """Say in one line on stderr why the run ends; give the exit code back."""
    print(f"train.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
