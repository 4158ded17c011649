"""What an audit of preference pairs found, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import plural
from .shortcuts import FALSE_ALARMS, FEWEST_PROMPTS, JOINT, STRONG, Shortcut

_FEW = 0.05  # of the pairs that differ in a property: fewer that do not are no matter for its sentence


@dataclass(frozen=True, slots=True)
class AuditResult:
    """How well each property of the pairs of ``source`` predicts the label by itself, the best predictor first.

    ``medium`` is "image" or "text". Of ``num_pairs`` decided pairs ``num_audited`` were read, a fixed random sample over
    ``num_prompts`` prompts; ``num_ties`` have no preference, ``num_unreadable`` of the sample could not be read. ``words``
    are those for a side with more of a property, with less, and what it is; ``notes`` are on the data as it was read.
    """

    source: str
    medium: str
    shortcuts: Sequence[Shortcut]
    words: Mapping[str, tuple[str, str, str]]
    num_pairs: int
    num_audited: int
    num_prompts: int
    num_ties: int
    num_unreadable: int = 0
    notes: Sequence[str] = ()

    @property
    def found(self) -> list[Shortcut]:
        """Those that predict the label, the strongest first; all together are none of them."""
        return [each for each in self.shortcuts if each.level != "none" and each.name != JOINT]

    @property
    def joint(self) -> Shortcut | None:
        """All properties together; None where nothing differs."""
        return next((each for each in self.shortcuts if each.name == JOINT), None)

    @property
    def verdict(self) -> str:
        """What one should know first."""
        joint = [self.joint] if self.joint is not None and self.joint.level != "none" else []
        if said := [*self.found[:1], *joint]:
            # The stronger one first: weak shortcuts may add up.
            said.sort(key=lambda each: each.level == "weak")
            return " ".join(map(self.sentence, said if said[0].name == JOINT else said[:1]))
        if not any(each.accuracy for each in self.shortcuts):
            return f"Too few prompts to say anything: {FEWEST_PROMPTS} with pairs that differ are needed."
        return f"No property is shown to predict the labels of {plural(self.num_audited, 'pair')} over {plural(self.num_prompts, 'prompt')}."

    @property
    def tone(self) -> str:
        """How loud a page says the verdict: "alarm", "caution" or "calm"."""
        levels = {each.level for each in self.shortcuts}
        return "alarm" if "strong" in levels else "caution" if "weak" in levels else "calm"

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.tone == "calm":
            return "The intervals say how much may have gone unseen: more pairs narrow them."
        return (
            "A model learns it before anything else. If that is not what the labels were meant to say: balance it, by"
            " leaving out pairs that differ much in it, or by adding pairs that go against it."
        )

    @property
    def strong(self) -> float:
        """The accuracy that the interval of a strong shortcut lies above."""
        return STRONG

    def sentence(self, shortcut: Shortcut) -> str:
        """What ``shortcut`` says of the labels, with its 95 % interval and the number of pairs."""
        share = shortcut.accuracy
        if share is None:
            return f"{shortcut.name}: too few prompts have pairs that differ in it."
        is_joint, which = shortcut.name == JOINT, self.preference(shortcut)
        by = "these properties together" if is_joint else f"the {shortcut.name} alone"
        pairs, of_pairs = plural(share.num, "pair"), ""
        if shortcut.num_equal:
            pairs = f"{share.num:,} of {share.num + shortcut.num_equal:,} pairs differ in it"
        if shortcut.num_equal > _FEW * share.num:
            of_pairs = " of pairs that differ in it"
        bounds = f"95 % interval {100 * share.low:.0f} to {100 * share.high:.0f} %; {pairs}"
        labels = f"{100 * share.value:.0f} % of the labels{of_pairs} are explained by {by}"
        return f"{labels}{': ' * bool(which)}{which} ({bounds})."

    def preference(self, shortcut: Shortcut) -> str:
        """Which side is preferred, in a sentence; "" for names, and for all together."""
        word = self.preferred(shortcut)
        return f"the {word} {self.medium} is preferred" if word else ""

    def preferred(self, shortcut: Shortcut) -> str:
        """The word for the side that is preferred; "" for names, and for all together."""
        if shortcut.prefers_more is None:
            return ""
        more, less, _ = self.words.get(shortcut.name, ("first", "second", ""))
        return more if shortcut.prefers_more else less

    @property
    def scope(self) -> str:
        """Which pairs were read, in one line."""
        whole = f"{plural(self.num_audited, 'pair')} over {plural(self.num_prompts, 'prompt')}"
        left = self.num_pairs - self.num_unreadable - self.num_audited
        parts = [f"{whole}, a random sample of {self.num_pairs:,}" if left else whole]
        parts += [f"{plural(self.num_ties, 'tie')} left out"] * bool(self.num_ties)
        parts += [f"{self.num_unreadable:,} could not be read"] * bool(self.num_unreadable)
        return "; ".join(parts)

    @property
    def rate(self) -> str:
        """How often an audit reports something where nothing is."""
        return f"Of data without any shortcut, {100 * FALSE_ALARMS:.0f} % raise one alarm or more (all properties together)."
