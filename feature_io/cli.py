"""`modelhost features`: views, their tables and their rows, seen from the command line.

Run as `python -m feature_io.cli`: the command `modelhost` hands its arguments over, because `host` imports nothing of
what reads features.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from feature_io import check, live
from feature_io.loading.cells import key_of_texts
from feature_io.loading.files import FORMATS, BadLine, open_source
from feature_io.loading.load import BATCH_ROWS, SMALL_BATCH_ROWS, Plan, Summary, Watcher, load
from feature_io.loading.pace import Pace
from feature_io.loading.progress import Position, begin, progress_path, read_progress, resumed
from feature_io.loading.verify import compare, sample
from feature_io.options import features_options, read_chosen
from feature_io.stores import BadRow, Store, StoreUnavailable, make_store
from feature_io.values import pack, unpack
from host.config.features import Features, FeatureView, SqliteStore
from host.protocol.errors import ConfigError, HostError

Result = TypeVar("Result")

EXIT_FAILED: Final = 1
EXIT_OPERATOR: Final = 2
EXIT_INTERRUPTED: Final = 130

OPEN_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 10.0
BAD_SHOWN: Final = 20
_WIDE_COLUMNS: Final = 1000
"""Width of what is no terminal: nothing is cut for a file or a pipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        code = cli.main(args=arguments, prog_name="modelhost features", standalone_mode=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(_plain(problem), err=True)
        return EXIT_OPERATOR
    except (HostError, StoreUnavailable, BadRow) as error:
        click.echo(_plain(f"modelhost: {error}"), err=True)
        return EXIT_FAILED
    except click.ClickException as error:
        error.show()
        return EXIT_OPERATOR
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Load, read and compare the features that models are given.

    features.toml says where features are kept (a store) and how models see them (a view: a table with a key and
    columns). In the order in which one needs them:

    \b
      modelhost features views                           what there is
      modelhost features create user_stats --apply       make the view's table
      modelhost features load user_stats users.csv       load a file into it
      modelhost features verify user_stats users.csv     compare a sample of the file with the table
      modelhost features check                           whether the stores answer, and have what views want
      modelhost features get user_stats 42               read one entity
      modelhost features invalidate user_stats           have the running host read it anew
      modelhost features stats                           what the running host has read and cached

    Exit codes: 0 done, 1 the store does not answer or has not what it should, 2 something here has to be changed first,
    130 interrupted.
    """


# -- what there is ----------------------------------------------------------------------------------------------------
@cli.command("views", short_help="List the views, their keys and their columns.")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@features_options
def views_command(as_json: bool, features_file: str | None, config_file: str | None) -> None:
    """List the views, where their rows are, their keys and their columns."""
    path, features = read_chosen(features_file, config_file)
    if as_json:
        _print_json({"file": str(path), "views": [_view_document(features, view) for view in features.views]})
        return
    table = _table("view", "store", "table", "key", "columns")
    for view in features.views:
        keys = ", ".join(f"{key.column} {key.datatype}" for key in view.keys)
        columns = ", ".join(f"{c.name} {c.datatype}{list(c.shape) if c.shape else ''}" for c in view.columns)
        table.add_row(view.name, view.store, _table_name(view), keys, Text(columns))
    _print_table(table)


def _view_document(features: Features, view: FeatureView) -> dict[str, Any]:
    return {
        "name": view.name,
        "store": view.store,
        "kind": "sqlite" if isinstance(features.store(view.store), SqliteStore) else "cassandra",
        "table": _table_name(view),
        "keys": [{"column": key.column, "datatype": key.datatype, "input": key.input} for key in view.keys],
        "columns": [
            {"name": column.name, "datatype": column.datatype, "shape": list(column.shape), "storage": column.storage}
            for column in view.columns
        ],
    }


def _table_name(view: FeatureView) -> str:
    return view.table if view.keyspace is None else f"{view.keyspace}.{view.table}"


@cli.command("create", short_help="Make the table of a view, or say how.")
@click.argument("view_name", metavar="VIEW")
@click.option("--print", "only_print", is_flag=True, help="write the statements, for whoever may run them")
@click.option("--apply", is_flag=True, help="run them; what exists is left as it is")
@features_options
def create_command(
    view_name: str, only_print: bool, apply: bool, features_file: str | None, config_file: str | None
) -> None:
    """Make the table of VIEW, or say how."""
    if only_print == apply:
        raise click.UsageError("expected --print or --apply")
    features, view = _view(view_name, features_file, config_file)
    if only_print:
        for statement in make_store(features.store(view.store)).ddl(view):
            click.echo(f"{statement};")
        return

    async def create(store: Store) -> None:
        await store.create(view, OPEN_TIMEOUT_S)
        await store.reader(view, OPEN_TIMEOUT_S)  # a table that was there may be another one

    _with_store(features, view, create)
    click.echo(f"table {_table_name(view)} of view {view.name} is there, in store {view.store}")


@cli.command("get", short_help="Read one entity from its store.")
@click.argument("view_name", metavar="VIEW")
@click.argument("key_texts", metavar="KEY...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@features_options
def get_command(
    view_name: str, key_texts: Sequence[str], as_json: bool, features_file: str | None, config_file: str | None
) -> int:
    """Read one entity of VIEW from the store itself, past every cache.

    KEY: one value for each key column, in the view's order. Put -- before a negative number. Exit code 1 if the
    entity is not there.
    """
    features, view = _view(view_name, features_file, config_file)
    if len(key_texts) != len(view.keys):
        names = " ".join(key.column.upper() for key in view.keys)
        raise click.UsageError(f"expected {names}, received {' '.join(key_texts)}")
    try:
        key = key_of_texts(view, key_texts)
    except BadRow as error:
        raise click.UsageError(str(error)) from None

    async def read(store: Store) -> Any:
        return await (await store.reader(view, OPEN_TIMEOUT_S)).read(key, READ_TIMEOUT_S)

    row = _with_store(features, view, read)
    named_key = {column.column: value for column, value in zip(view.keys, key, strict=True)}
    if row is None:
        words = ", ".join(f"{name} = {value}" for name, value in named_key.items())
        click.echo(f"view {view.name} has no entity {words}", err=True)
        return EXIT_FAILED
    found = {
        column.name: None if value is None else unpack(column, pack(column, value))
        for column, value in zip(view.columns, row, strict=False)
    }
    changed_s = row[len(view.columns)] if view.freshness_column is not None else None
    if as_json:
        document: dict[str, Any] = {"view": view.name, "key": named_key, "features": found}
        _print_json(document | ({"changed_s": changed_s} if view.freshness_column is not None else {}))
        return 0
    table = _table("column", "datatype", "value")
    for column in view.columns:
        value = "null" if found[column.name] is None else str(found[column.name])
        table.add_row(column.name, column.datatype, Text(value))
    if view.freshness_column is not None:
        table.add_row(view.freshness_column, "seconds", "null" if changed_s is None else str(changed_s))
    _print_table(table)
    return 0


# -- loading ----------------------------------------------------------------------------------------------------------
@cli.command("load", short_help="Load a file into the table of a view.")
@click.argument("view_name", metavar="VIEW")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), help="of the file (default: by its name)")
@click.option(
    "--max-bad", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="rows that may be left out"
)
@click.option(
    "--rejects", metavar="FILE", type=click.Path(path_type=Path), help="write each row that is left out, as JSON lines"
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="ROWS_PER_S", help="write no faster than this")
@click.option("--resume", is_flag=True, help="go on where an interrupted load of this file stopped")
@click.option("--no-progress", is_flag=True, help="keep no FILE.progress: the load cannot be resumed")
@click.option("--dry-run", is_flag=True, help="check the whole file and write nothing")
@click.option("--json", "as_json", is_flag=True, help="write the summary as a JSON document")
@features_options
def load_command(
    view_name: str,
    file: Path,
    kind: str | None,
    max_bad: int,
    rejects: Path | None,
    rate: float | None,
    resume: bool,
    no_progress: bool,
    dry_run: bool,
    as_json: bool,
    features_file: str | None,
    config_file: str | None,
) -> int:
    """Load FILE into the table of VIEW: rows are inserted, or replace those with the same key.

    FILE is CSV with a header (.csv), JSON lines (.jsonl, .ndjson) or Parquet (.parquet). Its columns are found by their
    names: the view's keys and columns, and the freshness column if it has that (else: now). Other columns are
    ignored. In CSV an empty cell is null, with quotes or without; lists are JSON, as in "[1, 2.5]".

    Every value is checked. A row that does not fit is reported with its line, and ends the load unless --max-bad allows
    for it; then it is left out. Rows are written in batches, each wholly or not at all, and FILE.progress remembers the
    last one: after Ctrl-C, a crash or a store that does not answer, --resume goes on there.
    """
    features, view = _view(view_name, features_file, config_file)
    source = open_source(view, file, kind)
    start = begin(view, file)
    if resume:
        start = resumed(start, read_progress(file), file)
    elif not dry_run and progress_path(file).exists():
        click.echo(
            f"{progress_path(file)}: an earlier load was interrupted; this one begins anew (--resume goes on)", err=True
        )
    with _rejects(rejects, append=resume) as rejects_file, _watcher(source.size, file.name) as watcher:
        plan = Plan(
            view=view,
            file=file,
            source=source,
            progress=start,
            max_bad=sys.maxsize if dry_run else max_bad,
            pace=Pace(None if dry_run else rate),
            batch_rows=BATCH_ROWS
            if dry_run or isinstance(features.store(view.store), SqliteStore)
            else SMALL_BATCH_ROWS,
            keep_progress=not (no_progress or dry_run),
            rejects=rejects_file,
        )
        try:
            if dry_run:
                summary = asyncio.run(_interruptible(plan, None, watcher))
            else:
                summary = _with_store(features, view, lambda store: _checked_load(plan, store, watcher))
        except StoreUnavailable as error:
            if not plan.keep_progress or not progress_path(file).exists():
                raise
            resume_words = f"go on with: modelhost features load {view.name} {file} --resume"
            raise StoreUnavailable(f"{error}; what was loaded is remembered; {resume_words}") from error
    return _finish(plan, summary, source.ignored, as_json=as_json, dry_run=dry_run, allowed=max_bad)


async def _checked_load(plan: Plan, store: Store, watcher: Watcher) -> Summary:
    await store.reader(plan.view, OPEN_TIMEOUT_S)
    return await _interruptible(plan, store, watcher)


async def _interruptible(plan: Plan, store: Store | None, watcher: Watcher) -> Summary:
    """Load until Ctrl-C, which ends it after the batch in hand; a second one ends it at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await load(plan, store, watcher, stop)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _finish(plan: Plan, summary: Summary, ignored: Sequence[str], *, as_json: bool, dry_run: bool, allowed: int) -> int:
    too_many = summary.bad > allowed
    if as_json:
        _print_json(
            {
                "view": plan.view.name,
                "file": str(plan.file),
                "complete": summary.complete,
                "dry_run": dry_run,
                "rows": summary.rows,
                "bad": summary.bad,
                "line": summary.position.line,
                "resumed_after": plan.progress.position.line or None,
                "seconds": round(summary.took_s, 3),
                "rows_per_s": round(summary.written / summary.took_s) if summary.took_s else None,
                "ignored_columns": list(ignored),
                "all_null_columns": summary.all_null,
            }
        )
    else:
        what = "are right" if dry_run else "loaded"
        speed = f" in {summary.took_s:.1f} s ({summary.written / max(summary.took_s, 1e-9):,.0f} rows/s)"
        bad = f", {summary.bad:,} bad" + ("" if dry_run else " left out") if summary.bad else ""
        click.echo(f"{summary.rows:,} rows {what}{bad}{speed}")
    if ignored:
        click.echo(f"not in the view, ignored: {_plain(', '.join(ignored))}", err=True)
    if summary.all_null:
        click.echo(f"null in every row: {', '.join(summary.all_null)}", err=True)
    if not summary.complete:
        why = "interrupted" if summary.interrupted else f"more bad rows than --max-bad {allowed}"
        click.echo(f"{why}: everything up to line {summary.position.line:,} is loaded, and nothing after it", err=True)
        if plan.keep_progress and summary.written:
            click.echo(f"go on with: modelhost features load {plan.view.name} {plan.file} --resume", err=True)
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if too_many or not summary.complete else 0


@contextmanager
def _rejects(path: Path | None, *, append: bool) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        opened = path.open("a" if append else "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--rejects: {path}: cannot be written: {error.strerror}") from error
    with opened:
        yield opened


class _Lines:
    """Says on standard error what goes wrong, and shows a bar if that is a terminal."""

    def __init__(self, progress: Progress | None, size: int, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=size, rows=0, bad="") if progress is not None else None
        self._shown = 0

    def rejected(self, bad: BadLine) -> None:
        self._shown += 1
        if self._shown <= BAD_SHOWN:
            self._say(f"line {bad.line}: {bad.reason}")
        elif self._shown == BAD_SHOWN + 1:
            self._say("... more bad rows; --rejects FILE writes all of them")

    def advanced(self, position: Position, rows: int, bad: int) -> None:
        if self._progress is not None and self._task is not None:
            words = f", {bad:,} bad" if bad else ""
            self._progress.update(self._task, completed=position.offset, rows=rows, bad=words)

    def waiting(self, error: Exception, pause_s: float) -> None:
        self._say(f"{error}; next try in {pause_s:.2g} s")

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(_plain(line), markup=False, highlight=False)
        else:
            click.echo(_plain(line), err=True)


@contextmanager
def _watcher(size: int, name: str) -> Iterator[_Lines]:
    console = Console(stderr=True)
    progress = None
    if console.is_terminal:
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[rows]:,} rows{task.fields[bad]}"),
            TimeRemainingColumn(),
            console=console,
        )
    with progress if progress is not None else nullcontext():
        yield _Lines(progress, size, name)


# -- comparing --------------------------------------------------------------------------------------------------------
@cli.command("verify", short_help="Compare a sample of a file with the table.")
@click.argument("view_name", metavar="VIEW")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), help="of the file (default: by its name)")
@click.option(
    "--sample", "count", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="rows to compare"
)
@click.option("--seed", type=int, help="take the same sample again (default: another one each time)")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@features_options
def verify_command(
    view_name: str,
    file: Path,
    kind: str | None,
    count: int,
    seed: int | None,
    as_json: bool,
    features_file: str | None,
    config_file: str | None,
) -> int:
    """Compare a random sample of the rows of FILE with what the table of VIEW has.

    Exit code 1 if a row is different or missing.
    """
    features, view = _view(view_name, features_file, config_file)
    source = open_source(view, file, kind)
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed

    async def verify(store: Store) -> Any:
        reader = await store.reader(view, OPEN_TIMEOUT_S)
        rows, bad = sample(source, count, seed)
        result = await compare(view, reader, rows)
        result.bad = bad
        return result

    result = _with_store(features, view, verify)
    if as_json:
        _print_json(
            {
                "view": view.name,
                "file": str(file),
                "seed": seed,
                "equal": result.equal,
                "different": result.different,
                "missing": result.missing,
                "bad": result.bad,
                "differences": [_plain(words) for words in result.differences],
            }
        )
    else:
        for words in result.differences:
            click.echo(_plain(words))
        bad = f"; {result.bad:,} rows of the file are bad, and not compared" if result.bad else ""
        click.echo(
            f"{result.equal:,} equal, {result.different:,} different, {result.missing:,} missing (seed {seed}){bad}"
        )
    return 0 if result.as_it_should_be else EXIT_FAILED


cli.add_command(check.check)


# -- what a running host has in memory ------------------------------------------------------------------------------
cli.add_command(live.invalidate)
cli.add_command(live.stats)


# -- shared -----------------------------------------------------------------------------------------------------------
def _view(name: str, features_file: str | None, config_file: str | None) -> tuple[Features, FeatureView]:
    path, features = read_chosen(features_file, config_file)
    view = features.view(name)
    if view is None:
        known = ", ".join(one.name for one in features.views) or "none"
        raise ConfigError(f"{name}: expected a view of {path}: {known}")
    return features, view


def _with_store(features: Features, view: FeatureView, work: Callable[[Store], Coroutine[Any, Any, Result]]) -> Result:
    """Run something with the view's store open. Raises what it raises, `ConfigError`, `StoreUnavailable`."""

    async def run() -> Result:
        store = make_store(features.store(view.store))
        try:
            await store.open(OPEN_TIMEOUT_S)
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _plain(text: str) -> str:
    """Text that any terminal takes, without what moves its cursor."""
    shown = text.encode(errors="backslashreplace").decode()
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in shown)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_table(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE_COLUMNS)
        for column in table.columns:
            column.no_wrap = True
    with console.capture() as capture:
        console.print(table)
    click.echo("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()), nl=False)


def _print_json(document: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


if __name__ == "__main__":
    sys.exit(main())
