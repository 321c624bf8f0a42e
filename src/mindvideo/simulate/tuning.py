"""What the vertices of a simulated brain are tuned to, as weights of features.

Tuning is distributed: a vertex of the ventral stream is a smooth mixture of many
rectified units, each tuned to a conjunction of attributes (a thing in a colour, a thing
in a place …).

Legend: n vertices, K feature columns, C channels, G cells along one side of the visual field, U units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindvideo import atlas
from mindvideo.simulate.cortex import Sheet, retinotopy
from mindvideo.simulate.film_features import (
    ATTRIBUTES,
    BLOCKS,
    EXEMPLAR_WIDTH,
    EXEMPLARS,
    GRIDS,
    N_DIRECTIONS,
    N_FEATURES,
    N_ORIENTATIONS,
    SEMANTIC,
    cell_centres,
)

KINDS = ("contrast", "colour", "motion", "object", "place")
UNTUNED = "fluctuation"


@dataclass(frozen=True)
class AreaTuning:
    """An area's drives, receptive fields (half frame widths) and typical between-run r."""

    drives: dict[str, float]
    rf_size: float
    rf_slope: float
    reliability: float
    prefers: str = ""


AREA_TUNING: dict[str, AreaTuning] = {
    "V1": AreaTuning({"contrast": 1.0, "colour": 0.5}, 0.07, 0.07, 0.28),
    "V2": AreaTuning({"contrast": 1.0, "colour": 0.5}, 0.09, 0.12, 0.28),
    "V3": AreaTuning({"contrast": 1.0, "colour": 0.3, "motion": 0.3}, 0.12, 0.18, 0.26),
    "V4": AreaTuning({"colour": 1.0, "contrast": 0.4, "object": 0.4}, 0.16, 0.30, 0.25),
    "V3A": AreaTuning({"motion": 0.8, "contrast": 0.7}, 0.20, 0.30, 0.20),
    "V3B": AreaTuning({"contrast": 0.8, "motion": 0.5, "object": 0.3}, 0.20, 0.30, 0.18),
    "V3CD": AreaTuning({"contrast": 0.8, "motion": 0.5, "object": 0.4}, 0.20, 0.30, 0.18),
    "V6": AreaTuning({"motion": 1.0}, 0.30, 0.40, 0.17, "flow"),
    "V6A": AreaTuning({"motion": 0.8, "place": 0.5}, 0.40, 0.40, 0.12, "flow"),
    "V7": AreaTuning({"contrast": 0.6, "motion": 0.6, "object": 0.3}, 0.30, 0.40, 0.12),
    "IPS1": AreaTuning({"motion": 0.6, "object": 0.6, "contrast": 0.4}, 0.35, 0.40, 0.12),
    "V8": AreaTuning({"colour": 1.0, "object": 0.7}, 0.25, 0.35, 0.23),
    "VVC": AreaTuning({"object": 1.0, "place": 0.6, "colour": 0.3}, 0.35, 0.40, 0.22),
    "PIT": AreaTuning({"object": 1.0, "colour": 0.4, "contrast": 0.3}, 0.30, 0.35, 0.25),
    "FFC": AreaTuning({"object": 1.0}, 0.40, 0.40, 0.24, "animate"),
    **{f"VMV{i}": AreaTuning({"place": 1.0, "contrast": 0.3, "colour": 0.2}, 0.40, 0.50, 0.22) for i in (1, 2, 3)},
    **{f"PHA{i}": AreaTuning({"place": 1.0, "contrast": 0.2}, 0.50, 0.50, 0.20, "built") for i in (1, 2, 3)},
    "LO1": AreaTuning({"contrast": 0.8, "object": 0.8}, 0.22, 0.30, 0.23),
    "LO2": AreaTuning({"object": 1.0, "contrast": 0.6}, 0.25, 0.35, 0.24),
    "LO3": AreaTuning({"object": 1.0, "motion": 0.4}, 0.30, 0.35, 0.22),
    "V4t": AreaTuning({"motion": 1.0, "object": 0.6}, 0.25, 0.40, 0.23, "animate"),
    "MT": AreaTuning({"motion": 1.0, "contrast": 0.2}, 0.22, 0.45, 0.27),
    "MST": AreaTuning({"motion": 1.0}, 0.50, 0.50, 0.22, "flow"),
    "FST": AreaTuning({"motion": 0.9, "object": 0.7}, 0.45, 0.45, 0.20, "animate"),
    "PH": AreaTuning({"object": 1.0, "place": 0.6}, 0.45, 0.45, 0.19),
}
"""Every area that answers to films; all others only share slow fluctuations."""

_GROUPS = {
    "person": ("person",),
    "animal": ("dog", "cat", "horse", "bird", "fish", "butterfly"),
    "vehicle": ("car", "boat", "plane"),
    "object": ("ball", "flower"),
}
_PREFERENCE = {
    "animate": {"person": 1.0} | dict.fromkeys(_GROUPS["animal"], 0.7),
    "built": {"city": 1.0, "night street": 0.8, "room": 0.9, "forest": 0.2, "beach": 0.1},
}
_UNIT_FACTORS = {
    "object": {"thing": 1.0, "colour": 0.75, "place": 0.45, "motion": 0.45, "size": 0.3, "speed": 0.15},
    "place": {"place": 1.0, "light": 0.6, "thing": 0.35, "camera": 0.35, "colour": 0.2, "size": 0.2},
}
N_UNITS = {"object": 192, "place": 128}
EXEMPLAR = 0.5
"""How far exemplars lie from their category, relative to the spread of the categories."""


def _rows(block: str) -> slice:
    """A block's place among the semantic columns."""
    return slice(BLOCKS[block].start - SEMANTIC.start, BLOCKS[block].stop - SEMANTIC.start)


def areas_of(vertex: np.ndarray) -> np.ndarray:
    """Bare area name of each vertex, str (n,)."""
    names = np.array([name[2:] for name in atlas.area_names()])
    return names[atlas.area_labels()[vertex]]


def _field_sizes(vertex: np.ndarray, area: np.ndarray) -> np.ndarray:
    tuned = [AREA_TUNING[name] for name in area]
    return np.array([each.rf_size for each in tuned]) + retinotopy()[1][vertex] * [each.rf_slope for each in tuned]


def _receptive_fields(vertex: np.ndarray, area: np.ndarray, cells: int) -> np.ndarray:
    """Gaussian receptive fields on a grid of cells, (n, G*G) float32, each with peak 1."""
    size = np.maximum(_field_sizes(vertex, area), 1 / cells)
    distance = ((retinotopy()[0][vertex][:, None] - cell_centres(cells)[None]) ** 2).sum(axis=2)
    fields = np.exp(-distance / (2 * size[:, None] ** 2)).astype(np.float32)
    fields[fields < 1e-20] = 0  # what is too small for a normal float32 makes products many times slower
    return fields


def _angles(sheet: Sheet, rng: np.random.Generator, members: np.ndarray, steps: int) -> np.ndarray:
    """A smooth map of preferred angles in [0, 2 pi) at some vertices of the sheet."""
    field = sheet.fields(rng, 2, steps)[members]
    return np.arctan2(field[:, 0], field[:, 1]) % (2 * np.pi)


def _spread(weights: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Channel weights (n, C) times receptive fields (n, G*G), (C*G*G, n)."""
    return np.einsum("nc,ng->cgn", weights, fields, optimize=True).reshape(-1, len(fields)).astype(np.float32)


def contrast_weights(sheet: Sheet, rng: np.random.Generator, members: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Weights from the blocks "fine" to "luminance", float32 (columns, m).

    ``members`` (m,) are the rows of the sheet that get them, and ``vertex`` their positions.
    """
    area = areas_of(vertex)
    orientation = _angles(sheet, rng, members, 1) / 2
    prefers = orientation[:, None] - np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS
    oriented = 0.3 + np.exp(2 * (np.cos(2 * prefers) - 1))
    octave = np.clip(np.log2(_field_sizes(vertex, area) / 0.08), 0, 2)
    parts = []
    for number, name in enumerate(("fine", "middle", "coarse")):
        at_scale = np.exp(-((octave - number) ** 2) / (2 * 0.7**2))
        n_cells = GRIDS[name][1]
        parts.append(
            _spread(oriented * (at_scale * (16 / n_cells) ** 2)[:, None], _receptive_fields(vertex, area, n_cells))
        )
    polarity = sheet.fields(rng, 1, 2)[members, 0]
    light = 0.12 * np.stack([np.maximum(polarity, 0.1), np.maximum(-polarity, 0.1)], axis=1)
    parts.append(_spread(light, _receptive_fields(vertex, area, GRIDS["luminance"][1])))
    return np.concatenate(parts)


def colour_weights(sheet: Sheet, rng: np.random.Generator, members: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Rectified smooth weights from the opponent block to vertices, float32 (768, m)."""
    channels, cells = GRIDS["opponent"]
    mixture = np.maximum(sheet.fields(rng, channels, 3)[members], 0) ** 1.5
    return _spread(mixture, _receptive_fields(vertex, areas_of(vertex), cells))


def motion_weights(sheet: Sheet, rng: np.random.Generator, members: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Weights from the flow block: a direction, or expansion, float32 (576, m)."""
    area = areas_of(vertex)
    cells = GRIDS["flow"][1]
    centres = cell_centres(cells)
    direction = _angles(sheet, rng, members, 2)
    is_flow = np.array([AREA_TUNING[a].prefers == "flow" for a in area]) & (sheet.fields(rng, 1, 3)[members, 0] > -0.3)
    radial = np.arctan2(centres[:, 1], centres[:, 0])
    preferred = np.where(
        is_flow[:, None], radial[None] + np.where(direction < np.pi, 0, np.pi)[:, None], direction[:, None]
    )
    angles = np.arange(N_DIRECTIONS) * 2 * np.pi / N_DIRECTIONS
    gain = np.exp(1.5 * (np.cos(angles[:, None, None] - preferred[None]) - 1))
    fields = _receptive_fields(vertex, area, cells)
    flicker = 0.3 * np.maximum(sheet.fields(rng, 1, 2)[members, 0] + 0.5, 0)
    weights = np.concatenate([gain * fields[None], (flicker[:, None] * fields)[None]])
    return weights.transpose(0, 2, 1).reshape(-1, len(vertex)).astype(np.float32)


def embed_attributes(rng: np.random.Generator) -> np.ndarray:
    """Random vectors for all semantic columns, float32 (columns, `EXEMPLAR_WIDTH`).

    Things of one group are alike; exemplars vary their thing, colour and place.
    """
    table = rng.standard_normal((N_FEATURES - SEMANTIC.start, EXEMPLAR_WIDTH))
    things = ATTRIBUTES["thing"]
    for members in _GROUPS.values():
        rows = [_rows("thing").start + things.index(name) for name in members]
        table[rows] = np.sqrt(0.5) * (table[rows] + rng.standard_normal(EXEMPLAR_WIDTH))
    for first, second in (("thing", "other_thing"), ("colour", "other_colour")):
        table[_rows(second)] = 0.45 * table[_rows(first)]
    for name in EXEMPLARS:
        table[_rows(name)] = EXEMPLAR * np.eye(EXEMPLAR_WIDTH)
    return table.astype(np.float32)


def conjunction_units(rng: np.random.Generator, table: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Units tuned to a few attributes at once: weights (columns, U) and thresholds (U,), float32.

    A unit is ``max(0, attributes @ weights - threshold)``; ``table`` is from `embed_attributes`.
    """
    n_units, width = N_UNITS[kind], table.shape[1]
    weights = np.zeros((len(table), n_units), np.float32)
    factors = _UNIT_FACTORS[kind]
    main = next(iter(factors))
    for name, strength in factors.items():
        is_used = (rng.random(n_units) < (0.9 if name == main else 0.5)).astype(np.float32)
        readout = rng.standard_normal((width, n_units)) / np.sqrt(width) * strength * is_used
        for block in (name, f"other_{name}", f"exemplar_{name}"):
            if block in BLOCKS:
                weights[_rows(block)] = table[_rows(block)] @ readout
    threshold = rng.uniform(0.2, 0.9, n_units).astype(np.float32)
    return weights, threshold


def preference_row(prefers: str) -> np.ndarray:
    """An area's preference for each attribute value, float32 (attributes,)."""
    row = np.zeros(N_FEATURES - SEMANTIC.start, np.float32)
    for value, liking in _PREFERENCE.get(prefers, {}).items():
        for name in ("thing", "place"):
            if value in ATTRIBUTES[name]:
                row[_rows(name).start + ATTRIBUTES[name].index(value)] = liking
    return row
