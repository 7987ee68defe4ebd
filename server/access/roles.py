"""The roles that each method asks for."""

from typing import Literal, get_args

Role = Literal["read", "record", "erase", "operate"]
"""read: segments, recommendations, the catalogue, releases. record: write events. erase: read and erase the
history of a user. operate: change the traffic."""

ROLES: tuple[Role, ...] = get_args(Role)

ROLES_OF_METHOD: dict[str, tuple[Role, ...]] = {
    "segrec.v1.SegrecService/Segment": ("read",),
    "segrec.v1.SegrecService/Recommend": ("read",),
    "segrec.v1.SegrecService/StreamSegment": ("read",),
    "segrec.v1.SegrecService/StreamRecommend": ("read",),
    "segrec.v1.SegrecService/ListSegments": ("read",),
    "segrec.v1.SegrecService/GetSegment": ("read",),
    "segrec.v1.CatalogueService/ListItems": ("read",),
    "segrec.v1.CatalogueService/GetItem": ("read",),
    "segrec.v1.CatalogueService/SimilarItems": ("read",),
    "segrec.v1.CatalogueService/ListCategories": ("read",),
    "segrec.v1.CatalogueService/ListActions": ("read",),
    "segrec.v1.EventService/RecordEvents": ("record",),
    "segrec.v1.EventService/ListEvents": ("erase",),
    "segrec.v1.EventService/EraseUser": ("erase",),
    "segrec.v1.ModelService/ListReleases": ("read", "operate"),
    "segrec.v1.ModelService/GetRelease": ("read", "operate"),
    "segrec.v1.ModelService/SetTraffic": ("operate",),
    "segrec.v1.ModelService/Rollback": ("operate",),
}
"""Roles by `package.Service/Method`; one of them is enough. Health and reflection ask for none."""
