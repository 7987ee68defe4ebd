"""Columns and actions are recognised by their common names."""

import pytest

from training.config import ActionSetting
from training.data.columns import ROLES, action_weights, find_columns, require_columns
from training.errors import LogError


def found(columns: list[str], **chosen: str) -> dict[str, str]:
    return find_columns(columns, chosen, ROLES, "columns", "log.csv")


@pytest.mark.parametrize(
    "columns",
    [
        ["user_id", "item_id", "action", "value", "timestamp"],
        ["UserID", "Item ID", "Event-Type", "Rating", "ts"],
        ["visitorid", "itemid", "event", "price", "timestamp"],
        ["Customer ID", "StockCode", "behavior_type", "quantity", "InvoiceDate"],
        ["household_id", "product_id", "interaction", "sales_value", "transaction_timestamp"],
        ["userId", "movieId", "behaviour", "rating", "datetime"],
        ["用户ID", "商品ID", "行为类型", "行为值", "时间戳"],
        ["会员id", "课程ID", "行为", "评分", "日期"],
        ["用户", "物品ID", "操作类型", "金额", "时间"],
    ],
)
def test_common_names(columns: list[str]) -> None:
    assert found([*columns, "something else"]) == dict(zip(ROLES, columns, strict=True))


def test_columns_that_are_not_there_are_left_out() -> None:
    assert found(["用户ID", "商品ID", "行为类型", "行为值"]).keys() == {"user_id", "item_id", "action", "value"}


def test_a_configured_column_wins_over_common_names() -> None:
    assert found(["user_id", "buyer", "item_id"], user_id="buyer")["user_id"] == "buyer"


def test_the_exact_name_wins_over_a_similar_one() -> None:
    assert found(["userid", "customer", "item_id", "value", "price"])["value"] == "value"


def test_a_chosen_column_is_not_taken_twice() -> None:
    assert found(["user", "item", "price", "quantity"], value="price") == {
        "user_id": "user",
        "item_id": "item",
        "value": "price",
    }


def test_two_candidates_are_an_error_with_the_setting_to_change() -> None:
    with pytest.raises(LogError, match=r'`price` and `quantity`.*\[columns\] value = "price"'):
        found(["user_id", "item_id", "price", "quantity"])


def test_a_chosen_column_must_be_there() -> None:
    with pytest.raises(LogError, match=r"log\.csv has no column `buyer`.*`user_id`, `item_id`"):
        found(["user_id", "item_id"], user_id="buyer")


def test_a_lacking_column_is_named_with_those_that_are_there() -> None:
    columns = ["a", "item_id"]
    with pytest.raises(LogError, match=r"lacks a column for the user_id; its columns are `a`, `item_id`"):
        require_columns(found(columns), columns, ROLES[:2], "columns", "log.csv")


def test_weights_of_common_actions() -> None:
    weights = action_weights(
        ["购买", "Purchase", "add_to_cart", "收藏", "浏览", "搜索", "退货", "dislike", "event"], {}
    ).weight
    assert weights["购买"] == weights["Purchase"] == weights["event"] == 1
    assert weights["购买"] > weights["add_to_cart"] == weights["收藏"] > weights["浏览"] > weights["搜索"] > 0
    assert weights["退货"] == weights["dislike"] == -1


def test_an_unknown_action_has_weight_1_and_is_listed() -> None:
    weights = action_weights(["view", "上架", "wave"], {"wave": ActionSetting(weight=0.5, name="greet")})
    assert weights.weight["上架"] == 1
    assert weights.unknown == ("上架",)
    assert weights.name["wave"] == "greet"
    assert weights.weight["wave"] == 0.5
