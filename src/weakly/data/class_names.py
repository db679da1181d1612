"""The names of VOC's and COCO's classes, and what CLIP is told they are (spec fma-wsss section 8.2).

A text encoder knows "bird" as an animal and as more; "bird avian" leaves one meaning. The names given to CLIP follow
CLIP-ES, spelling included ("sknowboard" is part of the protocol), and any of them can be overridden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from weakly.errors import UserError

_VOC_TEXT = {
    "aeroplane": "aeroplane",
    "bicycle": "bicycle",
    "bird": "bird avian",
    "boat": "boat",
    "bottle": "bottle",
    "bus": "bus",
    "car": "car",
    "cat": "cat",
    "chair": "chair seat",
    "cow": "cow",
    "diningtable": "diningtable",
    "dog": "dog",
    "horse": "horse",
    "motorbike": "motorbike",
    "person": "person with clothes,people,human",
    "pottedplant": "pottedplant",
    "sheep": "sheep",
    "sofa": "sofa",
    "train": "train",
    "tvmonitor": "tvmonitor screen",
}

_COCO_TEXT = {
    "person": "person with clothes,people,human",
    "bicycle": "bicycle",
    "car": "car",
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "bus": "bus",
    "train": "train",
    "truck": "truck",
    "boat": "boat",
    "traffic light": "traffic light",
    "fire hydrant": "fire hydrant",
    "stop sign": "stop sign",
    "parking meter": "parking meter",
    "bench": "bench",
    "bird": "bird avian",
    "cat": "cat",
    "dog": "dog",
    "horse": "horse",
    "sheep": "sheep",
    "cow": "cow",
    "elephant": "elephant",
    "bear": "bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack,bag",
    "umbrella": "umbrella,parasol",
    "handbag": "handbag,purse",
    "tie": "necktie",
    "suitcase": "suitcase",
    "frisbee": "frisbee",
    "skis": "skis",
    "snowboard": "sknowboard",
    "sports ball": "sports ball",
    "kite": "kite",
    "baseball bat": "baseball bat",
    "baseball glove": "glove",
    "skateboard": "skateboard",
    "surfboard": "surfboard",
    "tennis racket": "tennis racket",
    "bottle": "bottle",
    "wine glass": "wine glass",
    "cup": "cup",
    "fork": "fork",
    "knife": "knife",
    "spoon": "dessertspoon",
    "bowl": "bowl",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich",
    "orange": "orange",
    "broccoli": "broccoli",
    "carrot": "carrot",
    "hot dog": "hot dog",
    "pizza": "pizza",
    "donut": "donut",
    "cake": "cake",
    "chair": "chair seat",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "bed": "bed",
    "dining table": "diningtable",
    "toilet": "toilet",
    "tv": "tvmonitor screen",
    "laptop": "laptop",
    "mouse": "mouse",
    "remote": "remote control",
    "keyboard": "keyboard",
    "cell phone": "cell phone",
    "microwave": "microwave",
    "oven": "oven",
    "toaster": "toaster",
    "sink": "sink",
    "refrigerator": "refrigerator",
    "book": "book",
    "clock": "clock",
    "vase": "vase",
    "scissors": "scissors",
    "teddy bear": "teddy bear",
    "hair drier": "hairdrier,blowdrier",
    "toothbrush": "toothbrush",
}

VOC_NAMES: tuple[str, ...] = tuple(_VOC_TEXT)
"""VOC's own 20 names; class ``k`` of the label maps is ``VOC_NAMES[k - 1]``."""

COCO_NAMES: tuple[str, ...] = tuple(_COCO_TEXT)
"""COCO's own 80 names in order of their category ids; class ``k`` of 81-class label maps is ``COCO_NAMES[k - 1]``."""

BACKGROUND_WORDS: tuple[str, ...] = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway"),
    *("railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley"),
    *("bridge", "sign"),
)
"""The 25 words of VOC's background; COCO's 23 are those that name none of its classes."""


def clip_names(names: Iterable[str], override: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What CLIP is told each class is.

    Args:
        names: class names of a dataset, in order. If all of them are VOC's, or all are COCO's, their published texts
            are taken, else the names themselves with spaces for underscores.
        override: {class name: text}, which wins.

    Raises:
        UserError: an overridden name is none of ``names``.
    """
    names, override = tuple(names), dict(override or {})
    for name in override:
        if name not in names:
            raise UserError(f"The text of class {name!r} is overridden, but there is no such class{hint(name, names)}.")
    known = next((texts for texts in (_VOC_TEXT, _COCO_TEXT) if set(names) <= set(texts)), {})
    texts = {name: known.get(name, name.replace("_", " ")) for name in names} | override
    return tuple(texts[name] for name in names)


def background_words(names: Iterable[str], override: Iterable[str] | None = None) -> tuple[str, ...]:
    """Words for what is no class: :data:`BACKGROUND_WORDS` without those that are a word of a class name.

    25 for VOC; 23 for COCO, which has the classes "keyboard" and "stop sign" (spec fma-wsss section 8.2).

    Args:
        names: class names of the dataset.
        override: the words to take instead.
    """
    if override is not None:
        return tuple(override)
    taken = {word for name in names for word in name.casefold().replace("_", " ").split()}
    return tuple(word for word in BACKGROUND_WORDS if word not in taken)


def hint(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'cat'?"`` for a name that resembles a known one, else nothing. Case does not count."""
    folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
