from __future__ import annotations

import pytest

from schemas.errors import ERRORS, Fault, HeadraceError


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_row_is_consistent(code: str) -> None:
    spec = ERRORS[code]
    assert 400 <= spec.http_status < 600
    assert (spec.fault is Fault.OURS) <= (spec.http_status >= 500)
    if spec.retry_after_s is not None:
        assert spec.http_status in (429, 503)
    if spec.http_status == 503:
        assert spec.retry_after_s is not None
    if spec.ws_close is not None:
        assert spec.ws_close in (1012, 1013) or 4400 <= spec.ws_close < 4500


def test_the_body_is_openais() -> None:
    error = HeadraceError("invalid_value", "temperature must be at most 2", param="temperature")
    assert error.body() == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "temperature must be at most 2",
        "param": "temperature",
    }


def test_a_code_outside_the_table_is_a_bug() -> None:
    with pytest.raises(KeyError):
        HeadraceError("no_such_code", "")
