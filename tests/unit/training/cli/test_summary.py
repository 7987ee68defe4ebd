"""Sentences of the summary of a run."""

import pytest

from training.cli.summary import overlap_lines
from training.ranking.item_lists import ListOverlap
from training.segments.result import Segmentation

TOP, PARTICULAR = ListOverlap(mean=0.71, largest=0.95), ListOverlap(mean=0.0, largest=0.1)


@pytest.mark.parametrize(
    ("top", "particular", "lines"),
    [
        (
            TOP,
            PARTICULAR,
            [
                "On average, two segments have in common 71% of the items that most of their users chose, at most 95%; "
                "and 0% of the items that they are particular about (by lift), at most 10%."
            ],
        ),
        (
            TOP,
            None,
            ["On average, two segments have in common 71% of the items that most of their users chose, at most 95%."],
        ),
        (None, None, []),
    ],
)
def test_overlap_of_lists_is_one_sentence(
    top: ListOverlap | None, particular: ListOverlap | None, lines: list[str]
) -> None:
    segmentation = Segmentation.model_construct(top_items_overlap=top, particular_items_overlap=particular)
    assert overlap_lines(segmentation) == lines
