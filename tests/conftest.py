"""For all tests: how hypothesis works here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Times are no failures: the machine may be busy, and the first example builds hypothesis' own tables. The examples are
# the same in each run: what a change breaks is told apart from what nobody had found before. `make explore` finds that.
settings.register_profile(
    "modelhost", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None, derandomize=True
)
settings.register_profile(
    "explore", settings.get_profile("modelhost"), derandomize=False, max_examples=2000, print_blob=True
)
settings.load_profile("modelhost")
