"""GET /v1/models: the one that is served. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.runtime.serving.openai.answer_types import ModelCard, ModelList
from sparsespec.runtime.serving.openai.errors import UnknownModelError


@dataclass(frozen=True)
class ModelsEndpoint:
    """Tells the name under which the model is served."""

    model: str
    created: int  # seconds since 1970

    async def list_models(self) -> ModelList:
        """All models."""
        return ModelList(data=[self._card])

    async def retrieve_model(self, model: str) -> ModelCard:
        """One model, by its name."""
        if model != self.model:
            raise UnknownModelError(model)
        return self._card

    @property
    def _card(self) -> ModelCard:
        return ModelCard(id=self.model, created=self.created)
