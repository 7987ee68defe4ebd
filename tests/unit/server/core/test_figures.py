"""Figures: their names are written and read in one place, and name each part."""

import pytest
from pydantic import ValidationError

from server.core.figures import Figure, figures_of, find, values_by_name

NAMES = ["next visit/own, fading/ndcg@10", "as served/popularity, 7 days/hr@20", "probe of gender/mean/auroc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_back_as_it_was_written(name: str) -> None:
    assert Figure.parse(name, 0.5).name == name


def test_the_parts_of_a_name() -> None:
    figure = Figure.parse(NAMES[0], 0.25, (0.2, 0.3))
    assert figure.model_dump() == {
        "protocol": "next visit",
        "method": "own, fading",
        "metric": "ndcg",
        "k": 10,
        "value": 0.25,
        "low": 0.2,
        "high": 0.3,
    }


@pytest.mark.parametrize("name", ["ndcg@10", "encoder/ndcg@10", "as served/encoder/ndcg@ten", "//ndcg@10", "a/b/c/d"])
def test_other_texts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Figure.parse(name, 0.5)


def test_a_value_is_a_number_and_bounds_go_together() -> None:
    parts = {"protocol": "as served", "method": "encoder", "metric": "ndcg", "k": 10}
    with pytest.raises(ValidationError, match="finite"):
        Figure.model_validate(parts | {"value": float("nan")})
    with pytest.raises(ValidationError, match="low and high go together"):
        Figure.model_validate(parts | {"value": 0.5, "low": 0.4})


def test_figures_are_found_by_their_parts() -> None:
    figures = figures_of("as served", "hybrid", {"ndcg@10": 0.1, "hr@10": 0.2}, {"hr@10": (0.1, 0.3)})
    figures += figures_of("next visit", "hybrid", {"ndcg@10": 0.3})
    hits, ndcg = find(figures, "hybrid", "hr"), find(figures, "hybrid", "ndcg", protocol="next visit")
    assert (hits and (hits.value, hits.low, hits.high)) == (0.2, 0.1, 0.3)
    assert (ndcg and ndcg.value) == 0.3
    assert find(figures, "encoder", "ndcg") is None
    assert values_by_name(figures)["as served/hybrid/ndcg@10"] == 0.1
