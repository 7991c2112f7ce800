"""What everybody says about the four architectures, each as a measurement with a verdict.

`CLAIMS` is the table: a claim's id, the belief, how it is measured, and the rule that makes a verdict of the
rows. `quatrain.lab.claims.run` measures the rows; `quatrain.lab.claims.beliefs` is the table of four
architectures and five aspects whose cells point here.
"""

from quatrain.lab.claims import loses, lstm, mamba, quality, rnn, speed, transformer
from quatrain.lab.claims.claim import VERDICTS, Claim, Verdict

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for group in (rnn, lstm, transformer, mamba, speed, quality, loses)
    for claim in group.CLAIMS
}

__all__ = ["CLAIMS", "VERDICTS", "Claim", "Verdict"]
