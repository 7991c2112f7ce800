"""How much time a comparison still needs: the calibration's estimate, corrected by what has been seen."""

from collections.abc import Mapping

from quatrain.lab.config import CompareConfig
from quatrain.lab.plan import Plan

_EVALUATION = 0.35  # of the time that evaluation may take, what it usually does


class Clock:
    """Time left in all, from the stages that are not done yet.

    Training stages (``pieces``: stage to mixer, first and last step) count at calibrated speed times the
    ratio of measured to calibrated time so far; evaluation as a share of its limit, in equal parts.
    """

    def __init__(
        self,
        config: CompareConfig,
        plan: Plan,
        pieces: Mapping[str, tuple[str, int, int]],
        evaluations: list[str],
    ) -> None:
        self._planned = {stage: plan.train_seconds(*piece) for stage, piece in pieces.items()}
        part = _EVALUATION * config.evaluation_seconds / max(1, len(evaluations))
        self._rest = dict.fromkeys(evaluations, part)
        self._measured, self._expected = 0.0, 0.0

    def done(self, stage: str) -> None:
        """A stage is finished, now or before."""
        self._planned.pop(stage, None)
        self._rest.pop(stage, None)

    def saw(self, planned: float, seconds: float) -> None:
        """Some training that was planned to take ``planned`` took ``seconds``."""
        self._expected += planned
        self._measured += seconds

    def left(self, stage: str, share: float) -> float:
        """Seconds left when ``share`` of the training stage ``stage`` is done."""
        ratio = self._measured / self._expected if self._expected > 0 else 1.0
        training = sum(self._planned.values()) - share * self._planned.get(stage, 0.0)
        return training * ratio + sum(self._rest.values())
