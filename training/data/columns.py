"""Recognises the columns and actions of a log by their common names, English and Chinese."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.config import ActionSetting
from training.errors import LogError

ROLES = ("user_id", "item_id", "action", "value", "timestamp")
"""The columns of an event, in the order of the event table."""

DEFAULT_ACTION = "event"
"""The action of every event in a log without an action column."""

# Names are compared by `_plain`: lower case, without spaces, underscores, hyphens, dots and slashes.
_COMMON_NAMES: Mapping[str, frozenset[str]] = {
    role: frozenset(names.split())
    for role, names in {
        "user_id": "userid user uid visitorid visitor customerid customer customerno customernumber clientid client "
        "householdid memberid member accountid buyerid reviewerid personid subscriberid studentid learnerid "
        "用户id 用户 用户编号 用户标识 用户名 会员id 会员 会员编号 客户id 客户 客户编号 顾客id 买家id 学员id 学生id",
        "item_id": "itemid item iid productid product productcode articleid contentid movieid filmid bookid songid "
        "trackid videoid newsid courseid goodsid skuid sku stockcode asin isbn parentasin businessid listingid offerid "
        "商品id 商品 商品编号 物品id 物品 物品编号 产品id 产品 产品编号 课程id 课程 课程编号 电影id 文章id 视频id "
        "内容id 图书id 项目id",
        "action": "action actiontype event eventtype eventname behavior behaviour behaviortype behaviourtype "
        "interaction interactiontype activity activitytype type 行为类型 行为 行为名称 动作 动作类型 操作 操作类型 "
        "事件 事件类型 交互类型 类型",
        "value": "value eventvalue actionvalue rating score stars overall price amount salesvalue total totalprice "
        "quantity qty revenue 行为值 值 数值 评分 打分 分数 金额 价格 单价 数量 销售额 消费金额",
        "timestamp": "timestamp ts time datetime date eventtime eventtimestamp actiontime behaviortime behaviourtime "
        "timestampms unixtime unixreviewtime createdat createtime createdtime occurredat transactiontimestamp "
        "transactiontime transactiondate invoicedate orderdate purchasedate 时间 时间戳 日期 行为时间 发生时间 "
        "操作时间 创建时间 下单时间 购买时间 事件时间 日期时间",
        "title": "title name itemname itemtitle productname producttitle movietitle coursename "
        "标题 名称 名字 商品名称 商品名 商品标题 物品名称 产品名称 课程名称 课程名 电影名称",
        "description": "description itemdescription productdescription coursedescription summary overview abstract "
        "描述 简介 介绍 商品描述 商品简介 商品介绍 产品描述 课程描述 课程简介 课程介绍",
        "category": "category categories categoryid itemcategory productcategory genre genres department itemtype "
        "类别 类目 分类 品类 类型 商品类别 商品类目 商品分类 类别id 类目id 课程类别",
    }.items()
}
_EXACT_FIRST: Mapping[str, str] = {"user_id": "userid", "item_id": "itemid", "action": "action", "value": "value"} | {
    "timestamp": "timestamp"
}

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

    def raw_names(self, name: str) -> tuple[str, ...]:
        """Names in the log that mean the action `name`, but for those that are the final name of an action."""
        return tuple(raw for raw, final in self.name.items() if final == name and raw not in self.name.values())


def find_columns(
    columns: Sequence[str], configured: Mapping[str, str | None], roles: Iterable[str], section: str, where: str
) -> dict[str, str]:
    """The column of each role: the configured one, else the one with a common name. Leaves out roles without a column.

    `section`, the TOML section that configures columns, and `where`, the file, appear in messages.
    Raises LogError if a configured column does not exist, or if several columns have a common name of the same role.
    """
    by_role: dict[str, str] = {}
    configured_names = {column for column in configured.values() if column is not None}
    for role in roles:
        column = configured.get(role)
        if column is not None:
            if column not in columns:
                raise LogError(
                    f"[{section}] {role} names the column `{column}`, but {where} has no column `{column}`; "
                    f"{_known_columns(columns)}."
                )
            by_role[role] = column
            continue
        candidates = [name for name in columns if name not in configured_names and _plain(name) in _COMMON_NAMES[role]]
        exact = [name for name in candidates if _plain(name) == _EXACT_FIRST.get(role, role)]
        candidates = exact or candidates
        if len(candidates) > 1:
            names = " and ".join(f"`{name}`" for name in candidates)
            raise LogError(
                f"{where} has several columns that could be the {role}: {names}; choose one in the configuration: "
                f'[{section}] {role} = "{candidates[0]}".'
            )
        if candidates:
            by_role[role] = candidates[0]
    return by_role


def require_columns(
    by_role: Mapping[str, str], columns: Sequence[str], roles: Iterable[str], section: str, where: str
) -> None:
    """Raise LogError that names the first of `roles` without a column."""
    for role in roles:
        if role not in by_role:
            raise LogError(
                f"{where} lacks a column for the {role}; {_known_columns(columns)}. Name it in the configuration: "
                f'[{section}] {role} = "...".'
            )


def action_weights(names: Iterable[str], settings: Mapping[str, ActionSetting]) -> ActionWeights:
    """Name and weight of every action of a log; an unknown action has weight 1."""
    final_names: dict[str, str] = {}
    weights: dict[str, float] = {}
    unknown: list[str] = []
    for raw in names:
        setting = settings.get(raw)
        common_weight = _COMMON_WEIGHTS.get(_plain(raw), 1.0 if _plain(raw) in _NEUTRAL else None)
        final_names[raw] = (setting.name if setting else None) or raw
        weights[raw] = setting.weight if setting else (1.0 if common_weight is None else common_weight)
        if setting is None and common_weight is None:
            unknown.append(raw)
    return ActionWeights(final_names, weights, tuple(unknown))


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-./]+", "", name.strip().lower())


def _known_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(f"`{column}`" for column in columns[:30]) + (", …" if len(columns) > 30 else "")
    return f"its columns are {shown}" if columns else "it has no columns"
