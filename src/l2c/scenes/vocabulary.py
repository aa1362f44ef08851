"""The words of the prompts, and what they mean in a picture."""

from __future__ import annotations

IMAGE_SIZE = 64
"""Height and width of a picture in pixels."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.88, 0.90),
    "orange": (28.0, 0.95, 1.00),
    "yellow": (54.0, 0.88, 0.97),
    "green": (125.0, 0.78, 0.70),
    "cyan": (184.0, 0.80, 0.88),
    "blue": (226.0, 0.84, 0.90),
    "purple": (274.0, 0.66, 0.76),
    "pink": (326.0, 0.58, 0.98),
}
"""Colours of objects: hue in degrees, saturation and value in [0, 1]."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
"""Shapes of objects; `shapes.signed_distance` draws them in this order."""

SIZES: dict[str, tuple[float, float]] = {
    "small": (6.9, 8.1),
    "medium": (9.6, 11.0),
    "large": (13.0, 14.6),
}
"""Least and largest radius of an object in pixels; see `shapes.signed_distance` for what a radius is."""

BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.93, 0.93, 0.92),
    "grey": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
    "beige": (0.85, 0.77, 0.63),
}
"""Colours of backgrounds, RGB in [0, 1]."""

RELATIONS = ("above", "below", "left of", "right of")
"""Where the first of two objects is, seen from the second."""

BETWEEN = "between"
"""The first of three objects is between the other two."""

COUNTS = ("a", "two", "three")
"""How many objects of one kind there are: 1, 2 or 3."""


def plural(shape: str) -> str:
    """The word for several objects of a shape: `cross` gives `crosses`."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def words() -> list[str]:
    """Every word that a prompt may hold, the comma among them, in a fixed order."""
    relations = sorted({word for relation in RELATIONS for word in relation.split()})
    return [
        *COUNTS,
        "an",
        *SIZES,
        *COLOURS,
        *SHAPES,
        *(plural(shape) for shape in SHAPES),
        *relations,
        BETWEEN,
        "and",
        ",",
        "on",
        *BACKGROUNDS,
        "background",
    ]
