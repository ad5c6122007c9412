"""The table of reasons is total and holds what a status may hold."""

from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery_rpc.errors import CODES


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == set(ErrorReason.values()) - {0}
