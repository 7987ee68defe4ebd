"""Lists written as text."""

import pytest

from training.data.reading.list_texts import listed


@pytest.mark.parametrize(
    "text",
    [
        '["Home", "Light"]',
        "['Home', 'Light']",
        "['Home' 'Light']",
        "['Home'\n 'Light']",
        '[["Home"], ["Light"]]',
        "[['Home', None], ['Light']]",
        '["Home", null, "Light"]',
        "('Home', 'Light')",
        " ['Home', nan, \"Light\"] ",
    ],
)
def test_lists_of_texts(text: str) -> None:
    assert listed(text) == ["Home", "Light"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", []),
        ("[1, 2.5, 30]", ["1", "2.5", "30"]),
        ("['Kids\\' toys', \"a, b\"]", ["Kids' toys", "a, b"]),
        (r'["Tee", "Café\/Bar"]', ["Tee", "Café/Bar"]),
        ("['家居', '灯']", ["家居", "灯"]),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert listed(text) == parts


@pytest.mark.parametrize("text", ["[Sale] Shoes", "[Sale]", "(new)", "[a b", "(12) x", "(1)", "{new} x", "Home"])
def test_other_texts_are_no_lists(text: str) -> None:
    assert listed(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "['Home', 'Light'",
        '["Home"',
        "[['Home']",
        "['Home', true + 1]",
        '[{"name": "Home"}]',
        '{"a": 1}',
        "{Home,Light}",
    ],
)
def test_lists_that_are_cut_off_or_wrong(text: str) -> None:
    with pytest.raises(ValueError, match="cut off or wrong"):
        listed(text)
