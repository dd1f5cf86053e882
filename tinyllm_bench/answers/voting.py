"""From several reasoning paths of one student to one answer: policies of Mixed Distillation (arXiv:2312.10730).

A reasoning path is one text of the student: a chain of thought (`cot`) or a program (`pot`), with the answer key that
was read or computed from it, or None if it failed. Failed paths abstain. The paper samples both kinds and combines
them; it does not say how ties are broken, and the order here is this project's: a key that both kinds support, then the
higher summed mean log-probability (if every path has one), then the greedy program's key, then the first key.

`pot_then_cot` is MAmmoTH's fallback, `vote_early_stop` a later idea (arXiv:2604.17433); neither is the paper's.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

COT, POT = "cot", "pot"
Policy = Literal["single_cot", "single_pot", "pot_then_cot", "vote", "vote_early_stop"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPath:
    """One text for one question. `logprob` is the mean log-probability of its tokens; `greedy`: it was not sampled."""

    channel: str
    key: str | None
    greedy: bool = False
    logprob: float | None = None
    tokens: int = 0


class Decision(NamedTuple):
    """The answer key of a question, None if no path has one; the rule that decided; the paths that it used."""

    key: str | None
    rule: str
    used: tuple[ReasoningPath, ...]


def decide(paths: Sequence[ReasoningPath], policy: Policy) -> Decision:
    """The answer that a policy derives from reasoning paths; paths that it does not use are ignored."""
    if policy in ("single_cot", "single_pot"):
        return _single(paths, COT if policy == "single_cot" else POT)
    if policy == "pot_then_cot":
        program = _single(paths, POT)
        if program.key is not None:
            return program._replace(rule="program")
        text = _single(paths, COT)
        return Decision(text.key, "fallback to text", (*program.used, *text.used))
    sampled = [path for path in paths if not path.greedy]
    if policy == "vote_early_stop":
        first = [next((p for p in sampled if p.channel == channel), None) for channel in (COT, POT)]
        cot, pot = first
        if cot is not None and pot is not None and cot.key == pot.key is not None:
            return Decision(cot.key, "first two agree", (cot, pot))
    return _majority(sampled, [p for p in paths if p.greedy and p.channel == POT])


def needed(policy: Policy, samples: Mapping[str, int]) -> dict[str, tuple[bool, int]]:
    """Per channel, whether a policy uses a greedy path, and how many sampled ones."""
    greedy = {"single_cot": (COT,), "single_pot": (POT,), "pot_then_cot": (COT, POT)}.get(policy)
    if greedy is not None:
        return dict.fromkeys(greedy, (True, 0))
    return {COT: (False, samples[COT]), POT: (True, samples[POT])}  # the greedy program breaks ties


def _single(paths: Sequence[ReasoningPath], channel: str) -> Decision:
    """The answer of the one greedy path of a channel, None if it failed."""
    greedy = [path for path in paths if path.greedy and path.channel == channel]
    assert len(greedy) == 1, f"{len(greedy)} greedy paths of channel {channel}"
    return Decision(greedy[0].key, "greedy", (greedy[0],))


def _majority(sampled: Sequence[ReasoningPath], greedy_program: Sequence[ReasoningPath]) -> Decision:
    votes: dict[str, list[ReasoningPath]] = defaultdict(list)
    for path in sampled:
        if path.key is not None:
            votes[path.key].append(path)
    used = tuple(sampled)
    if not votes:
        return Decision(None, "all paths failed", used)
    most = max(map(len, votes.values()))
    tied = {key: paths for key, paths in votes.items() if len(paths) == most}
    if len(tied) == 1:
        return Decision(next(iter(tied)), "majority", used)
    key, rule = _break_tie(tied, greedy_program)
    return Decision(key, rule, used)


def _break_tie(tied: Mapping[str, Sequence[ReasoningPath]], greedy_program: Sequence[ReasoningPath]) -> tuple[str, str]:
    both = [key for key, paths in tied.items() if len({path.channel for path in paths}) > 1]
    if len(both) == 1:
        return both[0], "tie: both kinds"
    left = {key: tied[key] for key in both} if both else tied
    if all(path.logprob is not None for paths in left.values() for path in paths):
        sums = {key: sum(path.logprob or 0.0 for path in paths) for key, paths in left.items()}
        best = max(sums.values())
        top = [key for key, total in sums.items() if total == best]
        if len(top) == 1:
            return top[0], "tie: log-probability"
        left = {key: left[key] for key in top}
    for path in greedy_program:
        if path.key in left:
            assert path.key is not None
            return path.key, "tie: greedy program"
    return next(iter(left)), "tie: first seen"


class PathStatistics(NamedTuple):
    """Statistics of the paths of many questions; shares between 0 and 1, None if there is nothing to count.

    executed: programs that gave an answer; agreement: questions whose first chain of thought and first program (greedy
    before sampled) have the same key; right_given_agreement: accuracy of these; oracle: questions with any right path;
    tokens: generated per question.
    """

    executed: float | None
    agreement: float | None
    right_given_agreement: float | None
    oracle: float
    tokens: float


def path_statistics(questions: Sequence[tuple[Sequence[ReasoningPath], str]]) -> PathStatistics:
    """Statistics of `(paths, gold key)` of every question."""
    programs = [path for paths, _ in questions for path in paths if path.channel == POT]
    pairs = [(pair, gold) for paths, gold in questions if (pair := _first_pair(paths)) is not None]
    agreed = [(cot, gold) for (cot, pot), gold in pairs if cot.key is not None and cot.key == pot.key]
    return PathStatistics(
        executed=_share([path.key is not None for path in programs]),
        agreement=_share([cot.key is not None and cot.key == pot.key for (cot, pot), _ in pairs]),
        right_given_agreement=_share([cot.key == gold for cot, gold in agreed]),
        oracle=_share([any(path.key == gold for path in paths) for paths, gold in questions]) or 0.0,
        tokens=sum(path.tokens for paths, _ in questions for path in paths) / max(len(questions), 1),
    )


def _first_pair(paths: Sequence[ReasoningPath]) -> tuple[ReasoningPath, ReasoningPath] | None:
    ordered = sorted(paths, key=lambda path: not path.greedy)
    cot, pot = (next((path for path in ordered if path.channel == channel), None) for channel in (COT, POT))
    return None if cot is None or pot is None else (cot, pot)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
