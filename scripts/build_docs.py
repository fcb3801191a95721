"""The reference: pages in ``docs/reference``, made of fields, docstrings and cards, and the public names as HTML.

python scripts/build_docs.py           # writes docs/reference/*.md, which are committed
python scripts/build_docs.py --check   # fails where one of them is stale
python scripts/build_docs.py site      # also writes HTML pages of the public names (needs the extra ``dev``)
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import hiera_video
from hiera_video import errors, files
from hiera_video.arguments import input_word, is_flag, option_word
from hiera_video.cli import JOBS, options_of
from hiera_video.data.lists.cards import Card, Split, load_card
from hiera_video.fields import Field, as_yaml, expected, fields_of, source_tree
from hiera_video.training.recipe_file import KINDS

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- made by scripts/build_docs.py: change the source and run it -->"
SOURCES = """\
Hiera is the paper, arXiv 2306.00989; SF is facebookresearch/SlowFast; v0.2.0 is that branch of facebookresearch/hiera;
mae_st, VideoMAE, VideoMAEv2 and EVEREST are facebookresearch/mae_st, MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2 and
sunilhoho/EVEREST. A value that has no row is ours.
"""


def page(title: str, *parts: str) -> str:
    return "\n\n".join([MADE, f"# {title}", *(part.strip() for part in parts)]) + "\n"


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(f"| {line} |" for line in lines)])


def default_of(field: Field) -> str:
    return "must be given" if field.default is dataclasses.MISSING else f"`{as_yaml(field.default)}`"


def fields_table(fields: Mapping[str, Field]) -> str:
    rows = [(f"`{name}`", expected(field.hint), default_of(field), field.help) for name, field in fields.items()]
    return table(("field", "takes", "default", ""), rows)


def words(docstring: str) -> str:
    """A docstring's paragraphs without its sections Args, Returns and Raises, as Markdown."""
    text = re.split(r"\n+(?:Args|Returns|Yields|Raises):\n", inspect.cleandoc(docstring))[0]
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text.replace("``", "`"))


# --- pages ------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Each job: what it does, an example, its options."""
    parts = ["Exit codes: 0 all done; 1 an input was missing or bad, the rest is written; 2 the request is wrong."]
    for name, job in JOBS.items():
        module, _, function = job.function.partition(":")
        tree = source_tree(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
        (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        options = {option: field for option, field in options_of(name).items() if "." not in option and option != "job"}
        rows = []
        for option, field in options.items():
            word = input_word(option, field) if field.positional else option_word(option)
            takes = "" if is_flag(option, field) else expected(field.hint).removesuffix(", or null")
            rows.append((f"`{word}`", takes, "" if field.default in (None, False) else default_of(field), field.help))
        rows += [(f"`--{short}`", "", "", f"short for `--{field}`") for short, field in (job.short or {}).items()]
        parts += [f"## {name}", f"```bash\n{job.example}\n```", words(ast.get_docstring(node) or "")]
        parts.append(table(("option", "takes", "default", ""), rows))
        if job.short is not None:
            parts.append(f"Every field of a recipe is an option too, such as `--{list(fields_of(KINDS[name]))[-1]}`: "
                         "see [recipes](recipes.md).")  # fmt: skip
    return page("Commands", *parts)


def recipes() -> str:
    """Every field of every recipe, and where the values of those that ship come from."""
    sections: dict[tuple[str, str], list[str]] = {}
    for job, kind in KINDS.items():
        for section, hint in get_type_hints(kind).items():
            fields = {name: field for name, field in fields_of(kind).items() if name.startswith(f"{section}.")}
            if fields:
                text = f"{(hint.__doc__ or '').splitlines()[0]}\n\n{fields_table(fields)}"
                sections.setdefault((section, text), []).append(job)
    parts = [
        "A recipe is a YAML file with these sections, or the name of one in `configs/`; on the command line a field "
        "is `--section.field value`. A duration is `10ep` (effective epochs: each repeat counts), `10pass` (over the "
        "list), `5000st` (steps) or `5%` (of the run)."
    ]
    for (section, text), jobs in sections.items():
        parts += [f"## {section} ({', '.join(jobs)})", text]
    rows = [(f"`{name}`", f"`{value}`", source, ", ".join(used)) for (name, value, source), used in values().items()]
    return page(
        "Recipes",
        *parts,
        "## Where the values of the recipes come from",
        SOURCES,
        table(("field", "value", "source", "recipes"), rows),
    )


def values() -> dict[tuple[str, str, str], list[str]]:
    """Field, value and source -> the recipes that have it, of all values whose source is not "ours"."""
    used: dict[tuple[str, str, str], list[str]] = {}
    for name in files.names("configs"):
        section = ""
        for line in files.find("configs", name).read_text(encoding="utf-8").splitlines():
            if heading := re.fullmatch(r"(\w+):", line):
                section = heading[1]
            elif (entry := re.fullmatch(r"  ([\w.]+): (\S.*?)  # (\S.*)", line)) and not entry[3].startswith("ours"):
                used.setdefault((f"{section}.{entry[1]}", entry[2], entry[3]), []).append(name)
    return dict(sorted(used.items(), key=lambda item: item[0][0]))


def cards() -> str:
    """The fields of a card, and the cards that ship."""
    fields: dict[str, Field] = {}
    for name, field in fields_of(Card).items():
        fields[name] = field
        if name == "splits":
            fields |= {f"splits.NAME.{inner}": each for inner, each in fields_of(Split).items()}
    rows = []
    for name in files.names("datasets"):
        card = load_card(name)
        listed = "; ".join(f"{split} {its.listed or 'not known'}" for split, its in card.splits.items())
        cut = f"{card.sampling.rule}, {card.sampling.views}"
        rows.append((f"`{name}`", str(card.num_classes), listed, cut, card.licence, card.source))
    head = ("card", "classes", "videos listed", "sampling, test views", "licence", "source")
    return page(
        "Dataset cards",
        "A card says what a dataset is: `datasets/NAME.yaml`, or a YAML file of your own, named by its path.",
        fields_table(fields),
        "## The cards that ship",
        table(head, rows),
    )


def errors_page() -> str:
    """What each error means, and what to do about it."""
    parts = ["Every message is one sentence that names what is wrong, where, and the remedy."]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.HieraVideoError):
            parents = ", ".join(f"`{parent.__name__}`" for parent in kind.__bases__)
            parts += [f"## {name}", words(kind.__doc__ or ""), f"Base classes: {parents}."]
    return page("Errors", *parts)


PAGES = {"commands.md": commands, "recipes.md": recipes, "cards.md": cards, "errors.md": errors_page}


def stale(folder: Path) -> list[str]:
    """The pages in ``folder`` that are not what they would be made as now."""
    made = {name: make() for name, make in PAGES.items()}
    return [name for name, text in made.items() if not (folder / name).is_file() or (folder / name).read_text() != text]


def build(folder: Path) -> None:
    """Writes HTML pages of the public names. Raises ValueError where one has no docstring."""
    import pdoc

    for name in hiera_video.__all__:
        value: Any = getattr(hiera_video, name)
        if not (value.__doc__ or "").strip():
            raise ValueError(f"{name} has no docstring")
        setattr(hiera_video, name, value)  # loaded when first used: pdoc sees only what is there
    pdoc.render.configure(docformat="restructuredtext", footer_text=f"hiera_video {hiera_video.__version__}")
    pdoc.pdoc("hiera_video", output_directory=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, help="a folder for HTML pages of the public names")
    parser.add_argument("--check", action="store_true", help="fail where a committed page is stale, and write none")
    options = parser.parse_args()
    reference = ROOT / "docs" / "reference"
    if options.check and (names := stale(reference)):
        print(f"stale: {', '.join(names)} in docs/reference; run python scripts/build_docs.py", file=sys.stderr)
        return 1
    if not options.check:
        reference.mkdir(exist_ok=True)
        for name, make in PAGES.items():
            (reference / name).write_text(make())
    if options.site is not None:
        build(options.site)
    return 0


if __name__ == "__main__":
    sys.exit(main())
