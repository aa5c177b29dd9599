"""`modelhost try`: one package in a real worker, without a host."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError

if TYPE_CHECKING:
    from host.cli.trial import TrialWorker
    from host.config.settings import HostSettings
    from host.protocol.package import Package

_MIB = 1 << 20


@click.command("try")
@click.argument("package_directory", metavar="PACKAGE")
@click.option(
    "-i", "--input", "input_file", metavar="FILE", help='request to run: {"inputs": [...]}; - for standard input'
)
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options("model_python", "environments")
def command(
    package_directory: str, input_file: str | None, as_json: bool, config_file: str | None, **flags: str | None
) -> int:
    """Load PACKAGE (a directory NAME/VERSION) in a real worker, run its golden cases and one request, and show
    times and memory. Ends with 1 if something fails, and leaves nothing behind.
    """
    import host
    from host.cli.printing import print_json
    from host.cli.trial import TrialWorker
    from host.manifest import verify_package
    from host.protocol.package import read_package

    settings = load(config_file, flags).settings
    directory = Path(package_directory).absolute()
    package = read_package(directory)
    problems = verify_package(directory)
    if problems:
        raise ConfigError(*problems)
    request = _request(package, directory, input_file)
    python = interpreter(package, directory, settings)
    code_root = Path(host.__file__).resolve().parent.parent
    # Not TMPDIR: a socket's path has to be short.
    short = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None  # noqa: S108 - a private directory in it
    with (
        tempfile.TemporaryDirectory(prefix="modelhost-try-", dir=short) as work,
        TrialWorker(package, directory, python, code_root, Path(work)) as worker,
    ):
        document = run(worker, package, directory, request)
    if as_json:
        print_json(document)
    else:
        _print(document)
    return 0 if document["ok"] else 1


def interpreter(package: Package, directory: Path, settings: HostSettings) -> Path:
    """What runs a package: its own environment, or `model_python`. Raises `ConfigError` if it is not built."""
    from host.config.environments import environment_python, need_of

    need = need_of(package, directory)
    if need is None:
        return settings.model_python or Path(sys.executable)
    python = environment_python(settings.environments, need)
    if not python.exists():
        raise ConfigError(f"{directory}: its environment is not built; build it with: modelhost build {directory}")
    return python


def run(worker: TrialWorker, package: Package, directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Try everything and return the document. Raises `HostError` if the worker does not answer."""
    from host.cli.trial import golden_problem, good, measure
    from host.protocol.documents import encode_document
    from host.protocol.messages import Encoding
    from host.protocol.package import golden_cases

    hello = worker.hello()
    golden = []
    answer = good(worker.infer(encode_document(request, Encoding.JSON)))
    for case in golden_cases(directory):
        problem = golden_problem(case, worker.infer(encode_document(case.request, Encoding.JSON)))
        golden.append({"name": case.name, "ok": problem is None, "problem": problem})
    measured = measure(worker, request, package.limits.max_batch_rows, batchable=package.signature.batchable)
    resident, peak = worker.memory_bytes()
    return {
        "ok": all(case["ok"] for case in golden),
        "package": str(directory),
        "model": package.name,
        "version": package.version,
        "runtime": hello.runtime_version,
        "startup_ms": round(worker.startup_s * 1000, 1),
        "first_ms": round(answer.duration_s * 1000, 3),
        "median_ms": round(measured.median_s * 1000, 3),
        "batch_rows": measured.batch_rows,
        "rows_per_s": round(measured.rows_per_s),
        "memory_bytes": resident,
        "memory_peak_bytes": peak,
        "memory_limit_bytes": package.resources.memory_bytes,
        "golden": golden,
        "answer": answer.document(),
    }


def _request(package: Package, directory: Path, input_file: str | None) -> dict[str, Any]:
    """The request to run: the one given, else the first golden case, else zeros of the declared shapes."""
    from host.cli.example import example_of
    from host.cli.predict import read_request_file

    if input_file is not None:
        request = read_request_file(input_file)
        assert isinstance(request, dict)  # noqa: S101 - it was checked
        return request
    return example_of(package.signature, directory)


def _print(document: dict[str, Any]) -> None:
    from host.cli.predict import print_outputs
    from host.cli.printing import make_table, print_table

    table = make_table("", "")
    table.show_header = False
    limit = document["memory_limit_bytes"] // _MIB
    rows = [
        ("runtime", document["runtime"]),
        ("start-up", f"{document['startup_ms']:.0f} ms (interpreter, import, load, warm-up, golden cases)"),
        ("first request", f"{document['first_ms']:.2f} ms"),
        ("median request", f"{document['median_ms']:.2f} ms"),
        ("batches", f"{document['rows_per_s']:,} rows/s ({document['batch_rows']} rows sent at once)"),
        ("memory", f"{document['memory_bytes'] / _MIB:.0f} MiB, peak {document['memory_peak_bytes'] / _MIB:.0f} MiB"),
        ("memory limit", f"{limit} MiB"),
    ]
    for name, text in rows:
        table.add_row(name, text)
    print_table(table)
    golden = document["golden"]
    click.echo(f"\ngolden cases: {sum(case['ok'] for case in golden)} of {len(golden)} reproduced")
    for case in golden:
        if not case["ok"]:
            click.echo(f"  {case['name']}: {case['problem']}")
    click.echo()
    print_outputs(document["answer"])
