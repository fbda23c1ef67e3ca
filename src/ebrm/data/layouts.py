"""Layouts of preference data: which columns hold the prompt, the replies and what says which of them is better.

A layout is recognized by its columns, once for the data. Known are those of TRL, LLaMA-Factory, ms-swift, axolotl,
OpenRLHF, NeMo-RL, distilabel and Alpaca, and of public data sets whose labels have a convention of their own (`KNOWN`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ebrm.data.formats import as_list, holds_conversation
from ebrm.data.labels import LabelRule, parse_label_map
from ebrm.data.messages import messages_in
from ebrm.data.schema import RowProblem
from ebrm.errors import setting

Kind = Literal["pair", "conversation", "labeled", "scored", "responses", "rated"]

#: What each kind is called in the report; "pair" goes without a name.
KINDS: dict[Kind, str] = {
    "pair": "",
    "conversation": "a conversation and the rejected reply",
    "labeled": "two replies and a label",
    "scored": "two replies and their scores",
    "responses": "responses in an order",
    "rated": "one rated response a row",
}


@dataclass(frozen=True)
class Layout:
    """How the columns of the data hold preferences.

    Attributes:
        kind: what says which reply is better: columns of their own ("pair"), the last turn of a conversation and
            another ("conversation"), a label, two scores, the scores or ranks of a list of responses ("responses"), or
            those of rows with the same prompt ("rated").
        name: the layout's name, "" for columns that say it themselves.
        fields: our field → the data's column. Besides the names of `COLUMN_NAMES`: input, history, conversation,
            score_a and score_b, label_b and label_tie.
        rule: what the labels mean.
        ascending: the lowest of the scores is the best (ranks).
        entries: of responses that are objects, the keys of (text, score); None for lists beside each other.
    """

    kind: Kind
    name: str
    fields: Mapping[str, str]
    rule: LabelRule = field(default_factory=LabelRule)
    ascending: bool = False
    entries: tuple[str, str] | None = None

    @property
    def implicit(self) -> bool:
        """Whether the prompt is what both sides begin with."""
        return "prompt" not in self.fields and self.kind in ("pair", "labeled", "conversation")

    def __str__(self) -> str:
        name = self.name or KINDS[self.kind]
        columns = ", ".join(ours if ours == theirs else f"{ours} = {theirs}" for ours, theirs in self.fields.items())
        return f"{name}: {columns}" if name else columns


def _labeled(name: str, a: str, b: str, label: str, values: str, prompt: str | None = None, **more: Any) -> Layout:
    """A layout from words: `1=a 0=b`, `scale=b` for −3…3 with positive numbers for b, or nothing for words alone."""
    given = dict(item.split("=") for item in values.split())
    rule = LabelRule(source=name)
    if scale := given.pop("scale", None):
        other: Any = "a" if scale == "b" else "b"
        rule = LabelRule({"0": "tie"}, ((">", 0, scale), ("<", 0, other)), words=False, limits=(-3, 3), source=name)  # type: ignore[arg-type]
    elif given:
        rule = LabelRule(given, words=False, source=name)  # type: ignore[arg-type]
    fields = ({"prompt": prompt} if prompt else {}) | {"a": a, "b": b, "label": label}
    return Layout("labeled", name, fields | more, rule)


#: Public layouts whose labels have a convention, from their data cards.
KNOWN: tuple[Layout, ...] = (
    _labeled(
        "SHP", "human_ref_A", "human_ref_B", "labels", "1=a 0=b true=a false=b", prompt="history",
        score_a="score_A", score_b="score_B",
    ),
    _labeled("HelpSteer 2 preference", "response_1", "response_2", "preference_strength", "scale=b", prompt="prompt"),
    _labeled("HelpSteer 3", "response1", "response2", "overall_preference", "scale=b", prompt="context"),
    _labeled("PKU-SafeRLHF", "response_0", "response_1", "better_response_id", "0=a 1=b", prompt="prompt"),
    _labeled("Arena battles", "conversation_a", "conversation_b", "winner", ""),
    _labeled(
        "Arena battles (columns of winners)", "response_a", "response_b", "winner_model_a", "", prompt="prompt",
        label_b="winner_model_b", label_tie="winner_tie",
    ),
    _labeled("JudgeBench", "response_A", "response_B", "label", "", prompt="question"),
)  # fmt: skip

# Columns that hold the prompt where none is called so; a second one of them makes it unclear which.
_PROMPTS = ("instruction", "question", "query", "input", "messages", "conversations", "conversation", "context")
# Those of them that hold a prompt only where they hold messages.
_MESSAGES_ONLY = ("messages", "conversations", "conversation", "context")
_PAIRS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"), ("response", "rejected_response"), ("response_j", "response_k"),
)  # fmt: skip
_SIDES = (
    ("a", "b"), ("response1", "response2"), ("conv_A", "conv_B"),
    *((f"{word}_{x}", f"{word}_{y}") for word in ["response", "answer", "completion", "output", "conversation"]
      for x, y in ("ab", "AB", "01", "12")),
)  # fmt: skip
_LABELS = (
    "label", "labels", "winner", "preference", "preferred", "better", "choice", "verdict", "overall_preference",
    "preference_strength", "better_response_id", "chosen",
)  # fmt: skip
_RESPONSES = ("responses", "completions", "generations", "answers", "candidates")
_SCORES = ("scores", "score", "ratings", "rating", "rewards")
_RANKS = ("ranks", "rank")
# Of responses that are objects: keys of the text, and of what they are ordered by, the first that there is.
ENTRY_TEXTS = ("completion", "response", "answer", "text", "output", "generation", "content", "message", "messages")
_ENTRY_RANKS = ("rank", "ranks")
_ENTRY_SCORES = ("score", "rating", "reward", "fine-grained_score", "overall_score", "overall_rating", "pm_score")

#: Attributes of HelpSteer and HelpSteer 2, in the order of `ebrm.aggregate`'s weights.
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_THUMBS = ("label", "kto_tag")

_PROMPT_FIELDS = ("prompt", "input", "history", "system", "tools")


def find_layout(row: Mapping[str, Any], mapping: Mapping[str, str], label_map: Mapping[str, str]) -> Layout | None:
    """The layout of data with this row, with the columns as mapped (ours → the data's); None if there is none."""
    if any(
        theirs and theirs not in row for ours, theirs in mapping.items() if ours in ("chosen", "rejected", "a", "b")
    ):
        return None
    if {"a", "b", "label"} & mapping.keys():
        return _labels(row, mapping, label_map)
    if {"responses", "scores", "ranks"} & mapping.keys():
        return _lists(row, mapping)
    for find in (_pair, _conversation):
        if (found := find(row, mapping)) is not None:
            return found
    return _labels(row, mapping, label_map) or _lists(row, mapping) or _rated(row, mapping)


def _prompt(row: Mapping[str, Any], mapping: Mapping[str, str], taken: Collection[str]) -> dict[str, str] | None:
    """The columns of the prompt, with what goes before it; {} if there is none, None if it is not clear which."""
    if mapping.get("prompt") == "":
        return {}
    name = mapping.get("prompt") or ("prompt" if "prompt" in row and "prompt" not in taken else None)
    if name is not None and name not in row:
        return {}
    if name is None:
        free = [n for n in _PROMPTS if n in row and n not in taken]
        sure = [n for n in free if n not in _MESSAGES_ONLY or _holds_messages(row[n])]
        free = sure or [n for n in free if row[n] is None]
        if "instruction" in free or ("query" in free and "response" in taken):
            free = [n for n in free if n != "input"]
        if len(free) > 1:
            return None
        name = free[0] if free else None
    found = {} if name is None else {"prompt": name}
    more = mapping.get("input", "input" if name == "instruction" and "input" not in {*taken, *mapping.values()} else "")
    if name is not None and more in row:
        found["input"] = more
    if name in ("instruction", "query", "input", "prompt") and "history" in row and "history" not in mapping.values():
        found["history"] = "history"
    for ours, names in (("system", ("system", "system_prompt")), ("tools", ("tools",))):
        if (there := _column(ours, row, mapping, names)) is not None and there not in taken:
            found[ours] = there
    return found


def _holds_messages(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return messages_in(value) is not None
        except RowProblem:  # told where it is read
            return True
    return value is not None and not isinstance(value, (int, float, bool))


def _column(ours: str, row: Mapping[str, Any], mapping: Mapping[str, str], names: Sequence[str] = ()) -> str | None:
    """The column of one of our fields: as mapped (an empty name: not read), or the first of these that is there."""
    if ours in mapping:
        return mapping[ours] if mapping[ours] in row else None
    return next((name for name in names or (ours,) if name in row), None)


def _pair(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Layout | None:
    for names in _PAIRS:
        chosen = _column("chosen", row, mapping, names[:1])
        rejected = _column("rejected", row, mapping, names[1:])
        if chosen is None or rejected is None or chosen == rejected:
            continue
        if (
            names[0] == "response"
            and chosen == "response"
            and not {"query", "prompt", "instruction", "question"} & row.keys()
        ):
            continue
        sides = {"chosen": chosen, "rejected": rejected}
        if mapping.get("prompt") and mapping["prompt"] not in row:
            return None
        found = _prompt(row, mapping, sides.values())
        asked = found and "prompt" in found and ("prompt" in mapping or found["prompt"] == "prompt")
        if not asked and holds_conversation(row[chosen]) and holds_conversation(row[rejected]):
            found = {k: v for k, v in (found or {}).items() if k in ("system", "tools")}
        if found is None:
            return None
        return Layout("pair", _trainer(found), found | sides)
    return None


def _trainer(found: Mapping[str, str]) -> str:
    """A name for what is more than a prompt column."""
    if found.get("prompt") == "instruction" and "input" in found:
        return "Alpaca"
    return ""


def _conversation(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Layout | None:
    """ms-swift: messages that end in the chosen reply, and the rejected reply or conversation beside them."""
    rejected = next((name for name in ("rejected_messages", "rejected_response") if name in row), None)
    if "messages" not in row or rejected is None or {"prompt", "chosen"} & {*mapping, *row}:
        return None
    more = {ours: name for ours in ("system", "tools") if (name := _column(ours, row, mapping)) is not None}
    return Layout("conversation", "ms-swift", more | {"conversation": "messages", "rejected": rejected})


def _labels(row: Mapping[str, Any], mapping: Mapping[str, str], label_map: Mapping[str, str]) -> Layout | None:
    """Two replies, and a label or two scores that say which is better."""
    if not {"a", "b", "label"} & mapping.keys():
        for known in KNOWN:
            needed = [name for ours, name in known.fields.items() if not ours.startswith("score")]
            if all(name in row for name in needed) and ("prompt" not in mapping or "prompt" not in known.fields):
                return _complete(known, row, mapping, label_map)
    for a, b, label, scores in _sides(row, mapping):
        taken = {a, b, *((label,) if label else ()), *scores}
        prompt = _prompt(row, mapping, taken)
        if prompt is None or (mapping.get("prompt") and "prompt" not in prompt):
            return None
        if "prompt" not in prompt and not (holds_conversation(row[a]) and holds_conversation(row[b])):
            continue
        if label is None:
            return Layout("scored", "", prompt | {"a": a, "b": b, "score_a": scores[0], "score_b": scores[1]})
        found = Layout("labeled", "", prompt | {"a": a, "b": b, "label": label})
        for known in KNOWN:
            if {a, b} == {known.fields["a"], known.fields["b"]} and label == known.fields["label"]:
                turned = a != known.fields["a"]
                found = Layout("labeled", known.name, found.fields, _turned(known.rule) if turned else known.rule)
                extra = {o: n for o, n in known.fields.items() if o not in found.fields and o != "prompt" and n in row}
                if not turned:
                    found = Layout("labeled", known.name, {**found.fields, **extra}, found.rule)
        return _complete(found, row, mapping, label_map)
    return None


def _sides(
    row: Mapping[str, Any], mapping: Mapping[str, str]
) -> Iterator[tuple[str, str, str | None, tuple[str, ...]]]:
    """Columns of a, b, the label and, without a label, the scores."""
    for names in _SIDES:
        a, b = _column("a", row, mapping, names[:1]), _column("b", row, mapping, names[1:])
        if a is None or b is None or a == b:
            continue
        labels = [name for name in _LABELS if name in row and not (name == "chosen" and "rejected" in row)]
        label = _column("label", row, mapping, labels[:1] or ("label",))
        if label is not None and (len(labels) == 1 or "label" in mapping or label == "label"):
            yield a, b, label, ()
            return
        x, y = a.rsplit("_", 1)[-1], b.rsplit("_", 1)[-1]
        pairs = ((f"score_{x}", f"score_{y}"), (f"{a}_score", f"{b}_score"), (f"{a}_rating", f"{b}_rating"))
        scores = next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)
        if label is None and scores is not None:
            yield a, b, None, scores
            return


def _turned(rule: LabelRule) -> LabelRule:
    """The rule where a and b are mapped the other way round."""
    other: dict[Any, Any] = {"a": "b", "b": "a", "tie": "tie"}
    values = {value: other[outcome] for value, outcome in rule.values.items()}
    return LabelRule(values, tuple((s, n, other[o]) for s, n, o in rule.compared), rule.words, rule.limits, rule.source)


def _complete(
    layout: Layout, row: Mapping[str, Any], mapping: Mapping[str, str], label_map: Mapping[str, str]
) -> Layout:
    """A labeled layout with what else is there of its prompt, and with the user's rule, which goes before any other."""
    fields = {ours: name for ours, name in layout.fields.items() if name in row}
    taken = [name for ours, name in fields.items() if ours not in _PROMPT_FIELDS]
    fields |= {k: v for k, v in (_prompt(row, mapping, taken) or {}).items() if k in ("system", "tools", "history")}
    rule = parse_label_map(label_map) if label_map else layout.rule
    if [name[-1:].lower() for name in (fields["a"], fields["b"])] == ["b", "a"]:
        rule = replace(rule, words=False)  # does "A" name our a, or the column that ends in A?
    return Layout("labeled", layout.name, fields, rule)


def _lists(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Layout | None:
    """A list of responses with scores or ranks, beside it or in it."""
    responses = _column("responses", row, mapping, _RESPONSES)
    if responses is None:
        return None
    prompt = _prompt(row, mapping, [responses])
    if not prompt or "prompt" not in prompt:
        return None
    for ours, names in (("ranks", _RANKS), ("scores", _SCORES)):
        other = "scores" if ours == "ranks" else "ranks"
        if (order := _column(ours, row, mapping, names)) is not None and other not in mapping:
            fields = prompt | {"responses": responses, ours: order}
            return Layout("responses", "", fields, ascending=ours == "ranks")
    first = first_entry(row[responses])
    if first is None:
        return None
    text = next((key for key in ENTRY_TEXTS if key in first), None)
    order = next((key for key in (*_ENTRY_RANKS, *_ENTRY_SCORES) if first.get(key) is not None), None)
    if text is None or order is None:
        return None
    fields = prompt | {"responses": responses}
    return Layout("responses", "", fields, ascending=order in _ENTRY_RANKS, entries=(text, order))


def _rated(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Layout | None:
    """HelpSteer's ratings: rows of one response each, those of a prompt one after the other."""
    if not {"prompt", "response", "helpfulness", "correctness"} <= row.keys() or mapping.keys() - {"split", "category"}:
        return None
    fields = {"prompt": "prompt", "responses": "response", "scores": "helpfulness"}
    return Layout("rated", "HelpSteer ratings", fields)


@dataclass(frozen=True)
class RatedLayout:
    """How the columns of the data hold rated responses, one a row.

    Attributes:
        kind: a prompt and a reply ("pair", the name of the layout that reads them), or a conversation.
        fields: our field → the data's column, the reply as `chosen` or at the end of `conversation`.
        ratings: the columns of the ratings.
        thumbs: they are thumbs, yes or no.
    """

    kind: Literal["pair", "conversation"]
    fields: Mapping[str, str]
    ratings: tuple[str, ...]
    thumbs: bool

    @property
    def response(self) -> str:
        """The column of the reply."""
        return self.fields.get("chosen") or self.fields["conversation"]

    def __str__(self) -> str:
        ours = {"chosen": "response", "conversation": "messages"}
        fields = {ours.get(name, name): theirs for name, theirs in self.fields.items()}
        said = ", ".join(name if name == theirs else f"{name} = {theirs}" for name, theirs in fields.items())
        return f"{'thumbs' if self.thumbs else 'ratings'}: {said}, {', '.join(self.ratings)}"


def find_rated(row: Mapping[str, Any], mapping: Mapping[str, str]) -> RatedLayout | None:
    """The layout of rated responses with this row, with the columns as mapped; None if there is none."""
    thumbs = False
    if "ratings" in mapping:
        ratings = tuple(name.strip() for name in mapping["ratings"].split(","))
        if not all(name in row for name in ratings):
            return None
    else:
        if {"chosen", "rejected"} <= row.keys():
            return None
        ratings = tuple(name for name in row if name in _THUMBS and _is_thumb(row[name]))[:1]
        thumbs = bool(ratings)
        ratings = ratings or tuple(name for name in HELPSTEER if name in row)
        ratings = ratings or tuple(str(name) for name in row if name == "rating" or str(name).startswith("ratings_"))
    if not ratings:
        return None
    response = _column("response", row, mapping, ("completion", "response"))
    if response is not None:
        prompt = _prompt(row, mapping, [response, *ratings])
        if not prompt or "prompt" not in prompt:
            return None
        return RatedLayout("pair", prompt | {"chosen": response}, ratings, thumbs)
    whole = next((name for name in ("messages", "conversations") if name in row), None)
    if whole is None or "response" in mapping or "prompt" in mapping:
        return None
    more = {ours: name for ours in ("system", "tools") if (name := _column(ours, row, mapping)) is not None}
    return RatedLayout("conversation", more | {"conversation": whole}, ratings, thumbs)


def _is_thumb(value: Any) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false")


def first_entry(value: Any) -> Mapping[str, Any] | None:
    """The first response of a list, if it is an object."""
    found = as_list(value)
    first = found[0] if found else None
    return first if isinstance(first, Mapping) else None


# ---- what cannot be read ------------------------------------------------------------------------------------------

# Names other data sets use, only to suggest a mapping.
_USUAL = {
    "prompt": "question orig_instruction instruction query input conversation_input context history messages "
    "conversations post text",
    "chosen": "chosen_response response_chosen preferred winner_response best positive better_response accepted win "
    "good",
    "rejected": "rejected_response response_rejected reject dispreferred loser_response negative worse_response lose "
    "bad",
    "a": "response_a answer_a completion_a output_a response_0 response_1 response1 answer_0 output_1 orig_response_a",
    "b": "response_b answer_b completion_b output_b response_1 response_2 response2 answer_1 output_2 orig_response_b",
    "label": "label preference winner better better_response_id overall_preference labels choice preferred",
}
_USUAL_NAMES = {ours: (ours, *names.split()) for ours, names in _USUAL.items()}
#: Columns beside a prompt whose texts are likely to be part of it.
MORE_OF_PROMPT = ("input", "context", "passage", "document", "history")
_LABEL_WORDS = re.compile(r"label|prefer|winner|better|safer|chosen|choice|verdict|judg|annotat")


def plain_column(name: object) -> str:
    """A column's name without what spreadsheets and exports add to it: capitals, blanks, a byte order mark."""
    return str(name).strip().strip("\ufeff").strip().lower()


_READ = "rows = [row for _, row in ebrm.data.read_rows(source)]"


def looks_like_prompt(name: str) -> bool:
    """Whether a column's name is one that data sets use for the prompt, in any case."""
    return plain_column(name) in _USUAL_NAMES["prompt"]


# Columns of layouts that are not preference pairs → what they are, and the lines that make pairs of them.
_REFUSED: tuple[tuple[set[str], str, str], ...] = (
    (
        {"prompt", "completion", "label"},
        "unpaired thumbs (KTO: prompt, completion, label), which say of one completion whether it is good, not which "
        "of two is better. The head binary is fitted on them as they are; for other heads, where a prompt has both, "
        "pairs can be made of them",
        'groups = pandas.DataFrame(rows).groupby("prompt")\n'
        "  pairs = [dict(prompt=p, chosen=c, rejected=r) for p, g in groups for c in g.completion[g.label == True] "
        "for r in g.completion[g.label == False]]",
    ),
    (
        {"prompt", "completions", "labels"},
        "stepwise labels (TRL: prompt, completions, labels), which are of steps and not of replies. They are no "
        "preferences; give pairs of whole replies",
        "",
    ),
    (
        {"info", "summaries", "choice"},
        "OpenAI's summaries (info, summaries, choice: the number of the better summary, from 0)",
        'pairs = [dict(prompt=r["info"]["post"], chosen=r["summaries"][r["choice"]]["text"], '
        'rejected=r["summaries"][1 - r["choice"]]["text"]) for r in rows]',
    ),
    (
        {"instruction", "output"},
        "Alpaca (instruction, output). If output is a list of the chosen and the rejected reply (LLaMA-Factory before "
        "1.0), pairs are made of it by",
        'pairs = [dict(instruction=r["instruction"], input=r.get("input"), chosen=r["output"][0], '
        'rejected=r["output"][1]) for r in rows]',
    ),
    (
        {"prompt", "response", "score"},
        "one scored response a row (prompt, response, score). Pairs of each prompt's best and worst are made by",
        'groups = pandas.DataFrame(rows).sort_values("score").groupby("prompt").response\n'
        "  pairs = [dict(prompt=p, chosen=g.iloc[-1], rejected=g.iloc[0]) for p, g in groups if len(g) > 1]",
    ),
    *(
        (
            needed,
            f"unpaired thumbs ({', '.join(sorted(needed))}), which say of one reply whether it is good, not which of "
            "two is better. The head binary is fitted on them as they are; for other heads give pairs of replies to "
            "the same prompt",
            "",
        )
        for needed in ({"messages", "label"}, {"messages", "kto_tag"}, {"conversations", "kto_tag"}, {"kto_tag"})
    ),
    (
        {"chosen_ids", "rejected_ids"},
        "token ids (chosen_ids, rejected_ids), which are another tokenizer's. Give the texts",
        "",
    ),
)


def explain_columns(seen: Sequence[str], mapping: Mapping[str, str], row: Mapping[str, Any] | None = None) -> str:
    """Sentences for an error: the columns seen, what they look like, those expected, and how to map or convert them.

    With a `row`, also where its rows may be.
    """
    names = list(map(str, seen))
    there = set(names) | {ours for ours, theirs in mapping.items() if theirs in seen}
    for needed, what, lines in _REFUSED:
        if needed <= there and not mapping.keys() & {"chosen", "rejected", "a", "b"}:
            code = f":\n  {_READ}\n  {lines}\n  ebrm.load_preferences(pairs)" if lines else "."
            return f"The columns are {', '.join(names)}: {what}{code}"
    inside = [k for k, v in (row or {}).items() if isinstance(v, list) and v and isinstance(v[0], Mapping)]
    if len(inside) == 1 and not mapping and not {*_PROMPTS, *_RESPONSES, "prompt"} & {*names}:
        return (
            f"The columns are {', '.join(names)}, and the rows seem to be in {inside[0]!r}. Give these:\n"
            f"  rows = next(ebrm.data.read_rows(source))[1][{inside[0]!r}]\n  ebrm.load_preferences(rows)"
        )
    lower = {plain_column(name): name for name in reversed(names)}
    sides = next((names for names in _SIDES if {plain_column(name) for name in names} <= lower.keys()), None)
    labeled = sides or {"a", "b"} & mapping.keys() or any(name in lower for name in _USUAL_NAMES["a"][1:])
    guesses: dict[str, str] = {}
    taken: set[str] = set()
    for ours in ("prompt", "a", "b", "label") if labeled else ("prompt", "chosen", "rejected"):
        if ours not in mapping and ours in seen:
            taken.add(ours)
            continue
        if mapping.get(ours) in names:
            guesses[ours] = mapping[ours]
            taken.add(plain_column(mapping[ours]))
            continue
        usual = [plain_column(name) for name in (mapping.get(ours, ""), *_USUAL_NAMES[ours])]
        if sides is not None and ours in ("a", "b"):
            usual.insert(1, plain_column(sides[ours == "b"]))
        if ours == "label":
            usual += [name for name in lower if _LABEL_WORDS.search(name)]
        guess = next((name for name in usual if name in lower.keys() - taken), None)
        if guess is not None:
            taken.add(guess)
            guesses[ours] = lower[guess]
        elif ours != "prompt":  # which may be what both sides begin with
            guesses[ours] = "…"
    if set(guesses.values()) <= {"…"} and "prompt" not in there:
        guesses = {}
    several = ""
    prompts = [n for n in _PROMPTS if n in names and n not in mapping.values()]
    if "prompt" not in there and len(prompts) > 1:
        several = f" Each of {', '.join(prompts)} may hold the prompt."
    absent = [f"{ours}={theirs}" for ours, theirs in mapping.items() if theirs and theirs not in seen]
    mapped = f" The mapping names columns that are not there: {', '.join(absent)}." if absent else ""
    example = setting("columns", guesses or {"prompt": "question"})
    return (
        f"The columns are {', '.join(names) or 'none'}; expected prompt, chosen and rejected (the prompt may also be "
        "the common beginning of chosen and rejected), or prompt, a, b and label, or prompt, responses and scores (or "
        f"ranks).{mapped}{several} Name the columns of the data with {example}."
    )
