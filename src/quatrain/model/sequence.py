"""The sequence model: embedding or projection, backbone, a head for the task. Mixers are its parameter."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.config.check import check
from quatrain.errors import ShapeError
from quatrain.kernels.linear_step import linear
from quatrain.model.backbone import Backbone, State
from quatrain.model.config import FORECAST_WIDTH, ModelConfig
from quatrain.model.init import initialise_tables, scale_outputs

_CAUSAL_TASKS = ("lm", "forecast")  # others may look at the whole sequence


class SequenceModel(nn.Module):
    """head(backbone(embedding(inputs))) for any pattern of mixers and any task of `quatrain.data.task.TASKS`.

    Inputs are tokens ``(B, T)`` where ``config.channels`` is 0, else numbers ``(B, T, C)``, of which a
    forecast does not read the first ``config.anchors``: it only starts from them. What comes out, by
    task (K = ``config.outputs``; H horizon, M target channels, 6 = mean and five quantiles):

    - lm: ``(B, T, V)``, logits of the next token
    - tag, transcribe: ``(B, T, K)``, logits of each step's tag, or of its symbol with the blank as symbol 0
    - classify: ``(B, K)``, logits of the class, read from all steps as ``config.pool`` says
    - forecast: ``(B, T, H, M, 6)``, what follows each step: the last values plus what the head adds to them

    Batches come padded (optional ``lengths (B,)``) or packed (``cu_seqlens (S+1,)``, not for classify). The
    state is a value, as a mixer's. Weights are drawn from torch's global generator;
    `quatrain.model.initialise` draws them from a seed. Raises ConfigError for a mixer that is not causal in a
    task that predicts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for kind in dict.fromkeys(config.kinds):
            causal = getattr(config.mixer_config(kind), "causal", True)
            what = "a language model" if config.task == "lm" else "a forecast"
            fits = causal or config.task not in _CAUSAL_TASKS
            check(fits, f"model.mixer.{kind}.causal", causal, f"must be true in {what}")
        self.config = config
        self.embedding: nn.Embedding | nn.Linear = (
            nn.Linear(config.read_channels, config.width)
            if config.channels
            else nn.Embedding(config.vocab, config.width)
        )
        self.backbone = Backbone(config)
        self.head = (
            None
            if config.has_tied_head
            else nn.Linear(config.width, config.head_outputs, bias=config.task != "lm")
        )
        initialise_tables(self)
        scale_outputs(self)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, ``(K, D)``; the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, State | None]:
        """What the task asks for (see the class), and the state after the last step (see `hidden`)."""
        x, after = self.hidden(inputs, state, lengths, cu_seqlens, keep_state=keep_state)
        return self.read(x, inputs, lengths), after

    def hidden(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tensor, State | None]:
        """What the head sees: ``(B, T)`` int64 or ``(B, T, C)`` numbers to ``(B, T, D)``, 0 at t >= length.

        Raises:
            ShapeError: inputs have another shape or dtype, or (on the CPU, where contents are checked) a
                token lies outside [0, V).
            StateError: the state belongs to another model or batch size.
        """
        ndim = 3 if self.config.channels else 2
        if inputs.ndim != ndim or 0 in inputs.shape:
            shape = f"shape {tuple(inputs.shape)}: must be {self._shape('(B, T')}"
            raise ShapeError(f"{self._what}s: {shape} with B and T at least 1")
        return self.backbone(  # type: ignore[no-any-return]  # Module call is Any
            self.embed(inputs), state, lengths, cu_seqlens, keep_state=keep_state
        )

    def read(self, x: Tensor, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The task's head on what `hidden` gave for these inputs."""
        task = self.config.task
        if task == "classify":
            return self.logits(pooled(x, lengths, self.config.pool))
        if task == "forecast":
            return self.forecasts(x, inputs)
        return self.logits(x)

    def forecasts(self, x: Tensor, inputs: Tensor) -> Tensor:
        """``x (..., D)``, ``inputs (..., C)`` to ``(..., H, M, 6)``: the present values plus the head's.

        Starting from the present value (persistence) leaves a slow drift of the level out of the model.
        """
        config = self.config
        added = self.logits(x).reshape(*x.shape[:-1], config.horizon, config.target_channels, FORECAST_WIDTH)
        return added + inputs[..., None, : config.target_channels, None]

    def logits(self, x: Tensor) -> Tensor:
        """The head's matrix: ``(..., D) -> (..., K)``; 2 D K operations per vector."""
        return F.linear(x, self.head_weight, None if self.head is None else self.head.bias)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: ``(B,)`` tokens or ``(B, C)`` numbers, to what `forward` gives for it, and the state.

        A class is read from this step alone, whatever ``pool`` says. Raises as `hidden` does.
        """
        ndim = 2 if self.config.channels else 1
        if inputs.ndim != ndim or 0 in inputs.shape:
            raise ShapeError(
                f"{self._what}: shape {tuple(inputs.shape)}: must be {self._shape('(B,')} with B at least 1"
            )
        x, after = self.backbone.step(self.embed(inputs), state)
        if self.config.task == "forecast":
            return self.forecasts(x, inputs), after
        return linear(x, self.head_weight, None if self.head is None else self.head.bias), after

    def initial_state(self, batch: int) -> State:
        """The state before the first step. Raises ShapeError for a batch below 1."""
        return self.backbone.initial_state(batch)

    def state_bytes(self, batch: int, time: int) -> int:
        """Live bytes of the state of ``batch`` sequences after ``time`` steps each."""
        return self.backbone.state_bytes(batch, time)

    def flops_per_token(self, context: int) -> int:
        """Operations of a forward pass for one step with ``context`` steps to look at, itself included.

        Sum over layers of the mixer's own count and 6 D M for a gated MLP of inner width M, plus 2 D K for
        the head (of every step; a class is read once a sequence) and 2 C D for a projection of C numbers. A
        multiply-add counts as two; norms, activations, residual sums and the embedding's look-up are left
        out. Training costs about three times as much, four times with ``checkpoint_layers``.
        """
        config = self.config
        outside = config.read_channels + (0 if config.task == "classify" else config.head_outputs)
        return self.backbone.flops_per_token(context) + 2 * config.width * outside

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def _what(self) -> str:
        return "input" if self.config.channels else "token"

    def _shape(self, start: str) -> str:
        return f"{start}, {self.config.channels})".replace(",,", ",") if self.config.channels else f"{start})"

    def embed(self, inputs: Tensor) -> Tensor:
        """What the first layer reads: ``(B, T)`` tokens or ``(B, T, C)`` numbers to ``(B, T, D)``.

        Raises ShapeError for inputs of another kind, or tokens out of range.
        """
        if isinstance(self.embedding, nn.Linear):
            if not inputs.is_floating_point() or inputs.shape[-1] != self.config.channels:
                got = f"shape {tuple(inputs.shape)} of {inputs.dtype}"
                raise ShapeError(
                    f"inputs: {got}: must be {self.config.channels} floating-point numbers a step"
                )
            return self.embedding(inputs[..., self.config.anchors :])  # type: ignore[no-any-return]
        if inputs.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"tokens: dtype {inputs.dtype}: must be torch.int64 or torch.int32")
        if inputs.device.type == "cpu":
            if inputs.numel() <= 8:  # as in a step: quicker than a reduction
                low, high = (end(inputs.flatten().tolist()) for end in (min, max))
            else:
                low, high = (int(end) for end in inputs.aminmax())
            if low < 0 or high >= self.config.vocab:
                wrong = low if low < 0 else high
                raise ShapeError(
                    f"tokens: {wrong}: must lie in [0, {self.config.vocab}), the model's vocabulary"
                )
        return self.embedding(inputs)  # type: ignore[no-any-return]  # Module call is Any


def pooled(x: Tensor, lengths: Tensor | None, how: str) -> Tensor:
    """One vector of a sequence: ``x (B, T, D)``, ``lengths (B,)`` at least 1, to ``(B, D)``.

    ``how``: the mean or the largest of every number over the valid steps, or the last valid step.
    """
    batch, time, _ = x.shape
    if lengths is None:
        lengths = torch.full((batch,), time, device=x.device)
    if how == "last":
        return x[torch.arange(batch, device=x.device), lengths - 1]
    valid = (torch.arange(time, device=x.device) < lengths[:, None])[:, :, None]  # (B, T, 1)
    if how == "max":
        return x.masked_fill(~valid, float("-inf")).amax(1)
    return x.masked_fill(~valid, 0).sum(1) / lengths[:, None]


def build(config: ModelConfig) -> SequenceModel:
    """The model of a config: a `LanguageModel` for the task lm, which can also score next tokens."""
    from quatrain.model.lm import LanguageModel

    return LanguageModel(config) if config.task == "lm" else SequenceModel(config)
