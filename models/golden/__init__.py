"""Golden sets: questions about images with an answer and the range of answers that counts as right.

>>> from models.golden import load_golden
>>> golden = load_golden("easy-vqa")
>>> golden.items[0].check("Triangle.")
True
"""

from models.golden.boxes import Boxes, iou, parse_boxes
from models.golden.load import builtin_names, load_golden
from models.golden.rules import RULES, Rule, normalize
from models.golden.sets import GoldenItem, GoldenSet, ImageRef
from models.golden.structured import find_object, is_abstention

__all__ = [
    "RULES",
    "Boxes",
    "GoldenItem",
    "GoldenSet",
    "ImageRef",
    "Rule",
    "builtin_names",
    "find_object",
    "iou",
    "is_abstention",
    "load_golden",
    "normalize",
    "parse_boxes",
]
