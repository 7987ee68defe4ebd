"""What a log must hold so that there is anything to learn from it; said when it is prepared."""

from collections.abc import Mapping

import polars as pl

from training.errors import LogError


def check_learnable(events: pl.DataFrame, weights: Mapping[str, float]) -> None:
    """Raise LogError that says why nothing can be learned from cleaned training events, if so.

    `weights` are by final name of the action.
    """
    items = events["item_id"].unique()
    if len(items) == 1:
        raise LogError(
            f"All {len(events):,} events to train on are of one item, `{items.cast(pl.String)[0]}`: there is nothing "
            "to choose between. Check [columns] item_id, and what cleaning dropped."
        )
    actions = sorted(events["action"].unique().cast(pl.String))
    if all(weights[action] < 0 for action in actions):
        shown = ", ".join(f"`{action}` {weights[action]:g}" for action in actions)
        raise LogError(
            f"All {len(events):,} events to train on are returns or dislikes, so they show what nobody wants and "
            f"nothing that anybody wants: {shown}. Give an action that shows interest a weight of 0 or more in "
            "[actions], or add the events that came before."
        )
    if events["user_id"].n_unique() == len(events):
        raise LogError(
            "Every user has one event to train on, and what comes next is learned from users with two or more; the log "
            "needs longer histories. Check [columns] user_id."
        )
