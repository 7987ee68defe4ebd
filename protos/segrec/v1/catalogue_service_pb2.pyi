from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from segrec.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Item(_message.Message):
    __slots__ = ("item_id", "title", "categories", "popularity_share")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    POPULARITY_SHARE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    categories: _containers.RepeatedScalarFieldContainer[str]
    popularity_share: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., categories: _Optional[_Iterable[str]] = ..., popularity_share: _Optional[float] = ...) -> None: ...

class Category(_message.Message):
    __slots__ = ("name", "item_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    item_count: int
    def __init__(self, name: _Optional[str] = ..., item_count: _Optional[int] = ...) -> None: ...

class Action(_message.Message):
    __slots__ = ("name", "other_names", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OTHER_NAMES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    other_names: _containers.RepeatedScalarFieldContainer[str]
    weight: float
    def __init__(self, name: _Optional[str] = ..., other_names: _Optional[_Iterable[str]] = ..., weight: _Optional[float] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("release", "release_alias", "category", "title_prefix", "page_size", "page_token")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    TITLE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    category: str
    title_prefix: str
    page_size: int
    page_token: str
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., category: _Optional[str] = ..., title_prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token", "total_size", "release")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    next_page_token: str
    total_size: int
    release: int
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ..., release: _Optional[int] = ...) -> None: ...

class GetItemRequest(_message.Message):
    __slots__ = ("release", "release_alias", "item_id")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    item_id: str
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., item_id: _Optional[str] = ...) -> None: ...

class GetItemResponse(_message.Message):
    __slots__ = ("item", "release")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    item: Item
    release: int
    def __init__(self, item: _Optional[_Union[Item, _Mapping]] = ..., release: _Optional[int] = ...) -> None: ...

class ListCategoriesRequest(_message.Message):
    __slots__ = ("release", "release_alias", "page_size", "page_token")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    page_size: int
    page_token: str
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCategoriesResponse(_message.Message):
    __slots__ = ("categories", "next_page_token", "total_size", "release")
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    categories: _containers.RepeatedCompositeFieldContainer[Category]
    next_page_token: str
    total_size: int
    release: int
    def __init__(self, categories: _Optional[_Iterable[_Union[Category, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ..., release: _Optional[int] = ...) -> None: ...

class ListActionsRequest(_message.Message):
    __slots__ = ("release", "release_alias", "page_size", "page_token")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    page_size: int
    page_token: str
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListActionsResponse(_message.Message):
    __slots__ = ("actions", "next_page_token", "total_size", "release")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[Action]
    next_page_token: str
    total_size: int
    release: int
    def __init__(self, actions: _Optional[_Iterable[_Union[Action, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ..., release: _Optional[int] = ...) -> None: ...

class SimilarItemsRequest(_message.Message):
    __slots__ = ("release", "release_alias", "item_id", "top_k", "exclude_item_ids", "exclude_categories", "include_categories", "candidate_item_ids", "include_variants")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_VARIANTS_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    item_id: str
    top_k: int
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude_categories: _containers.RepeatedScalarFieldContainer[str]
    include_categories: _containers.RepeatedScalarFieldContainer[str]
    candidate_item_ids: _containers.RepeatedScalarFieldContainer[str]
    include_variants: bool
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., item_id: _Optional[str] = ..., top_k: _Optional[int] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., exclude_categories: _Optional[_Iterable[str]] = ..., include_categories: _Optional[_Iterable[str]] = ..., candidate_item_ids: _Optional[_Iterable[str]] = ..., include_variants: _Optional[bool] = ...) -> None: ...

class SimilarItem(_message.Message):
    __slots__ = ("item_id", "title", "similarity")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    similarity: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class SimilarItemsResponse(_message.Message):
    __slots__ = ("items", "release")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[SimilarItem]
    release: int
    def __init__(self, items: _Optional[_Iterable[_Union[SimilarItem, _Mapping]]] = ..., release: _Optional[int] = ...) -> None: ...
