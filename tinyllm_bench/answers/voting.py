"""From several paths of one student to one answer: policies of Mixed Distillation (arXiv:2312.10730), pure functions.

A path is one text the student wrote: a rationale (`cot`) or a program (`pot`), with the answer key that was read or
computed from it, or None where it failed. Failed paths abstain. The paper samples both kinds and combines them; how it
breaks ties is not known, and the order here is ours: a key that both kinds support, then the higher summed mean
log-probability (where every path has one), then the greedy program's key, then the key that was seen first.

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
class Path:
    """One text of one question. `logprob` is the mean log-probability of its tokens; `greedy`: it was not sampled."""

    channel: str
    key: str | None
    greedy: bool = False
    logprob: float | None = None
    tokens: int = 0


class Outcome(NamedTuple):
    """The answer key of a question, None where no path has one; the rule that decided; the paths that it took."""

    key: str | None
    rule: str
    used: tuple[Path, ...]


def decide(paths: Sequence[Path], policy: Policy) -> Outcome:
    """The answer of some paths under a policy; paths that a policy does not ask for are left out."""
    if policy in ("single_cot", "single_pot"):
        return _single(paths, COT if policy == "single_cot" else POT)
    if policy == "pot_then_cot":
        program = _single(paths, POT)
        if program.key is not None:
            return program._replace(rule="program")
        text = _single(paths, COT)
        return Outcome(text.key, "fallback to text", (*program.used, *text.used))
    sampled = [path for path in paths if not path.greedy]
    if policy == "vote_early_stop":
        first = [next((p for p in sampled if p.channel == channel), None) for channel in (COT, POT)]
        agreed = first[0] is not None and first[1] is not None and first[0].key == first[1].key is not None
        if agreed:
            pair = tuple(path for path in first if path is not None)
            return Outcome(pair[0].key, "first two agree", pair)
    return _majority(sampled, [p for p in paths if p.greedy and p.channel == POT])


def needed(policy: Policy, samples: Mapping[str, int]) -> dict[str, tuple[bool, int]]:
    """Per channel, whether a policy takes its greedy path, and how many sampled ones."""
    greedy = {"single_cot": (COT,), "single_pot": (POT,), "pot_then_cot": (COT, POT)}.get(policy)
    if greedy is not None:
        return dict.fromkeys(greedy, (True, 0))
    return {COT: (False, samples[COT]), POT: (True, samples[POT])}  # the greedy program breaks ties


def _single(paths: Sequence[Path], channel: str) -> Outcome:
    """The one greedy path; one that failed is no answer, and nothing takes its place."""
    found = [path for path in paths if path.greedy and path.channel == channel]
    assert len(found) == 1, f"{len(found)} greedy paths of channel {channel}"
    return Outcome(found[0].key, "greedy", (found[0],))


def _majority(sampled: Sequence[Path], greedy_program: Sequence[Path]) -> Outcome:
    votes: dict[str, list[Path]] = defaultdict(list)
    for path in sampled:
        if path.key is not None:
            votes[path.key].append(path)
    used = tuple(sampled)
    if not votes:
        return Outcome(None, "all paths failed", used)
    most = max(map(len, votes.values()))
    tied = {key: paths for key, paths in votes.items() if len(paths) == most}
    if len(tied) == 1:
        return Outcome(next(iter(tied)), "majority", used)
    key, rule = _break(tied, greedy_program)
    return Outcome(key, rule, used)


def _break(tied: Mapping[str, Sequence[Path]], greedy_program: Sequence[Path]) -> tuple[str, str]:
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


class PathFacts(NamedTuple):
    """What the paths of many questions are like; shares between 0 and 1, None where nothing was there to count.

    executed: of all programs, those that gave an answer; agreement: questions whose first text and first program
    (greedy before sampled) give one key; right_given_agreement; oracle: any path right; tokens: written per question.
    """

    executed: float | None
    agreement: float | None
    right_given_agreement: float | None
    oracle: float
    tokens: float


def facts_of(questions: Sequence[tuple[Sequence[Path], str]]) -> PathFacts:
    """Facts of `(paths, gold key)` of every question."""
    programs = [path for paths, _ in questions for path in paths if path.channel == POT]
    pairs = [(pair, gold) for paths, gold in questions if (pair := _first_pair(paths)) is not None]
    agreed = [(cot, gold) for (cot, pot), gold in pairs if cot.key is not None and cot.key == pot.key]
    return PathFacts(
        executed=_share([path.key is not None for path in programs]),
        agreement=_share([cot.key is not None and cot.key == pot.key for (cot, pot), _ in pairs]),
        right_given_agreement=_share([cot.key == gold for cot, gold in agreed]),
        oracle=_share([any(path.key == gold for path in paths) for paths, gold in questions]) or 0.0,
        tokens=sum(path.tokens for paths, _ in questions for path in paths) / max(len(questions), 1),
    )


def _first_pair(paths: Sequence[Path]) -> tuple[Path, Path] | None:
    ordered = sorted(paths, key=lambda path: not path.greedy)
    found = [next((path for path in ordered if path.channel == channel), None) for channel in (COT, POT)]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
