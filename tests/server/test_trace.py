"""W3C Trace Context: which headers name a trace, and that log lines carry its id."""

import logging

import pytest

from amnestic_server import logs, trace

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("header", [PARENT, f"{PARENT[:-2]}00", f"01{PARENT[2:]}", f"cc{PARENT[2:]}-what-comes-later"])
def test_a_header_that_names_a_trace(header):
    found = trace.received([("user-agent", "x"), ("traceparent", header)])
    assert found is not None
    assert (found.trace_id, found.response) == (ID, "")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT[:-1],
        f" {PARENT}",
        f"{PARENT}\n",
        f"{PARENT}-more",
        f"ff{PARENT[2:]}",
        f"01{PARENT[2:]}more",
        PARENT.replace(ID, 32 * "0"),
        PARENT.replace("00f067aa0ba902b7", 16 * "0"),
        PARENT.encode(),
    ],
)
def test_a_header_in_a_wrong_form_is_passed_over(header):
    assert trace.received([("traceparent", header)]) is None


def test_no_header_and_more_than_one_name_no_trace():
    assert trace.received([]) is None
    assert trace.received([("traceparent", PARENT), ("traceparent", PARENT)]) is None


async def test_log_lines_of_a_call_carry_its_trace_and_others_none():
    record = logging.LogRecord("a", logging.INFO, "f", 1, "said", None, None)
    assert logs.TextFormatter().format(record).endswith(" said")
    trace.enter(trace.Trace())
    assert logs.TextFormatter().format(record).endswith(" said")
    trace.enter(trace.Trace(ID))
    assert logs.TextFormatter().format(record).endswith(f" said trace={ID}")
