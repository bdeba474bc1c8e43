"""The distribution of a token, written again in plain Python: what sampling on the device is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from sparsespec.runtime.sampling_params import SamplingParams


def plain_distribution(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """Probability of every token after prompt and output; of equal logits the lower token counts as the greater one."""
    penalised = [_penalised(logit, token, params, prompt, output) for token, logit in enumerate(logits)]
    banned = params.stop_token_ids if len(output) < params.min_tokens else ()
    ranked = [token for token in range(len(logits)) if token not in banned]
    ranked.sort(key=lambda token: (-penalised[token], token))
    if params.temperature == 0:
        return [float(token == ranked[0]) for token in range(len(logits))]
    weights = [exp((logit - penalised[ranked[0]]) / params.temperature) for logit in penalised]
    ranked = [token for token in ranked if weights[token] >= params.min_p][: params.top_k or None]
    total, mass, kept = sum(weights[token] for token in ranked), 0.0, []
    for token in ranked:
        if mass < params.top_p:
            kept.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


def _penalised(logit: float, token: int, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> float:
    if token in (*prompt, *output):
        logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
    count = list(output).count(token)
    return logit - params.frequency_penalty * count - params.presence_penalty * (count > 0)
