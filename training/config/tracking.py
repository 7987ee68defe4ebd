"""Settings of where runs are written down beside their own directory: `[tracking]`."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from server.core.frozen_model import FrozenModel


class TrackingSettings(FrozenModel):
    """Settings, curves, figures and report of a run in a tool that compares runs. It needs the extra `tracking`."""

    to: Literal["none", "mlflow", "tensorboard"] = Field(
        default="none",
        description="mlflow: a run of an experiment, and each published release a version of a registered model, whose "
        "aliases `stable` and `canary` follow the traffic that `segrec-train` sets; tensorboard: files in tensorboard/ "
        "of the run.",
        json_schema_extra={"touch": "You compare many runs, or others should see them."},
    )
    uri: str | None = Field(
        default=None,
        description="Address of the MLflow server, or sqlite:///FILE; left out: MLFLOW_TRACKING_URI.",
        examples=["http://mlflow.internal:5000"],
        json_schema_extra={"touch": "`to` is mlflow, and the environment does not say where."},
    )
    experiment: str = Field(
        default="segrec",
        min_length=1,
        pattern=r"^[^/:]+$",
        description="Name of MLflow's experiment and of its registered model.",
        json_schema_extra={"touch": "Several products share one MLflow.", "range": "without / and :"},
    )

    @field_validator("uri")
    @classmethod
    def _uri_has_no_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password:
            raise ValueError("give the password as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not here")
        return uri
