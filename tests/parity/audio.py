"""What librosa hears of one signal, for worker/engine/tests/parity/audio.rs.

    python -m venv venv && venv/bin/pip install librosa
    venv/bin/python tests/parity/audio.py

The signal is a formula, so that nothing but figures has to be stored: a rising tone, a steady one, and silence at the end.
"""

import json
import pathlib

import librosa
import numpy as np

RATE, SIDE = 8000, 24


def signal(rate):
    t = np.arange(rate) / rate
    rising = 0.5 * np.sin(2 * np.pi * (200 * t + 600 * t * t))
    steady = 0.05 * np.sin(2 * np.pi * 2345 * t)
    return ((rising + steady) * (t < 0.8)).astype(np.float32)


def picture(y, scale, level, low, high, decibels):
    hop = RATE // SIDE
    window = max(2 * hop, round(0.025 * RATE))
    bands = {"n_mels": SIDE, "fmin": low, "fmax": high, "htk": scale == "htk"}
    if scale == "htk":
        bands["norm"] = None
    n_fft = 1024
    # The middle of frame i is at (i + 1/2) hop.
    start = (len(y) - hop * SIDE) // 2
    y = np.pad(y[start : start + hop * SIDE].astype(np.float64), (n_fft // 2 - hop // 2, n_fft))
    power = librosa.feature.melspectrogram(
        y=y, sr=RATE, n_fft=n_fft, win_length=window, hop_length=hop, center=False, power=2.0, dtype=np.float64, **bands
    )[:, :SIDE]
    ref = np.max if level == "peak" else 1.0
    db = librosa.power_to_db(power, ref=ref, amin=1e-10, top_db=None)
    return np.maximum(1.0 + db / decibels, 0.0)


def main():
    y = signal(RATE)
    cases = []
    for scale, level, low, high, decibels in [
        ("slaney", "peak", 0, 4000, 100),
        ("htk", "peak", 60, 3800, 80),
        ("slaney", "absolute", 20, 4000, 100),
    ]:
        values = picture(y, scale, level, low, high, decibels)
        said = {"scale": scale, "level": level, "low": low, "high": high, "range": decibels, "rate": RATE}
        cases.append({"params": said, "picture": [round(v, 6) for v in values.ravel().tolist()]})
    out = {"side": SIDE, "cases": cases}
    path = pathlib.Path(__file__).parent / "audio.json"
    path.write_text(json.dumps(out) + "\n")


main()
