"""Run the worker in an interpreter that knows nothing of modelhost: `python -I /…/models/by_path.py --package …`.

A model's environment holds the model's libraries and never modelhost. So `models` and `host.protocol` come to it
by path, and only they: putting their parent directory on `sys.path` would show the model everything else that is
installed beside them, another numpy perhaps.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


class OurPackages:
    """Finds the two top-level packages beside this file; what is in them is found through their own path."""

    def __init__(self, root: Path) -> None:
        self._directories = {name: root / name for name in ("host", "models")}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Answer for `host` and `models`; the other finders have the rest."""
        directory = self._directories.get(name)
        if directory is None:
            return None
        return importlib.util.spec_from_file_location(
            name, directory / "__init__.py", submodule_search_locations=[str(directory)]
        )

    def give_names_back(self) -> None:
        """Free the names `host` and `models` for packages of the model's own.

        Called when all of the worker's code is imported: what is loaded goes on working without its name.
        """
        sys.meta_path.remove(self)
        for name in list(sys.modules):
            if name.partition(".")[0] in self._directories:
                del sys.modules[name]


def main() -> int:
    """Import the worker by path and run it."""
    ours = OurPackages(Path(__file__).resolve().parent.parent)
    sys.meta_path.insert(0, ours)
    from models.worker import main as run_worker

    return run_worker(before_load=ours.give_names_back)


if __name__ == "__main__":
    sys.exit(main())
