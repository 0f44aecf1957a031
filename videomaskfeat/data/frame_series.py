"""Which pictures of a folder are the frames of its video, by their names.

Extracted videos often have pictures beside them that were made from them, such as optical flow:
``img_00001.jpg``, ``flow_x_00001.jpg``, ``flow_y_00001.jpg``. These are left out, and so are single pictures
beside numbered ones, such as ``cover.jpg``. Any other two series of numbered pictures are refused,
since only a person can tell which of them is the video.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

NUMBERED = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)  # what precedes the last number, the number, the rest
_MADE = frozenset(
    ("depth", "flow", "flowx", "flowy", "mask", "seg")
)  # series made from a video, by their letters
_PAIRS = (frozenset("xy"), frozenset("uv"))  # the same, if both are there: the two directions of optical flow


def choose_frames(names: Sequence[str]) -> list[str]:
    """The names of a video's frames among the pictures of a folder, in the order given.

    Args:
        names: of the pictures.

    Raises:
        ValueError: they are several series; the message is a phrase that names them.
    """
    # By what precedes the number. Numbers before the last one, as of a scene, do not make another series.
    series: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    heads = list[str]()
    for name in names:
        parts = NUMBERED.fullmatch(name)
        heads.append(re.sub(r"\d+", "N", parts[1]) if parts else name)
        if parts:
            series[heads[-1]].append((parts[1], parts[3], parts[2]))
    letters = {head: re.sub(r"[\W_]", "", head).lower() for head in series}
    made = _MADE.union(*(pair for pair in _PAIRS if pair.issubset(letters.values())))
    left_out = {head for head in series if letters[head] in made}
    if len(left_out) == len(series):
        left_out = set()
    several = [head for head in series if head not in left_out and len(series[head]) > 1]
    kinds = [f"{head}N{series[head][0][1]}" for head in several]
    if len(several) == 1:  # the same numbers twice, as img_1.jpg and img_1.png
        members = series[several[0]]
        if len({(head, int(number)) for head, _, number in members}) < len(members):
            kinds = [f"{several[0]}N{tail}" for tail in dict.fromkeys(tail for _, tail, _ in members)]
    if len(kinds) > 1:
        raise ValueError(
            "its pictures are not the frames 1, 2, 3, ... of one video, by their names "
            f"({' and '.join(sorted(kinds)[:4])}); keep one series in the folder"
        )
    if several:
        return [name for name, head in zip(names, heads, strict=True) if head == several[0]]
    return [name for name, head in zip(names, heads, strict=True) if head not in left_out]
