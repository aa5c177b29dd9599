"""`modelhost gc`: gives back what old versions, their environments and killed commands take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from host.cli.options import load, settings_options

if TYPE_CHECKING:
    from host.config.deployment import Deployment
    from host.config.settings import HostSettings
    from host.environments import EnvironmentStore
    from host.repository import ModelRepository
    from host.retention import StoredVersion, Version

_NEWEST: Final = 2
_NEWEST_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing needs, each with the bytes that it takes."""

    versions: list[tuple[StoredVersion, int]]
    environments: list[tuple[str, int]]
    leftovers: list[tuple[Path, int]]

    @property
    def freed_bytes(self) -> int:
        """All of it."""
        return sum(size for group in (self.versions, self.environments, self.leftovers) for _, size in group)


@click.command("gc")
@click.option(
    "--keep",
    "newest",
    type=click.IntRange(0, _NEWEST_MAX),
    default=_NEWEST,
    show_default=True,
    metavar="N",
    help="how many of each model's newest versions stay, deployed or not",
)
@click.option("--all", "by_hand", is_flag=True, help="remove packages without manifest.json too: those made by hand")
@click.option("--dry-run", is_flag=True, help="show what would be removed, and remove nothing")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options("repository", "deployment", "features", "run_dir", "environments")
def command(
    newest: int, by_hand: bool, dry_run: bool, as_json: bool, config_file: str | None, **flags: str | None
) -> None:
    """Remove old versions of models, the environments that only they needed, and what killed commands left.

    A version stays if it is deployed (what up would run, and what runs or ran last in run_dir), if a rollback would go
    back to it, or if it is among the N newest of its model. Only packages that came through `modelhost add` are
    removed, which have a manifest.json: one that was made by hand may be nowhere else, and goes with --all only.

    Asks nothing. Removes nothing if the deployment or a package that stays is wrong. It knows of this host's deployment
    alone: where hosts share a repository, what only another one runs is not safe from it.
    """
    settings = load(config_file, flags).settings
    garbage = collect(settings, newest, by_hand=by_hand, dry_run=dry_run, kept=_ways_back(settings))
    if as_json:
        from host.cli.printing import print_json

        print_json(_document(garbage, settings, dry_run=dry_run))
    else:
        _print(garbage, dry_run=dry_run)


def collect(
    settings: HostSettings, newest: int, *, by_hand: bool, dry_run: bool, kept: Iterable[Version] = ()
) -> Garbage:
    """Find what nothing needs, and remove it but in a dry run. `kept`: versions that stay for other reasons.

    Raises `ConfigError` before anything is removed, if it cannot be known what is needed.
    """
    from host.cli.build import repository_keys
    from host.environments import EnvironmentStore
    from host.repository import ModelRepository, freed_bytes
    from host.retention import deployed_versions, unneeded_versions

    repository = ModelRepository(settings.repository)
    store = EnvironmentStore(settings.environments)
    stored = repository.versions()
    deployments = _deployments(settings, anything=bool(stored))
    needed = deployed_versions(*deployments) | set(kept)
    old = unneeded_versions(stored, needed, newest, by_hand=by_hand)
    keys = repository_keys(repository.path(one.name, one.version) for one in stored if one not in old)
    keys |= {Path(model.python).parent.parent.name for some in deployments for model in some.models if model.python}
    garbage = Garbage(
        [(one, freed_bytes(repository.path(one.name, one.version))) for one in old],
        [(key, freed_bytes(store.root / key)) for key in store.unneeded(keys)],
        [*repository.leftovers(), *((path, freed_bytes(path)) for path in store.unfinished())],
    )
    if not dry_run:
        _remove(repository, store, garbage, keys)
    return garbage


def _remove(repository: ModelRepository, store: EnvironmentStore, garbage: Garbage, keys: set[str]) -> None:
    for one, _ in garbage.versions:
        repository.remove(one.name, one.version)
    store.prune(keys)
    repository.clear_leftovers()


def _deployments(settings: HostSettings, *, anything: bool) -> list[Deployment]:
    """What `up` would run, and what runs or ran last in the run directory. Raises `ConfigError`."""
    from host.config.deployment import load_deployment, read_deployment
    from host.config.run_dir import RunDirectory

    run_dir = RunDirectory(settings.run_dir)
    found = [read_deployment(path) for path in (run_dir.deployment, run_dir.routing) if path.exists()]
    if anything or settings.deployment is not None:
        found.append(
            load_deployment(settings.repository, settings.deployment, settings.environments, settings.features)
        )
    return found


def _ways_back(settings: HostSettings) -> list[Version]:
    """The versions that `modelhost rollback` would go back to. Raises `ConfigError`."""
    from host.config.deployment import read_deployment
    from host.config.history import read_history, version_before
    from host.config.run_dir import RunDirectory

    run_dir = RunDirectory(settings.run_dir)
    if not run_dir.deployment.exists():
        return []
    history = read_history(run_dir.history)
    models = read_deployment(run_dir.deployment).models
    back = [(model.name, version_before(history, model.name, model.version)) for model in models]
    return [(name, version) for name, version in back if version is not None]


def _document(garbage: Garbage, settings: HostSettings, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "versions": [
            {
                "model": one.name,
                "version": one.version,
                "path": str(settings.repository / one.name / one.version),
                "freed_bytes": size,
            }
            for one, size in garbage.versions
        ],
        "environments": [
            {"environment": key, "path": str(settings.environments / key), "freed_bytes": size}
            for key, size in garbage.environments
        ],
        "leftovers": [{"path": str(path), "freed_bytes": size} for path, size in garbage.leftovers],
        "freed_bytes": garbage.freed_bytes,
    }


def _print(garbage: Garbage, *, dry_run: bool) -> None:
    from host.cli.printing import size_text

    verb = "would remove" if dry_run else "removed"
    for one, size in garbage.versions:
        click.echo(f"{verb}: {one.name} version {one.version}: {size_text(size)}")
    for key, size in garbage.environments:
        click.echo(f"{verb}: environment {key}: {size_text(size)}")
    for path, size in garbage.leftovers:
        click.echo(f"{verb}: {path}, of a command that was killed: {size_text(size)}")
    click.echo(f"{'would free' if dry_run else 'freed'}: {garbage.freed_bytes} bytes")
