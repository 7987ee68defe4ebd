"""Configuration of the server: a frozen value, built once at start from flags, environment and a TOML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.logs import LogFormat


class Settings(BaseSettings):
    """All settings of the server. The environment variable of a setting is `SEGREC_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="SEGREC_", frozen=True, extra="forbid", cli_kebab_case=True, cli_prog_name="segrec-serve"
    )

    address: str = Field(
        default="127.0.0.1:50051",
        description="HOST:PORT of SegrecService and EventService.",
        json_schema_extra={"touch": "Clients on other machines: 0.0.0.0:50051, with TLS and an access file."},
    )
    model_address: str = Field(
        default="127.0.0.1:50052",
        description="HOST:PORT of ModelService; keep it internal.",
        json_schema_extra={"touch": "Operators on other machines; never the internet."},
    )
    access_file: Path | None = Field(
        default=None,
        description="TOML file with callers, their roles, token hashes and quotas; read again when it changes.",
        examples=["access.toml"],
        json_schema_extra={"touch": "Any caller but the own machine shall do more than read."},
    )
    reflection: bool | None = Field(
        default=None,
        description="Answer gRPC reflection; by default only at addresses of loopback.",
        examples=[True],
        json_schema_extra={"touch": "grpcurl from other machines: true. Nothing to be told to strangers: false."},
    )
    release_key: Path | None = Field(
        default=None,
        description="PEM public key (Ed25519); the server then loads only releases with a valid signature.",
        examples=["release.pem"],
        json_schema_extra={"touch": "Others can write to the model repository."},
    )
    verified_directory: Path | None = Field(
        default=None,
        description="Directory for the copies of signed releases that Triton reads; only the server may write it. "
        "Default for the embedded Triton: verified_releases.",
        examples=["verified_releases"],
        json_schema_extra={"touch": "With `release_key` and a Triton of your own."},
    )
    metrics_address: str = Field(
        default="127.0.0.1:50053",
        description="HOST:PORT of /metrics for Prometheus.",
        json_schema_extra={"touch": "Prometheus runs on another machine."},
    )
    repository: Path = Field(
        default=Path("model_repository"),
        description="Triton's model repository.",
        json_schema_extra={"touch": "The repository lies elsewhere, such as on a shared volume."},
    )
    triton: str = Field(
        default="embedded",
        description="'embedded', or HOST:PORT of Triton's gRPC endpoint.",
        json_schema_extra={"touch": "A GPU, or one Triton for several servers: NVIDIA's container."},
    )
    triton_environment: Path = Field(
        default=Path(".triton"),
        description="Directory of `segrec-triton install`.",
        json_schema_extra={"touch": "It was installed elsewhere."},
    )
    triton_secret_file: Path | None = Field(
        default=None,
        description="File with the secret of Triton's --grpc-restricted-protocol; read again when it changes.",
        examples=["triton-secret"],
        json_schema_extra={"touch": "Triton stands where others reach it."},
    )
    triton_ca: Path | None = Field(
        default=None,
        description="PEM root certificates; turns TLS to Triton on.",
        examples=["ca.pem"],
        json_schema_extra={"touch": "Traffic to Triton crosses a network."},
    )
    triton_certificate: Path | None = Field(
        default=None,
        description="PEM certificate that Triton is shown.",
        examples=["server.pem"],
        json_schema_extra={"touch": "Triton asks for client certificates."},
    )
    triton_key: Path | None = Field(
        default=None,
        description="PEM private key of triton_certificate.",
        examples=["server.key"],
        json_schema_extra={"touch": "As `triton_certificate`."},
    )
    store: str = Field(
        default="lmdb:history",
        description="'lmdb:DIRECTORY', or a redis://, rediss:// or unix:// URL.",
        json_schema_extra={"touch": "Several servers: Valkey or Redis."},
    )
    history_limit: int = Field(
        default=1000,
        ge=1,
        le=4096,
        description="Newest events kept per user.",
        json_schema_extra={"touch": "Older events still matter: up. The store takes too much room: down."},
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Events that happened longer ago are not read, and are deleted.",
        examples=[400],
        json_schema_extra={"touch": "Your policy says how long behaviour is kept."},
    )
    bootstrap_events: Path | None = Field(
        default=None,
        description="Event log that is loaded into the store once.",
        examples=["runs/0001-run/prepare/events.parquet"],
        json_schema_extra={"touch": "The first start on a new store."},
    )
    cache_entries: int = Field(
        default=200_000,
        ge=0,
        description="Embeddings kept in memory.",
        json_schema_extra={"touch": "Memory is short, or more users come back than fit."},
    )
    keep_releases: int = Field(
        default=2,
        ge=1,
        description="Number of latest active releases that stay loaded, including the active one.",
        json_schema_extra={"touch": "More releases shall be ready for an instant roll-back; each takes memory."},
    )
    poll_seconds: float = Field(
        default=0.5,
        gt=0,
        description="Time between two reads of the repository.",
        json_schema_extra={"touch": "The repository lies on slow or costly storage: up."},
    )
    encode_timeout_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Longest wait for one call to Triton.",
        json_schema_extra={"touch": "Triton is slow by nature (large encoder, shared GPU): up."},
    )
    stream_patience_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long a stream waits for an encoder or store that does not answer.",
        json_schema_extra={"touch": "Batch jobs would rather wait than get degraded rows: up."},
    )
    stream_idle_seconds: float = Field(
        default=10.0,
        gt=0,
        description="A stream without chunks for so long lets go of its release.",
        json_schema_extra={"touch": "Clients pause for long within a stream: up."},
    )
    max_batch_users: int = Field(
        default=256,
        ge=1,
        le=1024,
        description="Most unary calls in one micro-batch.",
        json_schema_extra={"touch": "Latency matters more than throughput: down."},
    )
    max_calls: int = Field(
        default=1024,
        ge=1,
        description="Most unary calls in progress; more are refused.",
        json_schema_extra={"touch": "Memory is short: down."},
    )
    max_streams: int = Field(
        default=100,
        ge=1,
        description="Most open streams; more are refused.",
        json_schema_extra={"touch": "As `max_calls`."},
    )
    shadow_budget: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Largest share of the time that the shadow comparison may take.",
        json_schema_extra={"touch": "Shadow comparisons take too much of the processor, or compare too few users."},
    )
    trace_endpoint: str | None = Field(
        default=None,
        description="http://HOST:PORT of an OpenTelemetry collector (OTLP/gRPC); turns traces on.",
        examples=["http://127.0.0.1:4317"],
        json_schema_extra={"touch": "You have a collector, and want to see where time goes."},
    )
    trace_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the traces begun here that are kept.",
        json_schema_extra={"touch": "Few calls: up. A busy service: down."},
    )
    log_format: LogFormat = Field(
        default="text",
        description="'text', or 'json' with one object a line.",
        json_schema_extra={"touch": "Logs go into a log system: json."},
    )
    access_log: bool = Field(
        default=False,
        description="Write one log record for each call that ends.",
        json_schema_extra={"touch": "Each call shall be found again by its request id."},
    )
    unhealthy_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Health says NOT_SERVING when Triton or the store is away for this long.",
        json_schema_extra={"touch": "Load balancers should take the server out sooner or later."},
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        description="Longest wait for accepted calls at shutdown.",
        json_schema_extra={"touch": "The orchestrator's grace period differs; keep it shorter than that."},
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM certificate chain; turns TLS on.",
        examples=["server.pem"],
        json_schema_extra={"touch": "Clients on other machines."},
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM private key of the certificate.",
        examples=["server.key"],
        json_schema_extra={"touch": "As `tls_certificate`."},
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM root certificates; turns mutual TLS on.",
        examples=["clients-ca.pem"],
        json_schema_extra={"touch": "Clients show certificates."},
    )

    @model_validator(mode="after")
    def _triton_is_whole(self) -> Self:
        given = [name for name in ("triton_secret_file", "triton_ca") if getattr(self, name) is not None]
        if given and self.triton == "embedded":
            raise ValueError(f"{given[0]} is for a Triton that runs by itself: give its HOST:PORT as triton, too")
        if (self.triton_certificate is None) != (self.triton_key is None):
            raise ValueError("triton_certificate and triton_key go together: give both or neither")
        if self.triton_certificate is not None and self.triton_ca is None:
            raise ValueError("triton_certificate needs triton_ca")
        return self

    @model_validator(mode="after")
    def _verified_is_whole(self) -> Self:
        if self.verified_directory is not None and self.release_key is None:
            raise ValueError("verified_directory needs release_key")
        if self.release_key is not None and self.triton != "embedded" and self.verified_directory is None:
            raise ValueError(
                "release_key needs verified_directory with a Triton that runs by itself: a directory that only the "
                "server writes, and that is Triton's --model-repository"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self


def load_settings(arguments: Sequence[str] | None = None, toml: Path | None = None) -> Settings:
    """Build the settings. Flags override environment variables, which override the file, which overrides defaults.

    Raises `pydantic.ValidationError` for a wrong value, and `OSError` or `tomllib.TOMLDecodeError` for the file. Wrong
    flags and `--help` end the process, as in argparse.
    """
    if toml is not None and not toml.is_file():
        raise FileNotFoundError(f"configuration file {toml} does not exist")

    class _Sources(Settings):
        __doc__ = "Serve segments and recommendations over gRPC. --config FILE reads these settings from TOML."

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the signature is the library's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml)

    if arguments is None:
        return _Sources()
    return CliApp.run(_Sources, cli_args=list(arguments), cli_exit_on_error=True)
