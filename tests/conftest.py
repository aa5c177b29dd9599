"""For all tests: how hypothesis works here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Times are no failures: the machine may be busy, and the first example builds hypothesis' own tables.
settings.register_profile("modelhost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelhost")
