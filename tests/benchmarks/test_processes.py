"""The measurement of two processes: in float64 they and one process have the same losses."""

from __future__ import annotations

from benchmarks.processes import apart, start


def test_two_processes_compute_as_one_in_float64() -> None:
    one, two = (start(count, 2, 16, "float64")["losses"] for count in (1, 2))
    assert len(one) == 2 and apart(one, two) < 1e-12
    assert apart(start(1, 2, 16, "float32")["losses"], one) > 1e-9
