"""Answer prompts in one in-flight batch: python examples/generate.py ENGINE_DIR "first question" "second question" """

from __future__ import annotations

import sys

from sparsespec.runtime import LLM, SamplingParams


def main(engine_dir: str, questions: list[str]) -> None:
    """Print each question's answer and how well its drafts fared."""
    llm = LLM(engine_dir)
    prompts = [llm.encode_chat(question) for question in questions]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=64, temperature=0.0))
    for question, output in zip(questions, outputs, strict=True):
        answer = output.outputs[0]
        accepted = [check.num_accepted for check in answer.verifications]
        print(f"{question}\n  {answer.text}\n  drafts accepted per verification: {accepted}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["What is the capital of France?", "Name three primes."])
