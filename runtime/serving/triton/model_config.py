"""config.pbtxt as configs: its parameters, and what else of it has to be as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sparsespec.builder.config_io import from_strings, option, required, shown
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.serving.service_config import ServiceConfig

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class ModelOptions:
    """What only the Triton model has."""

    engine_dir: str = required("engine directory; a relative one is looked for from the model repository")
    exclude_input_in_output: bool = option(
        True, "answers without the prompt before them, where a request that is not streamed does not say"
    )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that config.pbtxt says."""

    name: str
    version: str
    options: ModelOptions
    speculation: SpeculationConfig
    runtime: RuntimeConfig
    service: ServiceConfig


CONFIG_TYPES = (ModelOptions, SpeculationConfig, RuntimeConfig, ServiceConfig)


def read_model_config(args: Mapping[str, str]) -> ModelConfig:
    """args: what Triton hands to `initialize`. Raises InputError for an unknown parameter or a bad value."""
    document = json.loads(args["model_config"])
    _check_served_as(document)
    texts = {key: value["string_value"] for key, value in document["parameters"].items()}
    _check_known(texts)
    options = _read(ModelOptions, texts)
    repository = Path(args["model_repository"]).parent  # Triton's model_repository is the model's own folder
    return ModelConfig(
        name=args["model_name"],
        version=args["model_version"],
        options=replace(options, engine_dir=str(repository / options.engine_dir)),
        speculation=_read(SpeculationConfig, texts),
        runtime=_read(RuntimeConfig, texts),
        service=_read(ServiceConfig, texts),
    )


def _read(config_type: type[ConfigT], texts: Mapping[str, str]) -> ConfigT:
    names = [field.name for field in fields(config_type)]  # type: ignore[arg-type]
    return from_strings(config_type, {name: texts[name] for name in names if name in texts}, "parameters")


def _check_known(texts: Mapping[str, str]) -> None:
    known = [field.name for config_type in CONFIG_TYPES for field in fields(config_type)]
    for key in texts:
        if key not in known:
            configs = ", ".join(config_type.__name__ for config_type in CONFIG_TYPES)
            raise InputError(f"parameters: unknown key {shown(key)}; expected a field of {configs}")


def _check_served_as(document: Mapping[str, Any]) -> None:
    """One batch takes in all requests, so there is one instance, and none of Triton's own batches."""
    instances = sum(group["count"] for group in document["instance_group"])
    _require(instances == 1, "instance_group: count", instances, "1")
    decoupled = document["model_transaction_policy"]["decoupled"]
    _require(decoupled, "model_transaction_policy: decoupled", decoupled, "true")
    _require(document["max_batch_size"] == 1, "max_batch_size", document["max_batch_size"], "1")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"config.pbtxt: {name} must be {expected}, found {shown(value)}")
