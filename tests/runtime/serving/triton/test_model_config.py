"""config.pbtxt's parameters as configs."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from fake_triton import model_args
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.serving.service_config import ServiceConfig
from sparsespec.runtime.serving.triton.model_config import CONFIG_TYPES, ModelOptions, read_model_config


def test_parameters_reach_their_configs() -> None:
    parameters = {
        "engine_dir": "tiny/engine",
        "exclude_input_in_output": "false",
        "k": "4",
        "ratio": "0.1",
        "adaptive": "true",
        "max_batch_size": "",
        "result_lag": "2",
        "max_requests": "9",
    }
    config = read_model_config(model_args(Path("/models"), parameters))
    assert config.options == ModelOptions("/models/tiny/engine", exclude_input_in_output=False)
    assert config.speculation == SpeculationConfig(k=4, ratio=0.1, adaptive=True)
    assert config.runtime == RuntimeConfig(result_lag=2)
    assert config.service == ServiceConfig(max_requests=9)


def test_an_absolute_engine_dir_stays() -> None:
    config = read_model_config(model_args(Path("/models"), {"engine_dir": "/data/engine"}))
    assert config.options.engine_dir == "/data/engine"


def test_no_two_configs_have_a_field_of_one_name() -> None:
    """A parameter is named by its field alone."""
    names = [field.name for config_type in CONFIG_TYPES for field in fields(config_type)]
    assert sorted(names) == sorted(dict.fromkeys(names))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameters: missing key 'engine_dir'"),
        ({"engine_dir": "e", "K": "4"}, "parameters: unknown key 'K'; expected a field of ModelOptions, "),
        ({"engine_dir": "e", "k": "4.5"}, "parameters: k: expected int, found '4.5'"),
        ({"engine_dir": "e", "k": ""}, "parameters: k: expected int, found ''"),
        ({"engine_dir": "e", "ratio": "x"}, "parameters: ratio: expected float, found 'x'"),
        ({"engine_dir": "e", "adaptive": "True"}, "parameters: adaptive: expected bool, found 'True'"),
        ({"engine_dir": "e", "policy": "best"}, "parameters: policy: expected one of auto, .*, found 'best'"),
        ({"engine_dir": "e", "max_requests": "0"}, "parameters: max_requests must be at least 1, found 0"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_model_config(model_args(Path("/models"), parameters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_group": [{"count": 2}]}, "instance_group: count must be 1, found 2"),
        ({"instance_group": [{"count": 1}, {"count": 1}]}, "instance_group: count must be 1, found 2"),
        ({"model_transaction_policy": {"decoupled": False}}, "decoupled must be true, found False"),
        ({"max_batch_size": 0}, "max_batch_size must be 1, found 0"),
    ],
)
def test_what_config_pbtxt_must_not_change(change: dict[str, object], message: str) -> None:
    args = model_args(Path("/models"), {"engine_dir": "e"})
    document = json.dumps(json.loads(args["model_config"]) | change)
    with pytest.raises(InputError, match=message):
        read_model_config(args | {"model_config": document})
