"""The bodies of Foundry Local's routes, as typed objects."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """What went wrong: the sentence, and whose fault it is."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    code: str | None = None
    param: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: Problem


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """GET /status."""

    endpoints: list[str]
    model_cache_path: str
    pid: int


class LoadState(msgspec.Struct, frozen=True):
    """GET /models/load/{name}."""

    status: Literal["loaded", "already_loaded"]


class UnloadState(msgspec.Struct, frozen=True):
    """GET /models/unload/{name}."""

    status: Literal["unloaded", "not_loaded"]


class ShutdownState(msgspec.Struct, frozen=True):
    """POST /shutdown."""

    status: Literal["stopping"] = "stopping"


class DaemonStatus(msgspec.Struct, frozen=True, rename="camel"):
    """GET /openai/status. There is no named pipe."""

    endpoints: list[str]
    model_dir_path: str
    pipe_name: str | None = None


class ModelRuntime(msgspec.Struct, frozen=True, rename="camel"):
    """What a model runs on."""

    device_type: Literal["CPU", "GPU", "NPU"]
    execution_provider: str


class ListedModel(msgspec.Struct, frozen=True, rename={"min_fl_version": "minFLVersion"} | {
    name: name.split("_")[0] + "".join(word.title() for word in name.split("_")[1:])
    for name in (
        "display_name", "model_type", "provider_type", "prompt_template", "file_size_mb", "model_settings", "supports_tool_calling",
        "license_description", "parent_model_uri", "max_output_tokens", "size_class",
    )
}):  # fmt: skip
    """A model in GET /foundry/list. `uri` holds the name that the store knows it by; `type`, `size_class` and `cached` are ours."""

    name: str
    display_name: str
    model_type: str
    provider_type: str
    uri: str
    version: str
    prompt_template: dict[str, str] | None
    publisher: str
    task: str
    runtime: ModelRuntime
    file_size_mb: int
    model_settings: dict[str, Any]
    alias: str
    supports_tool_calling: bool
    license: str
    license_description: str
    parent_model_uri: str
    max_output_tokens: int | None
    min_fl_version: str | None
    type: str
    size_class: str
    cached: bool


class DownloadModel(msgspec.Struct, frozen=True, rename="pascal"):
    """The model of a download, as /foundry/list has it. Only its name decides."""

    name: str
    uri: str = ""
    provider_type: str = ""
    publisher: str | None = None
    path: str | None = None
    prompt_template: dict[str, str | None] | None = None


class DownloadBody(msgspec.Struct, frozen=True):
    """POST /openai/download."""

    model: DownloadModel
    token: str | None = None
    ignore_pipe_report: bool = msgspec.field(default=True, name="IgnorePipeReport")
    custom_dir_path: str | None = msgspec.field(default=None, name="customDirPath")
    buffer_size: int | None = msgspec.field(default=None, name="bufferSize")
    progress_token: int | str | None = msgspec.field(default=None, name="progressToken")


class DownloadResult(msgspec.Struct, frozen=True, rename="camel"):
    """The last line of a download. One SDK reads errorMessage, the other `error`."""

    success: bool
    error_message: str | None = None
    error: str | msgspec.UnsetType = msgspec.UNSET


class TokenCount(msgspec.Struct, frozen=True, rename="camel"):
    """POST /v1/chat/completions/tokenizer/encode/count."""

    token_count: int
