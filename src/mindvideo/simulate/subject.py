"""A simulated brain, from the features of a film to BOLD, and people who vary it.

Features -> receptive fields and tuned units -> saturating neural response ->
double-gamma HRFs -> gain, drift and noise. Like visual cortex it has retinotopy,
distributed non-linear semantic tuning, smoothness, and realistic reliability.

`SimulatedSubject.create` draws a brain, `SimulatedSubject.draw_person` a person who varies it.

Legend: T feature samples (three a second), K feature columns, N volumes, n vertices.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import gamma

from mindvideo.simulate import tuning
from mindvideo.simulate.cortex import Sheet, warp
from mindvideo.simulate.drives import Drive
from mindvideo.simulate.film_features import BLOCKS, FEATURE_HZ, N_FEATURES, SEMANTIC, film_features
from mindvideo.simulate.noise import RHYTHMS_HZ, draw_drift, draw_noise, network_loadings
from mindvideo.simulate.scenes import make_film

HRF_S = 24.0
LEAD_S = 24.0
"""How long a film's first picture is held before it starts, for the response to settle."""
CALIBRATION_S = 240.0
PERCENT_CHANGE = 0.01
"""Standard deviation of noise plus signal relative to a vertex's mean intensity."""
PREFERENCE = 2.0
"""Weight of an area's general preference, as for animals or built places."""
ATTENTION = 0.15
"""Fluctuation of the response's gain, slowly within a run and between runs."""

WARP_MM = 2.5
"""Root mean square distance (mm, on the sphere) of a person's maps from the shared brain's."""
PERSON_HRF_S, PERSON_ODDS, PERSON_RHYTHM = 0.3, 0.35, 0.12
"""Spread over people of HRF peak (s), log odds of signal to noise, and log rates of the body."""


def double_gamma(t_s: np.ndarray, peak_s: float) -> np.ndarray:
    """Double-gamma response ``t_s`` seconds after an event (Glover 1999, NeuroImage 9).

    Its peak is 1 at ``peak_s``, and an undershoot of a sixth follows ten seconds later.
    """
    width = 0.9
    main = gamma.pdf(t_s, peak_s / width + 1, scale=width)
    late = gamma.pdf(t_s, (peak_s + 10) / width + 1, scale=width)
    main = main / gamma.pdf(peak_s, peak_s / width + 1, scale=width)
    late = late / gamma.pdf(peak_s + 10, (peak_s + 10) / width + 1, scale=width)
    return main - late / 6


def _blur(neural: np.ndarray) -> np.ndarray:
    """A neural response (T, m) after a typical HRF, once settled: (T - settling, m)."""
    kernel = double_gamma((np.arange(round(HRF_S * FEATURE_HZ)) + 0.5) / FEATURE_HZ, 5.5)[:, None]
    return fftconvolve(neural, kernel.astype(np.float32), mode="valid", axes=0)


class SimulatedSubject:
    """One simulated brain. Make it with `create`.

    Attributes
    ----------
    vertex : ndarray, int32 (n,)
        Cortical positions.
    source : ndarray, int32 (n,)
        Positions in the shared brain from which the vertices take their tuning.
    area : ndarray, str (n,)
        Area of ``source``, without the hemisphere.
    kind : ndarray, str (n,)
        Strongest drive: contrast, colour, motion, object, place, or fluctuation for vertices that ignore the film.
    is_informative : ndarray, bool (n,)
    reliability : ndarray, float32 (n,)
        Expected correlation between two runs without drift, at noise 1; zero where uninformative.
    hrf_peak_s : ndarray, float32 (n,)
    """

    def __init__(self, vertex: np.ndarray, sheet: Sheet) -> None:
        n = len(vertex)
        self.vertex = vertex
        self.sheet = sheet
        self.source = vertex
        self.area = tuning.areas_of(vertex)
        self.is_informative = np.isin(self.area, list(tuning.AREA_TUNING))
        self.kind = np.full(n, tuning.UNTUNED, dtype="<U12")
        self.reliability = np.zeros(n, np.float32)
        self.hrf_peak_s = np.full(n, 5.5, np.float32)
        self.baseline = np.full(n, 10000.0, np.float32)
        self.loadings = np.zeros((1, n), np.float32)
        self.rhythms_hz = RHYTHMS_HZ
        self.calibration = np.zeros((0, N_FEATURES), np.float32)
        self._drives: list[Drive] = []
        self._mean = np.zeros(n, np.float32)
        self._scale = np.ones(n, np.float32)

    @classmethod
    def create(
        cls, rng: np.random.Generator, vertex: np.ndarray, calibration: np.ndarray | None = None
    ) -> SimulatedSubject:
        """Draw a brain of ascending cortical positions, int (n,).

        On the film with the features ``calibration`` (T, K) every vertex gets unit
        variance; by default it is drawn.
        """
        vertex = np.asarray(vertex, dtype=np.int32)
        subject = cls(vertex, Sheet(vertex))
        subject._draw_physiology(rng)
        subject._draw_tuning(rng)
        if calibration is None:
            calibration = film_features(make_film(rng, CALIBRATION_S))
        for drive in subject._drives:
            drive.calibrate(calibration)
        subject.calibration = calibration
        subject._standardise()
        return subject

    def draw_person(self, rng: np.random.Generator) -> SimulatedSubject:
        """Draw a person who shares this brain's units, and in part how they are mixed onto the cortex.

        A vertex has the area, receptive field and mixing of a place `WARP_MM` away in
        this brain, and a mixing of its own (`drives.SHARED`). Signal to noise, HRFs,
        networks and rhythms are drawn anew.
        """
        person = SimulatedSubject(self.vertex, self.sheet)
        source = warp(rng, self.vertex, WARP_MM)
        person.source = self.vertex[source]
        person.area, person.kind = self.area[source], self.kind[source]
        person.is_informative = self.is_informative[source]
        later, odds, breath, pulse = rng.standard_normal(4)
        person._draw_physiology(rng, PERSON_HRF_S * later, PERSON_ODDS * odds)
        breathing_hz, pulse_hz = RHYTHMS_HZ * np.exp(PERSON_RHYTHM * np.array([breath, pulse]))
        person.rhythms_hz = float(breathing_hz), float(pulse_hz)
        person._drives = [drive.depart(source, self.sheet, rng, self.calibration, _blur) for drive in self._drives]
        person.calibration = self.calibration
        person._standardise()
        return person

    def _standardise(self) -> None:
        times = np.arange(10.0, len(self.calibration) / FEATURE_HZ, 1.0)
        bold = self.respond(self.calibration, times)
        chosen = self.is_informative
        self._mean[chosen] = bold[:, chosen].mean(axis=0)
        self._scale[chosen] = 1 / (bold[:, chosen].std(axis=0) + 1e-6)

    def _draw_physiology(self, rng: np.random.Generator, later_s: float = 0.0, log_odds: float = 0.0) -> None:
        """HRF peaks, mean intensity, fluctuations and reliability, smooth along the cortex."""
        peaks = 5.5 + later_s + 0.45 * self.sheet.fields(rng, 1, 6)[:, 0]
        self.hrf_peak_s = np.round(peaks.clip(4.5, 6.5), 1).astype(np.float32)
        self.baseline = (10000 * np.exp(0.15 * self.sheet.fields(rng, 1, 6)[:, 0])).astype(np.float32)
        self.loadings = network_loadings(self.sheet, self.vertex, rng)
        typical = np.array([tuning.AREA_TUNING[a].reliability if a in tuning.AREA_TUNING else 0 for a in self.area])
        odds = typical / (1 - typical) * np.exp(log_odds + 0.6 * self.sheet.fields(rng, 1, 4)[:, 0])
        self.reliability = (odds / (1 + odds)).astype(np.float32)

    def _draw_tuning(self, rng: np.random.Generator) -> None:
        mixture = np.zeros((len(self.vertex), len(tuning.KINDS)), np.float32)
        variation = np.exp(0.5 * self.sheet.fields(rng, len(tuning.KINDS), 4))
        for name, area in tuning.AREA_TUNING.items():
            members = self.area == name
            for kind, strength in area.drives.items():
                column = tuning.KINDS.index(kind)
                mixture[members, column] = strength * variation[members, column]
        informative = self.is_informative
        self.kind[informative] = np.array(tuning.KINDS)[mixture[informative].argmax(axis=1)]
        table = tuning.embed_attributes(rng)
        for column, kind in enumerate(tuning.KINDS):
            members = np.flatnonzero(mixture[:, column] > 0)
            if len(members):
                self._drives.append(self._make_drive(kind, members, mixture[members, column], table, rng))

    def _make_drive(
        self, kind: str, members: np.ndarray, strength: np.ndarray, table: np.ndarray, rng: np.random.Generator
    ) -> Drive:
        vertex = self.vertex[members]
        retinotopic = {
            "contrast": (tuning.contrast_weights, slice(BLOCKS["fine"].start, BLOCKS["luminance"].stop)),
            "colour": (tuning.colour_weights, BLOCKS["opponent"]),
            "motion": (tuning.motion_weights, BLOCKS["flow"]),
        }
        if kind in retinotopic:
            weigh, columns = retinotopic[kind]
            return Drive(kind, members, strength, weigh(self.sheet, rng, members, vertex), columns)
        units = tuning.conjunction_units(rng, table, kind)
        mixing = self.sheet.fields(rng, tuning.N_UNITS[kind], 6)[members].T
        weights = np.sign(mixing) * np.abs(mixing) ** 1.5
        prefers = np.stack([tuning.preference_row(tuning.AREA_TUNING[a].prefers) for a in self.area[members]], axis=1)
        return Drive(kind, members, strength, weights, SEMANTIC, units, PREFERENCE * prefers)

    def neural(self, features: np.ndarray) -> np.ndarray:
        """Neural response of the informative vertices, float32 (T, informative)."""
        place = np.cumsum(self.is_informative) - 1
        response = np.zeros((len(features), int(self.is_informative.sum())), np.float32)
        for drive in self._drives:
            response[:, place[drive.members]] += drive(features)
        return response

    def strengths(self) -> np.ndarray:
        """Strength of each kind of drive (`tuning.KINDS`) at every vertex, float32 (n, 5)."""
        strengths = np.zeros((len(self.vertex), len(tuning.KINDS)), np.float32)
        for drive in self._drives:
            strengths[drive.members, tuning.KINDS.index(drive.kind)] = drive.strength
        return strengths

    def _haemodynamics(self, neural: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """Convolve with each vertex's HRF: (T, m) sampled from time 0 -> (N, m) at ``times_s``."""
        delay = times_s[:, None] - (np.arange(len(neural)) + 0.5)[None] / FEATURE_HZ
        is_near = (delay > 0) & (delay < HRF_S)
        bold = np.empty((len(times_s), neural.shape[1]), np.float32)
        peaks = self.hrf_peak_s[self.is_informative]
        for peak in np.unique(peaks):
            kernel = np.zeros(delay.shape, np.float32)
            kernel[is_near] = double_gamma(delay[is_near], float(peak)) / FEATURE_HZ
            chosen = peaks == peak
            bold[:, chosen] = kernel @ neural[:, chosen]
        return bold

    def respond(self, features: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """Noiseless BOLD to a film's features (T, K), float32 (N, n), which all runs share.

        Volumes are acquired at ``times_s`` (N,), in film time; the first picture stands
        still before, the screen is blank after.
        """
        still = features[:1].copy()
        still[:, BLOCKS["flow"]] = 0
        after_s = max(0.0, float(times_s[-1]) - len(features) / FEATURE_HZ) + 1
        blank = np.zeros((round(after_s * FEATURE_HZ), N_FEATURES), np.float32)
        n_lead = round(LEAD_S * FEATURE_HZ)
        neural = self.neural(np.concatenate([still, features, blank]))
        neural = np.concatenate([np.repeat(neural[:1], n_lead, axis=0), neural[1:]])
        bold = np.zeros((len(times_s), len(self.vertex)), np.float32)
        informative = self.is_informative
        response = self._haemodynamics(neural, np.asarray(times_s) + LEAD_S)
        bold[:, informative] = (response - self._mean[informative]) * self._scale[informative]
        return bold

    def record(self, response: np.ndarray, tr_s: float, rng: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """One run: the response with gain, attention, noise and drift, float32 (N, n)."""
        n_volumes = len(response)
        slow = np.convolve(rng.standard_normal(n_volumes + 14), np.full(15, 15**-0.5), mode="valid")
        gain = 1 + ATTENTION * slow.clip(-2, 2) + ATTENTION * rng.standard_normal()
        regional = (1 + 0.1 * self.sheet.fields(rng, 1, 8)[:, 0]) * np.sqrt(self.reliability)
        run = draw_noise(self.sheet, self.loadings, n_volumes, tr_s, rng, self.rhythms_hz)
        run *= np.float32(noise) * np.sqrt(1 - self.reliability)
        run += response * gain[:, None].astype(np.float32) * regional
        run += draw_drift(self.sheet, n_volumes, rng)
        level = self.baseline * np.float32(1 + 0.02 * rng.standard_normal())
        run *= np.float32(PERCENT_CHANGE)
        run += 1
        run *= level
        return run
