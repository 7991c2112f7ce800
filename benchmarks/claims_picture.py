"""Two figures of a finished `quatrain claims` as the READMEs' second picture, docs/claims.svg.

usage: python benchmarks/claims_picture.py RUN
"""

import argparse
from pathlib import Path

from _picture import side_by_side

from quatrain import records
from quatrain.report._claim_figures import FIGURES
from quatrain.report.claims import gather
from quatrain.report.styles import STYLES

PICTURE = Path(__file__).parents[1] / "docs" / "claims.svg"
SHOWN = {  # a claim's figure and its title in the picture
    "mamba-long": "Induction heads, trained to 256",
    "speed-generation": "Generated after a context",
}
MIXERS = ("rnn", "lstm", "attention", "s6", "s4d")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    found = gather(records.read(parser.parse_args().run / "records.jsonl"))
    panels = [(title, FIGURES[claim](found).panels[0][1]) for claim, title in SHOWN.items()]
    PICTURE.write_text(side_by_side(panels, [STYLES[mixer] for mixer in MIXERS], width=320), "utf-8")


if __name__ == "__main__":
    main()
