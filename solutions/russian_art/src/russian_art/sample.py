"""Generated pictures in the official layout, so that everything can be tried without the official ones.

    write_sample(Path("sample"), images=300)             # a few seconds

A medium decides how a picture is made (brush strokes, pen on paper, a shaded figure, tiles, an etched plate), a genre
what is in it (a horizon, a head, a vase, a building); 17 of the pairs are labels. The names are Cyrillic, the genres
stand under several media, one label ends in a space, and the files differ in format, as in the official data.

The pictures look like nothing that was ever painted: scores on them say that the program works, nothing else.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from kit_core.atomic import atomic_dir
from kit_core.errors import ConfigError
from kit_io.tables import write_csv
from russian_art.data import LABEL_COLUMNS, SUBMISSION_COLUMNS

SIDE = 192  # pixels of the longer side
STROKES = 900  # of an oil painting
TEST_SHARE = 5  # every fifth picture is for the test
MEDIA: dict[str, tuple[str, ...]] = {
    "Живопись": ("Пейзаж", "Портрет", "Натюрморт", "Архитектурный вид"),
    "Графика": ("Пейзаж", "Портрет", "Натюрморт"),
    "Скульптура": ("Портрет", "Натюрморт", "Архитектурный вид"),
    "ДПИ": ("Мозаика ", "Роспись", "Пейзаж"),
    "Гравюра": ("Пейзаж", "Портрет", "Натюрморт", "Архитектурный вид"),
}
LABEL_NAMES = tuple(f"{medium}/{genre}" for medium, genres in MEDIA.items() for genre in genres)
FEWEST_IMAGES = TEST_SHARE * len(LABEL_NAMES)  # then every label has four pictures for training and one for the test
SUFFIXES = ("jpg", "jpg", "jpg", "jpg", "jpg", "webp", "jpeg", "png", "gif", "JPG")

Color = tuple[int, int, int]
Random = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """What was written: pictures for training and for test, and labels."""

    out: Path
    train: int
    test: int
    labels: int

    def __str__(self) -> str:
        return f"{self.out}: {self.train} pictures for training and {self.test} for test, of {self.labels} labels"


def write_sample(out: Path, images: int = 300, seed: int = 0) -> Sample:
    """Writes `images` pictures, a fifth of them as test, in the official layout into the new folder `out`.

    Beside the official files lies test.csv, the truth that a competition would hide. The same seed and the same version
    of Pillow give the same files.

    Raises:
        ConfigError: `out` exists and is not empty, or `images` is below five for each label.
    """
    if images < FEWEST_IMAGES:
        raise ConfigError(f"images: found {images}, expected at least {FEWEST_IMAGES}, five for each label")
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    with atomic_dir(out) as folder:
        for split in rows:
            (folder / split).mkdir()
        for number in range(images):
            # Round after round over the labels: every fifth round is for the test, and each label has its share.
            label_id, turn = number % len(LABEL_NAMES), number // len(LABEL_NAMES)
            split = "test" if turn % TEST_SHARE == TEST_SHARE - 1 else "train"
            rng = np.random.default_rng([seed, number])
            suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))]
            content = _encoded(paint(LABEL_NAMES[label_id], rng), suffix)
            name = f"{hashlib.sha256(f'{seed} {number}'.encode()).hexdigest()[:32]}.{suffix}"
            (folder / split / name).write_bytes(content)
            rows[split].append((name, str(label_id)))
        names = [(name, str(label_id)) for label_id, name in enumerate(LABEL_NAMES)]
        write_csv(folder / "label_to_id.csv", LABEL_COLUMNS, names, delimiter="\t")
        for split, found in rows.items():
            by_label = sorted(found, key=lambda row: int(row[1]))  # as the official table
            write_csv(folder / f"{split}.csv", SUBMISSION_COLUMNS, by_label, delimiter="\t")
    return Sample(Path(out), len(rows["train"]), len(rows["test"]), len(LABEL_NAMES))


def paint(label: str, rng: Random) -> Image.Image:
    """A picture of a label of `LABEL_NAMES`, RGB, its longer side 192 pixels."""
    medium, _, genre = label.partition("/")
    width, height = (SIDE, int(SIDE * rng.uniform(0.7, 1))) if rng.random() < 0.6 else (int(SIDE * 0.75), SIDE)
    subject = _subject(genre.strip(), width, height, rng)
    return _MEDIA[medium](subject, rng)


def _encoded(picture: Image.Image, suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == "gif":
        picture.quantize(64).save(stream, "GIF")
    elif suffix in ("png", "webp"):
        picture.save(stream, suffix.upper())
    else:
        picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Genres: flat shapes


def _subject(genre: str, width: int, height: int, rng: Random) -> Image.Image:
    image = Image.new("RGB", (width, height), _tint(rng, (225, 215, 195)))
    _GENRES[genre](ImageDraw.Draw(image), width, height, rng)
    return image


def _landscape(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    horizon = h * rng.uniform(0.45, 0.7)
    draw.rectangle((0, 0, w, horizon), fill=_tint(rng, (150, 190, 230)))
    draw.rectangle((0, horizon, w, h), fill=_tint(rng, (105, 140, 70)))
    x, r = w * rng.uniform(0.2, 0.8), w * rng.uniform(0.05, 0.1)
    draw.ellipse((x - r, h * 0.15 - r, x + r, h * 0.15 + r), fill=_tint(rng, (250, 225, 130)))
    for _ in range(int(rng.integers(2, 6))):
        x, size = w * rng.random(), h * rng.uniform(0.12, 0.3)
        draw.polygon(
            [(x - size / 3, horizon + 4), (x, horizon - size), (x + size / 3, horizon + 4)],
            fill=_tint(rng, (45, 90, 50)),
        )


def _portrait(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    draw.rectangle((0, 0, w, h), fill=_tint(rng, (95, 75, 65)))
    x, y, r = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.33, 0.42), h * rng.uniform(0.16, 0.22)
    draw.ellipse((x - 2.2 * r, y + r, x + 2.2 * r, y + 6 * r), fill=_tint(rng, (60, 50, 110)))
    draw.ellipse((x - 0.95 * r, y - 1.35 * r, x + 0.95 * r, y + 0.6 * r), fill=_tint(rng, (60, 40, 25)))
    draw.ellipse((x - 0.75 * r, y - r, x + 0.75 * r, y + r), fill=_tint(rng, (235, 195, 165)))
    for side in (-1, 1):
        eye = x + side * 0.3 * r
        draw.ellipse((eye - 0.1 * r, y - 0.25 * r, eye + 0.1 * r, y - 0.05 * r), fill=(30, 25, 25))
    draw.line((x - 0.25 * r, y + 0.5 * r, x + 0.25 * r, y + 0.5 * r), fill=(150, 60, 60), width=2)


def _still_life(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    draw.rectangle((0, 0, w, h), fill=_tint(rng, (130, 120, 110)))
    table = h * rng.uniform(0.68, 0.78)
    draw.rectangle((0, table, w, h), fill=_tint(rng, (130, 85, 50)))
    x, size = w * rng.uniform(0.3, 0.6), h * rng.uniform(0.35, 0.5)
    draw.rectangle((x - size / 8, table - size, x + size / 8, table - size / 2), fill=_tint(rng, (70, 110, 160)))
    draw.ellipse((x - size / 3, table - 0.7 * size, x + size / 3, table + 6), fill=_tint(rng, (70, 110, 160)))
    for _ in range(int(rng.integers(3, 6))):
        x, r = w * rng.uniform(0.1, 0.9), h * rng.uniform(0.05, 0.09)
        color: Color = ((210, 60, 45), (230, 160, 40), (140, 170, 50))[int(rng.integers(3))]
        draw.ellipse((x - r, table + 8 - 2 * r, x + r, table + 8), fill=_tint(rng, color))


def _building(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    draw.rectangle((0, 0, w, h), fill=_tint(rng, (190, 205, 225)))
    left, right, top = w * rng.uniform(0.08, 0.2), w * rng.uniform(0.8, 0.92), h * rng.uniform(0.32, 0.45)
    draw.polygon(
        [(left - 6, top), ((left + right) / 2, top - h * 0.22), (right + 6, top)], fill=_tint(rng, (120, 60, 50))
    )
    draw.rectangle((left, top, right, h), fill=_tint(rng, (225, 205, 160)))
    columns = int(rng.integers(4, 7))
    step = (right - left) / columns
    for column in range(columns):
        for row in range(3):
            x, y = left + (column + 0.3) * step, top + (row + 0.25) * (h - top) / 3
            draw.rectangle((x, y, x + 0.4 * step, y + (h - top) / 6), fill=_tint(rng, (60, 65, 80)))


def _tiles(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    colors = [_tint(rng, color) for color in ((200, 150, 50), (40, 80, 140), (160, 40, 40))]
    for y in range(0, h, 40):
        for x in range(0, w, 40):
            draw.rectangle((x, y, x + 40, y + 40), fill=colors[(x // 40 + y // 40) % 3])
            draw.ellipse((x + 8, y + 8, x + 32, y + 32), fill=colors[(x // 40 + y // 40 + 1) % 3])


def _flowers(draw: ImageDraw.ImageDraw, w: int, h: int, rng: Random) -> None:
    draw.rectangle((0, 0, w, h), fill=_tint(rng, (25, 20, 20)))
    for _ in range(int(rng.integers(5, 9))):
        x, y, r = w * rng.random(), h * rng.random(), h * rng.uniform(0.06, 0.12)
        petal = _tint(rng, (205, 35, 35))
        for angle in np.arange(6) * np.pi / 3:
            a, b = x + r * np.cos(angle), y + r * np.sin(angle)
            draw.ellipse((a - r / 1.6, b - r / 1.6, a + r / 1.6, b + r / 1.6), fill=petal)
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=_tint(rng, (235, 190, 60)))


_GENRES: dict[str, Callable[[ImageDraw.ImageDraw, int, int, Random], None]] = {
    "Пейзаж": _landscape,
    "Портрет": _portrait,
    "Натюрморт": _still_life,
    "Архитектурный вид": _building,
    "Мозаика": _tiles,
    "Роспись": _flowers,
}


# ---------------------------------------------------------------------------------------------------------------------
# Media: what they make of the shapes


def _oil(subject: Image.Image, rng: Random) -> Image.Image:
    """Short strokes in the colours of the subject."""
    w, h = subject.size
    canvas = subject.filter(ImageFilter.GaussianBlur(2))
    draw = ImageDraw.Draw(canvas)
    x, y, angle = rng.integers(0, w, STROKES), rng.integers(0, h, STROKES), rng.uniform(0, np.pi, STROKES)
    dx, dy = 6 * np.cos(angle), 6 * np.sin(angle)
    colors = np.asarray(subject, dtype=np.int64)[y, x] + rng.integers(-18, 19, (STROKES, 3))  # each a little off
    strokes = np.stack([x - dx, y - dy, x + dx, y + dy], axis=1)
    for stroke, color in zip(strokes.tolist(), np.clip(colors, 0, 255).tolist(), strict=True):
        draw.line(stroke, fill=tuple(color), width=4)
    return canvas


def _pen(subject: Image.Image, rng: Random) -> Image.Image:
    """Dark outlines on paper."""
    edges = np.asarray(subject.convert("L").filter(ImageFilter.FIND_EDGES), dtype=np.float64)
    edges[[0, -1]] = edges[:, [0, -1]] = 0  # the filter leaves the border as it was
    return _ink_on_paper(np.clip(edges * 6, 0, 255) / 255, rng, paper=(240, 232, 215), ink=(45, 40, 50))


def _plate(subject: Image.Image, rng: Random) -> Image.Image:
    """Parallel lines, the closer to black the darker the subject."""
    gray = np.asarray(ImageOps.autocontrast(subject.convert("L")), dtype=np.float64) / 255
    rows, columns = np.indices(gray.shape)
    lines = 0.5 + 0.5 * np.sin((rows + rng.choice([-0.5, 0.5]) * columns) * 2 * np.pi / 5)
    return _ink_on_paper((lines > gray).astype(np.float64), rng, paper=(225, 220, 205), ink=(20, 20, 25))


def _stone(subject: Image.Image, rng: Random) -> Image.Image:
    """A gray relief, lit from one side, before a dark wall."""
    relief = subject.convert("L").filter(ImageFilter.GaussianBlur(2)).filter(ImageFilter.EMBOSS)
    light = np.asarray(relief, dtype=np.float64)[..., None] + rng.normal(0, 6, (subject.height, subject.width, 1))
    return Image.fromarray(np.clip(light * [1.2, 1.17, 1.1], 0, 255).astype(np.uint8))


def _applied(subject: Image.Image, rng: Random) -> Image.Image:
    """Small shining squares of pure colours."""
    w, h = subject.size
    cell = int(rng.integers(5, 8))
    coarse = subject.resize((w // cell, h // cell), Image.Resampling.BOX)
    vivid = np.clip(
        (np.asarray(coarse, dtype=np.float64) - 128) * 1.6 + 128 + rng.normal(0, 14, (h // cell, w // cell, 1)), 0, 255
    )
    tiled = np.asarray(Image.fromarray(vivid.astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST)).copy()
    tiled[::cell] = tiled[:, ::cell] = (40, 35, 30)  # joints
    return Image.fromarray(tiled)


def _ink_on_paper(amount: npt.NDArray[np.float64], rng: Random, *, paper: Color, ink: Color) -> Image.Image:
    """Mixes two colours, `amount` [height, width] being the share of ink."""
    tone = np.array(_tint(rng, paper, 10), dtype=np.float64)
    mixed = tone + amount[..., None] * (np.array(ink) - tone)
    return Image.fromarray(np.clip(mixed + rng.normal(0, 3, mixed.shape), 0, 255).astype(np.uint8))


_MEDIA: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "Живопись": _oil,
    "Графика": _pen,
    "Скульптура": _stone,
    "ДПИ": _applied,
    "Гравюра": _plate,
}


def _tint(rng: Random, color: Color, spread: int = 25) -> Color:
    """The colour, a little off."""
    red, green, blue = np.clip(np.array(color) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue
