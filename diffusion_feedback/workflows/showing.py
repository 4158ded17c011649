"""Pairs of a data set as pages show them."""

from __future__ import annotations

import io

from PIL import Image

from ..data.index import IndexedPair, PairIndex
from ..data.text_pairs import TextPair
from ..reports.shown_pairs import ShownPair, ShownSide, thumbnail


def show_images(index: PairIndex, pair: IndexedPair, note: str = "", kinds: tuple[str, ...] = ()) -> ShownPair:
    """A pair of ``index``, the preferred image first. Raises UserError for images that cannot be read."""
    handles, sides = index.images(pair), []
    for side in (pair.chosen, 1 - pair.chosen):
        data, (width, height) = handles[side].read(), pair.sizes[side]
        with Image.open(io.BytesIO(data)) as opened:
            name = opened.format or "image"
        parts = [f"{width} x {height}", name, _size(len(data)), pair.models[side]]
        sides.append(ShownSide(thumbnail(handles[side].open()), detail=", ".join(filter(None, parts))))
    share = max(pair.label_0, 1 - pair.label_0)
    return ShownPair(
        pair.example_id, pair.prompt, (sides[0], sides[1]), _label(share), pair.source, share == 0.5, kinds, note
    )


def show_texts(pair: TextPair, note: str = "", kinds: tuple[str, ...] = ()) -> ShownPair:
    """A pair of texts, the preferred one first."""
    chosen, rejected = (
        ShownSide(text=text, detail=f"{len(text):,} characters, {len(text.split()):,} words")
        for text in (pair.chosen, pair.rejected)
    )
    share = pair.chosen_probability
    return ShownPair(pair.key, pair.prompt, (chosen, rejected), _label(share), pair.source, share == 0.5, kinds, note)


def _label(share: float) -> str:
    return "preferred" if share == 1 else f"preferred, {100 * share:.0f} % of votes"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"
