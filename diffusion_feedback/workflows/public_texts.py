"""What a result's texts say to others: paths of this machine are taken out, and the card's code loads from the hub."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..catalog.formats import EXPORT_FORMATS
from ..documents import read_object, read_yaml
from ..foreign import is_hub_id, reading
from ..reports.cards.writer import code_text
from ..runs import recorded_model, run_of

logger = logging.getLogger(__name__)

CARD, RECIPE, EXPORT = "README.md", "recipe.yaml", "export.json"
_NEEDED = "bring back what has been written"
_STANDS_FOR = "path/to/"  # a path of this machine, of which only the name is said
_PLACE = re.compile(r"(?<![\w.~-])~?/[\w.-]+(?:/[^\s'\"`<>|,;:()\[\]]+)*")
_QUOTED = re.compile(r"(['\"])(~?/[^'\"\n]*)\1")
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_CONTENTS = "## What is in this folder\n"  # of a card
_ROW = re.compile(r"^\| `([^`|]+)` \|.*\n", re.MULTILINE)
_PICTURE = re.compile(r"^!\[[^\]\n]*\]\((samples/[^)\n]+)\)\n\n?", re.MULTILINE)
_HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")


def public_text(name: str, path: Path) -> str | None:
    """The recipe, configuration or record at ``path`` without paths of this machine; None where it holds none."""
    if name == RECIPE:
        recipe = read_yaml(path, _NEEDED)
        public = _public(recipe)
        return None if public == recipe else _yaml(public)
    is_record = name.endswith(("config.json", "model_index.json")) or (
        name.startswith("samples/") and path.suffix == ".json"
    )
    if name != EXPORT and not is_record:
        return None
    with reading(path, "a record", _NEEDED):
        facts = json.loads(path.read_text("utf-8"))
    local = _local(facts) if name == EXPORT else {}
    public = _public({key: value for key, value in facts.items() if key not in local} if local else facts)
    return None if public == facts else json.dumps(public, indent=2, ensure_ascii=False) + "\n"


def public_card(folder: Path, repo: str, revision: str | None, sent: Collection[str]) -> str:
    """The card of the result in ``folder`` as others read it, once the files ``sent`` stand in ``repo``.

    Its code loads from there, no base is named that the hub does not know, and rows and pictures of other files are dropped.
    """
    run = folder if EXPORT in sent else run_of(folder)
    text = (run / CARD).read_text("utf-8")
    facts = read_object(run / EXPORT, _NEEDED) if EXPORT in sent else {}
    recipe = read_yaml(run / RECIPE, _NEEDED) if RECIPE in sent else {}
    for place in dict.fromkeys(str(path) for each in (folder, run) for path in (each.resolve(), each.absolute())):
        text = _loading(text, place, repo, revision)
    text = _without_places(text.replace(_yaml(recipe), _yaml(_public(recipe))), _local(facts), recipe)
    text = _with_known_base(_of_what_is_there(text, sent), run, facts)
    step = next((part for part in (folder.name, folder.parent.name) if part.startswith("step-")), "")
    if step and run != folder:
        text = f"{text.rstrip()}\n\nThese are the weights of {step.replace('-', ' ')} of the run, not of its end.\n"
    return text


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _loading(text: str, place: str, repo: str, revision: str | None) -> str:
    """``text``, whose code loads from ``repo`` what it loaded from the folder ``place``."""
    branch = f", revision={code_text(revision)}" if revision else ""
    download, literal = f"snapshot_download({code_text(repo)}{branch})", code_text(place)
    text = text.replace(literal, download if revision else code_text(repo))
    below = re.compile(rf"{re.escape(literal[:-1])}(/[^'\"\n]+{literal[-1]})")
    text = below.sub(lambda found: f"{download} + {literal[0]}{found[1]}", text)
    start, line = "```python\n", "from huggingface_hub import snapshot_download\n"
    blocks = text.split(start)
    calls = ["snapshot_download(" in block.partition("```")[0] and line not in block for block in blocks]
    return start.join(line * needed + block for block, needed in zip(blocks, calls, strict=True))


def _local(facts: Mapping[str, Any]) -> dict[str, str]:
    """What ``facts`` of an export name that is no model of the hub, by their keys."""
    on_hub = {facts["base"]} if facts.get("base_is_hub_id") else set()
    lora, config = facts.get("lora"), facts.get("config")
    on_hub |= {each for each in (lora, config) if each and each != facts.get("of") and is_hub_id(each)}
    named = {key: facts.get(key) for key in ("of", "base", "lora", "config")}
    return {key: value for key, value in named.items() if isinstance(value, str) and value not in on_hub}


def _is_place(text: str) -> bool:
    """Whether ``text`` is a path of this machine, which is there or was: it begins with one of its outermost folders."""
    first, _, rest = text.lstrip("/").partition("/")
    return text.startswith("~/") or (
        text.startswith("/") and (Path(text).exists() or (bool(rest) and Path("/", first).is_dir()))
    )


def _public(value: Any) -> Any:
    """``value`` with names in place of all paths of this machine."""
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_public(each) for each in value]
    if not isinstance(value, str):
        return value
    return _STANDS_FOR + Path(value).name if _is_place(value) else _named(value, _STANDS_FOR)


def _named(text: str, before: str) -> str:
    """``text`` with names, behind ``before``, in place of paths of this machine."""
    return _PLACE.sub(lambda found: before + Path(found[0]).name if _is_place(found[0]) else found[0], text)


def _texts(value: Any) -> Iterator[str]:
    """All texts in ``value``."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(each)


def _without_places(text: str, local: Mapping[str, str], recipe: object) -> str:
    """The card's ``text``: code says that a path is meant, prose gives its name.

    ``local`` and what the ``recipe`` names are replaced wherever they stand, also where they hold spaces.
    """
    quoted = _QUOTED.sub(
        lambda found: repr(_STANDS_FOR + Path(found[2]).name) if _is_place(found[2]) else found[0], text
    )
    places = {each for each in _texts(recipe) if _is_place(each)} | {*local.values()}
    for place in sorted(places, key=len, reverse=True):
        name = Path(place).name.replace("\\", r"\\")
        quoted = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w/-])", name, quoted)
    return _named(quoted, "")


def _of_what_is_there(card: str, sent: Collection[str]) -> str:
    """``card`` without rows of files and folders, and without pictures, that are not ``sent``."""

    def is_sent(name: str) -> bool:
        return name in sent or (name.endswith("/") and any(each.startswith(name) for each in sent))

    before, heading, rest = card.partition(_CONTENTS)
    table, line_end, after = rest.partition("\n## ")
    table = _ROW.sub(lambda row: row[0] if is_sent(row[1]) else "", table)
    before = _PICTURE.sub(lambda shown: shown[0] if is_sent(shown[1]) else "", before)
    return "".join((before, heading, table, line_end, after))


def _with_known_base(text: str, run: Path, exported: Mapping[str, Any]) -> str:
    """The card's ``text``, whose head names the base only where the hub knew it when the card was written."""
    front = _FRONT.match(text)
    facts = dict(yaml.safe_load(front[1]) or {}) if front else {}
    body = text[front.end() :] if front else text
    row = EXPORT_FORMATS.get(str(exported.get("format")))
    base = exported.get("base") if row is None or row.holds == "adapters" else None  # a whole model needs none
    if base is None and (model := recorded_model(run, _NEEDED)):
        base = model.get("pretrained_model_name_or_path")
    is_named = _HUB_ID.fullmatch(str(facts.get("base_model", "/"))) and not _is_place(str(base))
    if base is not None and not is_named:
        logger.warning("note: the base %s is a folder of this machine: who loads the result needs it too", base)
        facts.pop("base_model", None)
    return f"---\n{_yaml(facts)}---\n{body}" if facts else body
