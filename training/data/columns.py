"""Recognises the columns and actions of a log by their common names, English and Chinese."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from segrec.reading import columns as reading
from segrec.reading.columns import plain_name
from segrec.reading.refusals import Refused

from training.config import ActionSetting
from training.errors import LogError

ROLES = ("user_id", "item_id", "action", "value", "timestamp")
"""The columns of an event, in the order of the event table."""

DEFAULT_ACTION = reading.DEFAULT_ACTION
"""The action of every event in a log without an action column."""

_COMMON_WEIGHTS: Mapping[str, float] = {
    name: weight
    for weight, names in {
        1.0: "purchase purchased buy bought order ordered transaction pay paid payment sale checkout enrol enroll "
        "enrolled subscribe complete completed 购买 下单 支付 付款 成交 消费 报名 订阅 完成",
        0.6: "cart addtocart addcart basket fav favorite favourite favorites like liked thumbsup bookmark wishlist "
        "share follow comment commentcreated reply 加购 加购物车 加入购物车 购物车 收藏 喜欢 点赞 分享 转发 关注 评论",
        0.3: "view viewed pv click clicked impression browse visit play played watch read listen detail pageview "
        "浏览 点击 查看 访问 播放 观看 阅读",
        0.2: "search searched query 搜索 查询 检索",
        -0.3: "removefromcart removecart unfav unlike unfollow skip skipped 移出购物车 取消收藏 取消关注 取消点赞 跳过",
        -1.0: "return returned refund refunded cancel cancelled canceled dislike disliked thumbsdown block hide "
        "退货 退款 退单 取消 取消订单 不喜欢 踩 拉黑 屏蔽",
    }.items()
    for name in names.split()
}
# Actions of weight 1 that are the only action of their log, or that by themselves do not show interest.
_NEUTRAL = frozenset(f"{DEFAULT_ACTION} rate rating rated review reviewed 评分 打分 评价".split())


@dataclass(frozen=True)
class ActionWeights:
    """Final name and weight of each action, by its name in the log.

    `unknown` lists actions that are neither configured nor common.
    """

    name: Mapping[str, str]
    weight: Mapping[str, float]
    unknown: tuple[str, ...]

    def by_final_name(self) -> dict[str, float]:
        """The weight of each action by its final name."""
        return {self.name[raw]: weight for raw, weight in self.weight.items()}

    def raw_names(self, name: str) -> tuple[str, ...]:
        """Names in the log that mean the action `name`, but for those that are the final name of an action."""
        return tuple(raw for raw, final in self.name.items() if final == name and raw not in self.name.values())


def find_columns(
    columns: Sequence[str], configured: Mapping[str, str | bool | None], roles: Iterable[str], section: str, where: str
) -> dict[str, str]:
    """`segrec.reading.columns.find_columns`, with the TOML section that configures columns. Raises LogError."""
    try:
        return reading.find_columns(columns, configured, roles, where, _setting(section))
    except Refused as error:
        raise LogError(str(error)) from error


def require_columns(
    by_role: Mapping[str, str], columns: Sequence[str], roles: Iterable[str], section: str, where: str
) -> None:
    """Raise LogError that names the first of `roles` without a column."""
    try:
        reading.require_columns(by_role, columns, roles, where, _setting(section))
    except Refused as error:
        raise LogError(str(error)) from error


def action_weights(names: Iterable[str], settings: Mapping[str, ActionSetting]) -> ActionWeights:
    """Name and weight of every action of a log; an unknown action has weight 1."""
    final_names: dict[str, str] = {}
    weights: dict[str, float] = {}
    unknown: list[str] = []
    for raw in names:
        setting = settings.get(raw)
        common_weight = _COMMON_WEIGHTS.get(plain_name(raw), 1.0 if plain_name(raw) in _NEUTRAL else None)
        final_names[raw] = (setting.name if setting else None) or raw
        weights[raw] = setting.weight if setting else (1.0 if common_weight is None else common_weight)
        if setting is None and common_weight is None:
            unknown.append(raw)
    return ActionWeights(final_names, weights, tuple(unknown))


def _setting(section: str) -> Callable[[str, str], str]:
    return lambda role, column: f'[{section}] {role} = "{column}"'
