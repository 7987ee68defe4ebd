"""A run whose segments are told of in every way there is: what other stages write, made up, over a real run."""

import json

import numpy as np

from server.core.profiles import ActionShare, Activity, Change, Flow, Migration, SegmentProfile, Spend, Trait
from training.config import Config
from training.runs import Run
from training.segments.result import Segmentation


def fill(run: Run, *notes: str, trait: str = "Silent films") -> Segmentation:
    """Give every profile of a segmented run all that it can hold, with `trait` as the first; returns what is kept."""
    directory = run.path / "segment"
    segmentation = Segmentation.read(directory)
    rng = np.random.default_rng(0)
    profiles = tuple(_filled(profile, trait, rng) for profile in segmentation.profiles)
    segmentation = segmentation.model_copy(update={"profiles": profiles, "notes": notes})
    segmentation.write(directory)
    return segmentation


def _filled(profile: SegmentProfile, trait: str, rng: np.random.Generator) -> SegmentProfile:
    hours = np.roll(rng.dirichlet(20 * (1.2 + np.sin(np.arange(24) / 4))), profile.segment_id)
    first = Trait(kind="category", name=trait, share=0.124, lift=2.64, lift_low=2.11, user_count=61)
    others = tuple(one.model_copy(update={"lift_low": max(1.0, one.lift * 0.9)}) for one in profile.traits)
    return profile.model_copy(
        update={
            "description": f"Its users turn to {trait} 2.6 times as often as everyone, come mostly in the evening, and "
            "do less than most.",
            "growth": 0.12 if profile.segment_id % 2 else -0.043,
            "activity": Activity(mean_events=24.31, median_events=18, mean_active_days=6.4, mean_days_since_last=31.07),
            "actions": (
                ActionShare(action="view", share=0.7, lift=1.02),
                ActionShare(action="cart", share=0.09, lift=0.8),
                ActionShare(action="purchase", share=0.21, lift=1.1),
            ),
            "hours": tuple(hours.tolist()),
            "weekdays": tuple(rng.dirichlet(np.full(7, 30.0)).tolist()),
            "spend": Spend(mean_value=9.87, mean_total=203.4, median_total=150.25),
            "traits": (first, *others),
        }
    )


def write_sweep(
    run: Run, chosen: int, reason: str = "Lift rises no further beyond it, and it is the steadiest."
) -> None:
    """A sweep over k as `--k auto` keeps it, of the run's encoder."""
    rows = [
        {
            "k": k,
            "smallest": 1000 // k,
            "inertia": 2_000_000 / k**0.5,
            "mean_distance": 0.9 / k**0.2,
            "silhouette": 0.3 - 0.01 * abs(k - chosen),
            "silhouette_error": 0.006,
            "davies_bouldin": 1.2 + 0.05 * abs(k - chosen),
            "calinski_harabasz": 900.0 - 20 * abs(k - chosen),
            "stability": None if k == 2 else 0.9 - 0.03 * abs(k - chosen),
            "lift": 1 + 0.3 * min(k, chosen) / chosen,
            "lift_error": 0.04,
        }
        for k in range(2, 2 * chosen + 3)
    ]
    of = run.record()["stages"]["export"]["ended"]
    sweep = {"of": of, "users": 1000, "asked": 500, "rows": rows, "chosen": chosen, "reason": reason}
    (run.path / "segment" / "k_sweep.json").write_text(json.dumps(sweep))


def write_moves(run: Run, previous: int, *flows: Flow, **changes: tuple[int, ...] | tuple[Change, ...]) -> Migration:
    """A migration as the segment stage keeps it; the run's ids go on from release `previous`."""
    directory = run.path / "segment"
    users = sum(flow.user_count for flow in flows if flow.from_segment_id)
    migration = Migration.model_validate({"previous_release": previous, "user_count": users, "flows": flows, **changes})
    (directory / "migration.json").write_text(migration.model_dump_json())
    Segmentation.read(directory).model_copy(update={"parent_release": previous}).write(directory)
    return migration


def set_least(run: Run, users: int) -> None:
    """Change the run's `min_segment_size`, as if it had always been so."""
    record = run.record()
    config = Config.model_validate(record["config"])
    segment = config.segment.model_copy(update={"min_segment_size": users})
    record["config"] = config.model_copy(update={"segment": segment}).model_dump(mode="json")
    (run.path / "run.json").write_text(json.dumps(record))
