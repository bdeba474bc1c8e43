"""Stream an answer while other requests could run: python examples/stream.py ENGINE_DIR "question" """

from __future__ import annotations

import asyncio
import sys

from sparsespec.runtime import LLM, AsyncLLM, OutputDelta, SamplingParams


async def main(engine_dir: str, question: str) -> None:
    """Print the answer as it comes."""
    llm = LLM(engine_dir)
    prompt = llm.encode_chat(question)
    async with AsyncLLM(llm) as engine:
        async for item in engine.generate(prompt, SamplingParams(max_tokens=64, temperature=0.7, seed=1)):
            if isinstance(item, OutputDelta):
                print(item.text, end="", flush=True)
    print()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"))
