import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.errors import PublishError
from training.sandbox import Limits, confined

ROOMY = Limits(memory_bytes=8 << 30, seconds=30)


def doubled(values: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
    return {"doubled": 2 * values}


def refused() -> dict[str, NDArray[np.generic]]:
    raise ValueError("it is not sound\nand more that nobody needs")


def forever() -> dict[str, NDArray[np.generic]]:
    threading.Event().wait()
    return {}


def greedy() -> dict[str, NDArray[np.generic]]:
    return {"large": np.zeros(32 << 30, np.uint8)}


def writing(path: Path) -> dict[str, NDArray[np.generic]]:
    path.write_text("harm")
    return {}


def objects() -> dict[str, NDArray[np.generic]]:
    return {"objects": np.array([Path], dtype=object)}


def test_what_was_computed_comes_back() -> None:
    assert confined(ROOMY, doubled, np.arange(3.0))["doubled"].tolist() == [0, 2, 4]


def test_what_it_raised_comes_back_as_a_sentence() -> None:
    with pytest.raises(PublishError, match=r"^it is not sound$"):
        confined(ROOMY, refused)


def test_work_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sandbox._GRACE_SECONDS", 0.0)
    with pytest.raises(PublishError, match="more than 3 s"):
        confined(Limits(8 << 30, 3), forever)


def test_work_that_takes_too_much_memory_is_ended() -> None:
    with pytest.raises(PublishError, match="memory"):
        confined(ROOMY, greedy)


def test_it_cannot_write_files(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="File too large"):
        confined(ROOMY, writing, tmp_path / "harm")
    assert not (tmp_path / "harm").exists() or not (tmp_path / "harm").read_bytes()


def test_objects_do_not_come_back() -> None:
    with pytest.raises((PublishError, ValueError), match=r"allow_pickle|Object arrays"):
        confined(ROOMY, objects)
