"""Phrases and names that must not come back, and what to write instead.

``python -m tests.test_language [PATH ...]`` prints every violation; a path is a file, a folder, or ``help``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pytest

from videomaskfeat.cli import CommandLine, overview
from videomaskfeat.verbs import VERBS

ROOT = Path(__file__).parent.parent

# "clips a step" means "clips per step". A word of the second group is also a verb ("frames a video"), so it
# counts only after a number or a quantity.
_MEASURES = (
    "clips|videos|epochs|seconds|minutes|hours|milliseconds|ms|bytes|MiB|GiB|MB|GB|kB|rows|threads|workers|"
    "seeds|batches|images|tokens|pixels|channels|bins|cells|objects|entries|columns|characters|digits|words|"
    "once|twice|times|probabilities|logits|scores|weights|parameters|operations|persons|actions|optimizers|"
    "crops|folders|pairs|queries|keys|draws|predictions"
)
_ALSO_VERBS = (
    "frames|steps|samples|classes|labels|masks|values|names|views|processes|runs|targets|pictures|points|"
    "lines|lists|files|boxes|numbers|heads|layers|blocks|positions"
)
_LINKS = "that|in|of|if|with|from|as|when|at|on|by|for|and|or|to|per|than|into|over|opening"
_QUANTITY = r"\d+|number of|more|fewer|few|many|several|some|two|three|four|eight|all|least|most|maximum"
_UNITS = (
    "step|epoch|clip|frame|video|sample|class|label|rank|second|minute|hour|day|batch|run|target|row|line|"
    "key|process|worker|core|token|cell|box|view|seed|task|job|test|region|side|block|layer|position|"
    "parameter|person|category|action|record|query|cube|pixel|channel|bin|image|picture|file|folder|thread|"
    "teacher|student|word|machine|GPU|time step|data set|verb|page|column|head|axis|group|stage|scale|level"
)

PHRASES = {
    # Idioms of the field instead of "a" for "per".
    rf"\b({_MEASURES}) an? ({_UNITS})\b": "'per' (clips per step)",
    rf"\b({_QUANTITY}) ({_ALSO_VERBS}) an? ({_UNITS})\b": "'per' (frames per clip)",
    rf"\b(a|an|one) (?!(?:{_LINKS})\b)\w+(?<!s) an? ({_UNITS})\b": "'per' (one name per class)",
    r"\b\d+(\.\d+)? ?(s|ms|GB|MB|GiB|MiB|%) an? \w+": "'per' (4 s per step)",
    r"\blabels? a class|names? a class": "'per' (labels per class)",
    # Existence and amounts.
    r"\b(is|are|was|were) (?-i:none)\b": "'there is no X', 'X is missing' or 'None if ...'",
    r"\bbut for\b": "'except for', 'without' or 'unless'",
    r"\bsave (for|that|where|when)\b": "'except'",
    r"\bso many\b": "the number itself, or 'that number of'",
    r"\bas many as (bring|there)\b": "the rule as a formula or 'one per'",
    r"\bgreatest number\b": "'maximum number'",
    r"\bknown of\b|\bnot known\b|\bnone (is|are) known\b": "'unknown'",
    r"\b\d+ times in \d+\b": "a percentage ('95 %')",
    r"\b(most surely|surely|indeed|alas)\b": "nothing, or the evidence",
    # Telling and wishing.
    r"\b(is|are|was|were|be|been) (told|asked for|asked|wished for|wished|wanted|said)\b": (
        "'reports', 'logs', 'is given', 'is requested' or 'must'"
    ),
    r"\b(tells?|told|telling)\b(?! \w+ apart| apart)": "'reports', 'logs', 'states' or 'specifies'",
    r"\b(said to be|says (how|what|which|where|whether|so|that|no))\b": "'states', 'reports' or 'is'",
    r"\b(asks|asking|asked) (for|to)\b": "'requests', 'needs' or 'requires'",
    r"\bwants? (it|them|to|no|a|the)\b|\bwanted\b": "'needs', 'expects' or 'expected'",
    r"\bended so\b": "'Output of `...` (machine):'",
    # Relative clauses and riddles.
    r"\bof which\b": "a second sentence",
    r"\bwhat parts the\b": "'separator of'",
    r"\bwhat is (told|said|left|asked|wanted|known) (of|by|to)\b": "a noun ('the reported actions')",
    r"\bnothing, (where|if)\b": "'None if ...'",
    r"\bwhere (none|there (is|are) no|there (is|are) none|nothing)\b": "'if there is no ...'",
    r"\bor else\b|\belsewhere it\b": "'otherwise'",
    r"\b(less|by) 0\.\d+, by 0\.\d+\b": "'normalized with mean ... and std ...'",
    r"\b(ending|name) says\b|\bits ending\b": "'file extension'",
    r"\bgives? (itself )?up\b": "'stops' or 'fails'",
    r"\bgives? way\b|\bin force\b|\bheld to\b|\bholds? good\b|\bby (its|the) rights\b": "the plain verb",
    r"\b(clips|views|frames) in testing\b": "'at test time'",
    r"\bin the (?:very )?place of\b": "'instead of'",
    r"\bbeside other work\b": "nothing, or a footnote",
    r"\b(not a few|no few|a good many|ever so|nought|whence|wherein|whereof|thereof|hence|lest|albeit)\b": (
        "plain words"
    ),
    r"\b(cannot but|can but|nothing but|all but)\b": "'only' or 'almost'",
    # Spelling: the names of torch are American.
    r"\w*(normalis|optimis|initialis|serialis|parallelis|quantis|regularis|visualis|summaris|organis|recognis|"
    r"minimis|maximis|generalis|specialis|randomis|tokenis|standardis|synchronis|vectoris|equalis|solaris|"
    r"posteris|binaris|characteris|localis|capitalis|emphasis[ei]|utilis|realis[ei])(e|ed|es|er|ers|ing|ation|"
    r"ations|able)?\b": "'-ize' (normalize, optimizer)",
    r"\w*colour\w*": "'color'",
    r"\bgrey\w*": "'gray'",
    r"\b(de|re|un)?cent(re|res|red|ring)(?=_|\b)|_centre\w*": "'center'",
    r"\w*neighbour\w*": "'neighbor'",
    r"\bbehaviour\w*": "'behavior'",
    r"\blicen[c]e\w*": "'license'",
    r"\bfavour\w*|\bhonour\w*|\bflavour\w*": "'-or'",
    r"\b(un)?label(led|ling)(?=_|\b)|\bmodell(ed|ing)\b|\bcancell(ed|ing)\b|\btravell\w+|\bsignall\w+": (
        "one 'l' (labeled, canceled)"
    ),
    r"\blearnt\b|\bspoilt\b|\bburnt\b|\bspelt\b": "'-ed' (learned)",
    r"\banalys(e|ed|es|ing)\b": "'analyze'",
    r"\bartefact\w*|\bprogramme\b|\bcatalogue\b|\bmetres?\b|\bwhilst\b|\bamongst\b|\btowards\b": (
        "the American spelling"
    ),
}
_SPACE = r"(?:[ \t]+|[ \t]*\n[ \t]*)"  # not a blank line, which ends a paragraph
_PATTERNS = [
    (re.compile(phrase.replace(" ", _SPACE), re.IGNORECASE), remedy) for phrase, remedy in PHRASES.items()
]

NAMES = {
    *("go", "aim", "call", "told", "given", "wanted", "settings", "some", "other_levels", "levels", "parts"),
    *("found", "made", "kept", "asked", "said"),
}
_NAME_SPELLING = re.compile(r"colour|centre|normalis|optimis|neighbour|grey|labelled|behaviour|spoilt|learnt")

# Names that must stay, because earlier configs, weights files and checkpoints contain them.
_PUBLIC = re.compile(
    "|".join(
        (
            r"""(?<=[`'"])(told|colour|grey|normalised?|centre(d|_momentum)?)(?=[`'":])""",
            r"(?<=\n)colour(?=:\n)|(?<=head\.)normalise\b|(class|cube)?_centre\b|\btold(?=\.|: \{(film|top))",
        )
    )
)
_PUBLIC_NAMES = {("package/targets", "parts"), ("package/models", "normalise"), ("tests/targets", "parts")}


class Violation(NamedTuple):
    """A phrase or name, with its place and the remedy."""

    place: str
    line: int
    phrase: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {' '.join(self.phrase.split())!r}: write {self.remedy}"


def area_of(path: str) -> str:
    """The area of a file, such as ``package/data``, or an empty string if nobody reads it as text."""
    top, *folders, name = path.split("/") if "/" in path else ("", path)
    suffix = name.rpartition(".")[2]
    if path == "tests/test_language.py" or suffix not in ("md", "py", "yaml", "yml", "html", "js"):
        return ""
    if top in ("videomaskfeat", "tests"):
        return "/".join([top.replace("videomaskfeat", "package"), *folders[:1]])
    return {"": "docs", "docs": "docs", ".github": "docs"}.get(top, top)


@cache
def violations() -> dict[str, list[Violation]]:
    """All violations by area, in the order of the files; every area is there."""
    by_area: dict[str, list[Violation]] = defaultdict(list)
    for path in sorted(_files()):
        if area := area_of(path):
            by_area[area] += violations_of(path)
    by_area["help"] += [one for name, text in _help_texts() for one in _phrases(name, [(1, text)])]
    return by_area


def violations_of(path: str) -> list[Violation]:
    """The violations of a file, given relative to the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        violations = [*_phrases(path, list(_python_texts(text))), *_names(path, text)]
    else:
        text = re.sub(r"\{[%{#].*?[%}#]\}", lambda tag: "\n" * tag[0].count("\n"), text, flags=re.DOTALL)
        violations = list(_phrases(path, [(1, text)]))
    return sorted(set(violations), key=lambda one: one.line)


def _files() -> Iterator[str]:
    for pattern in ("*", "docs/**/*", "configs/**/*", "videomaskfeat/**/*", "tests/**/*", ".github/**/*"):
        yield from (str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file())
    for pattern in ("tools/*", "benchmarks/*", "datasets/**/*"):
        yield from (str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file())


def _phrases(place: str, texts: list[tuple[int, str]]) -> Iterator[Violation]:
    """The forbidden phrases in texts, given with their first lines."""
    joined = "\0".join(text for _, text in texts)  # one search per pattern is faster than one per text
    joined = _PUBLIC.sub(lambda name: "_" * len(name[0]), joined)
    starts = [0, *accumulate(len(text) + 1 for _, text in texts)]
    for pattern, remedy in _PATTERNS:
        for match in pattern.finditer(joined):
            index = bisect_right(starts, match.start()) - 1
            lines_before = joined.count("\n", starts[index], match.start())
            yield Violation(place, texts[index][0] + lines_before, match[0], remedy)


def _python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string and of every block of comments."""
    yield from _strings(ast.parse(source))
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#")
        if block and block[-1][0] != line - 1:
            yield block[0][0], "\n".join(text for _, text in block)
            block = []
        block.append((line, text))
    if block:
        yield block[0][0], "\n".join(text for _, text in block)


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr):
            pieces = [piece.value if isinstance(piece, ast.Constant) else "{}" for piece in child.values]
            yield child.lineno, "".join(map(str, pieces))
            for piece in child.values:
                yield from () if isinstance(piece, ast.Constant) else _strings(piece)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            quote = "'" * child.value.isidentifier()
            yield child.lineno, f"{quote}{child.value}{quote}"
        else:
            yield from _strings(child)


def _names(place: str, source: str) -> Iterator[Violation]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if (area_of(place), name) in _PUBLIC_NAMES:
            continue
        if name.strip("_").lower() in NAMES and not name.startswith("__"):
            yield Violation(place, node.lineno, name, "a name that says what the value or action is")
        elif spelling := _NAME_SPELLING.search(name.lower()):
            yield Violation(place, node.lineno, name, f"the American spelling of {spelling[0]!r}")


def _help_texts() -> Iterator[tuple[str, str]]:
    yield "videomaskfeat --help", overview()
    for verb in VERBS:
        yield f"videomaskfeat {verb} --help", CommandLine(verb).parser().format_help()
        with contextlib.redirect_stdout(io.StringIO()) as keys:
            CommandLine(verb).print_keys()
        yield f"videomaskfeat {verb} --keys", keys.getvalue()


@pytest.mark.parametrize("area", sorted({*filter(None, map(area_of, _files())), "help"}))
def test_text_and_names_are_plain_english(area: str) -> None:
    assert not violations()[area], "\n".join(map(str, ["", *violations()[area]]))


@pytest.mark.parametrize(
    "text",
    [
        "clips a step",
        "8 frames a\nclip",
        "one name a class",
        "there are none known",
        "the colour",
        "4 s a step",
    ],
)
def test_phrases_are_recognized(text: str) -> None:
    assert list(_phrases("x", [(1, text)]))


@pytest.mark.parametrize(
    "text", ["reads a video", "one frame of a clip", "a video frames a class", "per step"]
)
def test_plain_phrases_pass(text: str) -> None:
    assert not list(_phrases("x", [(1, text)]))


def main(paths: list[str]) -> int:
    """Print the violations below the paths, or all of them; returns how many there are, at most 1."""
    places = [path.rstrip("/") for path in paths]
    lines = [
        str(one)
        for of_area in violations().values()
        for one in of_area
        if not places
        or any(one.place == path or one.place.startswith(f"{path}/") for path in places)
        or ("help" in places and one.place.startswith("videomaskfeat "))
    ]
    print("\n".join([*lines, f"{len(lines)} violations"]))
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
