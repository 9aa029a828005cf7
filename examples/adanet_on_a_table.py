"""AdaNet learns the structure and the weights of a network from a table.

python examples/adanet_on_a_table.py
python examples/adanet_on_a_table.py --table people.csv.gz --target income
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from meristem.adaptive.learn import learn
from meristem.adaptive.learned import Learned
from meristem.adaptive.tables import open_table


def made(out: Path, rows: int = 600) -> Path:
    """A table with numbers, words and gaps. Who is insured depends on age and job together."""
    draw = np.random.default_rng(0)
    age, job = draw.integers(18, 80, rows), draw.choice(["baker", "smith", "tailor"], rows)
    insured = np.where((age > 45) ^ (job == "smith"), "yes", "no")
    people = pd.DataFrame({"age": age, "job": job, "height": draw.normal(170, 10, rows), "insured": insured})
    people.loc[draw.random(rows) < 0.05, "height"] = np.nan
    people.to_csv(out, index=False)
    return out


def main(table: Path | None = None, target: str = "insured") -> dict[str, float]:
    """Accuracy on rows that were held out: of AdaNet, and of a linear model on the same rows."""
    with TemporaryDirectory() as place:
        opened = open_table(str(table or made(Path(place, "people.csv"))), target=target)
        print("\n".join(column.said for column in opened.columns))
        learn("adanet", opened, Path(place, "out"), {"max_rounds": 3})
        model = Learned.load(Path(place, "out"))  # as anybody would, later
    print(model.estimator.summary())
    return {"adanet": model.metrics["test_score"], "linear": model.metrics["linear_test_score"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="any table; by default one is made")
    parser.add_argument("--target", default="insured", help="the column to predict")
    print(main(**vars(parser.parse_args())))
