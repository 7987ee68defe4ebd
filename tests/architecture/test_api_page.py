"""docs/API.md is what the protos and the examples give."""

import pytest

from deploy.api_page import PAGE, page, read_examples
from deploy.protos import ROOT


def test_the_page_is_what_the_protos_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(ROOT, read_examples()), "run `make reference` and commit"


def test_each_method_has_one_example() -> None:
    examples = read_examples()
    del examples["EventService.EraseUser"]
    with pytest.raises(ValueError, match=r"look at EventService\.EraseUser"):
        page(ROOT, examples)
