"""The picture of the evaluation: recall by campaign at both budgets, beside the baselines, with intervals over seeds."""

from collections.abc import Mapping
from typing import Any

from tests.evaluate.baselines import NAMES
from tests.evaluate.figures import BUDGETS, OURS

ORDER = (OURS, *NAMES)
COLOURS = ("#0b3a66", "#d95f02", "#7b6fb0", "#1b9e77", "#8a8a8a")
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross")


def values(answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row by method, budget and campaign, as it is drawn."""
    rows = []
    for method in ORDER:
        for budget in BUDGETS:
            recall = answers["methods"].get(method, {}).get("budgets", {}).get(str(budget), {}).get("recall", {})
            for letter, (value, low, high, *_) in recall.items():
                if value is not None:
                    campaign = "all campaigns" if letter == "all" else f"campaign {letter}"
                    rows.append(
                        {
                            "method": method,
                            "budget": _budget(budget),
                            "campaign": campaign,
                            "value": value,
                            "low": low,
                            "high": high,
                        }
                    )
    return rows


def _budget(budget: int) -> str:
    return f"{budget} case{'s' if budget > 1 else ''} a day"


def picture(answers: Mapping[str, Any]) -> str:
    """SVG on a white ground, so that it reads the same on a light and on a dark page."""
    import altair as alt

    from reports.pictures import _draw, _title

    rows = values(answers)
    campaigns = ["all campaigns", *sorted({row["campaign"] for row in rows} - {"all campaigns"})]
    used = [method for method in ORDER if any(row["method"] == method for row in rows)]
    colour = alt.Color(
        "method:N", title=None, sort=used, scale=alt.Scale(domain=used, range=list(COLOURS[: len(used)])),
        legend=alt.Legend(orient="top", symbolSize=90),
    )  # fmt: skip
    shape = alt.Shape("method:N", title=None, sort=used, scale=alt.Scale(domain=used, range=list(SHAPES[: len(used)])))
    step = 15 * max(1, len(used))
    panels = []
    for at, budget in enumerate(map(_budget, BUDGETS)):
        axis = (
            alt.Axis(labelLimit=200, labelPadding=12, domain=False, ticks=False)
            if at == 0
            else alt.Axis(labels=False, domain=False, ticks=False)
        )
        y = alt.Y("campaign:N", sort=campaigns, title=None, axis=axis, scale=alt.Scale(paddingInner=0.25))
        offset = alt.YOffset("method:N", sort=used)
        x = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format="%", grid=True)
        own = alt.Chart(alt.InlineData([row for row in rows if row["budget"] == budget]))
        bars = own.mark_rule(strokeWidth=2, opacity=0.6).encode(
            x=alt.X("low:Q", title="share of planted campaigns found", scale=alt.Scale(domain=[-0.02, 1.02], nice=False), axis=x),
            x2="high:Q", y=y, yOffset=offset, color=colour,
        )  # fmt: skip
        dots = own.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("value:Q"), y=y, yOffset=offset, color=colour, shape=shape
        )
        panels.append(
            (bars + dots).properties(
                width=380, height=step * len(campaigns), title=alt.TitleParams(budget, fontSize=13, anchor="start")
            )
        )
    note = f"{answers['worlds']['planted']} worlds; bars are 95 % bootstrap intervals over seeds. All methods get the same budget."
    chart = alt.hconcat(*panels, spacing=30).properties(title=_title("Planted campaigns found, by budget", [note]))
    return str(_draw(chart, "evaluation"))
