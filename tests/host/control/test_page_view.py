"""What the page is sent."""

from __future__ import annotations

import msgspec
from statuses import NOW, death, host, model, slot, usage

from host.control.news import Event, Severity
from host.control.observe import StoreState
from host.control.page_view import TEXT_MAX_CHARS, all_slots, event_documents, message, page_status, slot_numbers


def test_what_changes_all_the_time_is_no_change_of_the_status() -> None:
    before = host(model(slots=(slot(uptime_s=10.0, usage=usage(1)),)), host=())
    now = host(model(slots=(slot(uptime_s=12.0, usage=usage(2)),)), host=())
    assert page_status(before, {}, NOW) == page_status(now, {}, NOW + 2.2)


def test_a_slot_says_when_it_began_and_how_it_ended_last() -> None:
    seen = page_status(host(model(slots=(slot(last_exit=death(), deaths={"signal": 2, "oom": 1}),))), {}, NOW)
    (one,) = seen.models[0].slots
    assert (one.started_at, one.deaths) == (990.0, 3)
    assert one.last_exit is not None
    assert one.last_exit.reason == "killed by SIGKILL"
    (gone,) = page_status(host(model(slots=(slot(pid=0),))), {}, NOW).models[0].slots
    assert gone.started_at == 0.0


def test_stores_and_strays_are_shown() -> None:
    seen = page_status(
        host(model(), unwanted=(slot("old.v1:0", 7), slot("old.v1:1", 0))),
        {"b": StoreState(open=True, openings=2), "a": StoreState(open=False)},
        NOW,
    )
    assert [(store.name, store.open) for store in seen.stores] == [("a", False), ("b", True)]
    assert [one.name for one in seen.unwanted] == ["old.v1:0"]


def test_long_texts_are_cut() -> None:
    seen = page_status(host(model(reason="x" * 10_000)), {}, NOW)
    assert len(seen.models[0].reason) == TEXT_MAX_CHARS
    event = Event(at=1.0, severity=Severity.BAD, what="death", subject="s", text="x" * 10_000, log=("secret",))
    (document,) = event_documents([event])
    assert len(document["text"]) == TEXT_MAX_CHARS
    assert "log" not in document


def test_cpus_are_those_since_the_look_before() -> None:
    before = host(model(slots=(slot(usage=usage(cpu_s=5.0)),)))
    now = host(model(slots=(slot(usage=usage(10, 20, cpu_s=6.0)), slot("churn.v3:1", 12, usage=usage(cpu_s=1.0)))))
    found = slot_numbers(all_slots(before), all_slots(now), 2.0)
    assert found == {"churn.v3:0": (10, 20, 0.5), "churn.v3:1": (50, 100, 0.1)}
    assert slot_numbers([], [slot(pid=0)], 1.0) == {}


def test_a_message_is_one_event_whatever_is_in_it() -> None:
    data = message("events", {"text": "two\nlines\r\n\u2028and more"})
    lines = data.decode().split("\n")
    assert (lines[0], lines[2:]) == ("event: events", ["", ""])
    assert msgspec.json.decode(lines[1].removeprefix("data: ")) == {"text": "two\nlines\r\n\u2028and more"}
