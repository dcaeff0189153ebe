import pytest

from ablations.engine.failures import clear_failure, failure_path, read_failure, record_failure
from scorekit.runtime.interruption import Diverged


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no such layer"), "failed", "no such layer"),
        (MemoryError(), "failed", "MemoryError"),
        (Diverged(7, "the loss is nan", 5), "diverged", "the loss is nan at iteration 7"),
        (FloatingPointError("loss is inf"), "diverged", "loss is inf"),
    ],
)
def test_a_failure_is_read_back_with_its_reason(tmp_path, error, kind, message):
    assert read_failure(tmp_path, "train-1") is None
    try:
        raise error
    except Exception as caught:
        record_failure(tmp_path, "train-1", caught)
    record = read_failure(tmp_path, "train-1")
    assert record is not None
    assert record["kind"] == kind
    assert message in record["message"]
    assert type(error).__name__ in record["traceback"]
    assert read_failure(tmp_path, "train-2") is None


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"kind": 1, "message": "x"}', None])
def test_a_damaged_record_is_a_failure_that_says_so(tmp_path, content):
    path = failure_path(tmp_path, "train-1")
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_text(content)
    record = read_failure(tmp_path, "train-1")
    assert record is not None
    assert record["kind"] == "failed"
    assert path.name in record["message"]
    clear_failure(tmp_path, "train-1")
    assert read_failure(tmp_path, "train-1") is None
    clear_failure(tmp_path, "train-1")
