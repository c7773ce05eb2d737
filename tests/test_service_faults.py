"""Processes of a service are killed, users rolled back and forgotten at random: every promise holds all the same."""

import pytest

from tests.service_loop import Plan, check, loop, settle
from tests.test_store import server, url

__all__ = ["server", "url"]  # fixtures


@pytest.mark.slow
def test_kills_rollbacks_and_forgetting_at_random(url, tmp_path):
    plan = Plan()
    observed = loop(url, tmp_path, plan)
    assert (observed.events["kill"], observed.events["forget"]) == (plan.kills, plan.forgets)
    settle(url, tmp_path)
    told = check(url, tmp_path, plan, observed)
    assert told["forgotten marks"] > 0 and told["alignments"] > 20
