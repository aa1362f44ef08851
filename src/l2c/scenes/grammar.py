"""Scenes, the prompts that describe them, and which of them training never sees."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass

from l2c.errors import ConfigError
from l2c.scenes.vocabulary import BACKGROUNDS, BETWEEN, COLOURS, COUNTS, RELATIONS, SHAPES, SIZES, plural

HELD_OUT_PERCENT = 10

_KINDS = {"one": 0.22, "count": 0.16, "pair": 0.40, "and": 0.07, "list": 0.07, "between": 0.08}


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        colour: One of `COLOURS`.
        shape: One of `SHAPES`.
        size: One of `SIZES`, or None if the prompt leaves it open.
    """

    colour: str
    shape: str
    size: str | None = None

    def phrase(self, count: int = 1) -> str:
        """`a large red circle`, or `two large red circles` for a count of two."""
        size = [] if self.size is None else [self.size]
        noun = self.shape if count == 1 else plural(self.shape)
        article = "an" if count == 1 and (self.size or self.colour)[0] in "aeiou" else COUNTS[count - 1]
        return " ".join([article, *size, self.colour, noun])


@dataclass(frozen=True)
class Scene:
    """What a prompt says: one to three objects, how they lie and on what.

    Attributes:
        objects: In the order of the prompt; equal ones (two red circles) are repeated.
        background: One of `BACKGROUNDS`.
        relation: One of `RELATIONS` for two objects, `BETWEEN` for three, or None if places are left open.
    """

    objects: tuple[SceneObject, ...]
    background: str
    relation: str | None = None

    def prompt(self) -> str:
        """The scene in words.

        Example:
            >>> circle, square = SceneObject("red", "circle", "large"), SceneObject("blue", "square")
            >>> Scene((circle, square), "grey", "above").prompt()
            'a large red circle above a blue square on a grey background'
            >>> Scene((square, square), "white").prompt()
            'two blue squares on a white background'
        """
        first, *rest = self.objects
        if rest and len(set(self.objects)) == 1:
            text = first.phrase(len(self.objects))
        elif self.relation == BETWEEN:
            text = f"{first.phrase()} {BETWEEN} {rest[0].phrase()} and {rest[1].phrase()}"
        elif self.relation is not None:
            text = f"{first.phrase()} {self.relation} {rest[0].phrase()}"
        else:
            *before, last = [item.phrase() for item in self.objects]
            text = f"{', '.join(before)} and {last}" if before else last
        return f"{text} on a {self.background} background"

    @property
    def combination(self) -> str:
        """What the split into training and held-out prompts goes by.

        Colours and shapes of the objects in any order where kinds differ; count, size, colour and shape where
        there is one kind.
        """
        if len(set(self.objects)) == 1:
            return self.objects[0].phrase(len(self.objects))
        return " + ".join(sorted(f"{item.colour} {item.shape}" for item in self.objects))

    @property
    def held_out(self) -> bool:
        """Whether training never sees the scene's combination; decided by a hash of it, for ten in a hundred."""
        digest = hashlib.sha256(self.combination.encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def random_scene(generator: random.Random, held_out: bool | None = False) -> Scene:
    """Draws a scene.

    Args:
        generator: Where randomness comes from.
        held_out: Draw from the held-out combinations (True), from those of training (False) or from all (None).
    """
    while True:
        scene = _any_scene(generator)
        if held_out is None or scene.held_out == held_out:
            return scene


def random_scenes(seed: int, num_scenes: int, held_out: bool | None = False) -> list[Scene]:
    """Draws scenes; the same for the same seed.

    Example:
        >>> [scene.prompt() for scene in random_scenes(0, 1, held_out=True)] == [
        ...     scene.prompt() for scene in random_scenes(0, 2, held_out=True)[:1]
        ... ]
        True
    """
    generator = random.Random(seed)
    return [random_scene(generator, held_out) for _ in range(num_scenes)]


def parse_prompt(prompt: str) -> Scene:
    """The scene that a prompt describes; the inverse of `Scene.prompt`.

    Raises:
        ConfigError: The prompt is not one of the grammar.

    Example:
        >>> parse_prompt("a red ring left of a small green cross on a beige background").relation
        'left of'
    """
    text = " ".join(prompt.lower().replace(",", " , ").split())
    body, _, ground = text.partition(" on a ")
    background, _, rest = ground.partition(" ")
    if background not in BACKGROUNDS or rest != "background":
        raise _unreadable(prompt, f"it must end in 'on a {'/'.join(BACKGROUNDS)} background'")
    relation: str | None = None
    phrases = [part for piece in body.split(" , ") for part in piece.split(" and ")]
    for word in (*RELATIONS, BETWEEN):
        first, found, others = body.partition(f" {word} ")
        if found:
            relation, phrases = word, [first, *others.split(" and ")]
    objects = [item for phrase in phrases for item in _parse_phrase(phrase, prompt)]
    needed = {None: (1, 2, 3), BETWEEN: (3,)}.get(relation, (2,))
    if len(objects) not in needed or (relation and len(phrases) != len(objects)):
        raise _unreadable(
            prompt, f"it has {len(objects)} objects where {' to '.join(map(str, needed))} are possible"
        )
    return Scene(tuple(objects), background, relation)


def _any_scene(generator: random.Random) -> Scene:
    kind = generator.choices(list(_KINDS), list(_KINDS.values()))[0]
    background = generator.choice(list(BACKGROUNDS))
    if kind == "one":
        return Scene((_random_object(generator),), background)
    if kind == "count":
        num_objects = generator.choice((2, 3))
        return Scene((_random_object(generator, num_objects),) * num_objects, background)
    num_objects = 3 if kind in ("list", "between") else 2
    while True:
        objects = tuple(_random_object(generator, num_objects) for _ in range(num_objects))
        # Two objects of one colour and shape would leave open which is meant.
        if max(Counter((item.colour, item.shape) for item in objects).values()) == 1:
            break
    relation = {"pair": generator.choice(RELATIONS), "between": BETWEEN}.get(kind)
    return Scene(objects, background, relation)


def _random_object(generator: random.Random, num_objects: int = 1) -> SceneObject:
    sizes = list(SIZES) if num_objects < 3 else list(SIZES)[:2]  # three large ones find no room
    size = generator.choice(sizes) if generator.random() < 0.6 else None
    return SceneObject(generator.choice(list(COLOURS)), generator.choice(SHAPES), size)


def _parse_phrase(phrase: str, prompt: str) -> list[SceneObject]:
    singular = {plural(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
    article, *rest = phrase.split() or [""]
    article = "a" if article == "an" else article
    size = rest.pop(0) if rest and rest[0] in SIZES else None
    if article not in COUNTS or len(rest) != 2 or rest[0] not in COLOURS or rest[1] not in singular:
        raise _unreadable(prompt, f"{phrase!r} is not a count, a size or none, a colour and a shape")
    count = COUNTS.index(article) + 1
    return [SceneObject(rest[0], singular[rest[1]], size)] * count


def _unreadable(prompt: str, why: str) -> ConfigError:
    return ConfigError(f"the prompt {prompt!r} is not one of a scene: {why}; see l2c.scenes.Scene.prompt")
