"""Predicting the next token of a text: what a comparison trains, tests and shows.

Everything that is particular to this task stands here (a `quatrain.lab._study.Study`);
`quatrain.lab.compare` knows only how a comparison proceeds.
"""

from collections.abc import Mapping
from math import log
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from quatrain.config.schema import from_dict
from quatrain.data.sampler import Windows
from quatrain.data.task import TASKS
from quatrain.data.tokenizer import measures
from quatrain.data.tokens import TokenFile
from quatrain.errors import DataError
from quatrain.infer.evaluate import evaluate
from quatrain.infer.generate import generate
from quatrain.infer.sample import Sampling
from quatrain.lab import baselines, far, losses, probes
from quatrain.lab._study import Row, few_steps, planned
from quatrain.lab.config import CompareConfig, for_text
from quatrain.lab.plan import Plan
from quatrain.lab.windows import Pieces, Tokens, cut
from quatrain.model.config import ModelConfig
from quatrain.model.count import fit_size
from quatrain.model.lm import LanguageModel
from quatrain.model.sequence import SequenceModel
from quatrain.train.config import RunConfig, TrainConfig

_PROMPT, _SAMPLE = 64, 240  # bytes of a prompt, tokens of a sample
_PLAIN = 0.99  # characters of a byte from which on a text is as good as ASCII
_GRADIENT_TOKENS = 4096  # tokens over which gradient norms are averaged


class TextTask:
    """Next-token prediction on a token file. Raises DataError where a part is too short."""

    def __init__(self, config: CompareConfig, tokens: TokenFile) -> None:
        self.task, self.sweeps = TASKS["lm"], True
        config = for_text(config)
        self.config, self.tokens, self.data = config, tokens, tokens
        self.tokenizer = tokens.tokenizer
        self.sizes = measures(self.tokenizer.spelled)
        self.train, self.valid, self.test = (tokens.part(part) for part in ("train", "valid", "test"))
        Windows(self.train, config.sequence, config.batch, 0)  # says what is missing, before anything is done
        for name, part in (("validation part", self.valid), ("test part", self.test)):
            if len(part) <= config.sequence:
                need = config.sequence + 1
                raise DataError(
                    f"sequence = {config.sequence}: needs {need} tokens in a row, the {name} has {len(part)}"
                )

    @property
    def train_tokens(self) -> int:
        """Tokens of the training part."""
        return len(self.train)

    @property
    def test_total(self) -> int:
        """Tokens of the test part that can be predicted."""
        return len(self.test) - 1

    def says(self) -> str:
        """Nothing: a text is read in windows, as the plan says."""
        return ""

    def describe(self) -> Row:
        """The text, for the record."""
        tokens = self.tokens
        return {
            "name": tokens.name,
            "description": tokens.description,
            "digest": tokens.digest,
            "bytes": tokens.bytes,
            "tokens": len(tokens.tokens),
            "vocab": tokens.vocab,
            "tokenizer": self.tokenizer.name,
            "splits": tokens.splits,
        }

    # -- models and runs

    def model(self, mixer: str) -> ModelConfig:
        """A model of the size asked for. Raises ConfigError where there is none."""
        return fit_size(
            mixer, self.config.params, base=ModelConfig(vocab=self.tokens.vocab, dropout=self.config.dropout)
        )

    def run(self, model: ModelConfig, lr: float, seed: int, plan: Plan) -> RunConfig:
        """The training run of one model, learning rate and seed."""
        return self._run(model, planned(plan, lr, seed, plan.eval_tokens))

    def trial(self, model: ModelConfig) -> RunConfig:
        """A few steps, for calibration."""
        return self._run(model, few_steps(self.config, 8192))

    def _run(self, model: ModelConfig, train: Row) -> RunConfig:
        config = self.config
        settings = {
            "sequence": config.sequence,
            "batch_tokens": config.sequence * config.batch,
            "keep": 1,
            **train,
        }
        return RunConfig(model=model, data=config.data, train=from_dict(TrainConfig, settings, "train"))

    def merit(self, look: Mapping[str, Any]) -> float:
        """Nats per token."""
        return float(look["nats"])

    # -- scores

    def _pieces(self, tokens: Tokens, limit: int, part: str) -> Pieces:
        return cut(tokens, self.config.sequence, limit, part=part)

    def baselines(self, plan: Plan) -> list[Row]:
        """Rows of the trivial baselines, on the same pieces of text as the models."""
        found = baselines.baselines(
            self.train,
            (self.valid, self._pieces(self.valid, plan.test_tokens, "validation part")),
            (self.test, self._pieces(self.test, plan.test_tokens, "test part")),
            self.tokens.vocab,
        )
        rows = []
        for base in found:
            bits = self._bits(base.test, self._pieces(self.test, plan.test_tokens, "test part"))
            rows.append(
                {
                    "name": base.name,
                    "order": base.order,
                    "valid_loss": base.valid,
                    "test_loss": base.test,
                    **bits,
                    "valid_metrics": {"nats": base.valid},
                    "metrics": {"nats": base.test},
                    **baselines.fitted_on(self.train),
                }
            )
        return rows

    def score(self, model: SequenceModel, plan: Plan) -> Row:
        """Fields of a result: validation and test loss in windows from an empty state and, where the state
        does not grow, test loss with carried state.
        """
        model = cast(LanguageModel, model)
        pieces = self._pieces(self.test, plan.test_tokens, "test part")
        valid_pieces = self._pieces(self.valid, plan.test_tokens, "validation part")
        valid = score(model, self.valid, valid_pieces, self.config.batch)
        found = losses.piece_losses(model, self.test, pieces, self.config.batch)
        test = losses.mean(found, pieces)
        row: Row = {
            "valid_loss": valid,
            "test_loss": test,
            **self._bits(test, pieces),
            "valid_metrics": {"nats": valid},
            "metrics": {"nats": test},
            "test_tokens": pieces.tokens,
            "test_total_tokens": pieces.total,
            "test_pieces": losses.stretches(found, pieces),
        }
        if model.state_bytes(1, 1) == model.state_bytes(1, 100_000):
            carried = evaluate(
                model,
                self.test,
                chunk=self.config.sequence,
                batch=self.config.batch,
                limit=plan.test_tokens,
                sizes=None if self.tokenizer.name == "bytes" else self.sizes,
            )
            row |= {
                "test_loss_carried": carried.nats,
                "test_bits_per_byte_carried": carried.bits_per_byte,
                "test_tokens_carried": carried.tokens,
                "carried_context": carried.context,
            }
        return row

    def _bits(self, nats: float, pieces: Pieces) -> Row:
        """Bits per byte of the text (per base of DNA) that the pieces' tokens spell, and per character where
        characters are not nearly all single bytes."""
        bits = nats / log(2)
        if self.tokenizer.name == "dna":
            return {"test_bits_per_byte": bits}
        positions, _ = pieces.positions()
        predicted = np.asarray(self.test)[positions]
        size, characters = (int(each[predicted].sum()) for each in self.sizes)
        if self.tokenizer.name == "bytes":  # exactly a byte each
            row = {"test_bits_per_byte": bits}
        else:
            row = {"test_bits_per_byte": bits * pieces.tokens / size} if size else {}
        if characters and (characters < _PLAIN * size or self.tokenizer.name != "bytes"):
            row["test_bits_per_character"] = bits * pieces.tokens / characters
        return row

    # -- what the probes read

    def context(self, length: int) -> Tensor:
        """``length`` tokens of the training part, repeated where it is shorter."""
        part = np.asarray(self.train[:length], dtype=np.int64)
        return torch.from_numpy(np.resize(part, length))

    def gradient_windows(self) -> Tensor:
        """Windows of the validation part for gradient norms, ``(B, sequence + 1)``."""
        size = self.config.sequence + 1
        count = max(4, _GRADIENT_TOKENS // size)
        starts = np.linspace(0, len(self.valid) - size, count).astype(int)
        return torch.from_numpy(np.stack([self.valid[at : at + size] for at in starts]).astype(np.int64))

    def sweep(
        self, model: SequenceModel | None, plan: Plan, models: Mapping[str, ModelConfig]
    ) -> tuple[list[tuple[str, Row]], str]:
        """Loss by position in windows of the test part that are longer than those of training."""
        config, sequence = self.config, self.config.sequence
        length, lack = far.window(config, self.test), far.missing(config, self.test)
        if model is None or length < 2 * sequence:
            return [], lack
        windows = far.count(config, plan, models, self.test)
        return far.sweep(cast(LanguageModel, model), self.test, length, sequence, windows), lack

    def reach(self, model: SequenceModel) -> dict[int, float]:
        """Gradient norms of the last token's loss over windows of the validation part."""
        return probes.gradient_norms(model, self.gradient_windows())

    def samples(self, model: SequenceModel) -> list[Row]:
        """A text that the model writes after the first line break of the validation part."""
        model = cast(LanguageModel, model)
        spelled = self.tokenizer.spelled
        start = b"".join(spelled[token] for token in self.valid[:4096].tolist())
        prompt = start[start.find(b"\n") + 1 :][:_PROMPT].decode("utf-8", "ignore") or "\n"
        pieces = generate(
            model,
            prompt,
            max_tokens=_SAMPLE,
            sampling=Sampling(temperature=0.8),
            tokenizer=self.tokenizer,
        )
        text = "".join(piece.text for piece in pieces)
        return [{"form": "text", "prompt": prompt, "text": text, "temperature": 0.8}]


def score(model: LanguageModel, tokens: Tokens, pieces: Pieces, batch: int) -> float:
    """Mean nats per token over pieces of a text, each read from an empty state, ``batch`` at a time."""
    return losses.mean(losses.piece_losses(model, tokens, pieces, batch), pieces)
