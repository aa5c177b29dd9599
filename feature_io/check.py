"""`modelhost features check`: whether every view's store answers, and has the table that the view wants."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from feature_io.options import features_options, read_chosen
from feature_io.stores import Key, Store, make_store
from host.config.features import Features, FeatureView, KeyColumn
from host.config.features import Store as StoreConfig
from host.protocol.errors import ConfigError, ModelhostError

TIMEOUT_S: Final = 10.0
TIMEOUT_MAX_S: Final = 600.0
_BITS: Final = {"INT8": 7, "INT16": 15, "INT32": 31, "INT64": 63}


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one view."""

    view: str
    store: str
    problem: str
    """Empty if it can be read."""
    seconds: float


@click.command("check", short_help="Say whether every store answers, and has what its views want.")
@click.argument("view_names", metavar="[VIEW]...", nargs=-1)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, TIMEOUT_MAX_S, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="how long a store is waited for: to open, for tables, for rows",
)
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@features_options
def check(
    view_names: Sequence[str], timeout_s: float, as_json: bool, features_file: str | None, config_file: str | None
) -> int:
    """Open the stores, compare each view with its table, and read one entity, whether it is there or not.

    VIEW: only these. It goes to the stores themselves, and needs no running host. Exit code 1 if a view cannot be read.
    """
    path, features = read_chosen(features_file, config_file)
    known = [view.name for view in features.views]
    unknown = [name for name in view_names if name not in known]
    if unknown:
        raise ConfigError(*(f"{name}: expected a view of {path}: {', '.join(known) or 'none'}" for name in unknown))
    views = [view for view in features.views if not view_names or view.name in view_names]
    checked = asyncio.run(check_views(features, views, timeout_s))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"views": checked}), indent=2).decode())
    for one in () if as_json else checked:
        click.echo(f"view {one.view}, store {one.store}: {one.problem or f'answers in {one.seconds * 1000:.1f} ms'}")
    return 1 if any(one.problem for one in checked) else 0


async def check_views(features: Features, views: Sequence[FeatureView], timeout_s: float) -> list[Checked]:
    """Check views, all stores at once."""
    stores = [features.store(name) for name in dict.fromkeys(view.store for view in views)]
    found = await asyncio.gather(
        *(_check_store(config, [view for view in views if view.store == config.name], timeout_s) for config in stores)
    )
    by_view = {one.view: one for part in found for one in part}
    return [by_view[view.name] for view in views]


async def _check_store(config: StoreConfig, views: Sequence[FeatureView], timeout_s: float) -> list[Checked]:
    begun_s = time.monotonic()
    store: Store | None = None
    try:
        store = make_store(config)
        await store.open(timeout_s)
        # All at once: a store that hangs takes as long with many views as with one.
        return await asyncio.gather(*(_check_view(store, view, timeout_s) for view in views))
    except ModelhostError as error:
        took_s = time.monotonic() - begun_s
        return [Checked(view=view.name, store=config.name, problem=str(error), seconds=took_s) for view in views]
    finally:
        if store is not None:
            await store.close()


async def _check_view(store: Store, view: FeatureView, timeout_s: float) -> Checked:
    begun_s, problem = time.monotonic(), ""
    try:
        reader = await store.reader(view, timeout_s)
        begun_s = time.monotonic()
        await reader.read(any_key(view), timeout_s)
    except ModelhostError as error:
        problem = str(error)
    return Checked(view=view.name, store=view.store, problem=problem, seconds=time.monotonic() - begun_s)


def any_key(view: FeatureView) -> Key:
    """A key that may be nobody's."""
    return tuple(_any_value(column) for column in view.keys)


def _any_value(column: KeyColumn) -> Any:
    if column.datatype == "UUID":
        return str(uuid.uuid4())
    if column.datatype == "BYTES":
        return f"modelhost-check-{uuid.uuid4()}"
    return random.SystemRandom().getrandbits(_BITS[column.datatype])
