"""Recognises the columns of a file by their common names, English and Chinese."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from segrec.reading.refusals import Refused

DEFAULT_ACTION = "event"
"""The action of every event in a log without an action column."""

COMMON_NAMES: Mapping[str, frozenset[str]] = {
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
        "event_id": "eventid 事件id 事件编号",
        "title": "title name itemname itemtitle productname producttitle movietitle coursename "
        "标题 名称 名字 商品名称 商品名 商品标题 物品名称 产品名称 课程名称 课程名 电影名称",
        "description": "description itemdescription productdescription coursedescription summary overview abstract "
        "描述 简介 介绍 商品描述 商品简介 商品介绍 产品描述 课程描述 课程简介 课程介绍",
        "category": "category categories categoryid itemcategory productcategory genre genres department itemtype "
        "类别 类目 分类 品类 类型 商品类别 商品类目 商品分类 类别id 类目id 课程类别",
    }.items()
}
"""The common names of each role, as `plain_name` gives them."""
_EXACT_FIRST: Mapping[str, str] = {"user_id": "userid", "item_id": "itemid", "action": "action", "value": "value"} | {
    "timestamp": "timestamp"
}


def find_columns(
    columns: Sequence[str],
    configured: Mapping[str, str | bool | None],
    roles: Iterable[str],
    where: str,
    setting: Callable[[str, str], str],
) -> dict[str, str]:
    """The column of each role: the configured one, else the one with a common name. Leaves out roles without a column.

    A role that is configured as False is switched off. `where`, the file, appears in messages, and so does
    `setting(role, column)`, which writes the setting that gives a role a column.
    Raises Refused if a configured column does not exist, or if several columns have a common name of the same role.
    """
    by_role: dict[str, str] = {}
    taken = {column for column in configured.values() if isinstance(column, str)}
    for role in roles:
        chosen = configured.get(role)
        if isinstance(chosen, str):
            if chosen not in columns:
                raise Refused(
                    f"{setting(role, chosen)} names the column `{chosen}`, but {where} has no column `{chosen}`; "
                    f"{_known_columns(columns)}."
                )
            if columns.count(chosen) > 1:
                raise Refused(f"{where} has the column `{chosen}` twice: rename one of them.")
            by_role[role] = chosen
        elif chosen is not False:
            free = [name for name in columns if name not in taken]
            candidates = _candidates(free, role)
            if len(candidates) > 1:
                names = " and ".join(f"`{name}`" for name in candidates)
                raise Refused(
                    f"{where} has several columns that could be the {role}: {names}; choose one: "
                    f"{setting(role, candidates[0])}."
                )
            if candidates:
                by_role[role] = candidates[0]
    return by_role


def require_columns(
    by_role: Mapping[str, str],
    columns: Sequence[str],
    roles: Iterable[str],
    where: str,
    setting: Callable[[str, str], str],
) -> None:
    """Raise Refused that names the first of `roles` without a column; `where` and `setting` as in `find_columns`."""
    for role in roles:
        if role not in by_role:
            raise Refused(
                f"{where} lacks a column for the {role}; {_known_columns(columns)}. Name it: {setting(role, '...')}."
            )


def is_common_name(name: str, role: str) -> bool:
    """Whether a column of this name is taken for the role without being told."""
    return plain_name(name) in COMMON_NAMES[role]


def _candidates(columns: Iterable[str], role: str) -> list[str]:
    names = [name for name in columns if is_common_name(name, role)]
    return [name for name in names if plain_name(name) == _EXACT_FIRST.get(role, role)] or names


def plain_name(name: str) -> str:
    """The name as common names are compared: lower case, without spaces, underscores, hyphens, dots and slashes."""
    return re.sub(r"[\s_\-./]+", "", name.lower())


def _known_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(f"`{column}`" for column in columns[:30]) + (", …" if len(columns) > 30 else "")
    return f"its columns are {shown}" if columns else "it has no columns"
