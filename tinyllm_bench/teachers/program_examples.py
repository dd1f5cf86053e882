"""Hand-written programs that a live teacher is shown as examples, six for each kind of question.

Raise `prompts.PROMPTS_VERSION` with every change. A test runs each: it gives its answer and is not degenerate.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tinyllm_bench.answers.keys import QuestionKind


class ProgramExample(NamedTuple):
    """A question, its options (none where the answer is a number), its program, and the key the program gives."""

    question: str
    options: tuple[str, ...]
    program: str
    key: str


RULES = """\
Write a short Python program that works out the answer to the last question. One statement in each line: no loops, no \
functions, no imports. Put what you know into variables, compute from them, and end with `answer = ...`: """
ANSWER_RULES: Mapping[QuestionKind, str] = {
    "options": "the letter of an option. `choices` holds the options by their letters.",
    "yes_no": '"yes" or "no", or "maybe" where that is an option.',
    "number": "the number that is asked for.",
}

_OPTIONS = (
    ProgramExample(
        "Which of these sinks in a glass of water?",
        ("an ice cube", "a dry cork", "a steel nut"),
        """\
water = 1.0
ice_cube = 0.92
dry_cork = 0.24
steel_nut = 7.85
sinks = {"a": ice_cube > water, "b": dry_cork > water, "c": steel_nut > water}
answer = max(choices, key=sinks.get)""",
        "c",
    ),
    ProgramExample(
        "A gardener wants to lift a heavy stone with little force. What helps most?",
        ("a short stick as a lever", "a long pole as a lever", "a wet rope", "a flat board under the stone"),
        """\
short_stick_m = 0.5
long_pole_m = 2.0
beyond_pivot_m = 0.25
gain_short = short_stick_m / beyond_pivot_m
gain_long = long_pole_m / beyond_pivot_m
gain = {"a": gain_short, "b": gain_long, "c": 1, "d": 1}
answer = max(gain, key=gain.get)""",
        "b",
    ),
    ProgramExample(
        "Which animal can be seen feeding its young with milk?",
        ("a robin", "a bat", "a trout", "a grass snake"),
        """\
milk_givers = ["mammal"]
kinds = {"a": "bird", "b": "mammal", "c": "fish", "d": "reptile"}
gives_milk = {"a": "bird" in milk_givers, "b": "mammal" in milk_givers, "c": False, "d": False}
answer = max(kinds, key=gives_milk.get)""",
        "b",
    ),
    ProgramExample(
        "To dry wet shoes overnight without harming them, you should",
        ("stuff them with newspaper and leave them in the hall", "bake them in a hot oven"),
        """\
leather_harmed_above_c = 60
hall_c = 20
oven_c = 180
paper_draws_water = True
good_hall = hall_c < leather_harmed_above_c and paper_draws_water
good_oven = oven_c < leather_harmed_above_c
answer = "a" if good_hall and not good_oven else "b\"""",
        "a",
    ),
    ProgramExample(
        "I have a neck but no head, and I am full when I am new. What am I?",
        ("a scarf", "a bottle", "a giraffe", "a moon", "a violin"),
        """\
has_neck = {"a": False, "b": True, "c": True, "d": False, "e": True}
has_head = {"a": False, "b": False, "c": True, "d": False, "e": False}
holds_something = {"a": False, "b": True, "c": True, "d": False, "e": False}
score_b = has_neck["b"] + holds_something["b"] + (not has_head["b"])
score_c = has_neck["c"] + holds_something["c"] + (not has_head["c"])
score_e = has_neck["e"] + holds_something["e"] + (not has_head["e"])
scores = {"a": 1, "b": score_b, "c": score_c, "d": 1, "e": score_e}
answer = max(scores, key=scores.get)""",
        "b",
    ),
    ProgramExample(
        "Which object is best seen with a telescope?",
        ("a cell of an onion", "a ring of Saturn", "a grain of salt"),
        """\
eye_sees_to_m = 1000
onion_cell_m = 0.1
saturn_m = 1200000000000
salt_m = 0.1
too_far = {"a": onion_cell_m > eye_sees_to_m, "b": saturn_m > eye_sees_to_m, "c": salt_m > eye_sees_to_m}
answer = max(choices, key=too_far.get)""",
        "b",
    ),
)

_CLOSED = ("yes", "no")
_OPEN = ("yes", "no", "maybe")
_YES_NO = (
    ProgramExample(
        "A train leaves at 9:40 and needs 75 minutes. Is it there before 11 o'clock?",
        _CLOSED,
        """\
leaves = 9 * 60 + 40
arrives = leaves + 75
eleven = 11 * 60
answer = "yes" if arrives < eleven else "no\"""",
        "yes",
    ),
    ProgramExample(
        "In the trial, mean pain fell from 6.8 to 3.1 with the drug and from 6.7 to 6.4 without it (P = 0.001). Does"
        " the drug relieve pain?",
        _OPEN,
        """\
fall_with = 6.8 - 3.1
fall_without = 6.7 - 6.4
p_value = 0.001
effect = fall_with > fall_without
answer = "yes" if effect and p_value < 0.05 else "maybe\"""",
        "yes",
    ),
    ProgramExample(
        "Infection was seen in 12 of 100 patients with the new dressing and in 11 of 100 with the old one (P = 0.83)."
        " Does the new dressing prevent infection?",
        _OPEN,
        """\
new_rate = 12 / 100
old_rate = 11 / 100
p_value = 0.83
fewer = new_rate < old_rate
answer = "yes" if fewer and p_value < 0.05 else "no\"""",
        "no",
    ),
    ProgramExample(
        "Survival was longer in one of two centres, and the study was stopped early with 14 patients. Should all"
        " patients get the treatment?",
        _OPEN,
        """\
patients = 14
enough = 100
centres_with_effect = 1
centres = 2
consistent = centres_with_effect == centres
answer = "yes" if consistent and patients >= enough else "maybe\"""",
        "maybe",
    ),
    ProgramExample(
        "Is a person of 17 years old enough for a rule that begins at 18?",
        _CLOSED,
        """\
age = 17
begins = 18
old_enough = age >= begins
answer = "yes" if old_enough else "no\"""",
        "no",
    ),
    ProgramExample(
        "The enzyme lies on the X chromosome. Can a father pass its gene to a son?",
        _CLOSED,
        """\
gene_on = "X"
father_gives_son = "Y"
passes = gene_on == father_gives_son
answer = "yes" if passes else "no\"""",
        "no",
    ),
)

_NUMBER = (
    ProgramExample(
        "Mira has 14 shells. She gives 5 to Tom and finds 8 more. How many shells does she have now?",
        (),
        "shells = 14\ngiven = 5\nfound = 8\nanswer = shells - given + found",
        "17",
    ),
    ProgramExample(
        "A box holds 12 eggs. A baker uses 5 boxes and 7 single eggs. How many eggs is that?",
        (),
        "eggs_per_box = 12\nboxes = 5\nsingle = 7\nanswer = eggs_per_box * boxes + single",
        "67",
    ),
    ProgramExample(
        "A rope of 9 metres is cut into 4 equal pieces. How long is one piece in metres?",
        (),
        "rope_m = 9\npieces = 4\nanswer = rope_m / pieces",
        "2.25",
    ),
    ProgramExample(
        "A jacket of 80 dollars is sold at 25 percent off. What does it cost?",
        (),
        "price = 80\noff_percent = 25\ndiscount = price * off_percent / 100\nanswer = price - discount",
        "60",
    ),
    ProgramExample(
        "Ben read 23 pages on Monday and 9 pages fewer on Tuesday. How many pages did he read on both days?",
        (),
        "monday = 23\ntuesday = monday - 9\nanswer = monday + tuesday",
        "37",
    ),
    ProgramExample(
        "There are 46 guests and each table seats 6. How many tables are needed?",
        (),
        "guests = 46\nseats = 6\ntables = math.ceil(guests / seats)\nanswer = tables",
        "8",
    ),
)

EXAMPLES: Mapping[QuestionKind, tuple[ProgramExample, ...]] = {
    "options": _OPTIONS,
    "yes_no": _YES_NO,
    "number": _NUMBER,
}
