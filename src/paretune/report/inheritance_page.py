"""The page of the inheritance protocol: the ranking of methods, and what each changes on every task."""

import re
from html import escape
from pathlib import Path
from string import Template

from paretune.frontiers.inheritance import Inheritance, Interval, Study
from paretune.frontiers.ranking import Area
from paretune.frontiers.tables.spreadsheet import csv_text
from paretune.report.drawing import Style, styles
from paretune.report.marks import legend, symbol
from paretune.report.sections import Part, plural
from paretune.report.shell import assemble, csv_link, text_of
from paretune.report.specs.areas import Quantity, forest_spec
from paretune.report.specs.frontier import ON_PAGE
from paretune.report.specs.inheritance import change_spec
from paretune.report.tables import p_text, signed, standing, table
from paretune.runs import disk

_SMALL = 5  # tasks; matrices of more are wider
_MRI = Quantity("mRI, mean change of accuracy on the other tasks", "mRI", "mRI of each method", change=True)


def write_inheritance(
    study: Study, out: str | Path = "paretune-inherit", *, title: str | None = None
) -> Path:
    """Write ``inheritance.csv``, ``matrix.csv`` and ``report.html``, one file that works without a network.

    Args:
        study: from :func:`paretune.sweeps.inheritance`.
        out: the directory; it is made if needed.
        title: the page's heading.

    Returns:
        The path of the page.

    Raises:
        ImportError: vl-convert is not installed; the tables are written all the same.
    """
    path = Path(out) / "report.html"
    for name, frame in (("inheritance.csv", study.to_frame()), ("matrix.csv", study.matrix())):
        disk.write_text(path.with_name(name), csv_text(frame))
    disk.write_text(path, _page(study, title or "What fine-tuning leaves of a model"))
    return path


def _page(study: Study, title: str) -> str:
    looks = styles(method.method for method in study.clean.methods)
    several = len(study.accuracies) > 1
    parts = [_section(study, inheritance, looks, several) for inheritance in study.accuracies]
    clean = study.clean
    reading = Template(text_of("inheritance_method.html")).substitute(
        level=f"{100 * clean.settings.level:g}%",
        margin=f"{clean.settings.margin:g}",
        resamples=f"{clean.settings.resamples:,}",
        protocol=escape(study.protocol),
        save=csv_link("inheritance.csv", csv_text(study.to_frame()), "Save the methods as CSV")
        + " "
        + csv_link("matrix.csv", csv_text(study.matrix()), "Save all cells as CSV"),
    )
    counts = ((len(clean.tasks), "task"), (len(clean.methods), "method"), (len(clean.seeds), "seed"))
    return assemble(
        title=title,
        summary=" · ".join([study.backbone, *(f"{count:,} {plural(noun, count)}" for count, noun in counts)]),
        body="\n".join([*(part.html for part in parts), reading]),
        plots={name: plot for part in parts for name, plot in part.plots.items()},
    )


def _section(study: Study, inheritance: Inheritance, looks: dict[str, Style], several: bool) -> Part:
    name, methods = inheritance.accuracy, inheritance.methods
    areas = [
        Area(
            "",
            method.method,
            method.mri.estimate,
            method.mri.low,
            method.mri.high,
            1,
            inheritance.seeds,
            method.per_seed,
        )
        for method in methods
    ]
    strongest = max(
        abs(accuracy - inheritance.before[measured])
        for method in methods
        for row in method.after.values()
        for measured, accuracy in row.items()
    )
    plots = {f"forest-{name}": forest_spec(areas, looks, ON_PAGE, _MRI)}
    figures = []
    for number, method in enumerate(methods):
        plots[f"matrix-{name}-{number}"] = change_spec(inheritance, method, strongest, ON_PAGE)
        figures.append(
            f"<figure><figcaption>{symbol(looks[method.method])} {escape(method.method)} "
            f'<span class="small">mRI {signed(method.mri.estimate)}</span></figcaption>'
            f'<div class="chart" id="matrix-{name}-{number}"></div></figure>'
        )
    attack = f" under {escape(study.attack)}" if name == "robust" else ""
    html = Template(text_of("inheritance.html")).substitute(
        name=name,
        heading=f"{name.capitalize()} accuracy{attack}" if several else "What is left on related tasks",
        verdict=re.sub(r"(?<=[ (])-(?=\d)", "−", escape(inheritance.sentence)),
        covers=escape(inheritance.covers),
        level=f"{100 * inheritance.settings.level:g}%",
        keys=legend(
            [method.method for method in methods],
            looks,
            {method.method: signed(method.mri.estimate) for method in methods},
        ),
        many="pair" if len(inheritance.tasks) > _SMALL else "many",
        matrices="".join(figures),
        pretraining=""
        if inheritance.pretraining is None
        else f" Column P is the task of pretraining ({inheritance.examples[inheritance.pretraining]:,} images), which "
        "counts in no RI.",
        own="" if study.held_out else " What is framed is on images that were learnt.",
        methods=_methods(study, inheritance, looks),
        tasks=_by_task(inheritance, looks),
        before=_before(inheritance),
        differences=_differences(inheritance),
        notes="".join(f"<li>{escape(note)}</li>" for note in (study.protocol, *study.notes)),
    )
    return Part(html, plots)


def _methods(study: Study, inheritance: Inheritance, looks: dict[str, Style]) -> str:
    gain = "Gain on the task itself" if study.held_out else "Gain on the task itself, learnt"
    head = ["Method", "mRI", f"{100 * inheritance.settings.level:g}% interval", "Per seed", gain]
    head += ["Lost of pretraining"] if inheritance.pretraining is not None else []
    rows = []
    for method in inheritance.methods:
        cells = [
            f"{symbol(looks[method.method])}<span>{escape(method.method)}</span>",
            f"<strong>{signed(method.mri.estimate)}</strong>",
            f"{signed(method.mri.low)} to {signed(method.mri.high)}",
            " ".join(map(signed, method.per_seed)),
            _text(method.gain),
        ]
        rows.append([*cells, *([] if method.drop is None else [_text(method.drop)])])
    return table("Methods by mRI", head, rows)


def _by_task(inheritance: Inheritance, looks: dict[str, Style]) -> str:
    head = ["RI by the task that was fine-tuned on", *inheritance.tasks]
    rows = [
        [
            f"{symbol(looks[method.method])}<span>{escape(method.method)}</span>",
            *(_text(method.ri[task]) for task in inheritance.tasks),
        ]
        for method in inheritance.methods
    ]
    return table("RI of each task", head, rows)


def _before(inheritance: Inheritance) -> str:
    head = ["Before fine-tuning", "Accuracy", "Images"]
    rows = [
        [f"<span>{escape(name)}</span>", f"{accuracy:.1%}", f"{inheritance.examples[name]:,}"]
        for name, accuracy in inheritance.before.items()
    ]
    return table("The model before fine-tuning", head, rows)


def _differences(inheritance: Inheritance) -> str:
    """Behind the largest mRI; nothing where there is one method."""
    best = inheritance.best.method
    places = {method.method: place for place, method in enumerate(inheritance.methods)}
    head = [
        "Behind the largest mRI",
        "Difference",
        f"{100 * inheritance.settings.level:g}% interval",
        "p, adjusted",
        "",
    ]
    rows = [
        [
            f"<span>{escape(gap.method_b)}</span>",
            f"<strong>{gap.difference:.3f}</strong>",
            f"{signed(gap.low)} to {signed(gap.high)}",
            p_text(gap.p_value),
            standing(inheritance.decision, 0, places[gap.method_b], inheritance.settings.margin),
        ]
        for gap in inheritance.differences
        if gap.method_a == best
    ]
    return table(f"Differences to {best}", head, rows) if rows else ""


def _text(interval: Interval) -> str:
    return f"{signed(interval.estimate)} ({signed(interval.low)} to {signed(interval.high)})"
