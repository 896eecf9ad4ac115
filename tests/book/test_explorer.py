"""The neuron explorer holds the right neurons. (How it looks, a browser must show.)"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_element import HOSTILE, Page

from companion.book import plots
from companion.book.widgets import explorer


def table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    reduction = rng.standard_t(3, n) * 0.01
    columns = {
        "layer": np.arange(n) % 4,
        "index": np.arange(n) * 7,
        "cosine": rng.normal(size=n).astype("float32"),
    }
    columns |= {name: rng.normal(size=n) for name in ("before", "after", "p_before", "p_after")}
    columns |= {"reduction": reduction, "low": reduction - 0.01, "high": reduction + 0.01}
    group = [list(explorer.GROUPS)[i % 4] for i in range(n)]
    role = [g + ("↓" if r > 0 else "↑") for g, r in zip(group, reduction, strict=True)]
    return pd.DataFrame(
        {**columns, "group": group, "role": role, "tokens": "a, b"}, index=np.arange(n) % 5
    )  # an index that is not unique


def show(rows: pd.DataFrame, **options) -> Page:
    return Page(explorer.html(rows, title="T", **options).data)


def test_the_data_parse_back_to_the_largest_rows():
    rows = table()
    data = show(rows, limit=25).data
    drawn = pd.DataFrame(data["rows"], columns=data["columns"])
    expected = rows.assign(size=rows.reduction.abs()).nlargest(25, "size").reset_index(drop=True)
    for name in ("layer", "index", "group", "role", "tokens"):
        assert drawn[name].tolist() == expected[name].tolist(), name
    for name in ("cosine", "before", "after", "p_before", "p_after", "reduction", "low", "high"):
        np.testing.assert_allclose(drawn[name], expected[name], rtol=1e-3)
    assert data["layers"] == [0, 1, 2, 3]


def test_ties_keep_the_order_of_the_table():
    rows = table(6).assign(reduction=[1.0, -2.0, 2.0, 1.0, -1.0, 2.0])
    assert explorer.largest(rows, 4)["index"].tolist() == [7, 14, 35, 0]


def test_the_page_says_what_is_drawn():
    rows = table(4).assign(reduction=[3.0, -4.0, 1.0, 0.5])
    assert explorer.gross_share(rows, explorer.largest(rows, 2)) == pytest.approx(3 / 4.5)
    said = " ".join(show(rows, limit=2).text)
    assert "the 2 neurons of 4" in said and "66.7 % of the gross reduction" in said
    assert "All 4 neurons are drawn" in " ".join(show(rows).text)
    assert "no neuron reduces toxicity" in " ".join(show(rows.assign(reduction=-1.0), limit=2).text)


@pytest.mark.parametrize("tokens", HOSTILE)
def test_tokens_arrive_as_they_are(tokens):
    assert [row[-1] for row in show(table(5).assign(tokens=tokens)).data["rows"]] == [tokens] * 5


def test_missing_numbers_and_tokens():
    rows = table(3).assign(low=[np.nan, np.inf, 0.0], tokens=[None, np.nan, ""])
    data = show(rows).data
    drawn = pd.DataFrame(data["rows"], columns=data["columns"]).sort_values("index")
    assert drawn.low.isna().tolist() == [True, True, False] and drawn.tokens.tolist() == [""] * 3


def test_groups_can_be_told_apart_with_and_without_colour():
    def luminance(colour: str) -> float:
        levels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(
            np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
            @ [0.2126, 0.7152, 0.0722]
        )

    for colour in plots.GROUPS.values():
        assert all(
            max(a, b) >= 3 * min(a, b)
            for a, b in (
                (luminance(colour) + 0.05, luminance(page) + 0.05) for page in ("#ffffff", "#121212")
            )
        )
    assert len(set(plots.GROUPS.values())) == len(set(explorer.SHAPES.values())) == 4
    buttons = [
        attributes for tag, attributes in show(table()).tags if tag == "button" and "data-group" in attributes
    ]
    assert [(b["data-group"], b["aria-pressed"], b["type"]) for b in buttons] == [
        (g, "true", "button") for g in explorer.GROUPS
    ]
